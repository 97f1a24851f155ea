"""Last layers of several kinds, and samples for them: what every closed form is tested on."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from thinkback_utils import reference

N = 100


@dataclass(frozen=True, eq=False)
class Problem:
    """Features (N, D), the last layer's weight (K, D) and bias (K,) or None, and a temperature."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    temperature: float

    @cached_property
    def logits(self):
        """(N, K)."""
        return reference.logits(self.features, self.weight, self.bias)

    @property
    def layer(self):
        """What a reference reads first: features, weight, bias."""
        return self.features, self.weight, self.bias

    @cached_property
    def gradients(self):
        """Of the network's own decision, by autograd, (N, K, D + 1) with the bias's column last."""
        return reference.head_gradients(*self.layer, self.logits.argmax(1), self.temperature)

    @cached_property
    def labels(self):
        """Labels that are no decisions, (N,)."""
        return torch.arange(N) % len(self.weight)

    def inputs(self, with_bias):
        """Features, with a constant 1 for the bias."""
        return torch.cat([self.features, torch.ones(N, 1)], 1) if with_bias else self.features


def problem(temperature=5.0, D=7, K=5, bias=True, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    features, weight, offset = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((N, D), (K, D), (K,))
    )
    return Problem(features, scale * weight, offset if bias else None, temperature)


PROBLEMS = {
    "T = 0.5": problem(0.5),
    "T = 1": problem(1.0),
    "T = 5": problem(),
    "T = 100": problem(100.0),
    "K = 2": problem(K=2),
    "no bias": problem(bias=False),
    "one feature": problem(D=1),
    "confident": problem(1.0, scale=6.0),
}
