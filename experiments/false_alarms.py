"""How often a threshold from calibration scores gives false alarms: measured, and predicted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from thinkback_utils.calibration import (
    Calibration,
    GroupedCalibration,
    benjamini_hochberg,
    conformal_threshold,
)

Vector = NDArray[np.float64]


def allowed(n: int, alpha: float, delta: float | None = None) -> int:
    """How many of n + 1 ranks are alarms: m, as the package chooses it; 0 if n is too small.

    The threshold lies just above all calibration scores but the m - 1 largest.

    Args:
        n: calibration scores.
        alpha, delta: as in :func:`thinkback_utils.calibration.conformal_threshold`.

    >>> allowed(9, 0.2), allowed(9, 0.05)
    (2, 0)
    """
    try:
        threshold = conformal_threshold(np.arange(1.0, n + 1), alpha, delta)
    except ValueError:
        return 0
    return n + 1 - math.floor(threshold)


class Halves:
    """Random halves of scores: one half calibrates, the other measures.

    Args:
        count: how many scores there are.
        alphas: promised rates of false alarms, (A,).
        splits: how many times the scores are divided.
        seed: of the divisions.

    Attributes:
        order: places of the scores, (splits, count); the first ``n`` of a row calibrate.
        n, N: scores that calibrate, and that measure.
        m: ranks that are alarms, for each promise, (A,).

    Raises:
        ValueError: if half of the scores is too few for a promise.
    """

    def __init__(self, count: int, alphas: ArrayLike, splits: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.alphas = np.asarray(alphas, dtype=np.float64)
        self.order = np.stack([generator.permutation(count) for _ in range(splits)])
        self.n = count // 2
        self.N = count - self.n
        self.m = np.array([allowed(self.n, float(alpha)) for alpha in self.alphas])
        if not self.m.all():
            least = float(self.alphas[self.m > 0].min(initial=1.0))
            raise ValueError(
                f"thinkback: {self.n} calibration scores are too few for alpha below {least:.4g};"
                " promise more, or bring more scores"
            )

    def limits(self, scores: ArrayLike) -> Vector:
        """The largest score that is no alarm, by split and promise, (splits, A)."""
        values = np.asarray(scores, dtype=np.float64)
        limits: Vector = np.sort(values[self.order[:, : self.n]], axis=1)[:, self.n - self.m]
        return limits

    def rates(self, scores: ArrayLike) -> Vector:
        """Share of the measuring half that is an alarm, (splits, A); scores are (count,)."""
        values = np.asarray(scores, dtype=np.float64)
        halves = zip(self.order[:, self.n :], self.limits(values), strict=True)
        return np.stack([above(values[rest], limit) for rest, limit in halves])

    def predicted(self, level: float = 0.95) -> tuple[Vector, Vector]:
        """Where that share lies for this part of all splits: both ends, (A,) each.

        It follows from the numbers of scores alone: a beta-binomial share.
        """
        law = stats.betabinom(self.N, self.m, self.n + 1 - self.m)
        low, high = law.interval(level)
        return np.asarray(low / self.N), np.asarray(high / self.N)

    def luck(self, level: float = 0.95) -> tuple[Vector, Vector]:
        """The same of the rate itself, as endless measuring would find it: a Beta law."""
        low, high = stats.beta(self.m, self.n + 1 - self.m).interval(level)
        return np.asarray(low), np.asarray(high)


def by_group(
    scores: Vector, groups: NDArray[np.integer], halves: Halves, alpha: float, split: int
) -> tuple[Vector, Vector]:
    """Rates of false alarms in each group: with one threshold for all, and with one for each.

    Args:
        scores: (count,).
        groups: labels 0 to G - 1, (count,).
        halves: of the scores.
        alpha: the promise.
        split: which of the divisions.

    Returns: two arrays (G,).
    """
    mine, rest = np.split(halves.order[split], [halves.n])
    one = Calibration.of(scores[mine], alpha).rejects(scores[rest])
    each = GroupedCalibration.of(scores[mine], groups[mine], alpha)
    own, found = each.rejects(scores[rest], groups[rest]), range(int(groups.max()) + 1)
    rates = [[flags[groups[rest] == g].mean() for g in found] for flags in (one, own)]
    return np.array(rates[0]), np.array(rates[1])


def listed(
    scores: Vector, oods: Vector, halves: Halves, split: int, size: int, share: float, q: float
) -> tuple[int, float, float]:
    """A stream of images and the list of alarms in it, by the rule of Benjamini and Hochberg.

    Args:
        scores: of in-distribution images, (count,).
        oods: of outliers.
        halves: of ``scores``: one half calibrates, the other is the stream.
        split: which of the divisions; also the seed of the draw of outliers.
        size: images in the stream.
        share: of them that are outliers.
        q: largest share of the alarms that may be false, on average.

    Returns: alarms, the false share of them, the share of the outliers that is caught.
    """
    outliers = np.random.default_rng(split).choice(oods, round(share * size), replace=False)
    mine, rest = np.split(halves.order[split], [halves.n])
    stream = np.concatenate([scores[rest][: size - len(outliers)], outliers])
    p = Calibration.of(scores[mine], float(halves.alphas[-1])).p_value(stream)
    flags = benjamini_hochberg(p, q)
    alarms, right = int(flags.sum()), int(flags[-len(outliers) :].sum())
    return alarms, (alarms - right) / max(alarms, 1), right / len(outliers)


def above(scores: ArrayLike, limits: ArrayLike) -> Vector:
    """Share of the scores that lie above each limit, of the shape of ``limits``.

    >>> above([1, 2, 3, 4], [2, 4])
    array([0.5, 0. ])
    """
    ordered = np.sort(np.asarray(scores))
    return np.asarray(1 - np.searchsorted(ordered, limits, "right") / len(ordered))
