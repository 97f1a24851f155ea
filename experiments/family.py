"""The family of scores ``doubt x novelty`` of the last layer's gradients, all settings of a grid.

Those that were chosen are in :mod:`scores` and :mod:`fisher`. Here they share sums and
eigendecompositions; tests compare them with those modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkback_utils import scores
from thinkback_utils.features import Features
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher, LabelKind
from thinkback_utils.scores import residual

TEMPERATURES = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
TEMPERATURES_FULL = (5.0,)  # of the form whose matrix has (K D)^2 entries
DAMPINGS = (0.0, None, 1e-2, 1e-1, 1.0)


class Form(NamedTuple):
    """What a form keeps, and which fields of a candidate it has.

    - ``size``: numbers kept, of K classes and D inputs.
    - ``fields``: those that change it, beside the temperature.
    """

    size: Callable[[int, int], int]
    fields: tuple[str, ...]


_INPUTS = ("unit", "bias", "damping")
FORMS: dict[str, Form] = {
    "diagonal": Form(lambda K, D: K * D, (*_INPUTS, "labels")),
    "kronecker": Form(lambda K, D: K * K + D * D, (*_INPUTS, "labels")),
    "kronecker_plain": Form(lambda K, D: D * D, _INPUTS),
    "full": Form(lambda K, D: (K * D) ** 2, ("unit", "damping")),
    "averaged": Form(lambda K, D: K * K + D * D, (*_INPUTS, "labels")),
    "averaged_plain": Form(lambda K, D: D * D, _INPUTS),
    "averaged_means": Form(lambda K, D: K * K + D * D + K * D, ("unit", "damping", "labels")),
    "averaged_both": Form(lambda K, D: K * K + 2 * D * D + K * D, ("unit", "damping", "labels")),
    "doubt": Form(lambda K, D: K * K, ("damping", "labels")),
    "gini": Form(lambda K, D: 0, ()),
    "gini_means": Form(lambda K, D: D * D + K * D, ("unit", "damping")),
    "gini_both": Form(lambda K, D: 2 * D * D + K * D, ("unit", "damping")),
}


class Candidate(NamedTuple):
    """One setting of the family, with ``p = softmax(z / T)`` and r of the network's decision.

    - ``form``. The first factor, the doubt, is one of: ``r^T A^-1 r`` (*decision*); its mean over
      labels drawn from p, ``p^T C p / 2`` (*average*); either with A = 1, which makes the average
      ``1 - ||p||^2`` (*Gini*). The second, the novelty, is one of: the leverage ``h^T B^-1 h``; the
      squared distance to the nearest class mean under the scatter within classes (*means*); both.
      ``kronecker``: decision and leverage; ``averaged``: average and leverage; ``_plain``: these
      with A = 1; ``averaged_means``, ``gini_means``, ``averaged_both``, ``gini_both``: as they say;
      ``doubt``, ``gini``: without a second factor. ``diagonal`` and ``full``: of the decision,
      under a Fisher that is not factorised.
    - ``unit``: gradient and Fisher read ``h / ||h||``; logits stay as they are.
    - ``bias``: the bias's gradient counts too. Forms with class means and the full one always
      count it: the constant is what centers them.
    - ``labels``: of A and of the diagonal, see :class:`fisher.DiagonalFisher`.
    - ``temperature``, ``damping``: as in the scores; None is the Fisher's ``automatic_damping``.
    """

    form: str
    unit: bool
    bias: bool
    labels: LabelKind
    temperature: float
    damping: float | None

    def size(self, K: int, D: int) -> int:
        """How many numbers a detector keeps of the fit data."""
        return FORMS[self.form].size(K, D + self.bias)


def candidates() -> Iterator[Candidate]:
    """The grid, dampings of the same setting side by side; a field that a form lacks stands still.

    >>> [c.temperature for c in candidates() if c.form == "gini"]
    [1.0, 2.0, 3.0, 5.0, 7.0, 10.0]
    """
    kinds: tuple[LabelKind, ...] = ("predicted", "model")
    for form, (_, fields) in FORMS.items():
        still = form not in ("doubt", "gini")  # what a form without a switch reads
        units = (False, True) if "unit" in fields else (still,)
        biases = (False, True) if "bias" in fields else (still,)
        labels = kinds if "labels" in fields else kinds[:1]
        dampings = DAMPINGS if "damping" in fields else DAMPINGS[:1]
        grid = TEMPERATURES_FULL if form == "full" else TEMPERATURES
        for setting in itertools.product(units, biases, labels, grid, dampings):
            yield Candidate(form, *setting)


class Statistics:
    """Scores of all candidates fitted on ``fit``: parts are computed once and kept.

    Args:
        fit: in-distribution training data.
        sets: what is scored.
    """

    def __init__(self, fit: Features, sets: Mapping[str, Features]) -> None:
        self.fit, self.sets = fit, dict(sets)
        # one table of parts an object, which dies with it
        for name in ("_doubt", "_leverage", "_away", "_probabilities"):
            setattr(self, name, cache(getattr(self, name)))

    def of(self, candidate: Candidate) -> dict[str, Tensor]:
        """The candidate at all ``DAMPINGS``: float64 (N, dampings) by set."""
        form, unit, bias, labels, T, _ = candidate
        if form == "diagonal":
            return self._diagonal(candidate)
        if form == "full":
            return self._full(candidate)
        kind = "decision" if form.startswith("kronecker") else "average"
        plain = form.endswith("_plain") or form.startswith("gini")
        first = self._doubt(kind, plain, T, labels)
        if form in ("doubt", "gini"):
            return first
        if form.endswith("_means"):
            return {n: first[n] * self._away(unit)[n] for n in self.sets}
        second = self._leverage(unit, bias)
        if form.endswith("_both"):
            return {n: first[n] * second[n] * self._away(unit)[n] for n in self.sets}
        return {n: first[n] * second[n] for n in self.sets}

    def _inputs(self, unit: bool, bias: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """What the last layer reads, of the fit data and of the sets: float64 (N, D or D + 1)."""
        return _inputs(self.fit.features, unit, bias), {
            n: _inputs(x.features, unit, bias) for n, x in self.sets.items()
        }

    def _probabilities(self, T: float) -> dict[str, Tensor]:
        return {n: (x.logits.double() / T).softmax(1) for n, x in self.sets.items()}

    def _doubt(self, kind: str, plain: bool, T: float, labels: LabelKind) -> dict[str, Tensor]:
        """The first factor, (N, dampings); with A = 1 alike for all of them."""
        z = self.fit.logits
        if plain:
            A = _Quadratic(torch.eye(z.shape[1], dtype=torch.float64), [0.0] * len(DAMPINGS))
        else:
            fisher = KroneckerFisher(T, labels).update(z.new_ones(len(z), 1), z)
            A = _Quadratic(fisher.compute()[0], _dampings(fisher))
        if kind == "decision":
            return {n: A(residual(x.logits, T)) for n, x in self.sets.items()}
        return {n: A.averaged(p) for n, p in self._probabilities(T).items()}

    def _leverage(self, unit: bool, bias: bool) -> dict[str, Tensor]:
        """``h^T B^-1 h``, B the second moment of the fit data."""
        h, others = self._inputs(unit, bias)
        B = _Quadratic(h.T @ h / len(h), _automatic(len(h)))
        return {n: B(x) for n, x in others.items()}

    def _away(self, unit: bool) -> dict[str, Tensor]:
        """Squared distance to the nearest mean of predicted classes, under the scatter within."""
        h, others = self._inputs(unit, False)
        means = _class_means(h, self.fit.logits)
        within = h - means[self.fit.logits.argmax(1)]
        S = _Quadratic(within.T @ within / len(h), _automatic(len(h)))
        return {n: torch.stack([S(x - mean) for mean in means]).amin(0) for n, x in others.items()}

    def _diagonal(self, candidate: Candidate) -> dict[str, Tensor]:
        _, unit, bias, labels, T, _ = candidate
        h, others = self._inputs(unit, bias)
        fisher = DiagonalFisher(T, labels).update(h, self.fit.logits)
        E = fisher.compute()
        floors = [(0.0, d) if d else (1e-16, 0.0) for d in _dampings(fisher)]  # the paper's
        z = {n: x.logits for n, x in self.sets.items()}
        return {
            n: torch.stack([scores.thinkback(x, z[n], E, T, *floor) for floor in floors], 1)
            for n, x in others.items()
        }

    def _full(self, candidate: Candidate) -> dict[str, Tensor]:
        _, unit, bias, labels, T, _ = candidate
        h, others = self._inputs(unit, bias)
        full = FullFisher(T, labels).update(h, self.fit.logits)
        quadratic = _Quadratic(full.compute(), _dampings(full))
        return {
            n: quadratic.of_products(residual(self.sets[n].logits, T), x) for n, x in others.items()
        }


def statistics(
    candidate: Candidate, fit: Features, sets: Mapping[str, Features]
) -> dict[str, Tensor]:
    """Scores of one candidate: float64 (N, dampings) by set."""
    return Statistics(fit, sets).of(candidate)


def _automatic(count: int) -> list[float]:
    """``DAMPINGS``, None as one in the number of fit samples."""
    return [1 / count if d is None else d for d in DAMPINGS]


def _dampings(fisher: DiagonalFisher | FullFisher | KroneckerFisher) -> list[float]:
    """``DAMPINGS``, None as the Fisher's automatic one."""
    return [fisher.automatic_damping if d is None else d for d in DAMPINGS]


