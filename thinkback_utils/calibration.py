"""From scores to verdicts with a promise: thresholds, p-values, groups, alarms for drift.

All here is about scores, higher = more OOD, as torch or NumPy arrays of any float dtype; no model
is needed. Verdicts are made in float64, so that a float32 score that ties with a calibration score
does not pass it by a rounding.

>>> calibration = Calibration.of(np.arange(1.0, 20.0), alpha=0.05)  # 19 scores, the fewest for 5 %
>>> calibration.rejects(np.array([19.0, 19.5])), calibration.p_value(np.array([19.0, 19.5]))
(array([False,  True]), array([0.1 , 0.05]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, false_discovery_control, hypergeom
from torch import Tensor

from .arrays import as_numpy
from .commands import listed, warn

Array = TypeVar("Array", Tensor, NDArray[Any])
Label = int | str
Few = Literal["error", "accept"]
Vector = NDArray[np.float64]

CHUNK = 256  # scores of a stream that are ranked at once


def conformal_threshold(
    calibration: object, alpha: float = 0.05, delta: float | None = None
) -> float:
    """The smallest threshold that bounds false alarms, whatever the distribution of the scores is.

    It lies just above the k-th smallest of n calibration scores, ``k = ceil((n + 1) (1 - alpha))``:
    a tie with that one is no alarm. If calibration and new scores are exchangeable,
    ``P(score >= threshold) <= alpha`` on average over calibration sets, and
    ``> alpha - 1 / (n + 1)`` without ties. Over single sets of independent scores the rate is
    Beta(m, n + 1 - m), m = n + 1 - k: above alpha about every second time. With ``delta``, m is
    lowered until ``P(Beta(m, n + 1 - m) > alpha) = P(Binomial(n, alpha) < m) <= delta``: at most so
    many sets then break alpha.

    "Just above" is one step in the dtype of the scores, so a comparison in that dtype is right, as
    is one in float64.

    Args:
        calibration: scores of held-out in-distribution samples, float (n,).
        alpha: largest rate of false alarms, in (0, 1).
        delta: largest chance that this calibration set breaks it, in (0, 1); None promises the
            average alone.

    Raises:
        ValueError: if n is too small (the message says how many it takes), alpha or delta is no
            such fraction, or a score is not finite.

    Source: Vovk, "Conditional validity of inductive conformal predictors" (2012).

    >>> conformal_threshold(torch.arange(1.0, 20.0).double(), alpha=0.05) > 19  # the largest
    True
    """
    threshold = Calibration.of(calibration, alpha, delta).threshold
    dtype = str(getattr(calibration, "dtype", "")).removeprefix("torch.")
    narrow: Any = {"float16": np.float16, "float32": np.float32}.get(dtype)
    return threshold if narrow is None else float(np.nextafter(narrow(threshold), narrow(np.inf)))


def minimum_scores(alpha: float = 0.05, delta: float | None = None) -> int:
    """The fewest calibration scores with which ``alpha`` (and ``delta``) can be promised.

    >>> minimum_scores(0.05), minimum_scores(0.05, delta=0.1)
    (19, 45)
    """
    alpha, delta = _promise(alpha, delta)
    if alpha < 1e-12:
        raise ValueError(
            f"thinkback: alpha={alpha} takes over 10**12 calibration scores; choose a larger one"
        )
    fewest = math.ceil((1 - 1e-12) / alpha) - 1  # a rounded 1/49 takes 48, too
    return fewest if delta is None else max(fewest, math.ceil(math.log(delta) / math.log1p(-alpha)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration scores and the threshold that follows from them, or one that was set by hand.

    Built by :meth:`of` or :meth:`by_hand`. What the constructor is given, from a file perhaps, it
    checks.

    Attributes:
        scores: of held-out in-distribution samples, ascending, float64 (n,) on the CPU; n = 0 if
            there are none.
        threshold: scores from it on are alarms; compare in float64, as :meth:`rejects` does.
        alpha, delta: as in :func:`conformal_threshold`; alpha is None where the threshold was set
            by hand.

    Raises:
        ValueError: if scores are not finite or not ascending, or the threshold does not follow from
            them.
    """

    scores: Tensor
    threshold: float
    alpha: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        scores = _vector("calibration scores", self.scores)
        object.__setattr__(self, "scores", torch.from_numpy(scores))
        if (np.diff(scores) < 0).any():
            raise ValueError(
                "thinkback: calibration scores are not ascending; Calibration.of sorts them"
            )
        threshold = _plain(self.threshold)
        if not isinstance(threshold, int | float) or math.isnan(threshold):
            raise ValueError(f"thinkback: a threshold must be a number, got {self.threshold!r}")
        object.__setattr__(self, "threshold", float(threshold))
        if self.alpha is None:
            if self.delta is not None or math.isinf(self.threshold):
                got = f"threshold={self.threshold}, delta={self.delta}"
                raise ValueError(
                    "thinkback: without alpha, a threshold must be finite and have no delta; got"
                    f" {got}"
                )
            return
        alpha, delta = _promise(self.alpha, self.delta)
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "delta", delta)
        if self.threshold != (expected := _just_above(scores, alpha, delta)):
            facts = f"the {len(scores)} calibration scores, alpha={alpha} and delta={delta}"
            raise ValueError(
                f"thinkback: threshold {self.threshold} does not follow from {facts}, {expected}"
                " does"
            )

    @classmethod
    def of(cls, scores: object, alpha: float = 0.05, delta: float | None = None) -> Calibration:
        """From scores in any order, float (n,).

        Arguments, promise and errors of :func:`conformal_threshold`.
        """
        alpha, delta = _promise(alpha, delta)
        ascending = np.sort(_vector("calibration scores", scores))
        if not _alarms(len(ascending), alpha, delta):
            raise ValueError(
                f"thinkback: {_takes(alpha, delta)} calibration scores, got {len(ascending)}"
            )
        return cls(torch.from_numpy(ascending), _just_above(ascending, alpha, delta), alpha, delta)

    @classmethod
    def by_hand(cls, threshold: float, scores: object = ()) -> Calibration:
        """A threshold that someone chose, which promises nothing.

        p-values need calibration scores, float (n,).

        >>> Calibration.by_hand(3.0).rejects(np.array([2.9, 3.0]))
        array([False,  True])
        """
        return cls(torch.from_numpy(np.sort(_vector("calibration scores", scores))), threshold)

    def at(self, alpha: float, delta: float | None = None) -> Calibration:
        """The same scores at another promise; no image is needed."""
        return Calibration.of(self._compared(), alpha, delta)

    def p_value(self, score: Array) -> Array:
        """Conformal p-value ``(1 + #{calibration scores >= score}) / (n + 1)``, *lower* = more OOD.

        In-distribution ``P(p <= u) <= u`` for every u. Without delta, :meth:`rejects` is
        ``p <= alpha``, to the bit.

        Args:
            score: float, of any shape.

        Returns:
            float64, of the shape and kind of ``score``.

        Raises:
            ValueError: if there are no calibration scores, or a score is not finite.
        """
        ascending = self._compared()
        at_least = len(ascending) - np.searchsorted(ascending, _float64("scores", score))
        return _as_given((1 + at_least) / (len(ascending) + 1), score)

    def rejects(self, score: Array) -> Array:
        """Whether ``score >= threshold``, in float64: bool, of the shape and kind of ``score``."""
        return _as_given(_float64("scores", score) >= self.threshold, score)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and facts for JSON, which :func:`from_tensors` reads."""
        return {"calibration": self.scores}, {
            "threshold": self.threshold,
            "alpha": self.alpha,
            "delta": self.delta,
        }

    def _compared(self) -> Vector:
        if not len(self.scores):
            why = (
                "the threshold was set by hand and there are no calibration scores to compare with"
            )
            raise ValueError(f"thinkback: {why}; calibrate on held-out images")
        scores: Vector = self.scores.numpy()
        return scores


@dataclass(frozen=True, eq=False)
class GroupedCalibration:
    """A :class:`Calibration` for each group, so that the promise holds in every one (Mondrian).

    A group is whatever is known of a new sample, too: the class that the network predicts, a
    camera, a site. If scores are exchangeable within a group, ``P(rejected | group) <= alpha``.

    A group with fewer scores than :func:`minimum_scores` is an error, or with ``few="accept"``
    raises no alarm. That keeps the promise: its p-values are valid and all above alpha. Pooling
    small groups would not keep it, since a score would be compared with those of other groups; who
    wants that gives them one label before looking.

    Attributes:
        parts: the Calibration of each label, all at one alpha and delta.

    Source: Vovk, Lindsay, Nouretdinov & Gammerman, "Mondrian confidence machine" (2003).

    >>> by_class = GroupedCalibration.of(np.arange(40.0), np.repeat(["cat", "dog"], 20), alpha=0.1)
    >>> by_class.rejects(np.array([30.0, 30.0]), ["cat", "dog"])
    array([ True, False])
    """

    parts: Mapping[Label, Calibration]

    def __post_init__(self) -> None:
        promises = {(part.alpha, part.delta) for part in self.parts.values()}
        if len(promises) != 1 or (None, None) in promises:
            raise ValueError(
                "thinkback: a calibration by group takes one group or more, all at one alpha and"
                " delta"
            )

    @classmethod
    def of(
        cls,
        scores: object,
        groups: object,
        alpha: float = 0.05,
        delta: float | None = None,
        few: Few = "error",
    ) -> GroupedCalibration:
        """From scores in any order and the label of each.

        Args:
            scores, alpha, delta: as in :func:`conformal_threshold`.
            groups: labels, integers or strings (n,).
            few: ``"error"``, or ``"accept"``: groups with too few scores raise no alarm, and a
                warning names them.

        Raises:
            ValueError: if a group has too few scores (the message says which, and how many it
                takes); if labels are neither integers nor strings, or not n; and as
                :func:`conformal_threshold` does.
        """
        if few not in ("error", "accept"):
            raise ValueError(f"thinkback: few must be 'error' or 'accept', got {few!r}")
        values, (alpha, delta) = _vector("calibration scores", scores), _promise(alpha, delta)
        labels, which = _labels(groups, values.shape)
        if not labels:
            raise ValueError(
                f"thinkback: {_takes(alpha, delta)} calibration scores in each group, got none"
            )
        split = {label: np.sort(values[which == i]) for i, label in enumerate(labels)}
        if small := [
            f"{label!r} ({len(s)})"
            for label, s in split.items()
            if not _alarms(len(s), alpha, delta)
        ]:
            text = (
                f"{_takes(alpha, delta)} calibration scores in each group; too few are in"
                f" {listed(small)}"
            )
            if few == "error":
                raise ValueError(
                    f"thinkback: {text}. Add some, merge groups, or set few='accept': no alarm in"
                    " these"
                )
            warn([f"{text}, which raise no alarm"])
        return cls(
            {
                label: Calibration(torch.from_numpy(s), _just_above(s, alpha, delta), alpha, delta)
                for label, s in split.items()
            }
        )

    def at(
        self, alpha: float, delta: float | None = None, few: Few = "error"
    ) -> GroupedCalibration:
        """The same scores at another promise; no image is needed."""
        tensors, facts = self.to_tensors()
        groups = np.repeat(facts["groups"], facts["sizes"])
        return GroupedCalibration.of(tensors["calibration"], groups, alpha, delta, few)

    def p_value(self, score: Array, groups: object) -> Array:
        """:meth:`Calibration.p_value` among the scores of each sample's own group.

        Args:
            score: float, of any shape.
            groups: labels, of that shape.

        Raises:
            ValueError: if a group is unknown, or a score is not finite.
        """
        return _as_given(self._each(Calibration.p_value, score, groups), score)

    def rejects(self, score: Array, groups: object) -> Array:
        """:meth:`Calibration.rejects` at the threshold of each sample's own group.

        Arguments as of :meth:`p_value`.
        """
        return _as_given(self._each(Calibration.rejects, score, groups).astype(bool), score)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and facts for JSON, which :func:`from_tensors` reads.

        A threshold is null where none is reached.
        """
        parts = list(self.parts.values())
        facts = {
            "groups": list(self.parts),
            "sizes": [len(part.scores) for part in parts],
            "thresholds": [
                part.threshold if math.isfinite(part.threshold) else None for part in parts
            ],
            "alpha": parts[0].alpha,
            "delta": parts[0].delta,
        }
        return {"calibration": torch.cat([part.scores for part in parts])}, facts

    def _each(
        self, says: Callable[[Calibration, Vector], Vector], score: object, groups: object
    ) -> Vector:
        values = _float64("scores", score)
        labels, which = _labels(groups, values.shape)
        if unknown := [label for label in labels if label not in self.parts]:
            absent, known = ([repr(label) for label in of] for of in (unknown, self.parts))
            raise ValueError(
                f"thinkback: the calibration has no group {listed(absent)}; it has groups"
                f" {listed(known)}"
            )
        out = np.empty(values.shape)
        for i, label in enumerate(labels):
            out[which == i] = says(self.parts[label], values[which == i])
        return out


