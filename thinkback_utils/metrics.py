"""How well a score separates OOD samples, the positives, from ID: score >= threshold is OOD."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from numbers import Integral, Real
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from sklearn.metrics import roc_curve

from .arrays import as_numpy

METRICS = ("tpr10", "fpr95", "auroc", "aupr")
TITLES = {"tpr10": "TPR10 ↑", "fpr95": "FPR95 ↓", "auroc": "AUROC ↑", "aupr": "AUPR ↑"}

REVERSED = "scores must be higher = more OOD: was the sign of a confidence not turned?"
Rule = Literal["first", "nearest"]
Area = Literal["step", "trapezoid"]


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
    """Largest true-positive rate among the points whose false-positive rate is at most ``fpr``.

    Raises:
        ValueError: if ``fpr`` is not in [0, 1], or the curve is none.
    """
    _check_rate("fpr", fpr)
    _check_ends(curve)
    return float(curve.tpr[curve.fpr <= fpr].max())


def fpr_at_tpr(curve: Roc, tpr: float = 0.95, rule: Rule = "first") -> float:
    """False-positive rate at the first threshold that reaches ``tpr``.

    ``rule="nearest"`` takes the point whose true-positive rate is closest instead, as Outlier
    Exposure's code does: it walks from full recall to stricter thresholds, so among equal rates the
    largest false-positive rate wins.

    Raises:
        ValueError: if ``tpr`` is not in [0, 1], the rule is another, or the curve is none.
    """
    _check_rate("tpr", tpr)
    _check_choice("rule", rule, get_args(Rule))
    _check_ends(curve)
    if rule == "nearest":
        last = curve.tpr.argmax()
        return float(curve.fpr[last::-1][np.abs(curve.tpr[last::-1] - tpr).argmin()])
    return float(curve.fpr[(curve.tpr >= tpr).argmax()])


def average_precision(curve: Roc, prevalence: float) -> float:
    """Average precision (step rule) if a fraction ``prevalence`` of all samples were OOD.

    Precision at a point is ``pi TPR / (pi TPR + (1 - pi) FPR)``, so the mix is a weight and nothing
    is resampled.

    Raises:
        ValueError: if the prevalence is not in (0, 1), or the curve is none.
    """
    _check_mix(prevalence)
    _check_ends(curve)
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


def ood_metrics(
    id_scores: ArrayLike, ood_scores: ArrayLike, prevalence: float = 1 / 6
) -> dict[str, float]:
    """TPR10, FPR95, AUROC and AUPR of a score, exact and tie-aware.

    Args:
        id_scores, ood_scores: float (N_id,) and (N_ood,), higher = more OOD.
        prevalence: fraction of OOD samples for the AUPR; 1/6 is 2,000 OOD against 10,000 ID images.

    Returns: ``{"tpr10", "fpr95", "auroc", "aupr"}`` in [0, 1]; higher is better but for fpr95.
        AUROC counts ties one half.

    Raises:
        ValueError: on an empty side, values that are not finite, or a prevalence outside (0, 1).

    Warns:
        UserWarning: if the scores look like confidences, higher = less OOD
            (:func:`looks_reversed`).

    >>> ood_metrics([0.1, 0.2], [0.2, 0.9])["auroc"]
    0.875
    """
    ids, oods = _vector("id_scores", id_scores), _vector("ood_scores", ood_scores)
    values = summary(roc(ids, oods), prevalence)
    if looks_reversed(values["auroc"], len(ids), len(oods)):
        # the same text each time, so that it is shown once
        warnings.warn(f"thinkback: the AUROC is far below 0.5; {REVERSED}", stacklevel=2)
    return values


def looks_reversed(auroc: float, n_id: int, n_ood: int) -> bool:
    """Whether scores are rather confidences: an AUROC below 0.3 that chance does not explain.

    Chance is the rank test of Mann & Whitney: the upper end of 95 % of what equal distributions of
    ``n_id`` and ``n_ood`` scores give still lies above the AUROC. A few images are never enough.

    >>> looks_reversed(0.1, 100, 100), looks_reversed(0.0, 2, 2), looks_reversed(0.4, 9999, 9999)
    (True, False, False)
    """
    chance = 1.96 * math.sqrt((n_id + n_ood + 1) / (12 * n_id * n_ood))
    return auroc < 0.3 and auroc < 0.5 - chance


def conventions(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    prevalence: float | None = None,
    area: Area = "step",
) -> dict[str, float]:
    """What other papers and libraries print under the same names, each in [0, 1].

    They differ in the positive class, and in the rule for the area under precision over recall:

    ======================================  ==============  =====================================
    paper or library                        positive class  what it prints, by the names here
    ======================================  ==============  =====================================
    this package; Outlier Exposure          OOD             ``fpr95_out``, ``aupr_out`` (step)
    OpenOOD 1.5; pytorch-ood                OOD             ``fpr95_out``, ``aupr_*`` (trapezoid)
    ODIN                                    ID              ``fpr95_in``, ``aupr_*``
    Energy (its default), many after it     ID              ``fpr95_in``, ``aupr_in`` (step)
    ======================================  ==============  =====================================

    ODIN prints the detection error, too. The AUROC is the same either way. Outlier Exposure takes
    FPR95 by ``rule="nearest"`` of :func:`fpr_at_tpr`.

    Args:
        id_scores, ood_scores: float (N_id,) and (N_ood,), higher = more OOD, as everywhere here.
        prevalence: fraction of OOD samples for both AUPR; None: as the scores are mixed, which is
            what libraries do.
        area: ``"step"``, scikit-learn's ``average_precision_score``; or ``"trapezoid"``, its
            ``auc`` of precision over recall, which joins the points of the curve by straight lines.
            They differ most where samples are few.

    Returns:
        - ``fpr95_out``, lower is better: of ID samples, those called OOD where 95 % of OOD samples
          are;
        - ``fpr95_in``, lower is better: of OOD samples, those called ID where 95 % of ID samples
          are;
        - ``aupr_out``, ``aupr_in``, higher is better: of OOD and of ID samples as the positive
          class;
        - ``detection_error``, lower is better, at most 0.5: ``min (FPR + 1 - TPR) / 2`` over all
          thresholds.

    Raises:
        ValueError: as :func:`ood_metrics` does, or on another rule for the area.

    Sources: Liang et al. (2018, ODIN); Hendrycks et al. (2019, Outlier Exposure); Liu et al. (2020,
    Energy); Zhang et al. (2023, OpenOOD 1.5).

    >>> found = conventions([0.1, 0.2, 0.3, 0.6], [0.4, 0.5])
    >>> found["fpr95_out"], found["fpr95_in"], found["detection_error"]
    (0.25, 1.0, 0.125)
    """
    _check_choice("area", area, get_args(Area))
    ids, oods = _vector("id_scores", id_scores), _vector("ood_scores", ood_scores)
    mix = len(oods) / (len(ids) + len(oods)) if prevalence is None else prevalence
    out, within = roc(ids, oods), roc(-oods, -ids)  # OOD, then ID as the positive class
    under = average_precision if area == "step" else _trapezoid
    return {
        "fpr95_out": fpr_at_tpr(out),
        "fpr95_in": fpr_at_tpr(within),
        "aupr_out": under(out, mix),
        "aupr_in": under(within, 1 - mix),
        "detection_error": float((out.fpr + 1 - out.tpr).min() / 2),
    }


def _trapezoid(curve: Roc, prevalence: float) -> float:
    """Area under precision over recall by straight lines, from (0, 1) on as in scikit-learn."""
    _check_mix(prevalence)
    hits = prevalence * curve.tpr[1:]
    precision = hits / (hits + (1 - prevalence) * curve.fpr[1:])
    return float(trapezoid(np.append(1.0, precision), curve.tpr))


def draws(
    ood_scores: ArrayLike, size: int = 2000, count: int = 10, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """The protocol's random subsets: ``count`` draws of min(size, N) scores, seeded.

    Each is drawn without replacement.

    Raises:
        ValueError: if the size or the count is not a whole number from 1 on, the seed from 0 on, or
            on bad scores.
    """
    _check_whole(size=size, count=count)
    _check_whole(0, seed=seed)
    scores, generator = _vector("ood_scores", ood_scores), np.random.default_rng(seed)
    return (generator.choice(scores, min(size, len(scores)), replace=False) for _ in range(count))


def resampled(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    prevalence: float = 1 / 6,
    resamples: int = 500,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The four metrics of bootstrap resamples of the images, float64 (resamples, 4).

    Both sides are resampled. The scores are sorted once; a resample then is a count at each point
    of their curve.

    Row i of two scores of the same images comes from the same resample, so a difference of rows is
    a paired one; and row i of two OOD sets shares its in-distribution images, so a mean over sets
    is one too.

    Raises:
        ValueError: if there are no resamples, the seed is negative, or as :func:`ood_metrics` does.
    """
    _check_whole(resamples=resamples)
    _check_whole(0, seed=seed)
    _check_mix(prevalence)
    sides = _vector("id_scores", id_scores), _vector("ood_scores", ood_scores)
    threshold = roc(*sides).threshold  # threshold[0] is above all
    points = [np.searchsorted(-threshold[1:], -side) for side in sides]  # of each sample
    times = [_drawn(len(scores), resamples, seed, side) for side, scores in enumerate(sides)]
    values = []
    for drawn in zip(*times, strict=True):
        pairs = zip(points, drawn, strict=True)
        counts = np.stack([np.bincount(*pair, len(threshold) - 1) for pair in pairs])
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
    """95 % percentile interval of each metric, ``{metric: (low, high)}``.

    Of what :func:`resampled` gave, or of a difference.

    Raises:
        ValueError: if ``values`` are not finite of shape (resamples, 4).
    """
    table = np.asarray(values)
    shaped = table.ndim == 2 and table.shape[1] == len(METRICS) and len(table)
    if not shaped or not np.isfinite(table).all():
        raise ValueError(
            f"thinkback: an interval needs finite values of shape (resamples, {len(METRICS)}), as"
            f" resampled gives; got shape {table.shape}"
        )
    low, high = np.quantile(table, [0.025, 0.975], axis=0)
    return {metric: (float(a), float(b)) for metric, a, b in zip(METRICS, low, high, strict=True)}