class _Quadratic:
    """``x^T (M + damping * mean eigenvalue * I)^-1 x`` for all dampings, by one decomposition.

    Without damping, directions without data do not count, as in ``scores.inverse_root``.
    """

    def __init__(self, matrix: Tensor, dampings: list[float]) -> None:
        values, self.vectors = torch.linalg.eigh(matrix)
        values = values.where(values > 1e-12 * values[-1], 0.0)
        floors = values[:, None] + values.new_tensor(dampings) * values.mean()
        self.inverse = floors.reciprocal().where(floors > 0, 0.0)  # (P, dampings)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, dampings) of x (N, P)."""
        out: Tensor = (x @ self.vectors).square() @ self.inverse
        return out

    def of_products(self, r: Tensor, h: Tensor) -> Tensor:
        """The same of the outer products of r (N, K) and h (N, D), in parts to save memory."""
        parts = zip(r.split(1024), h.split(1024), strict=True)
        return torch.cat([self(torch.einsum("nk,nd->nkd", *part).flatten(1)) for part in parts])

    def averaged(self, p: Tensor) -> Tensor:
        """The mean of that of ``p - e_y`` over labels y drawn from p (N, P): ``p^T C p / 2``.

        No difference of large numbers is taken, so a nearly sure sample loses no digit.
        """
        out = [
            0.5 * ((p @ scores.label_distances(self.vectors * column.sqrt())) * p).sum(1)
            for column in self.inverse.T
        ]
        return torch.stack(out, 1)


def _inputs(h: Tensor, unit: bool, bias: bool) -> Tensor:
    """What the last layer reads, float64 (N, D) or (N, D + 1)."""
    h = F.normalize(h.double()) if unit else h.double()
    return torch.cat([h, torch.ones_like(h[:, :1])], 1) if bias else h


def _class_means(h: Tensor, z: Tensor) -> Tensor:
    """Mean inputs (K, D) of the samples that are given each class; 0 of a class that none is."""
    member = F.one_hot(z.argmax(1), z.shape[1]).double()
    return member.T @ h / member.sum(0).clamp(min=1)[:, None]
