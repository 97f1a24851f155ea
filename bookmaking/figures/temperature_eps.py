"""Figures of chapter 7, temperature and the floor under E."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments import plots
from thinkback_utils import metrics

from .forms import two_forms

SCORE, RAW = plots.METHOD_COLORS["thinkback"], plots.METHOD_COLORS["thinkback_eq5"]
SEARCHED = (1.0, 5.0)  # the range of the paper
DASHES = {"Eq. 6": "-", "Eq. 5": "-."}  # their colors are near to each other
Floor = tuple[float, float]  # eps, damping
Setting = tuple[float, Floor]  # T and the floor
POWERS = {0.1: "0.1", 1: "1", 10: "10", 100: "100", 1000: "1,000"}


def set_temperatures(ax: Axes) -> None:
    """A logarithmic axis of temperatures, with the range that the paper searched in gray."""
    ax.axvspan(*SEARCHED, color=plots.INK, alpha=0.15, linewidth=0)
    ax.set(xscale="log", xlabel="temperature T")
    low, high = ax.get_xlim()
    ticks = {at: text for at, text in POWERS.items() if low <= at <= high}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.tick_params(axis="x", which="minor", bottom=False)


@two_forms(wide=(7.6, 3.0), tall=(3.9, 5.4))
def answer(
    figure: Figure,
    tall: bool,
    values: Mapping[float, float],
    spread: Mapping[float, float],
    metric: str,
) -> None:
    """What T does to the score, and what the paper's rule sees of it.

    Args:
        values: T -> the metric in %, mean over the far sets.
        spread: T -> standard deviation of the raw score on images that are known.
        metric: one of ``metrics.METRICS``.
    """
    left, right = figure.subplots(*((2, 1) if tall else (1, 2)))
    better = min if metric == "fpr95" else max
    best = better(values, key=values.__getitem__)
    for ax, curve, color in ((left, values, SCORE), (right, spread, RAW)):
        ax.plot(list(curve), list(curve.values()), color=color)
        set_temperatures(ax)
    left.plot(best, values[best], "D", color=plots.ID_COLOR, label=f"best, T = {best:g}")
    left.plot(5.0, values[5.0], "o", color=plots.OOD_COLOR, label="the paper's T = 5")
    end = max(spread)
    right.plot(5.0, spread[5.0], "o", color=plots.OOD_COLOR, label="smallest in [1, 5]")
    right.plot(end, spread[end], "s", color=plots.INK, label="smallest of all")
    title = metrics.TITLES[metric]
    left.set(ylabel=f"{title} (%)", title="How well it separates")
    right.set(yscale="log", ylabel="standard deviation", title="What the rule looks at")
    left.legend(loc="best")
    right.legend(loc="best")


def plot_sweep(
    by_set: Mapping[float, NDArray[np.float64]], titles: Sequence[str], metric: str
) -> Figure:
    """The metric and FPR95 (or AUROC) of every set by temperature, and their mean.

    Args:
        by_set: T -> (sets, 4), the four metrics in %.
        titles: of the sets.
        metric: of the upper panel.
    """
    figure, axes = plt.subplots(2, 1, figsize=(5.6, 6.4), sharex=True)
    Ts = list(by_set)
    for ax, kind in zip(axes, (metric, "auroc" if metric == "fpr95" else "fpr95"), strict=True):
        lines = np.array([by_set[T][:, metrics.METRICS.index(kind)] for T in Ts])  # (T, sets)
        for i, line in enumerate(lines.T):
            dashes, color = ("-", "--", ":", "-.")[i % 4], plots.OTHER_COLORS[i % 3]
            ax.plot(Ts, line, dashes, color=color, linewidth=1.4, label=titles[i])
        ax.plot(Ts, lines.mean(1), color=plots.INK, linewidth=3, label="mean")
        set_temperatures(ax)
        ax.set(xlabel="", ylabel=f"{metrics.TITLES[kind]} (%)")
    axes[1].set(xlabel="temperature T (gray: searched by the paper)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@two_forms(wide=(5.6, 6.6), tall=(3.9, 6.0))
def plot_heat(
    figure: Figure,
    tall: bool,
    values: Mapping[Setting, float],
    rows: Sequence[Sequence[Floor]],
    marks: Mapping[str, Setting],
    label: str,
) -> None:
    """One map over T for each kind of floor, absolute and relative, with marked settings.

    Args:
        values: of every setting.
        rows: the floors of either map, from below to above.
        marks: settings by what they are: at most four.
        label: of the colors.
    """
    axes = figure.subplots(2, 1, sharex=True)
    Ts = sorted({T for T, _ in values})
    x = np.log10(Ts)
    middle = (x[1:] + x[:-1]) / 2
    edges = np.array([2 * x[0] - middle[0], *middle, 2 * x[-1] - middle[-1]])
    limits = {"vmin": min(values.values()), "vmax": max(values.values())}
    white = [("o", 60, "white"), ("s", 50, "white")]
    styles = [("*", 170, plots.OOD_COLOR), *white, ("P", 80, plots.ID_COLOR)]
    for kind, (ax, floors) in enumerate(zip(axes, rows, strict=True)):
        image = [[values[T, floor] for T in Ts] for floor in floors]
        lines = np.arange(len(floors) + 1) - 0.5
        mesh = ax.pcolormesh(edges, lines, image, edgecolors="face", **limits)
        for (name, (T, floor)), (marker, area, face) in zip(marks.items(), styles, strict=False):
            style: dict[str, Any] = {"marker": marker, "label": name, "edgecolors": "black"}
            if floor in floors:
                ax.scatter(np.log10(T), list(floors).index(floor), area, face, **style)
        ax.set_yticks(range(len(floors)), [power(floor[kind]) for floor in floors])
        ax.set(ylabel=("absolute floor ε", "relative damping")[kind])
    ticks = range(int(np.ceil(x[0])), int(x[-1]) + 1)
    axes[1].set_xticks(ticks, [f"{10.0**t:g}" for t in ticks])
    axes[1].set(xlabel="temperature T")
    found = {
        name: mark
        for ax in axes
        for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found, loc="outside upper left")
    figure.colorbar(mesh, ax=axes, label=label)


def power(value: float) -> str:
    """A number as a figure says it.

    >>> power(0.01), power(1e-16), power(0)
    ('0.01', '$10^{-16}$', '0')
    """
    base, _, exponent = f"{value:g}".partition("e")
    if not exponent:
        return base
    return f"$10^{{{int(exponent)}}}$" if base == "1" else f"${base}\\cdot10^{{{int(exponent)}}}$"


@two_forms(wide=(5.6, 6.8), tall=(3.9, 6.6))
def plot_rule(
    figure: Figure,
    tall: bool,
    factors: pd.DataFrame,
    criteria: pd.DataFrame,
    picks: pd.DataFrame,
) -> None:
    """How well the score and its two factors separate, over what the rule wants to be small.

    Args:
        factors: mean AUROC in %, a row a T.
        criteria: a column for each form of the rule, a row a T, drawn relative to T = 5.
        picks: a row for each form: the T that it picks, in [1, 5] and in the whole range.
    """
    axes = figure.subplots(2, 1)
    tones = {"Eq. 6": SCORE, "Eq. 5": RAW, "‖r‖² alone": plots.METHOD_COLORS["energy"]}
    tones |= {"‖h‖² alone": plots.INK}
    for name, line in factors.items():
        dashes = "--" if "alone" in str(name) else DASHES[str(name)]
        axes[0].plot(line.index, line, dashes, color=tones[name], label=name)
    for name, line in (criteria / criteria.loc[5.0]).items():
        dashes, color = ":" if "mean" in name else DASHES[name[-5:]], tones[name[-5:]]
        axes[1].plot(line.index, line, dashes, color=color, label=name)
        for marker, T in zip("os", picks.loc[name], strict=True):
            axes[1].scatter(T, line[T], 60, color, marker=marker, zorder=3)
    for ax in axes:
        set_temperatures(ax)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0)
    axes[0].set(xlabel="", ylabel="mean AUROC ↑ (%)")
    axes[1].set(yscale="log", ylabel="criterion, relative to T = 5")
