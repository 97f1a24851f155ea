"""Figures of chapter 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from experiments.plots import ID_COLOR, INK, METHOD_COLORS, OOD_COLOR

from ..toys import along
from .forms import two_forms

RAY_STYLES = ("-", "--", "-.")  # of the directions, in their order
METHODS = {"Softmax": "msp", "Energy": "energy", "Eq. 5": "thinkback_eq5", "Eq. 6": "thinkback"}
POWERS = {0.1: "0.1", 1: "1", 10: "10", 100: "100", 1000: "1,000", 10000: "10,000"}


@two_forms(wide=(7.6, 3.4), tall=(3.9, 5.4))
def answer(
    figure: Figure,
    tall: bool,
    confidence: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    rays: Sequence[float],
) -> None:
    """A map of the network's doubt, and its confidence along some rays.

    Args:
        confidence: largest probability (N,) of points (N, 2).
        x: training points (N, 2).
        y: their classes (N,).
        rays: directions in degrees, three at most.
    """
    if tall:
        plane, line = figure.subplots(2, 1, height_ratios=(1.5, 1))
    else:
        plane, line = figure.subplots(1, 2, width_ratios=(1, 1.3))
    plot_map(confidence, x, y, plane)
    far = torch.logspace(-1, 3, 400)
    for degrees, style in zip(rays, RAY_STYLES, strict=False):
        arrow = {"arrowstyle": "-|>", "color": OOD_COLOR, "linestyle": style, "lw": 1.8}
        plane.annotate("", along(degrees, [9.5])[0], (0, 0), arrowprops=arrow)
        beside = along(degrees - 15, [8.5])[0]
        plane.text(*beside, f"{degrees}°", color=OOD_COLOR, ha="center", va="center")
        curve = confidence(along(degrees, far))
        line.plot(far, curve, style, color=OOD_COLOR, label=f"{degrees}°")
    mark_data(line, x)
    set_distances(line, 0.1, 1000)
    line.set(ylabel="largest probability", ylim=(0.34, 1.02))
    line.set_title("How sure it is on the way out")
    line.legend(loc="lower right")


def plot_map(
    confidence: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ax: Axes, reach: float = 10
) -> Axes:
    """Training points, and the zones in which the largest probability is below 99, 90, 60 %."""
    grid = torch.linspace(-reach, reach, 281).double()
    p = confidence(torch.cartesian_prod(grid, grid)).view(281, 281)
    for level in (0.99, 0.9, 0.6):
        ax.contourf(grid, grid, p.T, [0, level], colors=[INK], alpha=0.3)
    for k, mark in enumerate("os^"):
        x1, x2 = x[y == k].T
        ax.scatter(x1, x2, s=6, marker=mark, color=ID_COLOR, alpha=0.5, linewidths=0)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Where it has doubts")
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return ax


def mark_data(ax: Axes, x: Tensor, height: float = 0.02, right: float = 0.88) -> None:
    """Shade the distances at which there are training points.

    Args:
        ax: its horizontal axis is the distance from the origin.
        x: training points (N, 2).
        height: of the label, as a share of the panel.
        right: where the label ends, as a share of the largest distance.
    """
    end = float(x.norm(dim=1).max())
    ax.axvspan(0, end, color=INK, alpha=0.15, linewidth=0)
    place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "right", "va": "bottom"}
    ax.text(end * right, height, "data", **place)


def set_distances(ax: Axes, first: float, last: float) -> None:
    """A logarithmic axis of distances from the origin."""
    ax.set(xscale="log", xlim=(first, last), xlabel="distance from the origin")
    ticks = {at: text for at, text in POWERS.items() if first <= at <= last}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()


@two_forms(wide=(7.2, 3.8), tall=(3.9, 4.4))
def plot_far(
    figure: Figure, tall: bool, radii: ArrayLike, called: Mapping[str, ArrayLike], x: Tensor
) -> None:
    """Share of a circle that each score calls OOD, against the radius of the circle.

    Args:
        radii: distances from the origin (R,).
        called: title -> shares (R,) in [0, 1]; titles that are no method are drawn in gray.
        x: training points (N, 2).
    """
    ax = figure.subplots()
    grays = iter(("-.", ":", "--"))
    for title, shares in called.items():
        method = METHODS.get(title)
        style = ("--" if title == "Eq. 5" else "-") if method else next(grays)
        color = METHOD_COLORS[method] if method else INK
        ax.plot(radii, 100 * np.asarray(shares), style, color=color, label=title)
    mark_data(ax, x, height=0.7, right=0.6)
    set_distances(ax, 0.4, 1000)
    ax.set(ylabel="directions called OOD (%)", ylim=(0, 103))
    figure.legend(loc="outside upper center", ncols=2 if tall else 3)


@two_forms(wide=(7.6, 3.3), tall=(3.9, 6.4))
def plot_scores(
    figure: Figure,
    tall: bool,
    distances: Tensor,
    shares: Mapping[float, Mapping[str, ArrayLike]],
    x: Tensor,
) -> None:
    """Scores along rays, a panel each, measured by the in-distribution points that they exceed.

    Args:
        distances: from the origin (N,).
        shares: direction in degrees -> method's title -> share of in-distribution points whose
            score is lower (N,).
        x: training points (N, 2).
    """
    grid = (len(shares), 1) if tall else (1, len(shares))
    axes = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (degrees, curves) in zip(axes, shares.items(), strict=True):
        for title, curve in curves.items():
            style = "--" if title == "Eq. 5" else "-"
            color = METHOD_COLORS[METHODS[title]]
            ax.plot(distances, curve, style, color=color, linewidth=1.8, label=title)
        ax.axhline(0.95, color=INK, linewidth=0.9, linestyle=":")
        mark_data(ax, x, right=0.5)
        set_distances(ax, 0.1, 1000)
        ax.set(title=f"{degrees}°", xlabel="", ylim=(-0.02, 1.03))
        ax.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000" * tall])
    figure.supxlabel("distance from the origin", fontsize="medium")
    figure.supylabel("share of fresh points that score lower", fontsize="medium")
    columns = 2 if tall else 4
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns)


@two_forms(wide=(7.2, 4.0), tall=(3.9, 4.2))
def plot_decay(
    figure: Figure,
    tall: bool,
    distances: Tensor,
    curves: Mapping[float, Mapping[str, Tensor]],
    turns: Sequence[float],
    x: Tensor,
) -> None:
    """Thinkback along rays, relative to its threshold, in powers of ten.

    Args:
        distances: from the origin (N,).
        curves: direction in degrees -> equation -> log10 of score over threshold (N,).
        turns: for each direction, the distance beyond which the exponential decides.
        x: training points (N, 2).
    """
    ax = figure.subplots()
    for i, (degrees, both) in enumerate(curves.items()):
        color = (ID_COLOR, OOD_COLOR, INK)[i]
        for title, curve in both.items():
            ax.plot(distances, curve, "--" if title == "Eq. 5" else "-", color=color, linewidth=1.7)
        ax.axvline(turns[i], color=color, linewidth=0.9, linestyle=":")
        level = 3 * i - 13
        end = max(float(distances[curve > level].max()) for curve in both.values())
        place: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points"}
        ax.annotate(f"{degrees}°", (end, level), color=color, weight="bold", **place)
    ax.axhline(0, color=INK, linewidth=0.9, linestyle=":")
    said = "called OOD\nabove this line" if tall else "called OOD above this line"
    ax.text(9e3, 0.25, said, ha="right", va="bottom")
    ax.plot([], [], "-", color=INK, label="Eq. 6")
    ax.plot([], [], "--", color=INK, label="Eq. 5")
    set_distances(ax, 0.1, 10000)
    mark_data(ax, x, right=0.7)
    ax.set(ylim=(-15, 4), ylabel="$\\log_{10}$ (score / threshold)")
    figure.legend(loc="outside upper center", ncols=2)