def mean_auroc(id_scores: ArrayLike, ood_scores: Iterable[ArrayLike]) -> tuple[float, float]:
    """Mean AUROC over OOD sets and the half-width of its 95 % interval, ties counted one half.

    An AUROC is the mean over ID images of the fraction of OOD scores above theirs, and the reverse;
    the variances of both give its own (DeLong et al. 1988). The sets share their ID images, so
    those are averaged over sets first.

    Args:
        id_scores: float (N_id,), higher = more OOD.
        ood_scores: one vector for each OOD set.

    Raises:
        ValueError: if there is no OOD set, fewer than two scores on a side (which have no
            variance), or bad scores.

    >>> mean_auroc([0.1, 0.2, 0.3], [[0.2, 0.9]])[0]
    0.75
    """
    ids = _vector("id_scores", id_scores)
    oods = [_vector("a set of ood_scores", side) for side in ood_scores]
    if not oods:
        raise ValueError(
            "thinkback: ood_scores holds no OOD set; give a list of vectors, one for each set"
        )
    if few := [len(side) for side in (ids, *oods) if len(side) < 2]:
        raise ValueError(
            f"thinkback: an interval of an AUROC needs two scores a side or more, got {few[0]}"
        )
    above, variance = np.zeros(len(ids)), 0.0
    for ood in oods:
        above += (1 - rank(ids, ood)) / len(oods)
        variance += rank(ood, ids).var(ddof=1) / len(ood) / len(oods) ** 2
    return float(above.mean()), 1.96 * float(np.sqrt(variance + above.var(ddof=1) / len(ids)))


