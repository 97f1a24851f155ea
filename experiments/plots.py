"""Figures from arrays: every function draws on the axes it is given and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
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
