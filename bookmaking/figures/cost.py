"""Figures of the chapter "Cost"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plots import INK, METHOD_COLORS, OTHER_COLORS
from thinkback_utils import methods

from .forms import two_forms

PEER = ", pytorch-ood"  # ends the names of that library's detectors
TITLES = methods.TITLES | {
    "forward": "the network itself",
    "kronecker": "Thinkback, Kronecker",
    "averaged": "Thinkback, averaged",
    "backward, batch 1": "full backward, one by one",
    "autograd, head": "autograd, last layer, one by one",
    "vmap(grad), head": "vmap(grad), last layer",
}
AUTOGRAD = ("backward, batch 1", "autograd, head", "vmap(grad), head")
COLORS = METHOD_COLORS | {
    "forward": INK,
    "kronecker": METHOD_COLORS["thinkback"],
    "averaged": METHOD_COLORS["thinkback_averaged"],
    **dict.fromkeys(AUTOGRAD, OTHER_COLORS[0]),
}
PEERS = tuple(f"{name}{PEER}" for name in ("ViM", "Mahalanobis", "KNN", "GradNorm"))
SHOWN = ("energy", "msp", "thinkback", "averaged", *PEERS, *AUTOGRAD[::-1])  # in the answer
FAINT = 1e5  # bytes; growth below it is drawn at it


@two_forms(wide=(7.6, 3.4), tall=(3.9, 4.8))
def answer(
    figure: Figure, tall: bool, measured: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Time of each score in percent of the network's own, on a line for each.

    Args:
        measured: batch size -> what was timed -> its record, with the ratio to the network.
    """
    ax = figure.subplots()
    (small, one), (large, many) = measured.items()
    names = [name for name in SHOWN if name in one and name in many]
    for y, name in enumerate(reversed(names)):
        color = COLORS.get(name, INK)
        ends = [100 * record[name]["ratio"] for record in (many, one)]
        ax.plot(ends, [y, y], color=color, linewidth=1.5, alpha=0.6)
        ax.plot(ends[0], y, "o", color=color)
        ax.plot(ends[1], y, "o", color=color, markerfacecolor="none")
    ax.axvline(100, color=INK, linestyle="--", linewidth=1.2, zorder=0)
    ax.text(75, len(names) - 0.3, "the network itself", ha="right", va="bottom")
    ax.set_yticks(range(len(names)), [title(name, tall) for name in reversed(names)])
    ax.tick_params(axis="y", length=0)
    label = "% of the network's time" if tall else "time of the score, in % of the network's time"
    ax.set(xscale="log", xlabel=label, ylim=(-0.6, len(names) + 0.4))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.margins(x=0.1)  # room for half of the last tick's label
    ax.minorticks_off()
    dot: dict[str, Any] = {"color": INK, "marker": "o", "linestyle": ""}
    one_image = "one image at a time" if small == 1 else f"{small} images at a time"
    handles = [
        Line2D([], [], label=f"{large:,} images at a time", **dot),
        Line2D([], [], label=one_image, markerfacecolor="none", **dot),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=1 if tall else 2)


def title(name: str, short: bool = False) -> str:
    """What a measurement is called in a figure.

    >>> title("backward, batch 1"), title("backward, batch 1", short=True), title("energy")
    ('full backward, one by one', 'full backward', 'Energy')
    """
    text = TITLES.get(name, name).removesuffix(PEER)
    return text.removesuffix(", one by one") if short else text


@two_forms(wide=(7.2, 5.4), tall=(3.9, 6.0))
def plot_latency(
    figure: Figure, tall: bool, curves: Mapping[str, Sequence[tuple[int, float]]]
) -> None:
    """Milliseconds a sample against batch size, with a label at the end of each line.

    Args:
        curves: what was timed -> (batch size, milliseconds a sample).
    """
    ax = figure.subplots()
    heights = apart([points[-1][1] for points in curves.values()], 21)
    for (name, points), height in zip(curves.items(), heights, strict=True):
        color = COLORS.get(name, INK)
        thick, dotted = name in ("thinkback", "forward"), name == "kronecker" or PEER in name
        style: dict[str, Any] = {
            "color": color,
            "marker": "o",
            "markersize": 3,
            "linewidth": 3.2 if thick else 1.4,
        }
        ax.plot(*zip(*points, strict=True), ":" if dotted else "-", **style)
        label_end(ax, title(name, tall), points[-1], height, color)
    ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel="milliseconds a sample")
    ticks = [x for x, _ in curves["forward"]]
    ax.set_xticks(ticks, [f"{x:,}" for x in ticks])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()


@two_forms(wide=(7.2, 3.8), tall=(3.9, 4.8))
def plot_memory(
    figure: Figure,
    tall: bool,
    fits: Mapping[str, Sequence[tuple[int, int]]],
    keeps: Mapping[str, str],
) -> None:
    """Peak memory of a fit against the number of samples that it reads.

    Args:
        fits: method -> (samples, bytes at the peak).
        keeps: method -> the size of what it keeps, for the label at the end of its line.
    """
    ax = figure.subplots()
    colors = {"diagonal": COLORS["thinkback"], "Kronecker": COLORS["averaged"]}
    peaks = {method: [max(peak, FAINT) for _, peak in points] for method, points in fits.items()}
    heights = apart([found[-1] for found in peaks.values()], 11)
    for (method, points), height in zip(fits.items(), heights, strict=True):
        color, samples = colors.get(method, INK), [point[0] for point in points]
        ax.plot(samples, peaks[method], "o-", color=color, markersize=4)
        label = f"{method}, {'' if tall else 'keeps '}{keeps[method]}"
        label_end(ax, label, (samples[-1], peaks[method][-1]), height, color)
    ticks = {1e5: "0.1 MB", 1e6: "1 MB", 1e7: "10 MB", 1e8: "100 MB", 1e9: "1 GB", 1e10: "10 GB"}
    ax.set(xscale="log", yscale="log", ylim=(FAINT / 2, 1e10))
    ax.set(xlabel="samples that the fit reads", ylabel="memory at the peak")
    ax.set_yticks(list(ticks), list(ticks.values()))
    if tall:  # both ends alone
        read = [n for points in fits.values() for n, _ in points]
        ax.set_xticks([min(read), max(read)])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.minorticks_off()


def apart(values: Sequence[float], lines: int) -> list[float]:
    """Heights for labels on a logarithmic axis that holds so many lines of text: each at its value,
    or so far above the next lower one.

    >>> [round(y, 2) for y in apart([1.0, 1.0, 100.0], 4)]
    [1.0, 3.16, 100.0]
    """
    logs = np.log10(values)
    gap, last = float(np.ptp(logs)) / lines, -np.inf
    heights = np.empty(len(logs))
    for k in np.argsort(logs, kind="stable"):
        heights[k] = last = max(logs[k], last + gap)
    return [float(10**y) for y in heights]


def label_end(ax: Axes, text: str, end: tuple[float, float], height: float, color: str) -> None:
    """A label beside the end of a line, and a thin line that leads to it."""
    line: dict[str, Any] = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0, 0.5)}
    look: dict[str, Any] = {"color": color, "va": "center", "fontsize": 10, "arrowprops": line}
    ax.annotate(text, end, (1.7 * end[0], height), **look)
