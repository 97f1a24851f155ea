"""Which average precisions, and so which prevalences, can go with a printed TPR10, FPR95 and AUROC.

A ROC curve is read as ``T(c)``, the largest TPR at an FPR of at most c, or as ``f(t)``, the FPR at
the first threshold whose TPR is at least t. With ``rho = (1 - pi) / pi``, precision is
``t / (t + rho f(t))``, and average precision is its integral over t. Layer by layer in c this is
``AP = 1 - integral of H(c, T(c)) dc`` with ``H(c, tau) = integral from tau to 1 of rho t / (t + rho
c)^2 dt``, and the area above the curve, ``1 - AUROC``, is the ``integral of 1 - T(c) dc``. Both
bounds are values of a Lagrangian dual: whatever price of area they are taken at, no curve lies
beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.isotonic import isotonic_regression

from thinkback_utils.methods import TITLES
from thinkback_utils.metrics import Roc, average_precision

from .evaluation import SET_TITLES, paper_table

ROUNDING = 0.00005  # half of the last digit of a percentage with two decimals
NODES = 600  # of the trapezoids of the lower bound, between two levels of FPR
TINY = 1e-300  # keeps 0 / 0 at the corner (0, 0) at 0
LOG_ODDS = 14.0  # of the rarest prevalence that is looked at: one in a million
Vector = NDArray[np.float64]
Bound = tuple[float, Vector, Vector]  # value, and the vertices (FPR, TPR) of its curve


class Piece(NamedTuple):
    """For an FPR between ``c0`` and ``c1`` the TPR lies between ``low`` and ``high``."""

    c0: float
    c1: float
    low: float
    high: float


@dataclass(frozen=True)
class Printed:
    """What a table says of a ROC curve, all in [0, 1].

    Args:
        tpr10: largest TPR with FPR <= ``at_fpr``.
        fpr95: FPR at the first threshold with TPR >= ``at_tpr``.
        auroc: area under the curve, ties one half; None if it is not to be used.
        half_width: half of the last printed digit: each number may be that far off.
        step: largest share of the positives that enters at one threshold: 1 / n_OOD without ties, 1
            for anything. The step rule reads precision at the end of a step, which lifts the upper
            bound, and AUROC counts one half of a tie, which widens both. 0 is a smooth curve.
        scatter: if the numbers are means over several test sets, how far TPR10 and FPR95 of any of
            them may lie from their mean. Then the bounds are for the mean AUPR. (AUROC enters
            linearly: its scatter does not matter.)
        interpolated: whether the AUPR is that of interpolated precision: at each TPR the largest
            precision there or at any larger TPR. It is never below the AUPR of the step rule.
        at_fpr, at_tpr: where the two points were read off.

    Raises:
        ValueError: if a number lies outside [0, 1], or no curve has all of them.

    >>> Printed(0.78, 0.32).bounds(1 / 6)
    (0.377..., 0.906...)
    """

    tpr10: float
    fpr95: float
    auroc: float | None = None
    half_width: float = ROUNDING
    step: float = 0.0
    scatter: float = 0.0
    interpolated: bool = False
    at_fpr: float = 0.10
    at_tpr: float = 0.95

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"thinkback: {name} is a fraction between 0 and 1, got {value}; percent / 100?"
                )
        pieces = self.pieces()
        if any(p.low > p.high for p in pieces):
            raise ValueError(
                f"thinkback: no ROC curve has TPR10 {self.tpr10} and FPR95 {self.fpr95} together"
            )
        low, high = _area(pieces, [p.low for p in pieces]), _area(pieces, [p.high for p in pieces])
        if self.auroc is not None and not (
            self._areas()[0] <= low + 1e-12 and self._areas()[1] >= high - 1e-12
        ):
            raise ValueError(
                f"thinkback: with TPR10 {self.tpr10} and FPR95 {self.fpr95}, auroc lies between"
                f" {1 - low:.4f} and {1 - high:.4f}, got {self.auroc}"
            )

    def swapped(self) -> Printed:
        """The same curve with in-distribution as the positive class, for what is called AUPR-In."""
        points: dict[str, Any] = {"tpr10": 1 - self.fpr95, "fpr95": 1 - self.tpr10}
        return replace(self, **points, at_fpr=1 - self.at_tpr, at_tpr=1 - self.at_fpr)

    def pieces(self) -> list[Piece]:
        """The two points as a box for T(c) between neighboring levels of FPR, from 0 to 1."""
        h, out = self.half_width + self.scatter, []
        levels = np.unique(np.clip([0, 1, self.at_fpr, self.fpr95 - h, self.fpr95 + h], 0, 1))
        for c0, c1 in pairwise(levels):
            c = (c0 + c1) / 2
            low = max((self.tpr10 - h) * (c > self.at_fpr), self.at_tpr * (c > self.fpr95 + h))
            left = self.tpr10 + h if c < self.at_fpr else 1
            high = min(left, self.at_tpr if c < self.fpr95 - h else 1, 1)
            out.append(Piece(float(c0), float(c1), float(low), float(high)))
        return out

    def bounds(self, prevalence: float) -> tuple[float, float]:
        """Smallest and largest average precision of all curves with these numbers.

        No curve lies outside. By the step rule the lower bound is approached by a curve, and so is
        the upper one without AUROC. With AUROC the upper one is a dual value, which a curve may
        miss by a little: :func:`extremal_curves` tells how much. With interpolated precision the
        lower bound is still that of the step rule.

        Args:
            prevalence: pi, fraction of OOD samples, in (0, 1).

        Raises:
            ValueError: on a prevalence outside (0, 1).
        """
        return self._lower(prevalence)[0], self._upper(prevalence)[0]

    def _areas(self) -> tuple[float, float]:
        """Least and most of the area above the curve; half of a tied step lies above it."""
        area = 1.0 - (self.auroc or 0.0)
        return area - self.half_width, area + self.half_width + self.step / 2

    def _upper(self, prevalence: float) -> Bound:
        """Bound and vertices (FPR, TPR): within a piece T is constant, an optimum of its price."""
        if self.interpolated:
            return self._upper_interpolated(prevalence)
        rho, pieces = _odds(prevalence), self.pieces()
        c0, c1, low, high = np.array(pieces).T
        least = self._areas()[0]

        def gain(tau: Vector, price: float) -> Vector:  # of AP + price * area, by piece
            lost = _above(tau, c0, rho, self.step) - _above(tau, c1, rho, self.step)
            return np.asarray(price * (c1 - c0) * (1 - tau) - lost)

        def best(price: float) -> Vector:
            middle = rho / price - rho * (c0 + c1)
            root: Vector = (middle + np.sqrt(np.maximum(middle**2 - 4 * rho**2 * c0 * c1, 0))) / 2
            places: Vector = np.array([low, high, np.clip(root - self.step, low, high)])
            chosen = np.argmax([gain(tau, price) for tau in places], axis=0)
            picked: Vector = np.take_along_axis(places, chosen[None], axis=0)[0]
            return picked

        if self.auroc is None or _area(pieces, high) >= least:
            return 1 + float(gain(high, 0).sum()), *_vertices(pieces, high)
        price = _price(lambda price: _area(pieces, best(price)) - least, rho)
        value = min(
            1 + float(gain(best(p), p).sum()) - p * least
            for p in (price * (1 - 1e-9), price * (1 + 1e-9))
        )
        few, many = best(price * (1 - 1e-6)), best(price * (1 + 1e-6))
        gap = _area(pieces, many) - _area(pieces, few)
        share = np.clip((least - _area(pieces, few)) / gap, 0, 1) if gap > 0 else 0.0
        return value, *_vertices(pieces, (1 - share) * few + share * many)

    def boxes(self) -> list[Piece]:
        """The two points as a box for f(t) between neighboring levels of TPR, from 0 to 1.

        A piece holds both ends of the TPR, then the least and the largest FPR between them.
        """
        h, out = self.half_width + self.scatter, []
        a, b = self.tpr10, self.fpr95
        for t0, t1 in pairwise(np.unique(np.clip([0, 1, a - h, a + h, self.at_tpr], 0, 1))):
            t = (t0 + t1) / 2
            low = max(self.at_fpr * (t > a + h), (b - h) * (t > self.at_tpr), 0)
            high = min(self.at_fpr if t < a - h else 1, b + h if t < self.at_tpr else 1, 1)
            out.append(Piece(float(t0), float(t1), float(low), float(high)))
        return out

    def _upper_interpolated(self, prevalence: float) -> Bound:
        """Bound and vertices (FPR, TPR): each box of f(t) is low on its first part, then high.

        Where the FPR is f, no precision to the right in a box with end e exceeds ``e / (e + rho
        f)``, and none there exceeds ``e / (e + rho low)``. The first is used for boxes that begin
        as low as this one, the second for the others, so that the integrand is at most a convex
        function of f. What the area asks for is then bought where it costs least, by the highest f
        of a box in the place of its lowest.
        """
        rho = _odds(prevalence)
        start, end, low, high = np.array(self.boxes()).T
        alike = low[:, None] == low
        last = np.where(alike, end, 0.0).max(1)
        reached = end / np.maximum(end + rho * low, TINY)
        later = np.where(low > low[:, None], reached, 0.0).max(1)
        top = np.maximum(last / np.maximum(last + rho * low, TINY), later)
        lost = top - np.maximum(last / np.maximum(last + rho * high, TINY), later)
        width, rise = end - start, high - low
        missing = 0.0 if self.auroc is None else self._areas()[0] - float((width * low).sum())
        share = np.zeros(len(start))
        for k in sorted(np.flatnonzero(rise > 0), key=lambda k: lost[k] / rise[k]):
            share[k] = np.clip(missing / (width[k] * rise[k]), 0, 1)
            missing -= share[k] * width[k] * rise[k]
        jump = end - share * width
        fpr = np.append(np.stack([low, low, high, high], 1).ravel(), 1.0)
        tpr = np.append(np.stack([start, jump, jump, end], 1).ravel(), 1.0)
        keep = np.append(np.stack([share < 1, share < 1, share > 0, share > 0], 1).ravel(), True)
        value = float((width * (top - share * lost)).sum())
        return value, np.maximum.accumulate(fpr[keep]), tpr[keep]

    def _lower(self, prevalence: float) -> Bound:
        """Bound and vertices (FPR, TPR): at each c, T balances precision against price of area."""
        rho, pieces, most = _odds(prevalence), self.pieces(), self._areas()[1]
        low = np.array([p.low for p in pieces])
        lost = [
            _above(t, p.c0, rho) - _above(t, p.c1, rho) for t, p in zip(low, pieces, strict=True)
        ]
        free = 1 - float(np.sum(lost))
        if self.auroc is None or _area(pieces, low) <= most:
            return free, *_vertices(pieces, low)
        c, lows, highs = np.stack([_nodes(p) for p in pieces], axis=1)

        def best(price: float) -> tuple[Vector, Vector]:
            root = np.sqrt(rho / price) / 2
            tau = np.clip(
                (rho * c / (root + np.sqrt(np.maximum(root**2 - rho * c, 0)))) ** 2, lows, highs
            )
            values = [price * (1 - t) - _layer(t, c, rho) for t in (tau, highs)]
            return np.where(values[0] <= values[1], tau, highs), np.minimum(values[0], values[1])

        def area(price: float) -> float:
            return float(trapezoid(1 - best(price)[0], c, axis=1).sum())

        price = _price(lambda price: most - area(price), rho)
        tau, value = best(price)
        # As a function of c the minimum is concave, so trapezoids stay below it. In the first cell,
        # where it may be -inf, precision loses at most what it loses with T = 0.
        first = c[0, 1]
        total = trapezoid(value[0, 1:], c[0, 1:]) + trapezoid(value[1:], c[1:], axis=1).sum()
        start = float(_above(np.zeros(1), first, rho)[0])
        bound = max(free, start + float(total) - price * most)
        return bound, np.append(c.ravel(), 1.0), np.append(tau.ravel(), 1.0)

    def prevalences(self, aupr: float) -> tuple[float, float]:
        """Smallest and largest prevalence at which some such curve has the printed ``aupr``.

        Both bounds grow with the prevalence: at the left end the upper one has just come up to the
        printed value, at the right end the lower one has. An end of 0 or 1 means that nothing
        limits this side.

        Raises:
            ValueError: if ``aupr`` lies outside (0, 1).

        >>> low, high = Printed(0.78, 0.32).prevalences(0.90)
        >>> f"{low:.3f} to {high:.3f}"
        '0.150 to 0.822'
        """
        if not 0 < aupr < 1:
            raise ValueError(
                f"thinkback: aupr is a fraction between 0 and 1, got {aupr}; percent / 100?"
            )
        low = _crossing(lambda pi: self._upper(pi)[0] - (aupr - self.half_width))
        high = _crossing(lambda pi: self._lower(pi)[0] - (aupr + self.half_width))
        return (0.0 if low is None else low), (1.0 if high is None else high)


@dataclass(frozen=True)
class Row:
    """A row of the paper's Table 1.

    Attributes:
        title: its test set and its method, as in "SVHN Energy".
        test_set, method: the same as keys of ``SET_TITLES`` and ``METHODS``.
        curve: its TPR10, FPR95 and AUROC.
        aupr: its AUPR, in [0, 1].
    """

    title: str
    test_set: str
    method: str
    curve: Printed
    aupr: float

    def prevalences(self, **changes: Any) -> tuple[float, float]:
        """Smallest and largest prevalence that it can have, with fields of ``curve`` changed."""
        return replace(self.curve, **changes).prevalences(self.aupr)

    def excess(self, prevalence: float, **changes: Any) -> float:
        """How far its AUPR lies above all curves (positive) or below all (negative), or 0.

        Args:
            prevalence: pi, fraction of OOD samples, in (0, 1).
            changes: fields of ``curve``.
        """
        above, below = self._gaps(prevalence, False, changes)
        return max(above, 0.0) - max(below, 0.0)

    def needed(self, field: str, prevalence: float, *, trapezoids: bool = False) -> float:
        """The least ``step`` or ``scatter`` with which some curve has its AUPR, up to one half.

        Infinite where that is not enough.

        Args:
            field: of ``curve``: "step" or "scatter".
            prevalence: pi, fraction of OOD samples, in (0, 1).
            trapezoids: whether points of the precision-recall curve are joined by straight lines,
                which adds at most half a step to the largest AUPR.
        """

        def gap(value: float) -> float:
            return max(self._gaps(prevalence, trapezoids, {field: value}))

        start, end = float(getattr(self.curve, field)), 0.5
        if gap(start) <= 0:
            return start
        return float(brentq(gap, start, end, xtol=1e-6)) if gap(end) < 0 else float("inf")

    def likely(self, prevalence: float) -> float:
        """AUPR of the binormal curve through its two points: a model, not a bound.

        Args:
            prevalence: pi, fraction of OOD samples, in (0, 1).
        """
        levels, rho = (np.arange(20_000) + 0.5) / 20_000, _odds(prevalence)
        return float(np.mean(levels / (levels + rho * binormal(self.curve, levels))))

    def likely_prevalence(self) -> float:
        """The prevalence at which the binormal curve has its AUPR."""
        return float(brentq(lambda pi: self.likely(pi) - self.aupr, 1e-4, 1 - 1e-4, xtol=1e-6))

    def reached(self, prevalence: float, points: int = 100_000) -> tuple[float, float]:
        """How far the AUPR of each extremal curve is from its bound, the lower one first.

        Args:
            prevalence: pi, fraction of OOD samples, in (0, 1).
            points: steps of the curves.
        """
        smooth = replace(self.curve, step=0.0)
        curves = extremal_curves(smooth, prevalence, points)
        low, high = (average_precision(curve, prevalence) for curve in curves)
        least, most = smooth.bounds(prevalence)
        return abs(low - least), abs(most - high)

    def _gaps(
        self, prevalence: float, trapezoids: bool, changes: Mapping[str, Any]
    ) -> tuple[float, float]:
        curve = replace(self.curve, **changes)
        low, high = curve.bounds(prevalence)
        above = self.aupr - curve.half_width - high - trapezoids * curve.step / 2
        return above, low - self.aupr - curve.half_width


def table(step: float = 0.0) -> dict[str, Row]:
    """All rows of the paper's Table 1 but the mean, by title; ``step`` as in :class:`Printed`."""
    rows = {}
    for r in paper_table():
        if r["set"] != "mean":
            curve = Printed(r["tpr10"], r["fpr95"], r["auroc"], step=step)
            title = f"{SET_TITLES[r['set']]} {TITLES[r['method']]}"
            rows[title] = Row(title, r["set"], r["method"], curve, r["aupr"])
    return rows


