"""How well a score separates: OOD is the positive class, and a sample is called OOD when score >= threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from sklearn.metrics import roc_curve
from torch import Tensor

METRICS = ("tpr10", "fpr95", "auroc", "aupr")
TITLES = {"tpr10": "TPR10 ↑", "fpr95": "FPR95 ↓", "auroc": "AUROC ↑", "aupr": "AUPR ↑"}


class Roc(NamedTuple):
    """Operating points by falling threshold, from (0, 0) to (1, 1); tied scores share one point."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    threshold: NDArray[np.float64]


def roc(id_scores: ArrayLike, ood_scores: ArrayLike) -> Roc:
    """ROC curve of the scores, (N_id,) and (N_ood,), higher = more OOD.

    Raises:
        ValueError: if a side is empty, not one-dimensional, or holds a value that is not finite.
    """
    sides = [_vector(n, s) for n, s in (("id_scores", id_scores), ("ood_scores", ood_scores))]
    positive = np.repeat([0, 1], [len(side) for side in sides])
    return Roc(*roc_curve(positive, np.concatenate(sides), drop_intermediate=False))


def tpr_at_fpr(curve: Roc, fpr: float = 0.10) -> float:
    """Largest true-positive rate among the points whose false-positive rate is at most ``fpr``."""
    return float(curve.tpr[curve.fpr <= fpr].max())


def fpr_at_tpr(curve: Roc, tpr: float = 0.95, rule: Literal["first", "nearest"] = "first") -> float:
    """False-positive rate at the first threshold that reaches ``tpr``.

    ``rule="nearest"`` takes the point whose true-positive rate is closest instead, as Outlier Exposure's code does: it
    walks from full recall to stricter thresholds, so among equal rates the largest false-positive rate wins.
    """
    if rule == "nearest":
        last = curve.tpr.argmax()
        return float(curve.fpr[last::-1][np.abs(curve.tpr[last::-1] - tpr).argmin()])
    return float(curve.fpr[(curve.tpr >= tpr).argmax()])


def average_precision(curve: Roc, prevalence: float) -> float:
    """Average precision (step rule) if a fraction ``prevalence`` of all samples were OOD.

    Precision at a point is ``pi TPR / (pi TPR + (1 - pi) FPR)``, so the mix is a weight and nothing is resampled.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"thinkback: prevalence is a fraction between 0 and 1, got {prevalence}")
    tpr, fpr = curve.tpr[1:], curve.fpr[1:]
    precision = prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)
    return float(np.sum(np.diff(curve.tpr) * precision))


def summary(curve: Roc, prevalence: float = 1 / 6) -> dict[str, float]:
    """The paper's four metrics of one ROC curve, in [0, 1]."""
    return {
        "tpr10": tpr_at_fpr(curve),
        "fpr95": fpr_at_tpr(curve),
        "auroc": float(trapezoid(curve.tpr, curve.fpr)),
        "aupr": average_precision(curve, prevalence),
    }


def ood_metrics(id_scores: ArrayLike, ood_scores: ArrayLike, prevalence: float = 1 / 6) -> dict[str, float]:
    """TPR10, FPR95, AUROC and AUPR of a score, exact and tie-aware.

    Args:
        id_scores, ood_scores: float (N_id,) and (N_ood,), higher = more OOD.
        prevalence: fraction of OOD samples for the AUPR; 1/6 is 2,000 OOD against 10,000 ID images.

    Returns:
        ``{"tpr10", "fpr95", "auroc", "aupr"}`` in [0, 1]; higher is better but for fpr95. AUROC counts ties one half.

    Raises:
        ValueError: on an empty side, values that are not finite, or a prevalence outside (0, 1).

    >>> ood_metrics([0.1, 0.2], [0.2, 0.9])["auroc"]
    0.875
    """
    return summary(roc(id_scores, ood_scores), prevalence)


def draws(ood_scores: ArrayLike, size: int = 2000, count: int = 10, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """The protocol's random subsets: ``count`` draws of min(size, N) scores without replacement, seeded."""
    scores, generator = _vector("ood_scores", ood_scores), np.random.default_rng(seed)
    for _ in range(count):
        yield generator.choice(scores, min(size, len(scores)), replace=False)


def resampled(
    id_scores: ArrayLike, ood_scores: ArrayLike, prevalence: float = 1 / 6, resamples: int = 500, seed: int = 0
) -> NDArray[np.float64]:
    """The four metrics of bootstrap resamples of the images, both sides resampled: float64 (resamples, 4).

    The scores are sorted once; a resample then is a count at each point of their curve.

    Row i of two scores of the same images comes from the same resample, so a difference of rows is a paired one; and
    row i of two OOD sets shares its in-distribution images, so a mean over sets is one too.
    """
    sides = _vector("id_scores", id_scores), _vector("ood_scores", ood_scores)
    threshold = roc(*sides).threshold
    points = [np.searchsorted(-threshold[1:], -side) for side in sides]  # of each sample; threshold[0] is above all
    values = []
    for drawn in zip(*(_drawn(len(scores), resamples, seed, side) for side, scores in enumerate(sides)), strict=True):
        counts = np.stack([np.bincount(*pair, len(threshold) - 1) for pair in zip(points, drawn, strict=True)])
        seen = np.flatnonzero(counts.any(0))
        rates = np.zeros((2, len(seen) + 1))  # from (0, 0) on
        rates[:, 1:] = counts[:, seen].cumsum(1) / counts.sum(1, keepdims=True)
        curve = Roc(rates[0], rates[1], threshold[np.append(0, seen + 1)])
        values.append(list(summary(curve, prevalence).values()))
    return np.array(values)


@lru_cache(maxsize=8)  # all scores of the same images share them
def _drawn(size: int, resamples: int, seed: int, side: int) -> NDArray[np.int16]:
    """How often a bootstrap draws each image, (resamples, size)."""
    generator = np.random.default_rng([seed, side])
    return generator.multinomial(size, np.full(size, 1 / size), resamples).astype(np.int16)


def interval95(values: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of each metric, ``{metric: (low, high)}``, from :func:`resampled` or a difference."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return {metric: (float(a), float(b)) for metric, a, b in zip(METRICS, low, high, strict=True)}


def mean_auroc(id_scores: ArrayLike, ood_scores: Sequence[ArrayLike]) -> tuple[float, float]:
    """Mean AUROC over OOD sets and the half-width of its 95 % interval, ties counted one half.

    An AUROC is the mean over ID images of the fraction of OOD scores above theirs, and the reverse; the variances of
    both give its own (DeLong et al. 1988). The sets share their ID images, so those are averaged over sets first.

    >>> mean_auroc([0.1, 0.2, 0.3], [[0.2, 0.9]])[0]
    0.75
    """
    ids, variance = _vector("id_scores", id_scores), 0.0
    above = np.zeros(len(ids))
    for ood in (_vector("ood_scores", side) for side in ood_scores):
        above += (1 - _rank(ids, ood)) / len(ood_scores)
        variance += _rank(ood, ids).var(ddof=1) / len(ood) / len(ood_scores) ** 2
    return float(above.mean()), 1.96 * float(np.sqrt(variance + above.var(ddof=1) / len(ids)))


def _rank(values: NDArray[np.float64], among: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fraction of ``among`` below each value, ties one half."""
    ordered = np.sort(among)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"thinkback: {name} must be a non-empty vector, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        where = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(f"thinkback: {name} holds {vector[where]} at position {where}; scores must be finite")
    return vector