def from_tensors(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> Calibration | GroupedCalibration:
    """What ``to_tensors`` of either class gave, read back, from a file perhaps.

    Raises:
        ValueError: if a part is missing, or scores and facts do not belong together.
    """
    try:
        scores = _vector("calibration scores", tensors["calibration"])
        promise = facts["alpha"], facts["delta"]
        if "groups" not in facts:
            plain = Calibration(torch.from_numpy(scores), facts["threshold"], *promise)
            if plain.alpha is None:
                return plain
            return plain.at(*promise)  # an error if the scores are too few for it
        split = np.split(scores, np.cumsum(facts["sizes"])[:-1])
        parts = {
            label: Calibration(
                torch.from_numpy(own), math.inf if threshold is None else threshold, *promise
            )
            for label, own, threshold in zip(
                facts["groups"], split, facts["thresholds"], strict=False
            )
        }
        grouped = GroupedCalibration(parts)
    except KeyError as error:
        raise ValueError(f"thinkback: the calibration lacks {error}; calibrate again") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"thinkback: the calibration is damaged, {error}; calibrate again"
        ) from error
    if not grouped.to_tensors()[1].items() <= facts.items():
        raise ValueError(
            "thinkback: groups and scores of the calibration do not belong together; calibrate"
            " again"
        )
    return grouped


