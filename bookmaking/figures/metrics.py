"""Figures of chapter 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.plots import ID_COLOR, INK, OOD_COLOR
from thinkback_utils import metrics

from .forms import two_forms

METRIC_STYLES = {"TPR10": "o-", "FPR95": "s--", "AUROC": "D-", "AUPR": "^--"}


@two_forms(wide=(7.6, 3.2), tall=(3.9, 4.8))
def answer(
    figure: Figure,
    tall: bool,
    id_scores: NDArray[np.float64],
    ood_scores: NDArray[np.float64],
    prevalence: float,
) -> None:
    """Scores under a threshold; their AUPR and AUROC against the prevalence.

    Args:
        id_scores: of the digits, (N,).
        ood_scores: of the letters, (M,), higher = more OOD.
        prevalence: the one to be marked, in (0, 1).
    """
    left, right = figure.subplots(2, 1) if tall else figure.subplots(1, 2)
    curve = metrics.roc(id_scores, ood_scores)
    plot_histograms(id_scores, ood_scores, catching(curve), left).set_title("Scores")
    plot_mixes(curve, prevalence, right).set_title("Metrics of these scores")


def catching(curve: metrics.Roc, share: float = 0.95) -> float:
    """The first threshold, from above, that catches a share of the OOD images."""
    return float(curve.threshold[(curve.tpr >= share).argmax()])


def plot_scores(
    id_scores: NDArray[np.float64],
    ood_scores: NDArray[np.float64],
    *,
    figure: Figure | None = None,
) -> Figure:
    """Scores of digits (N,) and letters (M,) under a threshold that catches 95 % of the letters."""
    figure = figure or Figure(figsize=(7.2, 3.4))
    threshold = catching(metrics.roc(id_scores, ood_scores))
    plot_histograms(id_scores, ood_scores, threshold, figure.subplots())
    return figure


def plot_histograms(
    id_scores: NDArray[np.float64], ood_scores: NDArray[np.float64], threshold: float, ax: Axes
) -> Axes:
    """Scores of both kinds of images; darker what the threshold catches."""
    both = np.concatenate([id_scores, ood_scores])
    bins = np.linspace(both.min(), both.max(), 60).tolist()
    for scores, color in ((id_scores, ID_COLOR), (ood_scores, OOD_COLOR)):
        look: dict[str, Any] = {"bins": bins, "element": "step", "color": color, "ax": ax}
        sns.histplot(x=scores, stat="density", alpha=0.25, **look)
        caught = scores[scores >= threshold]
        weights = np.full(len(caught), 1 / len(scores) / np.diff(bins)[0])
        sns.histplot(x=caught, weights=weights, alpha=0.4, linewidth=0, **look)
    ax.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
    top = 1.25 * ax.get_ylim()[1]
    ax.text(threshold, 0.99 * top, " called OOD →", va="top")
    ax.text(np.quantile(id_scores, 0.2), 0.6 * top, "digits\n(ID)", color=ID_COLOR, ha="right")
    ax.text(ood_scores.max() - 0.3, 0.25 * top, "letters\n(OOD)", color=OOD_COLOR)
    ax.set(xlim=(both.min(), ood_scores.max() + 3.5), ylim=(0, top))
    ax.set(xlabel="score: the network's doubt", ylabel="density")
    return ax


def plot_mixes(curve: metrics.Roc, prevalence: float, ax: Axes) -> Axes:
    """AUPR and AUROC of one ROC curve against the prevalence, and the AUPR of guessing."""
    mixes = np.linspace(0.005, 0.995, 199)
    aupr = [metrics.average_precision(curve, mix) for mix in mixes]
    auroc = metrics.summary(curve)["auroc"]
    ax.plot(mixes, aupr, color=OOD_COLOR)
    ax.plot([0, 1], [auroc, auroc], "--", color=INK)
    ax.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.2)
    ax.plot(prevalence, metrics.average_precision(curve, prevalence), "o", color=OOD_COLOR)
    ax.text(0.02, auroc + 0.015, "AUROC", va="bottom")
    ax.text(0.3, np.interp(0.3, mixes, aupr) - 0.02, "AUPR", color=OOD_COLOR, va="top")
    ax.text(0.55, 0.5, "AUPR of guessing", va="top")
    ax.set(xlabel="prevalence: share of OOD images", xlim=(0, 1), ylim=(0, 1.08))
    ax.set(yticks=[0, 0.25, 0.5, 0.75, 1])
    return ax


@two_forms(wide=(7.6, 3.6), tall=(3.9, 6.2))
def plot_curves(figure: Figure, tall: bool, curve: metrics.Roc, mixes: Sequence[float]) -> None:
    """One ROC curve with TPR10 and FPR95 marked, and a precision-recall curve for each mix.

    Args:
        curve: of the scores.
        mixes: prevalences, each in (0, 1), three at most.
    """
    left, right = figure.subplots(2, 1) if tall else figure.subplots(1, 2)
    tpr10, fpr95 = metrics.tpr_at_fpr(curve), metrics.fpr_at_tpr(curve)
    left.plot(curve.fpr, curve.tpr, color=INK)
    left.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
    left.plot([0.1, 0.1, 0], [0, tpr10, tpr10], "--", color=OOD_COLOR, linewidth=1.2)
    left.plot([0, fpr95, fpr95], [0.95, 0.95, 0], "--", color=ID_COLOR, linewidth=1.2)
    left.plot(0.1, tpr10, "o", color=OOD_COLOR)
    left.plot(fpr95, 0.95, "o", color=ID_COLOR)
    left.text(0.13, tpr10 - 0.02, "TPR10", color=OOD_COLOR, va="top")
    left.text(fpr95 + 0.03, 0.06, "FPR95", color=ID_COLOR)
    left.set(xlabel="FPR", ylabel="TPR", xlim=(0, 1), ylim=(0, 1.02), title="ROC")
    tpr, fpr = curve.tpr[1:], curve.fpr[1:]
    for mix, style in zip(mixes, ("-", "--", "-."), strict=False):
        precision = mix * tpr / (mix * tpr + (1 - mix) * fpr)
        right.step(tpr, precision, style, where="pre", color=OOD_COLOR, linewidth=1.6)
        spot = np.searchsorted(tpr, 0.3)
        place: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points"}
        right.annotate(f"{100 * mix:.0f} % OOD", (tpr[spot], precision[spot]), **place)
        right.axhline(mix, color=INK, linestyle=":", linewidth=1)
    right.set(xlabel="TPR (recall)", xlim=(0, 1), ylabel="precision", ylim=(0, 1.02))
    right.set_title("Precision")


@two_forms(wide=(7.2, 3.8), tall=(3.9, 4.6))
def plot_noise(
    figure: Figure,
    tall: bool,
    sizes: ArrayLike,
    noise: Mapping[str, ArrayLike],
    protocol: float,
) -> None:
    """Standard deviation of each metric against the number of OOD images.

    Args:
        sizes: numbers of images (S,).
        noise: metric's title -> standard deviations (S,), in percentage points.
        protocol: the size to be marked.
    """
    ax, size = figure.subplots(), np.asarray(sizes)
    for title, values in noise.items():
        color = OOD_COLOR if title in ("TPR10", "FPR95") else ID_COLOR
        ax.plot(size, values, METRIC_STYLES[title], color=color, markersize=5, label=title)
    every = np.array([*noise.values()])
    guide = every[:, 0].max() * 1.35 * np.sqrt(size[0] / size)
    ax.plot(size, guide, ":", color=INK, linewidth=1.2, label=r"slope of $1/\sqrt{n}$")
    ax.axvline(protocol, color=INK, linestyle="--", linewidth=0.8)
    ax.text(protocol * 1.04, 0.98, "protocol", transform=ax.get_xaxis_transform(), va="top")
    ax.set(xscale="log", xlabel="OOD images in the test set")
    ax.set(yscale="log", ylabel="standard deviation (points)")
    ax.set_xticks(size, [f"{n:,}" for n in size])
    ticks = 2.0 ** np.arange(-4, 4)
    ax.set_yticks(ticks[(ticks > every.min() / 1.3) & (ticks < 2 * guide.max())])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2 if tall else 5)
