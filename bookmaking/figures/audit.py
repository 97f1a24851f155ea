"""Figures of the chapter "The audit"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from experiments import audit
from experiments.evaluation import SET_TITLES
from experiments.plots import INK, METHOD_COLORS, OTHER_COLORS
from thinkback_utils.methods import TITLES

from .forms import two_forms

Vector = NDArray[np.float64]
HIGH, LOW = OTHER_COLORS[:2]  # largest and smallest AUPR


@two_forms(wide=(7.6, 3.4), tall=(3.9, 4.8))
def answer(
    figure: Figure,
    tall: bool,
    rows: Mapping[str, audit.Row],
    fits: Mapping[str, tuple[float, float]],
    mixes: Mapping[str, float],
) -> None:
    """A bar for each row: the prevalences at which some ROC curve has its four numbers.

    Args:
        rows: of the printed table by title, set by set.
        fits: title of a row -> smallest and largest prevalence.
        mixes: name of a mix -> its prevalence, a dashed line; a cross marks a row without it.
    """
    ax = figure.subplots()
    sets = list(dict.fromkeys(row.test_set for row in rows.values()))
    methods = list(dict.fromkeys(row.method for row in rows.values()))
    pitch = len(methods) + 1
    for row in rows.values():
        y = -pitch * sets.index(row.test_set) - methods.index(row.method)
        low, high = fits[row.title]
        ax.barh(y, high - low, left=low, height=0.75, color=METHOD_COLORS[row.method])
        for x in mixes.values():
            if not low <= x <= high:
                ax.plot(x, y, "x", color=HIGH, markersize=5, markeredgewidth=1.6, zorder=3)
    for name, x in mixes.items():
        ax.axvline(x, color=HIGH, linestyle="--", linewidth=1.2, zorder=0)
        ax.text(x, 0.9, name, ha="center", va="bottom", color=HIGH)
    middle = (len(methods) - 1) / 2
    ax.set_yticks(
        [-pitch * i - middle for i in range(len(sets))], [SET_TITLES[name] for name in sets]
    )
    ax.tick_params(axis="y", length=0)
    label = "share of OOD images in the test"
    ax.set(
        xlabel=label if tall else f"prevalence: {label}",
        xlim=(0, 1),
        ylim=(-pitch * len(sets) + 1.4, 0.8),
    )
    handles: list[Any] = [
        Rectangle((0, 0), 1, 1, color=METHOD_COLORS[m], label=TITLES[m]) for m in methods
    ]
    cross: dict[str, Any] = {
        "marker": "x",
        "linestyle": "",
        "markersize": 5,
        "markeredgewidth": 1.6,
    }
    handles.append(Line2D([], [], color=HIGH, label="this mix is impossible", **cross))
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if tall else 4)


@two_forms(wide=(6.4, 4.0), tall=(3.9, 4.4))
def plot_boxes(figure: Figure, tall: bool, curve: audit.Printed) -> None:
    """Where a ROC curve may run that passes through two printed points.

    Also both staircases along the borders.

    Args:
        curve: the printed numbers; the AUROC is not used.
    """
    ax = figure.subplots()
    exact = replace(curve, half_width=0.0, scatter=0.0)
    boxes = exact.boxes()
    for t0, t1, low, high in boxes:
        ax.add_patch(Rectangle((low, t0), high - low, t1 - t0, color=INK, alpha=0.16, linewidth=0))
    heights = [end for box in boxes for end in (box.c0, box.c1)]
    best, worst = ([level for box in boxes for level in (box[i],) * 2] for i in (2, 3))
    ax.plot([*best, 1], [*heights, 1], color=HIGH, label="best curve: largest AUPR")
    ax.plot([0, *worst], [0, *heights], color=LOW, label="worst curve: smallest AUPR")
    _points(curve, ax)
    ax.set(xlabel="FPR", ylabel="TPR", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)


def _points(curve: audit.Printed, ax: Axes) -> None:
    """Both printed points of a ROC curve, with their names."""
    x, y = (curve.at_fpr, curve.fpr95), (curve.tpr10, curve.at_tpr)
    ax.plot(x, y, "o", color=INK, markersize=6, zorder=4)
    for name, point in zip(("TPR10", "FPR95"), zip(x, y, strict=True), strict=True):
        ax.annotate(name, point, (8, -13), textcoords="offset points")


@two_forms(wide=(6.4, 4.0), tall=(3.9, 4.4))
def plot_price(
    figure: Figure,
    tall: bool,
    curve: audit.Printed,
    prevalence: float,
    area: Vector,
    aupr: Vector,
    printed: float,
) -> None:
    """Area above the ROC curve and AUPR of many curves, and the two lines that hold them all.

    Args:
        curve: the printed numbers that all these curves share, and the AUROC of the lines.
        prevalence: pi, fraction of OOD images.
        area, aupr: of the curves, (N,).
        printed: AUPR of the table, drawn as a square.
    """
    ax = figure.subplots()
    exact = replace(curve, half_width=0.0, step=0.0)
    here = 1 - (exact.auroc or 0.0)
    ax.scatter(area, aupr, s=4, color=INK, alpha=0.35, linewidths=0)
    ends, near = np.array([area.min(), area.max()]), 1e-3
    names = ("no curve lies below this line", "no curve lies above this line")
    for side, color, name in zip((0, 1), (LOW, HIGH), names, strict=True):
        values = [
            replace(exact, auroc=1 - here - shift).bounds(prevalence)[side]
            for shift in (-near, 0.0, near)
        ]
        slope = (values[2] - values[0]) / (2 * near)
        ax.plot(ends, values[1] + slope * (ends - here), color=color, label=name)
        ax.plot(here, values[1], "o", color=color, zorder=4)
    ax.axvline(here, color=INK, linestyle=":", linewidth=1.2)
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate("1 − printed AUROC", (here, 0.02), (5, 0), **place)
    ax.plot(here, printed, "s", color=METHOD_COLORS["thinkback"], zorder=5)
    ax.annotate("printed AUPR", (here, printed), (8, 2), textcoords="offset points")
    ax.set(xlabel="area above the ROC curve", ylabel="AUPR")
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)


@two_forms(wide=(7.2, 3.6), tall=(3.9, 6.4))
def plot_extremes(figure: Figure, tall: bool, row: audit.Row, prevalence: float) -> None:
    """The two extreme ROC curves of a row, and their precision.

    Args:
        row: of the printed table.
        prevalence: pi, fraction of OOD images.
    """
    left, right = figure.subplots(*((2, 1) if tall else (1, 2)), sharey=True)
    rho = (1 - prevalence) / prevalence
    curves = audit.extremal_curves(row.curve, prevalence, 20_000)
    bounds, colors = row.curve.bounds(prevalence), (LOW, HIGH)
    for curve, bound, color, name in zip(
        curves, bounds, colors, ("smallest", "largest"), strict=True
    ):
        left.plot(curve.fpr, curve.tpr, color=color)
        tpr, fpr = curve.tpr[1:-1], curve.fpr[1:-1]
        label = f"{name} AUPR: {100 * bound:.1f} %"
        right.plot(tpr, tpr / (tpr + rho * fpr), color=color, label=label)
    right.axhline(row.aupr, color=METHOD_COLORS[row.method], linestyle="--", linewidth=1.6)
    right.text(0.02, row.aupr - 0.02, f"printed AUPR: {100 * row.aupr:.1f} %", va="top")
    _points(row.curve, left)
    left.set(xlabel="FPR", ylabel="TPR", xlim=(-0.02, 1.02), ylim=(0, 1.04), title="ROC curve")
    right.set(xlabel="TPR", ylabel="precision", xlim=(0, 1.02), title="Precision")
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)
