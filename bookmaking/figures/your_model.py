"""Figures of the chapter "Your model"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.false_alarms import Halves, allowed
from experiments.plots import ID_COLOR, INK, METHOD_COLORS, OOD_COLOR, OTHER_COLORS
from thinkback_utils.methods import TITLES

from .forms import two_forms

Vector = NDArray[np.float64]
PROMISE = OTHER_COLORS[0]
SIZE_COLORS = (INK, ID_COLOR, OTHER_COLORS[3])  # of small, larger and large calibration sets


@two_forms(wide=(7.6, 3.6), tall=(3.9, 6.0))
def answer(
    figure: Figure,
    tall: bool,
    ids: ArrayLike,
    oods: ArrayLike,
    limit: float,
    halves: Halves,
    rates: Mapping[str, Vector],
) -> None:
    """Where the threshold lies among the scores; what it promises and what was measured.

    Args:
        ids, oods: positive scores of calibration images and of OOD images.
        limit: the threshold.
        halves: the promises, and what theory says of them.
        rates: method -> measured rates of false alarms (splits, promises).
    """
    shape: dict[str, Any] = {"nrows": 2} if tall else {"ncols": 2, "width_ratios": [1, 1.1]}
    first, second = figure.subplots(**shape)
    plot_threshold(ids, oods, limit, first)
    plot_promises(halves, rates, second)
    first.set_title("A. The threshold")
    second.set_title("B. Promised and measured")


def plot_threshold(ids: ArrayLike, oods: ArrayLike, limit: float, ax: Axes) -> None:
    """Histograms of both kinds of scores, and the threshold."""
    both = np.log10(np.concatenate([np.asarray(ids), np.asarray(oods)]))
    low, high = np.quantile(both, [0.002, 0.998])
    bins = np.linspace(low, high, 41)
    for values, color in ((ids, ID_COLOR), (oods, OOD_COLOR)):
        heights, _ = np.histogram(np.log10(np.asarray(values)), bins)
        share = heights / len(np.asarray(values))
        ax.stairs(share, bins, fill=True, color=color, alpha=0.35)
    at = np.log10(limit)
    ax.axvline(at, color=INK, linewidth=1.6)
    top = ax.get_ylim()[1]
    ax.set(ylim=(0, 1.3 * top), xlabel="score (logarithmic)", ylabel="share of the images")
    ax.text(at, 1.28 * top, " alarm →", va="top")
    ax.text(at, 1.28 * top, "← no alarm ", va="top", ha="right")
    ax.text(at, 1.12 * top, " OOD", va="top", color=OOD_COLOR)
    ax.text(at, 1.12 * top, "calibration ", va="top", ha="right", color=ID_COLOR)
    ax.set(xticks=[], yticks=[])


def plot_promises(halves: Halves, rates: Mapping[str, Vector], ax: Axes) -> None:
    """Measured against promised rates of false alarms, and the band that theory predicts."""
    x = 100 * halves.alphas
    low, high = halves.predicted()
    ax.plot(x, x, color=INK, linewidth=1, linestyle=":")
    ax.fill_between(x, 100 * low, 100 * high, color=INK, alpha=0.2, linewidth=0)
    for i, (name, found) in enumerate(rates.items()):
        aside, color = x * 1.09 ** (i - (len(rates) - 1) / 2), METHOD_COLORS[name]
        ends = np.quantile(100 * found, [0.025, 0.975], axis=0)
        ax.vlines(aside, *ends, color=color, linewidth=1.4)
        ax.plot(aside, 100 * found.mean(0), "o", markersize=3.5, color=color, label=TITLES[name])
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="false alarms promised (%)", ylabel="measured (%)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.legend(loc="lower right")


@two_forms(wide=(6.4, 1.9), tall=(3.9, 1.9))
def plot_ranks(figure: Figure, tall: bool, scores: ArrayLike, alarms: int) -> None:
    """Calibration scores on a line, and the ranks that a new score can have among them.

    Args:
        scores: of calibration, (n,).
        alarms: m, how many of the n + 1 ranks are alarms.
    """
    ax = figure.subplots()
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n, margin = len(ordered), 0.12 * float(np.ptp(ordered))
    edges = np.concatenate([[ordered[0] - margin], ordered, [ordered[-1] + margin]])
    limit = float(np.append(ordered, edges[-1])[n - alarms])
    ax.axhline(0, color=INK, linewidth=1, zorder=0)
    ax.axvspan(limit, edges[-1], color=OOD_COLOR, alpha=0.2, linewidth=0)
    ax.plot(ordered, np.zeros(n), "o", color=ID_COLOR, markersize=6 if tall else 8)
    for rank, middle in enumerate((edges[1:] + edges[:-1]) / 2, start=1):
        alarm = rank > n + 1 - alarms
        ax.text(middle, 0.25, str(rank), ha="center", fontweight="bold" if alarm else "normal")
    ax.text(edges[0], 0.7, "rank of a new score here:")
    ax.text(edges[-1], 0.7, "alarm", ha="right", fontweight="bold")
    ax.set(ylim=(-0.3, 1), yticks=[], xlim=(edges[0], edges[-1]))
    ax.set_xlabel(f"score; the dots are {n} calibration scores")
    ax.spines["left"].set_visible(False)


@two_forms(wide=(6.4, 3.2), tall=(3.9, 3.6))
def plot_luck(figure: Figure, tall: bool, rates: Mapping[int, Vector], alpha: float) -> None:
    """Rates of false alarms of many calibration sets, beside the Beta law, by their size.

    Args:
        rates: size of the sets -> the rate of each.
        alpha: the promise.
    """
    ax = figure.subplots()
    most = float(np.quantile(rates[min(rates)], 0.99))
    x = np.linspace(1e-4, most, 400)
    for color, (n, found) in zip(SIZE_COLORS, sorted(rates.items()), strict=False):
        m = allowed(n, alpha)
        spread: dict[str, Any] = {"bins": 60, "binrange": (0, 100 * most), "stat": "density"}
        look: dict[str, Any] = {"color": color, "alpha": 0.4, "linewidth": 0}
        sns.histplot(x=100 * found, label=f"n = {n:,}", ax=ax, **spread, **look)
        law = stats.beta(m, n + 1 - m).pdf(x) / 100
        ax.plot(100 * x, law, color=color, linewidth=1.8)
    ax.axvline(100 * alpha, color=PROMISE, linestyle=":", label="promise")
    ax.set(xlim=(0, 100 * most), yticks=[], ylabel="share of the calibration sets")
    ax.set_xlabel("false alarms with this calibration set (%)")
    ax.legend(loc="upper right")


@two_forms(wide=(6.4, 3.0), tall=(3.9, 3.4))
def plot_streams(figure: Figure, tall: bool, running: Sequence[Vector], alpha: float) -> None:
    """The share of false alarms so far, in streams that each use one calibration set.

    Args:
        running: share after each image, an array (N,) for each calibration set.
        alpha: the promise.
    """
    ax = figure.subplots()
    for share in running:
        seen, start = np.arange(1, len(share) + 1), min(100, len(share) - 1)
        ax.plot(seen[start:], 100 * share[start:], color=ID_COLOR, linewidth=1.2)
        ax.plot(seen[-1], 100 * share[-1], "o", color=ID_COLOR, markersize=5)
    ax.axhline(100 * alpha, color=PROMISE, linestyle=":", label="promise")
    ax.set(xlabel="images of the stream so far", ylabel="false alarms so far (%)", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(4 if tall else 8))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(loc="outside upper center")


@two_forms(wide=(6.4, 3.2), tall=(3.9, 4.0))
def plot_classes(
    figure: Figure, tall: bool, names: Sequence[str], one: ArrayLike, own: ArrayLike, alpha: float
) -> None:
    """False alarms in each class: with one threshold for all, and with one a class.

    Args:
        names: of the classes, (K,).
        one, own: rates with one threshold, and with one for each class, (K,).
        alpha: the promise.
    """
    ax = figure.subplots()
    y = -np.arange(len(names))
    for rates, color, label, face in (
        (one, INK, "one threshold for all classes", "none"),
        (own, ID_COLOR, "one threshold for each class", ID_COLOR),
    ):
        values = 100 * np.asarray(rates)
        ax.plot(values, y, "o", color=color, markerfacecolor=face, label=label)
    ax.axvline(100 * alpha, color=PROMISE, linestyle=":", label="promise")
    ax.set_yticks(y, list(names))
    ax.set(xlabel="false alarms (%)", xlim=(0, None))
    figure.legend(loc="outside upper center", ncols=1 if tall else 3, columnspacing=1)


@two_forms(wide=(7.2, 3.4), tall=(3.9, 7.6))
def plot_drift(
    figure: Figure,
    tall: bool,
    alarms: Mapping[str, Vector],
    errors: Mapping[str, Sequence[float]],
    levels: Mapping[str, Sequence[float]],
    alpha: float,
    method: str,
) -> None:
    """Alarms on images that drift away from the calibration, and the classifier's errors.

    Args:
        alarms: kind of change -> rates (levels, splits).
        errors: kind of change -> the classifier's error rate at each level.
        levels: kind of change -> its strengths.
        alpha: the promise.
        method: of the alarms.
    """
    color = METHOD_COLORS.get(method, METHOD_COLORS["thinkback"])
    shape = (len(alarms), 1) if tall else (1, len(alarms))
    axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax, (change, rates) in zip(axes, alarms.items(), strict=True):
        x, ends = levels[change], np.quantile(100 * rates, [0.025, 0.975], axis=1)
        ax.fill_between(x, *ends, color=color, alpha=0.25, linewidth=0)
        ax.plot(x, 100 * rates.mean(1), "o-", color=color, markersize=4, label="alarms")
        wrong = 100 * np.array(errors[change])
        ax.plot(x, wrong, "s-", color=INK, markersize=3, linewidth=1, label="wrong answers")
        ax.axhline(100 * alpha, color=PROMISE, linewidth=1.2, linestyle=":", label="promise")
        ax.set(xlabel=change, ylim=(-2, 102), xticks=x)
    figure.supylabel("share of the altered digits (%)", color=INK, fontsize=11)
    named = axes[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside upper center", ncols=3, columnspacing=1)