def rank(values: NDArray[np.floating], among: NDArray[np.floating]) -> NDArray[np.float64]:
    """Fraction of ``among`` below each value, ties one half; the mean of it is an AUROC.

    >>> rank(np.array([0.2, 0.9]), np.array([0.1, 0.2, 0.3]))
    array([0.5, 1. ])
    """
    ordered = np.sort(among)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right")) / (
        2 * len(ordered)
    )


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        given = np.asarray(as_numpy(values))
        if given.dtype.kind not in "biufO":  # strings would be read, and complex numbers cut
            raise TypeError(f"its type is {given.dtype}")
        vector = given.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"thinkback: {name} must be a vector of numbers; {error}") from error
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"thinkback: {name} must be a non-empty vector, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        where = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(
            f"thinkback: {name} holds {vector[where]} at position {where}; scores must be finite"
        )
    return vector


def _check_rate(name: str, value: float) -> None:
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"thinkback: {name} is a rate in [0, 1], got {value!r}")


def _check_mix(prevalence: float) -> None:
    if not isinstance(prevalence, Real) or not 0 < prevalence < 1:
        raise ValueError(f"thinkback: prevalence is a fraction between 0 and 1, got {prevalence!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"thinkback: {name} is one of {choices}, got {value!r}")


def _check_whole(least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"thinkback: {name} is a whole number from {least} on, got {value!r}")


def _check_ends(curve: Roc) -> None:
    """Raise if a curve stops early: where no point reaches a rate, the first would be taken."""
    ends = [
        [float(rates[i]) for i in (0, -1)] if len(rates) else [] for rates in (curve.fpr, curve.tpr)
    ]
    if ends != [[0.0, 1.0]] * 2:
        raise ValueError(
            f"thinkback: a ROC curve runs from (0, 0) to (1, 1), this one has FPR and TPR {ends};"
            " use roc"
        )
