"""The formulas of the scores alone: float64 tensors in, float64 (N,) out, and nothing is checked.

Shapes: features h (N, D), logits z (N, K), N samples of D features and K classes; T > 0 is the
temperature. No step depends on a value, so ``torch.export`` can capture each one for any N. The
functions of the same names in :mod:`scores` say what they mean, check what they are given, and call
these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def msp(z: Tensor, temperature: float) -> Tensor:
    """Maximum softmax probability, negated."""
    return -(z / temperature).softmax(1).amax(1)


def max_logit(z: Tensor) -> Tensor:
    """Largest logit, negated."""
    return -z.amax(1)


def energy(z: Tensor, temperature: float) -> Tensor:
    """Free energy."""
    return -temperature * (z / temperature).logsumexp(1)


def joint_energy(z: Tensor) -> Tensor:
    """Energies of independent sigmoids, added."""
    return -F.softplus(z).sum(1)


def gradnorm(h: Tensor, z: Tensor, temperature: float) -> Tensor:
    """L1 norm of the uniform label's gradient, negated."""
    r = (z / temperature).softmax(1) - 1 / z.shape[1]
    return -h.abs().sum(1) * r.abs().sum(1) / temperature


def residual(z: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Gradient of the loss in the logits (N, K), under labels int64 (N,) or the largest logit."""
    y = z.argmax(1, keepdim=True) if labels is None else labels[:, None]
    others = (z / temperature).softmax(1).scatter(1, y, 0.0)
    # p_y - 1 is minus the sum of the others: subtracting would lose a confident sample's digits
    return others.scatter(1, y, -others.sum(1, keepdim=True)) / temperature


def thinkback(h: Tensor, z: Tensor, temperature: float) -> Tensor:
    """Eq. 5: ``sum_kd r_k^2 h_d^2``, a product of two squared lengths."""
    return residual(z, temperature).square().sum(1) * h.square().sum(1)


def thinkback_diagonal(h: Tensor, z: Tensor, inverse: Tensor, temperature: float) -> Tensor:
    """Eq. 6: ``sum_kd r_k^2 h_d^2 V_kd``, V the inverse of a diagonal Fisher, (K, D or D + 1)."""
    h = with_bias(h, inverse.shape[1])
    score: Tensor = torch.linalg.vecdot(residual(z, temperature).square(), h.square() @ inverse.T)
    return score


def thinkback_full(h: Tensor, z: Tensor, root: Tensor, temperature: float) -> Tensor:
    """``||g W||^2`` of the gradient ``g = vec(r h^T)``, W (K D, R); N K D numbers are in memory."""
    h = with_bias(h, root.shape[0] // z.shape[1])
    g = torch.einsum("nk,nd->nkd", residual(z, temperature), h).flatten(1)
    return (g @ root).square().sum(1)


def thinkback_kronecker(
    h: Tensor, z: Tensor, roots: tuple[Tensor, Tensor], temperature: float
) -> Tensor:
    """``||r A||^2 ||h B||^2``, A (K, R) and B (D or D + 1, R') roots of inverses."""
    A, B = roots
    h = with_bias(h, B.shape[0])
    return (residual(z, temperature) @ A).square().sum(1) * (h @ B).square().sum(1)


def thinkback_averaged(
    h: Tensor, z: Tensor, weights: tuple[Tensor, Tensor], temperature: float
) -> Tensor:
    """``p^T C p / (2 T^2) ||h B||^2``, C (K, K) the distances between labels, B as above."""
    C, B = weights
    h = with_bias(h, B.shape[0])
    p = (z / temperature).softmax(1)
    doubt: Tensor = torch.linalg.vecdot(p @ C, p) / (2 * temperature**2)
    return doubt * (h @ B).square().sum(1)


def with_bias(h: Tensor, columns: int) -> Tensor:
    """The features, with a constant 1 as the bias's input if weights read one column more."""
    return h if columns == h.shape[1] else torch.cat([h, torch.ones_like(h[:, :1])], 1)
