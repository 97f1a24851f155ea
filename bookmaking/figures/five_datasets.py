"""Figures of chapter 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments.evaluation import ID_TEST, SET_TITLES
from experiments.plots import INK, METHOD_COLORS, plot_iso_scores
from thinkback_utils import scores
from thinkback_utils.features import Features

from .forms import two_forms

if TYPE_CHECKING:
    import pandas as pd

ROWS = {  # of the answer figure, from top to bottom
    "msp": "Softmax",
    "energy": "Energy",
    "thinkback": "Thinkback (A):\nlast layer",
    "reading_E": "Thinkback (E):\nlast convolution",
    "thinkback_averaged": "Thinkback,\naveraged",
}
MARKERS = "osD^v"  # of the kinds of networks, in their order


@two_forms(wide=(7.6, 3.4), tall=(3.9, 4.8))
def answer(
    figure: Figure, tall: bool, aurocs: pd.DataFrame, paper: Sequence[Mapping[str, Any]]
) -> None:
    """The mean AUROC of each score: a filled mark a network, a ring what the paper printed.

    Args:
        aurocs: in percent, a row a score and a column a network; other training seeds of one are
            named after it, as "WRN-40-2, seed 1", and have its mark.
        paper: records of the paper's table.
    """
    ax = figure.subplots()
    names = [name for name in ROWS if name in aurocs.index] or list(ROWS)[:3]
    kinds = [str(network).partition(",")[0] for network in aurocs.columns]
    markers = dict(zip(dict.fromkeys(kinds), MARKERS, strict=False))
    printed = {row["method"]: 100 * row["auroc"] for row in paper if row["set"] == "mean"}
    for y, name in enumerate(names):
        color = METHOD_COLORS.get(name, METHOD_COLORS["thinkback"])
        if name in printed:
            ax.plot(printed[name], y, "o", color=color, mfc="none", markersize=10)
        for network, kind in zip(aurocs.columns, kinds, strict=True):
            value = aurocs.loc[name, network]
            ax.plot(value, y, markers[kind], color=color, markersize=7, alpha=0.75)
    ax.set(
        ylim=(len(names) - 0.5, -0.75 if tall else -0.5),
        xlabel="mean AUROC over the far sets (%), right is better",
    )
    ax.grid(axis="x")
    _name_rows(ax, [ROWS[name] for name in names], above=tall)
    keys = [
        Line2D([], [], linestyle="", marker=marker, color=INK, label=_counted(kind, kinds))
        for kind, marker in markers.items()
    ]
    ring: dict[str, Any] = {"marker": "o", "mfc": "none", "markersize": 10}
    keys.append(Line2D([], [], linestyle="", color=INK, label="printed in the paper", **ring))
    figure.legend(handles=keys, loc="outside upper center", ncols=2 if tall else 4)


def _counted(kind: str, kinds: Sequence[str]) -> str:
    """The kind of network, and how often it was trained if more than once."""
    count = kinds.count(kind)
    return f"{kind} ({count} seeds)" if count > 1 else kind


def _name_rows(ax: Axes, titles: Sequence[str], above: bool) -> None:
    """Names of rows at the left of the axis, or over each row at its left end."""
    if not above:
        ax.set_yticks(range(len(titles)), titles)
        ax.tick_params(axis="y", length=0)
        return
    ax.set_yticks([])
    ax.set_xlabel(str(ax.get_xlabel()).replace(", ", ",\n"))
    for y, title in enumerate(titles):
        place = ax.get_yaxis_transform()
        ax.text(0.01, y - 0.24, title.replace("\n", " "), transform=place, va="bottom", fontsize=10)


@two_forms(wide=(6.4, 4.4), tall=(3.9, 4.4))
def plot_clouds(
    figure: Figure,
    tall: bool,
    features: Mapping[str, Features],
    names: Sequence[str],
    temperature: float = 5.0,
    count: int = 1000,
) -> None:
    """Squared length of the residual against that of the features, a dot an image.

    Args:
        features: by set.
        names: OOD sets to be drawn beside CIFAR-10's test images.
        temperature: T > 0 of the residual.
        count: images of a set, from its first one on.
    """
    residual2, norm2 = {}, {}
    for name in (ID_TEST, *names):
        title = SET_TITLES.get(name, "CIFAR-10 test")
        item = features[name]
        residual2[title] = scores.residual(item.logits[:count], temperature).square().sum(1)
        norm2[title] = item.features[:count].double().square().sum(1)
    ax = plot_iso_scores(residual2, norm2, ax=figure.subplots())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3) if tall else (1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    named = ax.get_legend_handles_labels()
    if legend := ax.get_legend():
        legend.remove()
    figure.legend(*named, loc="outside upper center", ncols=2, markerscale=3)
