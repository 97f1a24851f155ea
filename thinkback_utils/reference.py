"""What closed forms must equal: autograd, one sample at a time. Slow.

For tests, and for the chapters that show it. Nothing here calls a closed form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def head_gradients(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float = 5.0
) -> Tensor:
    """Per-sample gradients of ``-log softmax(z / T)_label`` in the last layer, by plain autograd.

    Args:
        features: h, float (N, D).
        weight, bias: of the last linear layer, (K, D) and (K,); no bias counts as zero.
        labels: classes int64 (N,), or label distributions float (N, K).
        temperature: T.

    Returns:
        float64 (N, K, D + 1), the bias's gradient in the last column.
    """
    w = weight.detach().double().requires_grad_()
    b = (w.new_zeros(len(w)) if bias is None else bias.detach().double()).requires_grad_()
    gradients = []
    for h, label in zip(features.double(), labels, strict=True):
        of_label = loss((w @ h + b) / temperature, label)
        gradient_w, gradient_b = torch.autograd.grad(of_label, (w, b))
        gradients.append(torch.cat([gradient_w, gradient_b[:, None]], 1))
    return torch.stack(gradients)


def gradnorm_autograd(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """What :func:`scores.gradnorm` must equal: the uniform label's loss, sample by sample."""
    uniform = torch.full((len(weight),), 1 / len(weight), dtype=torch.float64, device=weight.device)
    labels = uniform.expand(len(features), -1)
    gradients = head_gradients(features, weight, bias, labels, temperature)
    return -gradients[:, :, :-1].abs().sum((1, 2))


def thinkback_autograd(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    fisher: Tensor | None = None,
    temperature: float = 5.0,
    eps: float = 1e-16,
    damping: float = 0.0,
) -> Tensor:
    """What :func:`scores.thinkback` must equal: one backward pass per sample, as the paper says it.

    Args:
        features: h, float (N, D).
        weight, bias: of the last linear layer, (K, D) and (K,).
        fisher, temperature, eps, damping: as in :func:`scores.thinkback`.
    """
    labels = logits(features, weight, bias).argmax(1)
    squared = head_gradients(features, weight, bias, labels, temperature).square()  # (N, K, D + 1)
    if fisher is None:
        return squared[:, :, :-1].sum((1, 2))
    E = fisher.double()
    return (squared[:, :, : E.shape[1]] / (eps + damping * E.mean() + E)).sum((1, 2))


def logits(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z = h W^T + b``, float64 (N, K)."""
    return features.double() @ weight.double().T + (0 if bias is None else bias.double())


def loss(z: Tensor, label: Tensor) -> Tensor:
    """``-log softmax(z)_label`` of one sample, (K,).

    That of a class is written as ``-log sigmoid(z_y - logsumexp of the others)``, which is the same
    function: through ``log softmax`` autograd itself would subtract 1 from a probability near 1 and
    lose digits.
    """
    if label.ndim:
        return F.cross_entropy(z, label)
    return -F.logsigmoid(z[label] - torch.cat([z[:label], z[label + 1 :]]).logsumexp(0))
