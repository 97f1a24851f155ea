"""Figures of chapter 12, beyond the diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from experiments import plots

from .forms import two_forms

OWN = plots.METHOD_COLORS["thinkback_averaged"]


@two_forms(wide=(7.6, 4.3), tall=(3.9, 6.4))
def answer(
    figure: Figure, tall: bool, standing: pd.DataFrame, named: Sequence[str], own: str
) -> None:
    """Far and near AUROC of some scores, a row each.

    Args:
        standing: rows by score with ``title``, ``far`` and ``near`` in [0, 1], best first.
        named: the scores to show, in any order.
        own: the one in color.
    """
    rows = standing[standing.index.isin(named)][::-1]
    ax = figure.subplots()
    for y, (name, row) in enumerate(rows.iterrows()):
        color = OWN if name == own else plots.METHOD_COLORS.get(str(name), plots.INK)
        ax.plot([row["near"], row["far"]], [y, y], color=color, linewidth=1.2, alpha=0.6)
        ax.plot(row["far"], y, "o", color=color, markersize=8)
        ax.plot(row["near"], y, "D", color=color, markersize=6.5, markerfacecolor="none")
    ax.set_yticks([] if tall else range(len(rows)), [] if tall else rows["title"])
    for y, (name, title) in enumerate(rows["title"].items()):
        look: dict[str, Any] = {"color": OWN, "fontweight": "bold"} if name == own else {}
        if tall:
            place = ax.get_yaxis_transform()
            ax.text(0.01, y + 0.27, title, transform=place, fontsize=10, **look)
        else:
            ax.get_yticklabels()[y].set(**look)
    ax.plot([], [], "o", color=plots.INK, label="far sets: other pictures")
    ax.plot([], [], "D", color=plots.INK, markerfacecolor="none", label="near set: CIFAR-100")
    ax.xaxis.set_major_locator(MaxNLocator(5 if tall else 8, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    label = "mean AUROC (%)" if tall else "AUROC (%), mean over networks"
    ax.set(xlabel=label, ylim=(-0.6, len(rows) - (-0.1 if tall else 0.4)))
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


@two_forms(wide=(6.6, 3.5), tall=(3.9, 6.6))
def plot_sphere(
    figure: Figure, tall: bool, features: ArrayLike, labels: ArrayLike, new: ArrayLike
) -> None:
    """Features of two inputs as they are, and their directions on the unit circle.

    Args:
        features: (N, 2), in distribution.
        labels: class of each, (N,).
        new: (M, 2), out of distribution.
    """
    h, other, y = np.asarray(features), np.asarray(new), np.asarray(labels)
    left, right = figure.subplots(*_panels(tall))
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
    left.set_title("Features as they are")
    right.set_title("Directions")
    left.plot([], [], "o", color=plots.ID_COLOR, label="training classes")
    left.plot([], [], "x", color=plots.OOD_COLOR, label="new")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)


@two_forms(wide=(6.4, 2.4), tall=(3.9, 2.6))
def plot_factors(figure: Figure, tall: bool, auroc: Mapping[str, tuple[float, float]]) -> None:
    """What each factor separates alone, as bars from chance.

    Args:
        auroc: of each factor its AUROC and the half-width of its interval, in [0, 1].
    """
    ax = figure.subplots()
    for y, (value, half) in enumerate(auroc.values()):
        color = plots.OOD_COLOR if value < 0.5 else plots.ID_COLOR
        ax.barh(y, value - 0.5, left=0.5, xerr=half, color=color, height=0.6, ecolor=plots.INK)
    ax.set_yticks(range(len(auroc)), list(auroc))
    ax.axvline(0.5, color=plots.INK)
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    ax.set_xlabel("mean AUROC (%) of this factor alone")
    ax.set_ylim(len(auroc) - 0.5, -0.5)


@two_forms(wide=(6.8, 3.6), tall=(3.9, 6.2))
def plot_prediction(figure: Figure, tall: bool, candidates: pd.DataFrame) -> None:
    """Development against suite: a point for each candidate, far sets and near set apart.

    Args:
        candidates: columns ``far``, ``near``, ``suite_far``, ``suite_near`` in [0, 1], ``unit``.
    """
    titles = {"far": "Far sets", "near": "Near set"}
    for ax, half in zip(figure.subplots(*_panels(tall)), titles, strict=True):
        for unit, color, label in ((False, plots.INK, "as they are"), (True, OWN, "directions")):
            own = candidates[candidates["unit"] == unit]
            x, y = 100 * own[half], 100 * own[f"suite_{half}"]
            ax.plot(x, y, "o", color=color, ms=3, alpha=0.5, mew=0, label=label, rasterized=True)
        ax.set(xlabel="development AUROC (%)", ylabel="suite AUROC (%)", title=titles[half])
    handles = ax.get_legend_handles_labels()
    look: dict[str, Any] = {"ncols": 2, "title": "features", "markerscale": 2}
    key = figure.legend(*handles, loc="outside upper center", **look)
    for mark in filter(None, key.legend_handles):
        mark.set_alpha(1)  # the points are faint, since there are many


def _panels(tall: bool) -> tuple[int, int]:
    """Rows and columns of two panels: one above the other on a narrow screen."""
    return (2, 1) if tall else (1, 2)


def _unit(h: np.ndarray) -> np.ndarray:
    made: np.ndarray = h / np.linalg.norm(h, axis=1, keepdims=True)
    return made
