"""The table of methods: how a score is fitted, computed and called. A new score is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from . import scores
from .fisher import DiagonalFisher, FullFisher, KroneckerFisher

Options = Mapping[str, Any]
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Args:
        title: what figures and tables call it.
        score: of features (N, D), logits (N, K), what the fit left, and options; float64 (N,), higher = more OOD.
        options: that it takes, with their defaults: those of the score's own function.
        fisher: of the temperature, makes the Fisher that streams over the fit data; None: nothing is fitted.
        state: of a finished Fisher and the options: the tensors that the score reads, and all that a detector keeps.
        unit: score and Fisher read ``h / ||h||``, the direction of the features; logits stay as they are.
    """

    title: str
    score: Callable[[Tensor, Tensor, State, Options], Tensor]
    options: Options
    fisher: Callable[[float], Any] | None = None
    state: Callable[[Any, Options], State] = lambda fisher, o: (fisher.compute(),)
    unit: bool = False

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> State:
        """Stream over features (B, D) and logits (B, K) of in-distribution data; without a Fisher, read nothing.

        Under ``torch.distributed``, each process gives its own part of the data and gets the state of the whole.
        """
        if self.fisher is None:
            return ()
        chosen = {**self.options, **options}
        fisher = self.fisher(chosen["temperature"])
        for h, z in batches:
            fisher.update(self.inputs(h), z)
        return self.state(fisher.all_reduce(), chosen)

    def __call__(self, features: Tensor, logits: Tensor, state: State, **options: Any) -> Tensor:
        """Scores, float64 (N,), higher = more OOD."""
        return self.score(self.inputs(features), logits, state, {**self.options, **options})

    def inputs(self, features: Tensor) -> Tensor:
        """The features as this method reads them."""
        return F.normalize(features.double()) if self.unit else features


def _averaged(root_A: Tensor, root_B: Tensor) -> State:
    return scores.label_distances(root_A), root_B


_PAPER, _ROOT = {"temperature": 5.0, "eps": 1e-16, "damping": 0.0}, {"temperature": 5.0, "damping": None}
METHODS: dict[str, Method] = {
    "msp": Method("Softmax", lambda h, z, s, o: scores.msp(z, **o), {"temperature": 1.0}),
    "energy": Method("Energy", lambda h, z, s, o: scores.energy(z, **o), {"temperature": 1.0}),
    "thinkback": Method(
        "Thinkback",
        lambda h, z, s, o: scores.thinkback_diagonal(h, z, s[0], o["temperature"]),
        _PAPER,
        DiagonalFisher,
        lambda fisher, o: (scores.inverse_diagonal(fisher.compute(), o["eps"], o["damping"]),),
    ),
    "max_logit": Method("MaxLogit", lambda h, z, s, o: scores.max_logit(z), {}),
    "gradnorm": Method("GradNorm", lambda h, z, s, o: scores.gradnorm(h, z, **o), {"temperature": 1.0}),
    "thinkback_eq5": Method("Thinkback, Eq. 5", lambda h, z, s, o: scores.thinkback(h, z, **o), {"temperature": 5.0}),
    "thinkback_full": Method(
        "Thinkback, full Fisher",
        lambda h, z, s, o: scores.thinkback_full(h, z, s[0], o["temperature"]),
        _ROOT,
        FullFisher,
        lambda fisher, o: (fisher.inverse_root(o["damping"]),),
    ),
    "thinkback_kronecker": Method(
        "Thinkback, Kronecker",
        lambda h, z, s, o: scores.thinkback_kronecker(h, z, (s[0], s[1]), o["temperature"]),
        _ROOT,
        KroneckerFisher,
        lambda fisher, o: tuple(fisher.inverse_root(o["damping"])),
    ),
    "thinkback_averaged": Method(  # form, inputs, temperature and damping: the choice of study.development
        "Thinkback, averaged",
        lambda h, z, s, o: scores.thinkback_averaged(h, z, (s[0], s[1]), o["temperature"]),
        {"temperature": 3.0, "damping": 0.1},
        lambda T: KroneckerFisher(T, bias=True),
        lambda fisher, o: _averaged(*fisher.inverse_root(o["damping"])),
        unit=True,
    ),
}
TITLES = {name: method.title for name, method in METHODS.items()}