def outside(fits: Mapping[str, tuple[float, float]], prevalence: float) -> list[str]:
    """Titles of the rows whose interval does not hold this prevalence.

    >>> outside({"a": (0.1, 0.3), "b": (0.2, 0.9)}, 1 / 2)
    ['a']
    """
    return [title for title, (low, high) in fits.items() if not low <= prevalence <= high]


def answer(fits: Mapping[str, tuple[float, float]], mixes: Mapping[str, float]) -> str:
    """One sentence: how many rows each mix contradicts, and whether any mix suits all rows.

    Args:
        fits: title of a row -> smallest and largest prevalence.
        mixes: name of a mix -> its prevalence.

    >>> answer({"a": (0.1, 0.3), "b": (0.4, 0.9)}, {"1 : 1": 1 / 2})
    '**No**: 1 of 2 rows cannot have a mix of 1 : 1, and no mix at all suits all rows.'
    """
    against = {name: len(outside(fits, prevalence)) for name, prevalence in mixes.items()}
    some = max(low for low, _ in fits.values()) <= min(high for _, high in fits.values())
    parts = [
        f"{count} of {len(fits)} rows cannot have a mix of {n}" for n, count in against.items()
    ]
    verdict = "Yes, perhaps" if some else "No"
    last = "there is a mix that suits all rows" if some else "no mix at all suits all rows"
    return f"**{verdict}**: {', '.join(parts)}, and {last}."


