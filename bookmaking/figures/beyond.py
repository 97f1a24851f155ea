"""Figures of chapter 12, beyond the diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from bookmaking.answer import Answer
from experiments import plots

OWN = plots.METHOD_COLORS["thinkback_averaged"]


def answer(standing: pd.DataFrame, named: Sequence[str], own: str) -> Answer:
    """Far and near AUROC of some scores, a row each.

    Args:
        standing: rows by score with ``title``, ``far`` and ``near`` in [0, 1], best first.
        named: the scores to show, in any order.
        own: the one in color.
    """
    return Answer(partial(draw_answer, standing, named, own), wide=(7.6, 4.3), tall=(3.9, 5.4))


def draw_answer(
    standing: pd.DataFrame, named: Sequence[str], own: str, figure: Figure, tall: bool
) -> None:
    """The figure of :func:`answer`."""
    rows = standing[standing.index.isin(named)][::-1]
    ax = figure.subplots()
    for y, (name, row) in enumerate(rows.iterrows()):
        color = OWN if name == own else plots.METHOD_COLORS.get(str(name), plots.INK)
        ax.plot([row["near"], row["far"]], [y, y], color=color, linewidth=1.2, alpha=0.6)
        ax.plot(row["far"], y, "o", color=color, markersize=8)
        ax.plot(row["near"], y, "D", color=color, markersize=6.5, markerfacecolor="none")
    ax.set_yticks(range(len(rows)), rows["title"])
    for tick, name in zip(ax.get_yticklabels(), rows.index, strict=True):
        if name == own:
            tick.set_color(OWN)
            tick.set_fontweight("bold")
    ax.plot([], [], "o", color=plots.INK, label="far sets: other pictures")
    ax.plot([], [], "D", color=plots.INK, markerfacecolor="none", label="near set: CIFAR-100")
    ax.xaxis.set_major_locator(MaxNLocator(5 if tall else 8, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    label = "mean AUROC (%)" if tall else "AUROC (%), mean over networks"
    ax.set(xlabel=label, ylim=(-0.6, len(rows) - 0.4))
    ax.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)


def rays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Made-up features of two inputs: three classes along rays, long; new ones short, between them.

    Returns: features (90, 2), their classes (90,), new features (20, 2).
    """
    random = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    angle = np.radians([12, 45, 78])[labels] + random.normal(0, 0.06, 90)
    length = random.uniform(3, 8, 90)
    between = np.radians(random.choice([28, 62], 20)) + random.normal(0, 0.06, 20)
    new = random.uniform(0.8, 2.5, (20, 1)) * np.stack([np.cos(between), np.sin(between)], 1)
    return length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), labels, new


def plot_sphere(
    features: ArrayLike, labels: ArrayLike, new: ArrayLike, figure: Figure | None = None
) -> Figure:
    """Features of two inputs as they are, and their directions on the unit circle.

    Args:
        features: (N, 2), in distribution.
        labels: class of each, (N,).
        new: (M, 2), out of distribution.
    """
    figure = figure or plt.figure(figsize=(6.6, 3.3))
    h, other, y = np.asarray(features), np.asarray(new), np.asarray(labels)
    left, right = figure.subplots(1, 2)
    marks = ("o", "s", "^", "v", "P", "X")
    for unit, ax in ((False, left), (True, right)):
        for k in np.unique(y):
            own = _unit(h[y == k]) if unit else h[y == k]
            color = plots.ID_COLOR
            ax.plot(*own.T, marks[int(k) % 6], color=color, markersize=4, alpha=0.55, mew=0)
        made = _unit(other) if unit else other
        ax.plot(*made.T, "x", color=plots.OOD_COLOR, markersize=6, mew=1.6)
        ax.set_aspect("equal")
        ax.axhline(0, color=plots.INK, linewidth=0.6)
        ax.axvline(0, color=plots.INK, linewidth=0.6)
        ax.set(xlabel="feature 1", ylabel="feature 2")
    circle = Ellipse((0, 0), 2, 2, fill=False, edgecolor=plots.INK, linestyle=":")
    right.add_patch(circle)
    right.set(xlim=(-0.08, 1.12), ylim=(-0.08, 1.12))
    left.set_title("features as they are")
    right.set_title("directions: all of length 1")
    left.plot([], [], "o", color=plots.ID_COLOR, label="training classes")
    left.plot([], [], "x", color=plots.OOD_COLOR, label="new")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plot_factors(auroc: Mapping[str, tuple[float, float]], *, ax: Axes | None = None) -> Axes:
    """What each factor separates alone, as bars from chance.

    Args:
        auroc: of each factor its AUROC and the half-width of its interval, in [0, 1].
    """
    ax = ax or plt.subplots(figsize=(6.4, 2.4))[1]
    for y, (value, half) in enumerate(auroc.values()):
        color = plots.OOD_COLOR if value < 0.5 else plots.ID_COLOR
        ax.barh(y, value - 0.5, left=0.5, xerr=half, color=color, height=0.6, ecolor=plots.INK)
    ax.set_yticks(range(len(auroc)), list(auroc))
    ax.axvline(0.5, color=plots.INK)
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    ax.set(xlabel="AUROC (%) of this factor alone, mean of the far sets")
    ax.set_ylim(len(auroc) - 0.5, -0.5)
    return ax


def plot_prediction(candidates: pd.DataFrame, figure: Figure | None = None) -> Figure:
    """Development against suite: a point for each candidate, far left and near right.

    Args:
        candidates: columns ``far``, ``near``, ``suite_far``, ``suite_near`` in [0, 1], ``unit``.
    """
    figure = figure or plt.figure(figsize=(6.8, 3.4))
    for ax, half in zip(figure.subplots(1, 2), ("far", "near"), strict=True):
        for unit, color, label in ((False, plots.INK, "as they are"), (True, OWN, "directions")):
            own = candidates[candidates["unit"] == unit]
            x, y = 100 * own[half], 100 * own[f"suite_{half}"]
            ax.plot(x, y, "o", color=color, ms=3, alpha=0.5, mew=0, label=label, rasterized=True)
        ax.set(xlabel="development AUROC (%)", ylabel="suite AUROC (%)", title=half)
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, title="features")
    return figure


def _unit(h: np.ndarray) -> np.ndarray:
    made: np.ndarray = h / np.linalg.norm(h, axis=1, keepdims=True)
    return made
