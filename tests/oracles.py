"""More of what closed forms must equal: autograd in other ways, Fishers and inverses in full."""

import torch
import torch.nn.functional as F

from thinkback_utils import reference


def head_gradients_vmap(features, weight, bias, labels, temperature=5.0):
    """``reference.head_gradients`` by ``torch.func``, from ``log_softmax``: another way to it.

    It loses digits where a sample is confident. Labels are classes (N,).
    """

    def loss(w, b, h, y):
        return F.cross_entropy((w @ h + b)[None] / temperature, y[None])

    w, b = weight.double(), weight.new_zeros(len(weight)) if bias is None else bias
    gradient = torch.func.grad(loss, argnums=(0, 1))
    per_sample = torch.func.vmap(gradient, in_dims=(None, None, 0, 0))
    gradient_w, gradient_b = per_sample(w, b.double(), features.double(), labels)
    return torch.cat([gradient_w, gradient_b[:, :, None]], 2)


def network_gradients(model, x, parameters, temperature=5.0):
    """Of the model's own decisions on images x: one backward pass an image, (N, P)."""
    rows = []
    for image in x:
        z = model(image[None])[0] / temperature
        gradients = torch.autograd.grad(reference.loss(z, z.argmax()), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def labels_of_kind(kind, z, temperature, true=None):
    """Labels int64 (N,) under which a Fisher takes gradients, and the probability (N,) of each."""
    p = (z.double() / temperature).softmax(1)
    if kind == "model":
        return [(torch.full_like(z.argmax(1), k), p[:, k]) for k in range(z.shape[1])]
    return [(true if kind == "true" else z.argmax(1), torch.ones_like(p[:, 0]))]


def full_fisher(features, weight, bias, temperature, kind, true):
    """Mean outer product of autograd's gradients, each class's bias after its D weights.

    ``kind`` of the labels is as in ``DiagonalFisher``; ``true`` are those of that kind.
    """
    total, z = 0, reference.logits(features, weight, bias)
    for y, chance in labels_of_kind(kind, z, temperature, true):
        g = reference.head_gradients(features, weight, bias, y, temperature).flatten(1)
        total = total + (g * chance[:, None]).T @ g / len(g)
    return total


def inverse(matrix, damping=0.0):
    """``(M + damping * mean eigenvalue * I)^-1``; without damping, the pseudo-inverse."""
    if not damping:
        return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)
    floor = damping * matrix.trace() / len(matrix)
    return torch.linalg.inv(matrix + floor * torch.eye(len(matrix), dtype=matrix.dtype))


def quadratic(x, matrix, damping=0.0):
    """``x^T (M + damping * mean eigenvalue * I)^-1 x`` of each row of x (N, P): (N,)."""
    return torch.einsum("np,pq,nq->n", x, inverse(matrix, damping), x)