def possible(
    rows: Mapping[str, Row],
    fits: Mapping[str, tuple[float, float]],
    prevalence: float | Mapping[str, float],
) -> dict[str, int]:
    """How many rows of each method can have a mix: title of the method -> count.

    Args:
        rows: by title.
        fits: title of a row -> smallest and largest prevalence.
        prevalence: of all test sets, or test set -> its own.
    """
    counts = {TITLES[row.method]: 0 for row in rows.values()}
    for title, row in rows.items():
        mix = prevalence if isinstance(prevalence, float) else prevalence[row.test_set]
        low, high = fits[title]
        counts[TITLES[row.method]] += low <= mix <= high
    return counts


def binormal(printed: Printed, levels: Vector) -> Vector:
    """FPR at these TPRs of the binormal curve through the two points, (levels,).

    A binormal curve is a straight line in normal quantiles, ``z(TPR) = a + b z(FPR)``: two normal
    distributions of scores have it. It does not use the AUROC.
    """
    x, y = norm.ppf([printed.at_fpr, printed.fpr95]), norm.ppf([printed.tpr10, printed.at_tpr])
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return np.asarray(norm.cdf(x[0] + (norm.ppf(levels) - y[0]) / slope))


def random_curves(printed: Printed, levels: Vector, count: int, seed: int = 0) -> Vector:
    """FPR of random ROC curves through the two points, of any AUROC, (count, levels).

    Args:
        printed: where they pass; in each of its boxes f rises from low to high at its own pace.
        levels: ascending TPRs at which f is wanted, (levels,).
        count: how many curves.
        seed: of the paces.
    """
    generator, f = np.random.default_rng(seed), np.zeros((count, len(levels)))
    for t0, t1, low, high in replace(printed, half_width=0.0, scatter=0.0).boxes():
        inside = (levels > t0) & (levels <= t1)
        first, second = np.exp(generator.uniform(-4, 4, (2, count, 1)))
        pace = np.sort(generator.beta(first, second, (count, int(inside.sum()))), axis=1)
        f[:, inside] = low + (high - low) * pace
    return f


