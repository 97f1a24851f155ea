"""Figures from arrays: every function draws on the axes it is given and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

STYLE = Path(__file__).with_name("book.mplstyle")
for _file in Path(__file__).with_name("fonts").glob("*.ttf"):
    font_manager.fontManager.addfont(_file)

# Mid-tones, readable on white and on near-black. The book's site shows each a little darker or
# lighter, as its theme needs (bookmaking/palette.py). A colour means one thing in all chapters.
INK = "#7c7f86"
PAPER = "#fdfdfd"  # of text on a patch in one of these colours; near-black in the dark theme
ID_COLOR = "#3d8fd1"
OOD_COLOR = "#d9622b"
METHOD_COLORS = {
    "msp": "#b08d1a",
    "energy": "#1f9e89",
    "thinkback": "#b4529c",
    "thinkback_averaged": "#7a4fc4",
    "max_logit": "#7d8f2e",
    "gradnorm": "#96603a",
    "thinkback_eq5": "#d0709f",
}
OTHER_COLORS = ("#c9505a", "#2f9fb8", "#6f7f9f", "#8a6f9e")  # for what is neither method nor set


def use_style() -> None:
    """Switch matplotlib to the book's style and notebooks to vector graphics."""
    plt.style.use(STYLE)
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def plot_iso_scores(
    residual2: Mapping[str, ArrayLike],
    norm2: Mapping[str, ArrayLike],
    *,
    levels: int = 9,
    ax: Axes | None = None,
) -> Axes:
    """Clouds of squared feature norm and squared residual per set, over lines of equal product."""
    ax = ax or plt.subplots(figsize=(6.4, 4.4))[1]
    colors = (ID_COLOR, OOD_COLOR, *OTHER_COLORS)
    for (name, y), color in zip(residual2.items(), colors, strict=False):
        style: dict[str, Any] = {"s": 5, "alpha": 0.35, "linewidths": 0, "color": color}
        ax.scatter(np.asarray(norm2[name]), np.asarray(y), label=name, **style)
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel=r"squared feature norm $\|h\|^2$", ylabel=r"squared residual $\|r\|^2$")
    x, y_range = np.array(ax.get_xlim()), ax.get_ylim()
    for score in np.geomspace(x[0] * y_range[0], x[1] * y_range[1], levels + 2)[1:-1]:
        ax.plot(x, score / x, color=INK, linewidth=0.7, linestyle=":", scalex=False, scaley=False)
    ax.set(xlim=tuple(x), ylim=y_range)
    ax.legend(markerscale=3, loc="lower left")
    return ax


def plot_training(
    loss: Sequence[float], accuracy: Sequence[float], *, ax: Axes | None = None
) -> Axes:
    """Training loss (left scale) and accuracy (right scale) by epoch."""
    ax = ax or plt.subplots()[1]
    epochs = np.arange(1, len(loss) + 1)
    ax.plot(epochs, loss, color=OOD_COLOR, marker="o", markersize=3)
    ax.set(xlabel="epoch", ylabel="mean training loss", ylim=(0, None))
    ax.yaxis.label.set_color(OOD_COLOR)
    twin = ax.twinx()
    twin.plot(epochs, accuracy, color=ID_COLOR, marker="o", markersize=3)
    twin.set(ylabel="training accuracy", ylim=(0, 1))
    twin.yaxis.label.set_color(ID_COLOR)
    twin.spines["right"].set_visible(True)
    return ax


def plot_dumbbells(
    rows: Sequence[Mapping[str, Any]],
    paper: Sequence[Mapping[str, Any]],
    metric: str,
    titles: Mapping[str, str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """The methods' values of a metric on a line per set: filled if measured, hollow if printed.

    A record with ``interval95`` gets it as a band around its dot.

    Args:
        rows: records with ``set``, ``method`` and the metric, in [0, 1].
        paper: the same for the values that the paper printed.
        metric: the field that is drawn.
        titles: of the sets to draw, from top to bottom; those without a record are left out.
    """
    ax = ax or plt.subplots()[1]
    measured, printed = ({row["set"] for row in records} for records in (rows, paper))
    names = [name for name in titles if name in measured | printed]
    both = measured & printed
    for records, filled in ((rows, True), (paper, False)):
        for i, name in enumerate(names):
            here = [row for row in records if row["set"] == name]
            if not here:
                continue
            y = -i + (0.14 if filled else -0.14) * (name in both)
            values = [100 * row[metric] for row in here]
            ax.plot([min(values), max(values)], [y, y], color=INK, linewidth=1, alpha=0.5, zorder=1)
            colors = [METHOD_COLORS[row["method"]] for row in here]
            faces = {"color": colors} if filled else {"facecolors": "none", "edgecolors": colors}
            ax.scatter(values, [y] * len(here), s=26, zorder=3, **faces)
            for row, color in zip(here, colors, strict=True):
                ends = [100 * end for end in row.get("interval95", {}).get(metric, ())]
                ax.plot(ends, [y] * len(ends), color=color, linewidth=7, alpha=0.35, zorder=2)
    ax.set_yticks([-i for i in range(len(names))], [titles[name] for name in names])
    ax.set(xlabel="%")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def legend_of_methods(ax: Axes, titles: Mapping[str, str], *, printed: bool = True) -> None:
    """A key for :func:`plot_dumbbells`: a colour per method, filled ours, hollow the paper's."""
    dot: dict[str, Any] = {"marker": "o", "linestyle": ""}
    handles = [Line2D([], [], color=METHOD_COLORS[m], label=t, **dot) for m, t in titles.items()]
    for label, face in (("measured here", INK), ("paper", "none")) if printed else ():
        handles.append(Line2D([], [], color=INK, markerfacecolor=face, label=label, **dot))
    ax.figure.legend(handles=handles, loc="outside upper center", ncols=3)
