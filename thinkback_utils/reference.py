"""What closed forms must equal: autograd one sample at a time, and inverses written out. Slow.

For tests, and for the chapters that show it. Nothing here calls a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        loss = _loss((w @ h + b) / temperature, label)
        gradient_w, gradient_b = torch.autograd.grad(loss, (w, b))
        gradients.append(torch.cat([gradient_w, gradient_b[:, None]], 1))
    return torch.stack(gradients)


def head_gradients_vmap(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float = 5.0
) -> Tensor:
    """:func:`head_gradients` by ``torch.func``, from ``log_softmax``: another way to the same.

    It loses digits where a sample is confident. Arguments and result as there, classes (N,) alone.
    """

    def loss(w: Tensor, b: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((w @ h + b)[None] / temperature, y[None])

    w, b = weight.double(), weight.new_zeros(len(weight)) if bias is None else bias
    gradient = torch.func.grad(loss, argnums=(0, 1))
    per_sample = torch.func.vmap(gradient, in_dims=(None, None, 0, 0))
    gradient_w, gradient_b = per_sample(w, b.double(), features.double(), labels)
    return torch.cat([gradient_w, gradient_b[:, :, None]], 2)


def network_gradients(
    model: nn.Module, x: Tensor, parameters: Sequence[Tensor], temperature: float = 5.0
) -> Tensor:
    """Per-sample gradients of the model's own decision: one backward pass an image, (N, P).

    Args:
        model: logits of images; in evaluation mode.
        x: images (N, ...).
        parameters: tensors in which the gradient is taken; P numbers in all.
        temperature: T.
    """
    rows = []
    for image in x:
        z = model(image[None])[0] / temperature
        gradients = torch.autograd.grad(_loss(z, z.argmax()), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


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


def labels_of_kind(
    kind: str, z: Tensor, temperature: float, true: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Labels int64 (N,) under which a Fisher takes gradients, and the probability (N,) of each."""
    p = (z.double() / temperature).softmax(1)
    if kind == "model":
        return [(torch.full_like(z.argmax(1), k), p[:, k]) for k in range(z.shape[1])]
    y = true if kind == "true" and true is not None else z.argmax(1)
    return [(y, torch.ones_like(p[:, 0]))]


def full_fisher(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    temperature: float = 5.0,
    kind: str = "predicted",
    true: Tensor | None = None,
    with_bias: bool = False,
) -> Tensor:
    """Mean outer product of autograd's gradients: what ``FullFisher`` must equal, (K D, K D).

    Args:
        features, weight, bias, temperature: as in :func:`head_gradients`.
        kind: of the labels, as in ``DiagonalFisher``; ``true`` int64 (N,) are those of that kind.
        with_bias: whether each class's bias follows its D weights.
    """
    total = torch.zeros((), dtype=torch.float64)
    for y, chance in labels_of_kind(kind, logits(features, weight, bias), temperature, true):
        g = head_gradients(features, weight, bias, y, temperature)
        g = (g if with_bias else g[:, :, :-1]).flatten(1)
        total = total + (g * chance[:, None]).T @ g / len(g)
    return total


def inverse(matrix: Tensor, damping: float = 0.0) -> Tensor:
    """``(M + damping * mean eigenvalue * I)^-1``; without damping, the pseudo-inverse."""
    floor = damping * matrix.trace() / len(matrix) * torch.eye(len(matrix), dtype=matrix.dtype)
    inverted: Tensor = (
        torch.linalg.inv(matrix + floor)
        if damping
        else torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)
    )
    return inverted


def quadratic(x: Tensor, matrix: Tensor, damping: float = 0.0) -> Tensor:
    """``x^T (M + damping * mean eigenvalue * I)^-1 x`` of each row of x (N, P): (N,)."""
    return torch.einsum("np,pq,nq->n", x, inverse(matrix, damping), x)


def _loss(z: Tensor, label: Tensor) -> Tensor:
    """``-log softmax(z)_label`` of one sample, (K,).

    That of a class is written as ``-log sigmoid(z_y - logsumexp of the others)``, which is the same
    function: through ``log softmax`` autograd itself would subtract 1 from a probability near 1 and
    lose digits.
    """
    if label.ndim:
        return F.cross_entropy(z, label)
    return -F.logsigmoid(z[label] - torch.cat([z[:label], z[label + 1 :]]).logsumexp(0))