def extremal_curves(printed: Printed, prevalence: float, points: int = 2000) -> tuple[Roc, Roc]:
    """Curves of the least and the largest average precision, with TPR steps of 1 / ``points``.

    As the steps shrink, TPR10, FPR95 and AUROC of the curves come to the printed numbers, and their
    average precisions to the bounds: all but the largest one with AUROC, which shows how far that
    bound may be above every curve.
    """
    t, curves = np.arange(1, points + 1) / points, []
    for _, fpr, tpr in (printed._lower(prevalence), printed._upper(prevalence)):
        f = np.interp(t - 1e-12, tpr, fpr)
        over = t > printed.tpr10 + printed.half_width
        f = np.where(over, np.maximum(f, printed.at_fpr + 1e-9), f)
        over = t > printed.at_tpr - 1e-9
        f = np.where(over, np.maximum(f, printed.fpr95 - printed.half_width), f)
        curves.append(Roc(np.r_[0, f, 1], np.r_[0, t, 1], -np.arange(points + 2.0)))
    return curves[0], curves[1]


def is_share(value: float, n: int, half_width: float = ROUNDING) -> bool:
    """Whether a printed fraction can be a count out of ``n``, within its rounding.

    >>> is_share(0.6515, 2000), is_share(0.7823, 2000)
    (True, False)
    """
    return abs(round(value * n) / n - value) <= half_width + 1e-12


