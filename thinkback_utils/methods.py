"""The table of methods: how a score is fitted, computed and called. A new score is one function and
one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from . import scores
from .arrays import doubled
from .fisher import DiagonalFisher, FullFisher, KroneckerFisher

Options = Mapping[str, Any]


class Nothing(NamedTuple):
    """The state of a method that is not fitted."""


class Inverse(NamedTuple):
    """Of a diagonal Fisher: ``1 / E`` with its floors, (K, D)."""

    inverse: Tensor


class Root(NamedTuple):
    """Of a full Fisher: W with ``W W^T = F^-1``, (K D, R)."""

    root: Tensor


class KroneckerRoots(NamedTuple):
    """Of a Fisher ``A ⊗ B``: the roots of the inverse of A, (K, R), and of B, (D, R') or (D + 1,
    R').
    """

    A: Tensor
    B: Tensor


class AveragedRoots(NamedTuple):
    """As :class:`KroneckerRoots`, with the distances between labels, (K, K), in place of the root
    of A.
    """

    distances: Tensor
    B: Tensor


State = Nothing | Inverse | Root | KroneckerRoots | AveragedRoots


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Args:
        title: what figures and tables call it.
        score: of features (N, D), logits (N, K), what the fit left, and options; float64 (N,),
            higher = more OOD.
        options: that it takes, with their defaults: those of the score's own function.
        fisher: of the temperature, makes the Fisher that streams over the fit data; None: nothing
            is fitted.
        state: of a finished Fisher and the options: the tensors that the score reads, and all that
            a detector keeps.
        kind: of the state.
        unit: score and Fisher read ``h / ||h||``, the direction of the features; logits stay as
            they are.
    """

    title: str
    score: Callable[[Tensor, Tensor, Any, Options], Tensor]
    options: Options
    fisher: Callable[[float], Any] | None = None
    state: Callable[[Any, Options], Any] = lambda fisher, o: Nothing()
    kind: Any = Nothing
    unit: bool = False

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> State:
        """Stream over features (B, D) and logits (B, K) of in-distribution data; without a Fisher,
        read nothing.

        Under ``torch.distributed``, each process gives its own part of the data and gets the state
        of the whole.
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
        """Scores, float64 (N,), higher = more OOD."""
        return self.score(self.inputs(features), logits, state, {**self.options, **options})

    def inputs(self, features: Tensor) -> Tensor:
        """The features as this method reads them."""
        return F.normalize(doubled(features)) if self.unit else features


def _averaged(fisher: KroneckerFisher, o: Options) -> AveragedRoots:
    A, B = fisher.inverse_root(o["damping"])
    return AveragedRoots(scores.label_distances(A), B)


_PAPER, _ROOT = (
    {"temperature": 5.0, "eps": 1e-16, "damping": 0.0},
    {"temperature": 5.0, "damping": None},
)
METHODS: dict[str, Method] = {
    "msp": Method("Softmax", lambda h, z, s, o: scores.msp(z, **o), {"temperature": 1.0}),
    "energy": Method("Energy", lambda h, z, s, o: scores.energy(z, **o), {"temperature": 1.0}),
    "thinkback": Method(
        "Thinkback",
        lambda h, z, s, o: scores.thinkback_diagonal(h, z, s.inverse, o["temperature"]),
        _PAPER,
        DiagonalFisher,
        lambda fisher, o: Inverse(
            scores.inverse_diagonal(fisher.compute(), o["eps"], o["damping"])
        ),
        Inverse,
    ),
    "max_logit": Method("MaxLogit", lambda h, z, s, o: scores.max_logit(z), {}),
    "joint_energy": Method("JointEnergy", lambda h, z, s, o: scores.joint_energy(z), {}),
    "gradnorm": Method(
        "GradNorm", lambda h, z, s, o: scores.gradnorm(h, z, **o), {"temperature": 1.0}
    ),
    "thinkback_eq5": Method(
        "Thinkback, Eq. 5", lambda h, z, s, o: scores.thinkback(h, z, **o), {"temperature": 5.0}
    ),
    "thinkback_full": Method(
        "Thinkback, full Fisher",
        lambda h, z, s, o: scores.thinkback_full(h, z, s.root, o["temperature"]),
        _ROOT,
        FullFisher,
        lambda fisher, o: Root(fisher.inverse_root(o["damping"])),
        Root,
    ),
    "thinkback_kronecker": Method(
        "Thinkback, Kronecker",
        lambda h, z, s, o: scores.thinkback_kronecker(h, z, s, o["temperature"]),
        _ROOT,
        KroneckerFisher,
        lambda fisher, o: KroneckerRoots(*fisher.inverse_root(o["damping"])),
        KroneckerRoots,
    ),
    # form, inputs, temperature and damping: the choice of study.development
    "thinkback_averaged": Method(
        "Thinkback, averaged",
        lambda h, z, s, o: scores.thinkback_averaged(h, z, s, o["temperature"]),
        {"temperature": 3.0, "damping": 0.1},
        lambda T: KroneckerFisher(T, bias=True),
        _averaged,
        AveragedRoots,
        unit=True,
    ),
}
TITLES = {name: method.title for name, method in METHODS.items()}
