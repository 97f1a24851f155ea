"""The table of methods: how a score is fitted, computed and called.

A new score is its formula in :mod:`kernels`, its checked function in :mod:`scores`, and one line
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from . import kernels, scores
from .arrays import doubled
from .fisher import DiagonalFisher, FullFisher, KroneckerFisher

Options = Mapping[str, Any]


class Nothing(NamedTuple):
    """The state of a method that is not fitted."""


class Inverse(NamedTuple):
    """State under a diagonal Fisher: ``1 / E`` with its floors, (K, D)."""

    inverse: Tensor


class Root(NamedTuple):
    """State under a full Fisher: W with ``W W^T = F^-1``, (K D, R)."""

    root: Tensor


class KroneckerRoots(NamedTuple):
    """State under ``A ⊗ B``: roots of the inverses of A, (K, R), and of B, (D or D + 1, R')."""

    A: Tensor
    B: Tensor


class AveragedRoots(NamedTuple):
    """As :class:`KroneckerRoots`, with distances between labels, (K, K), for the root of A."""

    distances: Tensor
    B: Tensor


State = Nothing | Inverse | Root | KroneckerRoots | AveragedRoots


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Args:
        title: what figures and tables call it.
        score: which function computes it. It is given ``by``, the module :mod:`scores`, which
            checks, or :mod:`kernels`; features (N, D), logits (N, K), what the fit left, and
            options.
        options: that it takes, with their defaults: those of the score's own function. A damping
            of None is not given to the Fisher, which then uses its ``automatic_damping``.
        fisher: of the temperature, makes the Fisher that streams over the fit data; None: nothing
            is fitted.
        state: of a finished Fisher and the options: the tensors that the score reads, and all that
            a detector keeps.
        kind: of the state.
        unit: score and Fisher read ``h / ||h||``, the direction of the features; logits stay as
            they are.
    """

    title: str
    score: Callable[[Any, Tensor, Tensor, Any, Options], Tensor]
    options: Options
    fisher: Callable[[float], Any] | None = None
    state: Callable[[Any, Options], Any] = lambda fisher, o: Nothing()
    kind: Any = Nothing
    unit: bool = False

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> State:
        """Stream over features (B, D) and logits (B, K) of in-distribution data.

        Without a Fisher, nothing is read. Under ``torch.distributed``, each process gives its own
        part of the data and gets the state of the whole.
        """
        if self.fisher is None:
            return Nothing()
        chosen = {**self.options, **options}
        fisher = self.fisher(chosen["temperature"])
        for h, z in batches:
            fisher.update(self.inputs(h), z)
        state: State = self.state(fisher.all_reduce(), chosen)
        return state

    def __call__(self, features: Tensor, logits: Tensor, state: State, **options: Any) -> Tensor:
        """Scores, float64 (N,), higher = more OOD; errors as of the function in :mod:`scores`."""
        chosen = {**self.options, **options}
        return self.score(scores, self.inputs(features), logits, state, chosen)

    def unchecked(self, features: Tensor, logits: Tensor, state: State, **options: Any) -> Tensor:
        """The same computed by :mod:`kernels`: not checked, not in chunks, as a graph needs it."""
        h, z, chosen = doubled(self.inputs(features)), doubled(logits), {**self.options, **options}
        return self.score(kernels, h, z, state, chosen)

    def inputs(self, features: Tensor) -> Tensor:
        """The features, or their directions if that is what this method reads."""
        return F.normalize(doubled(features)) if self.unit else features


def _averaged(fisher: KroneckerFisher, o: Options) -> AveragedRoots:
    A, B = fisher.inverse_root(o["damping"])
    return AveragedRoots(scores.label_distances(A), B)


_PAPER = {"temperature": 5.0, "eps": 1e-16, "damping": 0.0}
_ROOT = {"temperature": 5.0, "damping": None}
METHODS: dict[str, Method] = {
    "msp": Method("Softmax", lambda by, h, z, s, o: by.msp(z, **o), {"temperature": 1.0}),
    "energy": Method("Energy", lambda by, h, z, s, o: by.energy(z, **o), {"temperature": 1.0}),
    "thinkback": Method(
        "Thinkback",
        lambda by, h, z, s, o: by.thinkback_diagonal(h, z, s.inverse, o["temperature"]),
        _PAPER,
        DiagonalFisher,
        lambda fisher, o: Inverse(
            scores.inverse_diagonal(fisher.compute(), o["eps"], o["damping"])
        ),
        Inverse,
    ),
    "max_logit": Method("MaxLogit", lambda by, h, z, s, o: by.max_logit(z), {}),
    "joint_energy": Method("JointEnergy", lambda by, h, z, s, o: by.joint_energy(z), {}),
    "gradnorm": Method(
        "GradNorm", lambda by, h, z, s, o: by.gradnorm(h, z, **o), {"temperature": 1.0}
    ),
    "thinkback_eq5": Method(
        "Thinkback, Eq. 5", lambda by, h, z, s, o: by.thinkback(h, z, **o), {"temperature": 5.0}
    ),
    "thinkback_full": Method(
        "Thinkback, full Fisher",
        lambda by, h, z, s, o: by.thinkback_full(h, z, s.root, o["temperature"]),
        _ROOT,
        FullFisher,
        lambda fisher, o: Root(fisher.inverse_root(o["damping"])),
        Root,
    ),
    "thinkback_kronecker": Method(
        "Thinkback, Kronecker",
        lambda by, h, z, s, o: by.thinkback_kronecker(h, z, s, o["temperature"]),
        _ROOT,
        KroneckerFisher,
        lambda fisher, o: KroneckerRoots(*fisher.inverse_root(o["damping"])),
        KroneckerRoots,
    ),
    # form, inputs, temperature and damping: the choice of experiments.development
    "thinkback_averaged": Method(
        "Thinkback, averaged",
        lambda by, h, z, s, o: by.thinkback_averaged(h, z, s, o["temperature"]),
        {"temperature": 3.0, "damping": 0.1},
        lambda T: KroneckerFisher(T, bias=True),
        _averaged,
        AveragedRoots,
        unit=True,
    ),
}
TITLES = {name: method.title for name, method in METHODS.items()}