def counted_p_value(calibration: Tensor, score: Tensor) -> Tensor:
    """:meth:`Calibration.p_value` as a graph (ONNX) can hold it: unchecked, B times n comparisons.

    Args:
        calibration: ``Calibration.scores``, float64 (n,).
        score: float64 (B,).

    Returns:
        float64 (B,).
    """
    at_least = (calibration >= score[:, None]).sum(1)
    return (1 + at_least).double() / (len(calibration) + 1)


def mostly_rejected(
    scores: object, groups: object, threshold: float, level: float = 0.05
) -> dict[Label, tuple[int, int]]:
    """Groups more than half of which one threshold rejects, though its promise holds on average.

    A group is a predicted class, say. Were groups alike, each would hold a random draw of the
    rejected scores, and their number in it be hypergeometric (Fisher's exact test). A group is
    named if so high a number has a probability of at most ``level`` / number of groups, so any is
    named wrongly with a probability of at most ``level``, in practice far below it. At alpha = 0.05
    and ten classes it takes two scores, both rejected. The answer is :class:`GroupedCalibration`.

    Args:
        scores: those of calibration, float (n,).
        groups: labels, integers or strings (n,): predicted classes, say.
        threshold: ``Calibration.threshold``.
        level: largest chance to name any where groups are alike, in (0, 1).

    Returns:
        By label: how many are rejected, of how many.

    >>> scores, groups = np.repeat([0, 1], [995, 5]), np.repeat(["common", "rare"], [995, 5])
    >>> mostly_rejected(scores, groups, 0.5)
    {'rare': (5, 5)}
    """
    level = _fraction("level", level)
    rejected = Calibration.by_hand(threshold).rejects(_vector("calibration scores", scores))
    labels, which = _labels(groups, rejected.shape)
    sizes, counts = (np.bincount(of, minlength=len(labels)) for of in (which, which[rejected]))
    chance = hypergeom.sf(counts - 1, len(rejected), rejected.sum(), sizes)
    named = np.flatnonzero((2 * counts > sizes) & (chance * len(labels) <= level))
    return {labels[i]: (int(counts[i]), int(sizes[i])) for i in named}