def _odds(prevalence: float) -> float:
    if not 0 < prevalence < 1:
        raise ValueError(f"thinkback: prevalence is a fraction between 0 and 1, got {prevalence}")
    return (1 - prevalence) / prevalence


def _above(tau: Vector, c: Vector | float, rho: float, step: float = 0.0) -> Vector:
    """Integral of the precision at FPR c from TPR tau to 1.

    Each TPR t is read at the end of its step, min(t + step, 1).
    """
    k, t = rho * c, np.minimum(tau + step, 1)
    smooth = (1 - t) - k * np.log1p((1 - t) / np.maximum(t + k, TINY))
    return np.asarray(smooth + np.minimum(1 - tau, step) / (1 + k))


def _layer(tau: Vector, c: Vector, rho: float) -> Vector:
    """H(c, tau): how much precision, summed from TPR tau to 1, falls per unit of FPR at c."""
    k = rho * c
    z = (1 - tau) / np.maximum(tau + k, TINY)
    return np.asarray(rho * (np.log1p(z) - z * k / (1 + k)))


def _area(pieces: list[Piece], tau: Sequence[float] | Vector) -> float:
    """Area above a curve that is constant in each piece."""
    return float(sum((p.c1 - p.c0) * (1 - t) for p, t in zip(pieces, tau, strict=True)))


