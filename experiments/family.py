"""The family ``g^T F^-1 g`` of the last layer's gradients: Fisher, inputs, T and damping.

Those that were chosen are in :mod:`scores` and :mod:`fisher`. Here all settings of a grid are
computed together, so that they share sums and eigendecompositions; tests compare them with those
modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkback_utils import scores
from thinkback_utils.features import Features
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher, LabelKind
from thinkback_utils.scores import residual

TEMPERATURES = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)
DAMPINGS = (None, 1e-3, 1e-2, 1e-1)
SIZES: dict[str, Callable[[int, int], int]] = {  # numbers kept, of K classes and D inputs
    "diagonal": lambda K, D: K * D,
    "kronecker": lambda K, D: K * K + D * D,
    "additive": lambda K, D: K * K + D * D,
    "averaged": lambda K, D: K * K + D * D,
    "classwise": lambda K, D: K * K + D * D + K * D,
    "full": lambda K, D: (K * D) ** 2,
}


class Candidate(NamedTuple):
    """One setting of the family.

    - ``form``: what F keeps. ``diagonal``; ``kronecker``, ``A ⊗ B``; ``classwise``, ``A ⊗ B_c`` for
      each predicted class c, with its mean but one scatter within classes for all; ``full``. Two
      take other statistics of the Kronecker form: ``additive``, the sum of its two factors;
      ``averaged``, its mean over labels drawn from p.
    - ``unit``: gradient and Fisher read ``h / ||h||``; logits stay as they are.
    - ``bias``: the bias's gradient counts too.
    - ``labels``: of the Fisher, see :class:`fisher.DiagonalFisher`.
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
        return SIZES[self.form](K, D + self.bias)


def candidates() -> Iterator[Candidate]:
    """The grid, dampings of the same setting side by side."""
    switches = (False, True)
    for form, unit, bias, T in itertools.product(SIZES, switches, switches, TEMPERATURES):
        kinds: tuple[LabelKind, ...] = (
            ("predicted", "model") if form in ("diagonal", "kronecker") else ("predicted",)
        )
        for labels, damping in itertools.product(kinds, DAMPINGS):
            if bias or form != "classwise":  # whose class means are what the bias brings
                yield Candidate(form, unit, bias, labels, T, damping)


def statistics(
    candidate: Candidate, fit: Features, sets: Mapping[str, Features]
) -> dict[str, Tensor]:
    """Scores of a candidate fitted on ``fit`` at all ``DAMPINGS``: float64 (N, dampings) by set."""
    form, unit, bias, labels, T, _ = candidate
    h = {n: _inputs(x.features, unit, bias) for n, x in sets.items()}
    z = {n: x.logits for n, x in sets.items()}
    r = {n: residual(z[n], T) for n in sets}
    fit_h, fit_z = _inputs(fit.features, unit, bias), fit.logits
    if form == "diagonal":
        fisher = DiagonalFisher(T, labels).update(fit_h, fit_z)
        E, dampings = fisher.compute(), _dampings(fisher)
        return {
            n: torch.stack([scores.thinkback(h[n], z[n], E, T, 0.0, d) for d in dampings], 1)
            for n in sets
        }
    if form == "full":
        full = FullFisher(T, labels).update(fit_h, fit_z)
        quadratic = _Quadratic(full.compute(), _dampings(full))
        return {n: quadratic.of_products(r[n], h[n]) for n in sets}
    factors = KroneckerFisher(T, labels).update(fit_h, fit_z)
    A, B = (_Quadratic(moment, _dampings(factors)) for moment in factors.compute())
    if form == "additive":  # each in units of its mean over the fit data
        return {n: A(r[n]) / (fit_z.shape[1] - 1) + B(h[n]) / fit_h.shape[1] for n in sets}
    if form == "averaged":
        return {n: A.averaged((z[n].double() / T).softmax(1)) * B(h[n]) for n in sets}
    if form == "classwise":
        means = _class_means(fit_h, fit_z)
        within = (fit_h - means[fit_z.argmax(1)])[:, :-1]
        S = _Quadratic(within.T @ within / len(fit), _dampings(factors))
        return {n: A(r[n]) * (1 + S((h[n] - means[z[n].argmax(1)])[:, :-1])) for n in sets}
    return {n: A(r[n]) * B(h[n]) for n in sets}


def _dampings(fisher: DiagonalFisher | FullFisher | KroneckerFisher) -> list[float]:
    """``DAMPINGS``, None as the Fisher's automatic one."""
    return [fisher.automatic_damping if d is None else d for d in DAMPINGS]


class _Quadratic:
    """``x^T (M + damping * mean eigenvalue * I)^-1 x`` for all dampings, by one decomposition."""

    def __init__(self, matrix: Tensor, dampings: list[float]) -> None:
        values, self.vectors = torch.linalg.eigh(matrix)
        values = values.where(values > 1e-12 * values[-1], 0.0)
        floors = values.new_tensor(dampings) * values.mean()
        self.inverse = 1 / (values[:, None] + floors)  # (P, dampings)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, dampings) of x (N, P)."""
        out: Tensor = (x @ self.vectors).square() @ self.inverse
        return out

    def of_products(self, r: Tensor, h: Tensor) -> Tensor:
        """The same of the outer products of r (N, K) and h (N, D), in parts to save memory."""
        parts = zip(r.split(1024), h.split(1024), strict=True)
        return torch.cat([self(torch.einsum("nk,nd->nkd", *part).flatten(1)) for part in parts])

    def averaged(self, p: Tensor) -> Tensor:
        """The mean of that of ``p - e_y`` over labels y drawn from p (N, P).

        It is ``sum_k p_k M^-1_kk - p^T M^-1 p``.
        """
        out: Tensor = p @ self.vectors.square() @ self.inverse - self(p)
        return out


def _inputs(h: Tensor, unit: bool, bias: bool) -> Tensor:
    """What the last layer reads, float64 (N, D) or (N, D + 1)."""
    h = F.normalize(h.double()) if unit else h.double()
    return torch.cat([h, torch.ones_like(h[:, :1])], 1) if bias else h


def _class_means(h: Tensor, z: Tensor) -> Tensor:
    """Mean inputs (K, D) of the samples that are given each class; 0 of a class that none is."""
    member = F.one_hot(z.argmax(1), z.shape[1]).double()
    return member.T @ h / member.sum(0).clamp(min=1)[:, None]