def benjamini_hochberg(p_values: Array, q: float = 0.05) -> Array:
    """Which samples of a batch to call OOD, at a false discovery rate of at most ``q``.

    That is the in-distribution share of those called, 0 if none is, on average over calibration
    sets and batches; it is at most q times the in-distribution share of the batch. It takes
    p-values that are independent, or positively dependent on each in-distribution one (PRDS).
    Conformal ones from one calibration set are, by group as well and with ties, if each
    in-distribution sample is exchangeable with the calibration samples (of its group), given all
    others.

    With the one calibration set in use, the average over batches may lie above q. To call i samples
    takes ``q i / N >= 1 / (n + 1)``, the smallest p-value: a large batch with few outliers takes
    many calibration scores.

    Args:
        p_values: float (N,), those of :meth:`Calibration.p_value` say.
        q: largest false discovery rate, in (0, 1).

    Returns: bool (N,): the i smallest p-values, with the largest i for which the i-th smallest is
        at most ``q i / N``.

    Raises:
        ValueError: if a p-value is no number in [0, 1].

    Source: Benjamini & Hochberg (1995); for conformal p-values Bates, Candès, Lei, Romano & Sesia,
    "Testing for outliers with conformal p-values", Annals of Statistics (2023).

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.02, 0.9]), q=0.05)
    array([ True, False,  True, False])
    """
    q, values = _fraction("q", q), _vector("p_values", p_values)
    if ((values < 0) | (values > 1)).any():
        raise ValueError(
            f"thinkback: p_values must lie in [0, 1], got {values.min()} to {values.max()}"
        )
    equal = 1 + 1e-12  # but for rounding
    return _as_given(false_discovery_control(values) <= q * equal, p_values)


