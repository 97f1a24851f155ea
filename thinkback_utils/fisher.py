"""How much the training data moves each weight of the last layer: the only thing here with a lifetime is a sum."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from .scores import _pair, _temperature, residual

LabelKind = Literal["predicted", "true", "model"]


class DiagonalFisher:
    """Streaming diagonal Fisher information of the last linear layer, without a backward pass.

    Per sample the gradient is ``r h^T``, so its expected square is ``E_kd = mean_n r_nk^2 h_nd^2``: one matrix product
    a batch, memory O(K D) whatever N. The label under which the gradient is taken makes three kinds:

    - ``"predicted"``: the network's own decision, as in the paper's Eq. 6 (an empirical Fisher);
    - ``"true"``: the data set's label (the empirical Fisher of the EWC literature);
    - ``"model"``: the expectation over labels drawn from softmax(z / T), the true Fisher, where r_k^2 becomes
      ``p_k (1 - p_k) / T^2``.

    Args:
        temperature: T, the one that the score will use.
        labels: one of the three kinds.
        bias: append the bias's column, for reading B of the paper.

    Source: Yang & Rossi (2021), Eq. 6.

    >>> fisher = DiagonalFisher(temperature=1.0)
    >>> fisher.update(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).compute()
    tensor([[2.2500, 4.0000], [2.2500, 4.0000]], dtype=torch.float64)
    """

    def __init__(self, temperature: float = 5.0, labels: LabelKind = "predicted", bias: bool = False) -> None:
        if labels not in get_args(LabelKind):
            raise ValueError(f"thinkback: labels must be one of {get_args(LabelKind)}, got {labels!r}")
        self.temperature = _temperature(temperature)
        self.labels, self.bias, self.count = labels, bias, 0
        self._sum: Tensor | None = None  # (K, D[+1]) float64

    @torch.no_grad()
    def update(
        self,
        features: Tensor | NDArray[np.floating],
        logits: Tensor | NDArray[np.floating],
        labels: Tensor | NDArray[np.integer] | None = None,
    ) -> DiagonalFisher:
        """Add a batch: features (N, D), logits (N, K), and int labels (N,) for the kind ``"true"``.

        Raises:
            ValueError: on bad arrays (as in the scores), missing labels, or another D or K than before.
        """
        h, z = _pair(features, logits)
        squares = self._squared_residual(z, labels)
        inputs = h.square()
        if self.bias:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        batch = squares.T @ inputs  # (K, D[+1])
        if self._sum is not None and self._sum.shape != batch.shape:
            raise ValueError(
                f"thinkback: this Fisher holds {tuple(self._sum.shape)}, the batch has {tuple(batch.shape)}"
            )
        self._sum = batch if self._sum is None else self._sum + batch
        self.count += len(h)
        return self

    def all_reduce(self) -> DiagonalFisher:
        """Sum over the processes of ``torch.distributed``; alone, do nothing.

        Call it once, after the last update, on every process; each must have seen data.
        """
        if dist.is_available() and dist.is_initialized():
            held = self._held()
            total = torch.cat([held.flatten(), held.new_tensor([self.count])])
            total = total.cuda() if dist.get_backend() == "nccl" else total
            dist.all_reduce(total)
            self._sum, self.count = total[:-1].view_as(held).to(held.device), int(total[-1])
        return self

    def compute(self) -> Tensor:
        """E, float64 (K, D) or (K, D + 1): the mean squared gradient of each weight."""
        return self._held() / self.count

    def _held(self) -> Tensor:
        if self._sum is None:
            raise ValueError("thinkback: the Fisher has seen no data; call update(features, logits) first")
        return self._sum

    def _squared_residual(self, logits: Tensor, labels: Tensor | NDArray[np.integer] | None) -> Tensor:
        if self.labels == "predicted":
            return residual(logits, self.temperature).square()
        if self.labels == "true":
            return residual(logits, self.temperature, _classes(labels, logits)).square()
        # p (1 - p), where 1 - p of the likeliest class is the sum of the others: minus its residual.
        p = (logits / self.temperature).softmax(1)
        top = p.argmax(1, keepdim=True)
        rest = (1 - p).scatter(1, top, -self.temperature * residual(logits, self.temperature).gather(1, top))
        return p * rest / self.temperature**2


def _classes(labels: Tensor | NDArray[np.integer] | None, logits: Tensor) -> Tensor:
    if labels is None:
        raise ValueError("thinkback: DiagonalFisher(labels='true') needs update(features, logits, labels)")
    classes = torch.as_tensor(labels).to(logits.device)
    if classes.shape != logits.shape[:1] or classes.is_floating_point():
        raise ValueError(
            f"thinkback: labels must be integers of shape ({len(logits)},), got {classes.dtype} {tuple(classes.shape)}"
        )
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise ValueError(
            f"thinkback: labels must lie in [0, {logits.shape[1]}), got {int(classes.min())} to {int(classes.max())}"
        )
    return classes.long()
