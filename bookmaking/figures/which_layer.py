"""Figures of chapter 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from bookmaking.answer import Answer
from experiments.evaluation import ID_TEST, NEAR
from experiments.plots import ID_COLOR, INK, METHOD_COLORS, OOD_COLOR
from thinkback_utils.metrics import mean_auroc

from .five_datasets import MARKERS
from .forms import two_forms

if TYPE_CHECKING:
    import pandas as pd

ROWS = {  # of the answer figure, from top to bottom
    "thinkback": "A: weights of the last layer",
    "reading_C": "C: what the last layer reads",
    "reading_D": "D: the last BatchNorm",
    "reading_E": "E: the last convolution",
}
EPOCH_LINES = {  # style and name of each score in the figure of the epochs
    "msp": (":", "Softmax"),
    "energy": ("--", "Energy"),
    "thinkback_averaged": ("-", "Thinkback, averaged"),
    "thinkback": ("-", "Thinkback (A)"),
    "reading_E": ("-.", "Thinkback (E)"),
}
Rows = Mapping[str, Mapping[str, Mapping[str, ArrayLike]]]


@two_forms(wide=(7.6, 3.4), tall=(3.9, 4.8))
def answer(figure: Figure, tall: bool, aurocs: pd.DataFrame) -> None:
    """Mean AUROC of each reading minus that of Energy, a mark a network.

    Args:
        aurocs: in percent, a row a score (``energy`` among them) and a column a network.
    """
    ax = figure.subplots()
    names = [name for name in ROWS if name in aurocs.index]
    for marker, network in zip(MARKERS, aurocs.columns, strict=False):
        gains = [aurocs.loc[name, network] - aurocs.loc["energy", network] for name in names]
        color = METHOD_COLORS["thinkback"]
        ax.plot(gains, range(len(names)), marker, color=color, markersize=7)
        ax.plot([], [], marker, color=INK, label=network)
    ax.axvline(0, color=METHOD_COLORS["energy"], linewidth=1.5, zorder=0)
    ax.set(ylim=(len(names) - 0.5, -0.75))
    ax.set_xlabel("mean AUROC minus Energy's\n(points; right is better)")
    ax.text(0, -0.55, "Energy ", color=METHOD_COLORS["energy"], ha="right", va="center")
    ax.grid(axis="x")
    ax.set_yticks(range(len(names)), [ROWS[name] for name in names])
    ax.tick_params(axis="y", length=0)
    if tall:
        ax.set_yticks([])
        for y, name in enumerate(names):
            place = ax.get_yaxis_transform()
            ax.text(0.01, y - 0.2, ROWS[name], transform=place, va="bottom", fontsize=10)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.1, columnspacing=1)


def plot_rows(rows: Rows, far: Sequence[str]) -> Answer:
    """AUROC of scores on every set, a row a score: a dot a set, a diamond for the far mean.

    A dotted line at 50 % where marks lie below it.

    Args:
        rows: ``{label: {form: {set: (N,)}}}``, higher = more OOD; marks of the form ``eq5`` are
            hollow and stand above the others.
        far: the sets of the mean.
    """
    high = 1.4 + 0.52 * len(rows)
    return two_forms(wide=(6.4, high), tall=(3.9, high + 0.5))(draw_rows)(rows, far)


def draw_rows(figure: Figure, tall: bool, rows: Rows, far: Sequence[str]) -> None:
    """The figure of :func:`plot_rows`."""
    ax = figure.subplots()
    for y, forms in enumerate(rows.values()):
        for form, scores in forms.items():
            shift = 0.0 if len(forms) == 1 else -0.17 if form == "eq5" else 0.17
            _plot_row(scores, far, y + shift, form == "eq5", ax)
    if ax.get_xlim()[0] < 0.5:
        ax.axvline(0.5, color=INK, linestyle=":", linewidth=1.2, zorder=0)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="AUROC (%)", ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    ax.grid(axis="x")
    marks = (("o", OOD_COLOR, "a far set"), ("s", ID_COLOR, "CIFAR-100, near"))
    for marker, color, title in (*marks, ("D", INK, "mean of the far sets")):
        ax.plot([], [], marker, color=color, label=title)
    place: dict[str, Any] = {"handletextpad": 0.1, "columnspacing": 1}
    figure.legend(loc="outside upper center", ncols=2 if tall else 3, **place)


def _plot_row(
    scores: Mapping[str, ArrayLike], far: Sequence[str], y: float, hollow: bool, ax: Axes
) -> None:
    for name, values in scores.items():
        if name == ID_TEST:
            continue
        near = name in NEAR
        color = ID_COLOR if near else OOD_COLOR
        look: dict[str, Any] = {"color": color, "markersize": 5}
        look["mfc"] = "none" if hollow else color
        ax.plot(mean_auroc(scores[ID_TEST], [values])[0], y, "s" if near else "o", **look)
    mean, half = mean_auroc(scores[ID_TEST], [scores[name] for name in far])
    look = {"color": INK, "mfc": "none" if hollow else INK, "markersize": 8.5}
    ax.errorbar(mean, y, xerr=half, fmt="D", elinewidth=2, zorder=1, **look)


@two_forms(wide=(6.4, 3.6), tall=(3.9, 4.4))
def plot_epochs(figure: Figure, tall: bool, records: Sequence[Mapping[str, Any]]) -> None:
    """Mean AUROC against test accuracy over the saved epochs of one run, a line a score.

    Args:
        records: of ``experiments.epochs``: ``{epoch, accuracy, auroc: {score: value}}`` in [0, 1].
    """
    ax = figure.subplots()
    for score, (style, name) in EPOCH_LINES.items():
        points = sorted((100 * r["accuracy"], 100 * r["auroc"][score]) for r in records)
        color = METHOD_COLORS.get(score, METHOD_COLORS["thinkback"])
        look: dict[str, Any] = {"color": color, "marker": "o", "markersize": 3, "label": name}
        ax.plot([x for x, _ in points], [y for _, y in points], style, **look)
    ax.set(xlabel="test accuracy (%)", ylabel="mean AUROC, far sets (%)")
    figure.legend(loc="outside upper center", ncols=2 if tall else 3)