class DriftAlarm:
    """A conformal test martingale: an alarm for a stream of scores that have changed.

    It compares them with those of calibration. ``P(an alarm is ever raised) <= rate``, over all
    time, if calibration and stream are exchangeable (Ville's inequality). The martingale starts at
    1 and grows while p-values are too often small, or too often large; the alarm is at
    ``1 / rate``. p-values of one fixed calibration set would not do: they are all too small
    together if that set has low scores by chance. Here a score has its rank among the calibration
    scores *and all before it in the stream*, ties broken at random; such p-values are independent
    and uniform.

    What has drifted becomes part of the reference, so a lasting change shows in its first hundreds
    of scores or not at all; the more calibration scores, the longer. Any dependence counts as
    drift: neighboring frames of a film are alike, and raise an alarm. It stays raised; calibrate on
    what is current, and begin afresh.

    All scores are kept, sorted, 8 bytes each, and copied for every 256 new ones: about 10 µs a
    score in batches and 0.2 ms one at a time, as long as they are fewer than 100,000.

    Args:
        scores: those of calibration, float (n,).
        rate: largest chance of a false alarm over all time, in (0, 1).
        seed: of the random order of ties, and of the place within a rank.

    Attributes:
        alarm: whether the martingale ever reached ``1 / rate``.
        log_martingale: natural logarithm of its value now.
        seen: number of scores in the stream so far.

    Source: Vovk, "Testing randomness online", Statistical Science (2021). The capital moves between
    bets as in the Simple Jumper of Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman,
    "Retrain or not retrain" (2021), but ever more rarely, so that a long time without drift costs
    less of it. Powers of p are the bets of Vovk, Nouretdinov & Gammerman, "Testing exchangeability
    on-line" (2003).

    >>> generator = np.random.default_rng(0)
    >>> watch = DriftAlarm(generator.normal(size=500)).update(generator.normal(size=2000))
    >>> watch.alarm, watch.update(generator.normal(3, size=20)).alarm, watch.seen
    (False, True, 2020)
    """

    def __init__(self, scores: object, rate: float = 0.01, seed: int = 0) -> None:
        self.rate = _fraction("rate", rate)
        self.seen, self.alarm, self.log_martingale = 0, False, 0.0
        self._reference = np.sort(_vector("calibration scores", scores))
        self._shares = [1 / 5] * 5  # of the capital, by bet
        self._generator = np.random.default_rng(seed)

    @property
    def martingale(self) -> float:
        """Its value now, 1 at the start; infinite where it is beyond float64."""
        return math.exp(self.log_martingale) if self.log_martingale < 709 else math.inf

    def update(self, scores: object) -> DriftAlarm:
        """Read the next score, or the next ones in their order, float (N,).

        One call or many give the same.
        """
        values = np.atleast_1d(_float64("scores", scores))
        for new in np.split(values, range(CHUNK, len(_vector("scores", values)), CHUNK)):
            for density in _bets(self._p_values(new)).tolist():  # five floats, faster than an array
                self.seen += 1
                moved = 1 / (100 + self.seen)
                won = [
                    ((1 - moved) * share + moved / 5) * p
                    for share, p in zip(self._shares, density, strict=True)
                ]
                self._shares = [part / sum(won) for part in won]
                self.log_martingale += math.log(sum(won))
                self.alarm = self.alarm or self.log_martingale >= -math.log(self.rate)
        return self

    def _p_values(self, new: Vector) -> Vector:
        """Rank of each among the reference and those before it, in (0, 1], (N,); all join it."""
        above = len(self._reference) - np.searchsorted(self._reference, new, "right")
        equal = len(self._reference) - np.searchsorted(self._reference, new) - above
        before = np.tri(len(new), k=-1, dtype=bool)
        above += (before & (new > new[:, None])).sum(1)
        equal += (before & (new == new[:, None])).sum(1) + 1  # with itself
        known = len(self._reference) + 1 + np.arange(len(new))
        ordered = np.sort(new)
        self._reference = np.insert(
            self._reference, np.searchsorted(self._reference, ordered), ordered
        )
        p: Vector = (above + (1 - self._generator.random(len(new))) * equal) / known
        return p


