"""Detectors that pytorch-ood lacks, or has in another form than their papers.

They have its interface: ``fit_logits`` or ``fit_features``, then ``predict_logits`` or
``predict_features``; scores (N,), higher = more OOD. Features are (N, D), logits (N, K).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Gini:
    """Gini impurity ``1 - sum_k p_k^2`` of ``p = softmax(z / T)``: doubt without any training data.

    Args:
        t: T > 0.

    >>> Gini().predict_logits(torch.zeros(1, 4))
    tensor([0.7500])
    """

    t: float = 1.0

    def predict_logits(self, z: Tensor) -> Tensor:
        """Scores of logits."""
        p = (z / self.t).softmax(1)
        return (p * (1 - p)).sum(1)


@dataclass
class Softmax:
    """Largest probability of ``softmax(z / T)``, negated; T = 1 is the published baseline.

    Args:
        t: T > 0.
    """

    t: float = 1.0

    def predict_logits(self, z: Tensor) -> Tensor:
        """Scores of logits."""
        return -(z / self.t).softmax(1).amax(1)


@dataclass
class Distance:
    """Squared Mahalanobis distance to the nearest class mean, relative to the whole set if asked.

    ``min_k (h - mu_k)^T S^-1 (h - mu_k)``, S the scatter within classes; less
    ``(h - mu)^T S_0^-1 (h - mu)`` with mean and scatter of all, where ``relative``.

    Args:
        ridge: added to either scatter's eigenvalues, in units of their mean; 0 is published.
        relative: of Ren et al. (2021).
        unit: read ``h / ||h||``, as Müller & Hein (2025).
    """

    ridge: float = 0.0
    relative: bool = False
    unit: bool = False
    means: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    roots: tuple[Tensor, ...] = field(default=(), repr=False)

    def fit_features(self, h: Tensor, labels: Tensor) -> Distance:
        """Means and scatters of training features with labels (N,)."""
        x = self._inputs(h)
        member = F.one_hot(labels).double()
        self.means = member.T @ x / member.sum(0)[:, None]
        self.means = torch.cat([self.means, x.mean(0, keepdim=True)])  # the last: of all
        centered = (x - self.means[labels], x - self.means[-1])[: 1 + self.relative]
        self.roots = tuple(self._root(part.T @ part / len(part)) for part in centered)
        return self

    def predict_features(self, h: Tensor) -> Tensor:
        """Scores of features."""
        x = self._inputs(h)
        lengths = [((x - mean) @ self.roots[0]).square().sum(1) for mean in self.means[:-1]]
        nearest = torch.stack(lengths).amin(0)
        if self.relative:
            nearest = nearest - ((x - self.means[-1]) @ self.roots[1]).square().sum(1)
        return nearest

    def _inputs(self, h: Tensor) -> Tensor:
        return F.normalize(h.double()) if self.unit else h.double()

    def _root(self, scatter: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(scatter)
        values = values.clamp(min=1e-12 * float(values[-1])) + self.ridge * values.mean()
        root: Tensor = vectors / values.sqrt()
        return root


@dataclass
class EnergyAndDistance:
    """Energy plus ``weight`` times :class:`Distance` of unit features (Mahalanobis++).

    Either is standardised to mean 0 and deviation 1 on the training features: the simplest sum of
    what the logits and what the features say.

    Args:
        head: the last layer.
        weight: of the distance.
    """

    head: nn.Module
    weight: float = 1.0
    distance: Distance = field(default_factory=lambda: Distance(unit=True), repr=False)
    scale: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def fit_features(self, h: Tensor, labels: Tensor) -> EnergyAndDistance:
        """Distance and scales, of training features with labels (N,)."""
        self.distance.fit_features(h, labels)
        both = self._both(h)
        self.scale = torch.stack([both.mean(0), both.std(0)])
        return self

    def predict_features(self, h: Tensor) -> Tensor:
        """Scores of features."""
        energy, distance = ((self._both(h) - self.scale[0]) / self.scale[1]).unbind(1)
        total: Tensor = energy + self.weight * distance
        return total

    def _both(self, h: Tensor) -> Tensor:
        energy = -torch.logsumexp(self.head(h).double(), 1)
        return torch.stack([energy, self.distance.predict_features(h)], 1)


@dataclass
class VRA:
    """Energy after activations below one quantile are set to 0 and those above another are cut.

    pytorch-ood lifts those below to the lower threshold and takes thresholds per unit; the paper
    sets them to 0, with one threshold for all units, and its code cuts those above.

    Args:
        head: the last layer.
        lower, upper: quantiles of all training activations, in [0, 1].

    Source: Xu et al., NeurIPS 2023, in the form with two thresholds.
    """

    head: nn.Module
    lower: float = 0.5
    upper: float = 0.95
    thresholds: tuple[float, float] = (0.0, 0.0)

    def fit_features(self, h: Tensor, labels: Tensor) -> VRA:
        """The two thresholds; labels are not used."""
        values = h.flatten().double().sort().values
        low, high = (values[round(q * (len(values) - 1))].item() for q in (self.lower, self.upper))
        self.thresholds = low, high
        return self

    def predict_features(self, h: Tensor) -> Tensor:
        """Scores of features."""
        low, high = self.thresholds
        return -torch.logsumexp(self.head(h.where(h >= low, 0.0).clamp(max=high)), 1)
