"""Figures of chapter 5, the closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from experiments import plots

from .forms import two_forms

COLORS = (plots.ID_COLOR, plots.OOD_COLOR)


@two_forms(wide=(7.6, 2.9), tall=(3.9, 5.0))
def answer(
    figure: Figure,
    tall: bool,
    scores: Mapping[str, ArrayLike],
    seconds: Mapping[str, float],
    ood: NDArray[np.bool_],
) -> None:
    """One score by two ways, and the time that each takes.

    Args:
        scores: of two ways, the formula first: (N,) each.
        seconds: the same for the time of one image.
        ood: which images are outliers, (N,).
    """
    left, right = figure.subplots(2, 1, height_ratios=(3, 1.3)) if tall else figure.subplots(1, 2)
    formula, backward = (np.asarray(values) for values in scores.values())
    ends = [formula.min() / 2, formula.max() * 2]
    left.plot(ends, ends, color=plots.INK, linewidth=0.8, linestyle=":")
    for label, color, mine in (("CIFAR-10", COLORS[0], ~ood), ("SVHN", COLORS[1], ood)):
        left.scatter(formula[mine], backward[mine], 12, color, label=label, alpha=0.7, linewidths=0)
    left.set(xscale="log", yscale="log", title="The same score")
    first, second = scores
    left.set(xlabel=f"score by the {first}", ylabel=f"by {second}")
    left.legend(loc="upper left", handletextpad=0)
    names, times = list(seconds)[::-1], [1e6 * time for time in seconds.values()][::-1]
    right.barh(names, times, 0.55, color=(plots.INK, plots.METHOD_COLORS["thinkback"]))
    for row, time in enumerate(times):
        right.text(time, row, f" {time:.2g} µs" if time < 10 else f" {time:,.0f} µs", va="center")
    right.set(xlim=(0, 1.45 * max(times)), xlabel="time per image (µs)", title="The time it takes")
    right.locator_params(axis="x", nbins=4)
    right.set_yticks(range(len(names)), names)


@two_forms(wide=(6.0, 2.6), tall=(3.9, 2.6))
def plot_outer(figure: Figure, tall: bool, p: ArrayLike, r: ArrayLike, h: ArrayLike) -> None:
    """The gradient r h^T of one image as a table of numbers, with r and h at its edges.

    Args:
        p: probabilities (K,), the decision first.
        r: residual (K,).
        h: features (D,).
    """
    p, r, h = (np.asarray(values) for values in (p, r, h))
    ax, gradient = figure.subplots(), np.outer(r, h)
    top = abs(gradient).max()
    for k, row in enumerate(gradient):
        ax.text(-1.6, -k, f"class {k}:  p = {p[k]:g}", ha="right", va="center")
        ax.text(-0.9, -k, f"r = {r[k]:+.1f}".replace("-", "−"), ha="center", va="center")
        for d, value in enumerate(row):
            place, width = (d - 0.5, -k - 0.5), 0.8 * abs(value) / top
            ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=plots.INK, linewidth=0.6))
            bar, color = (d - width / 2, -k - 0.36), plots.OTHER_COLORS[0 if value < 0 else 1]
            ax.add_patch(Rectangle(bar, width, 0.14, color=color, linewidth=0))
            ax.text(d, -k + 0.12, f"{value:+.1f}".replace("-", "−"), ha="center", va="center")
    for d, value in enumerate(h):
        ax.text(d, 0.75, f"h = {value:g}", ha="center", va="center")
    ax.set(xlim=(-3.6, len(h) - 0.4), ylim=(0.4 - len(r), 1.1))
    ax.axis("off")


@two_forms(wide=(6.4, 4.4), tall=(3.9, 4.4))
def plot_map(
    figure: Figure,
    tall: bool,
    residual2: Mapping[str, ArrayLike],
    norm2: Mapping[str, ArrayLike],
) -> None:
    """Squared residual over squared feature length, with lines of equal product."""
    ax = plots.plot_iso_scores(residual2, norm2, ax=figure.subplots())
    for cloud in ax.collections:
        cloud.set(sizes=[14], alpha=0.6)
    arrow = {"arrowstyle": "->", "color": plots.INK}
    place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center"}
    ax.annotate("higher score", (0.30, 0.78), (0.16, 0.52), arrowprops=arrow, **place)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    key = ax.get_legend_handles_labels()
    if own := ax.get_legend():
        own.remove()
    figure.legend(*key, loc="outside upper center", ncols=2, handletextpad=0)


@two_forms(wide=(6.4, 3.8), tall=(3.9, 4.4))
def plot_trap(
    figure: Figure, tall: bool, margins: Sequence[float], errors: Mapping[str, Sequence[float]]
) -> None:
    """Relative errors of the residual over the logit margin; an exact one stands at the bottom."""
    ax, tones = figure.subplots(), plots.OTHER_COLORS[:3]
    for (name, wrong), tone in zip(errors.items(), tones, strict=True):
        ax.plot(margins, np.maximum(wrong, 1e-17), color=tone, linewidth=1.5, label=name)
    ax.axhline(1, color=plots.INK, linewidth=0.8, linestyle=":")
    ax.text(margins[-1], 1.6, "no digit is right", ha="right", va="bottom")
    ax.set(xlabel="logit margin $m$ of an answer with two classes")
    ax.set(yscale="log", ylim=(3e-18, 60), ylabel="relative error of $r$")
    figure.legend(loc="outside upper center", ncols=1 if tall else 3)