def _nodes(piece: Piece) -> Vector:
    """FPR nodes of a piece, dense at its left end, and the box of T at each: (3, NODES)."""
    c = piece.c0 + (piece.c1 - piece.c0) * np.linspace(0, 1, NODES) ** 3
    return np.array([c, np.full(NODES, piece.low), np.full(NODES, piece.high)])


def _vertices(pieces: list[Piece], tau: Vector) -> tuple[Vector, Vector]:
    """FPR and TPR at the corners of a curve; pieces that rounding put out of order are ordered."""
    c = np.array([(p.c0, p.c1) for p in pieces])
    t = isotonic_regression(tau, sample_weight=c[:, 1] - c[:, 0])
    return np.append(c.ravel(), 1.0), np.append(np.repeat(t, 2), 1.0)


def _price(excess: Callable[[float], float], rho: float) -> float:
    """The price at which a rising excess of area changes its sign; others give looser bounds."""
    ends = np.log(rho) - 30, np.log(rho) + 30
    if excess(np.exp(ends[0])) >= 0:
        return float(np.exp(ends[0]))
    if excess(np.exp(ends[1])) <= 0:
        return float(np.exp(ends[1]))
    return float(np.exp(brentq(lambda x: excess(np.exp(x)), *ends, xtol=1e-12)))


def _crossing(excess: Callable[[float], float]) -> float | None:
    """The prevalence at which a rising excess changes its sign; None if it does not."""

    def at(x: float) -> float:  # x: log odds
        return excess(float(1 / (1 + np.exp(-x))))

    ends = -LOG_ODDS, LOG_ODDS
    if not at(ends[0]) < 0 < at(ends[1]):
        return None
    return float(1 / (1 + np.exp(-brentq(at, *ends, xtol=1e-9))))
