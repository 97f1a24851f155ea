"""Figures of chapter 5, the closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from bookmaking.answer import Answer
from experiments import plots

COLORS = (plots.ID_COLOR, plots.OOD_COLOR)


def answer(
    scores: Mapping[str, ArrayLike], seconds: Mapping[str, float], ood: NDArray[np.bool_]
) -> Answer:
    """One score by two ways, and the time that each takes.

    Args:
        scores: of two ways, the formula first: (N,) each.
        seconds: the same for the time of one image.
        ood: which images are outliers, (N,).
    """
    return Answer(partial(draw_answer, scores, seconds, ood), wide=(7.6, 2.9), tall=(3.9, 5.0))


def draw_answer(
    scores: Mapping[str, ArrayLike],
    seconds: Mapping[str, float],
    ood: NDArray[np.bool_],
    figure: Figure,
    tall: bool,
) -> None:
    """The figure of :func:`answer`."""
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


def plot_outer(p: ArrayLike, r: ArrayLike, h: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """The gradient r h^T of one image as a table of numbers, with r and h at its edges.

    Args:
        p: probabilities (K,), the decision first.
        r: residual (K,).
        h: features (D,).
    """
    p, r, h = (np.asarray(values) for values in (p, r, h))
    ax = ax or plt.subplots(figsize=(6.0, 2.6))[1]
    gradient = np.outer(r, h)
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
    return ax


def plot_map(
    residual2: Mapping[str, ArrayLike], norm2: Mapping[str, ArrayLike], *, ax: Axes | None = None
) -> Axes:
    """Squared residual over squared feature length, with lines of equal product."""
    ax = plots.plot_iso_scores(residual2, norm2, ax=ax)
    for cloud in ax.collections:
        cloud.set(sizes=[14], alpha=0.6)
    arrow = {"arrowstyle": "->", "color": plots.INK}
    place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center"}
    ax.annotate("higher score", (0.30, 0.78), (0.16, 0.52), arrowprops=arrow, **place)
    ax.legend(loc="lower left", handletextpad=0)
    return ax


def plot_trap(
    margins: Sequence[float], errors: Mapping[str, Sequence[float]], *, ax: Axes | None = None
) -> Axes:
    """Relative errors of the residual over the logit margin; an exact one stands at the bottom."""
    ax = ax or plt.subplots(figsize=(6.4, 3.8))[1]
    tones = plots.OTHER_COLORS[:3]
    for (name, wrong), tone in zip(errors.items(), tones, strict=True):
        ax.plot(margins, np.maximum(wrong, 1e-17), color=tone, linewidth=1.5, label=name)
    ax.axhline(1, color=plots.INK, linewidth=0.8, linestyle=":")
    ax.text(margins[-1], 1.6, "no digit is right", ha="right", va="bottom")
    ax.set(xlabel="logit margin $m$ of an answer with two classes")
    ax.set(yscale="log", ylim=(3e-18, 60), ylabel="relative error of $r$")
    ax.legend(loc="center right")
    return ax