def _bets(p: Vector) -> Vector:
    """Densities at p, (N, 5): flat; of rather small, very small, rather large, very large p."""
    low, high = np.maximum(p, 1e-12), np.maximum(1 - p, 1e-12)
    return np.stack(
        [np.ones_like(p), 1.5 - p, 0.5 / np.sqrt(low), 0.5 + p, 0.5 / np.sqrt(high)], axis=1
    )


def _alarms(n: int, alpha: float, delta: float | None) -> int:
    """``m = n + 1 - k`` of :func:`conformal_threshold`; 0 if n is too small."""
    m = int((np.arange(1, n + 1) / (n + 1) <= alpha).sum())  # rounded as p_value rounds
    return m if delta is None else int((binom.cdf(np.arange(m), n, alpha) <= delta).sum())


def _just_above(ascending: Vector, alpha: float, delta: float | None) -> float:
    """The threshold; infinite if there are too few scores."""
    m = _alarms(len(ascending), alpha, delta)
    return math.nextafter(float(ascending[-m]), math.inf) if m else math.inf


def _takes(alpha: float, delta: float | None) -> str:
    promise = f"alpha={alpha}" + ("" if delta is None else f" with delta={delta}")
    return f"{promise} takes at least {minimum_scores(alpha, delta)}"


def _promise(alpha: object, delta: object) -> tuple[float, float | None]:
    return _fraction("alpha", alpha), None if delta is None else _fraction("delta", delta)


def _fraction(name: str, value: object) -> float:
    number = _plain(value)
    if not isinstance(number, int | float) or not 0 < number < 1:
        raise ValueError(f"thinkback: {name} must lie between 0 and 1, got {value!r}")
    return number


def _plain(value: object) -> object:
    """Python's own number, where it is one of NumPy or torch."""
    return value.item() if isinstance(value, np.generic | Tensor) and value.ndim == 0 else value


def _array(name: str, values: object) -> NDArray[Any]:
    try:
        return np.asarray(as_numpy(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"thinkback: {name} must be an array: {error}") from error


def _float64(name: str, values: object) -> Vector:
    """Finite numbers, copied to float64 on the CPU, of any shape; or why they are none."""
    array = _array(name, values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"thinkback: {name} must be real numbers, got dtype {array.dtype}")
    numbers = np.array(array, dtype=np.float64)
    if bad := numbers.size - np.count_nonzero(np.isfinite(numbers)):
        raise ValueError(f"thinkback: {bad} of {numbers.size} {name} are not finite")
    return numbers


def _vector(name: str, values: object) -> Vector:
    vector = _float64(name, values)
    if vector.ndim != 1:
        raise ValueError(f"thinkback: {name} must be a vector (n,), got shape {vector.shape}")
    return vector


def _labels(groups: object, shape: tuple[int, ...]) -> tuple[list[Label], NDArray[np.intp]]:
    """The labels that occur, ascending, and which of them each sample has."""
    array = _array("groups", groups)
    if array.dtype.kind in "OT" and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "biuU" and array.size:
        raise ValueError(f"thinkback: groups must be integers or strings, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"thinkback: groups {array.shape} and scores {shape} differ in shape")
    labels, which = np.unique(array.ravel(), return_inverse=True)
    return labels.tolist(), which.reshape(shape)


def _as_given(result: Any, given: Array) -> Array:
    """As the kind of array that was given; on the CPU where its device has no float64."""
    if not isinstance(given, Tensor):
        return np.asarray(result)[()]
    tensor = torch.from_numpy(np.asarray(result))
    return tensor if given.device.type == "mps" else tensor.to(given.device)
