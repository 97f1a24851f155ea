"""How much the training data moves each weight of the last layer, as a sum over batches.

Three Fishers of one layer, each a mean over the training set: the diagonal one of the paper, the
full one, and the full one as if residuals and features were independent. They take the same data
and stream alike; what they keep differs.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from .arrays import as_matrix, as_pair, positive
from .devices import process_device
from .kernels import residual, with_bias
from .scores import inverse_root

LabelKind = Literal["predicted", "true", "model"]
Streaming = TypeVar("Streaming", bound="_LastLayerFisher")
_CALL_UPDATE = "call update(features, logits) first"


class _LastLayerFisher(ABC):
    """Sums over the last layer's gradients ``r h^T``, and how many; a subclass says which sums."""

    def __init__(
        self, temperature: float = 5.0, labels: LabelKind = "predicted", bias: bool = False
    ) -> None:
        if labels not in get_args(LabelKind):
            raise ValueError(
                f"thinkback: labels must be one of {get_args(LabelKind)}, got {labels!r}"
            )
        self.temperature = positive(temperature)
        self.labels, self.bias, self.count = labels, bias, 0
        self._sums: tuple[Tensor, ...] = ()  # float64

    @torch.no_grad()
    def update(
        self: Streaming,
        features: Tensor | NDArray[np.floating],
        logits: Tensor | NDArray[np.floating],
        labels: Tensor | NDArray[np.integer] | None = None,
    ) -> Streaming:
        """Add a batch: features (N, D), logits (N, K), and int labels (N,) for the kind ``"true"``.

        Raises:
            ValueError: on bad arrays (as in the scores), missing labels, or another D or K than
                before.
        """
        h, z = as_pair(as_matrix("features", features), logits)
        if self.bias:
            h = with_bias(h, h.shape[1] + 1)
        batch = self._sums_of(h, z, labels)
        for held, new in zip(self._sums, batch, strict=False):
            if held.shape != new.shape:
                raise ValueError(
                    f"thinkback: this Fisher holds {tuple(held.shape)}, the batch has"
                    f" {tuple(new.shape)}"
                )
        self._sums = (
            tuple(a + b for a, b in zip(self._sums, batch, strict=True)) if self._sums else batch
        )
        self.count += len(h)
        return self

    def all_reduce(self: Streaming) -> Streaming:
        """Sum over the processes of ``torch.distributed``; alone, do nothing.

        Call it once, after the last update, on every process. One that has seen no data adds
        nothing.

        Raises:
            ValueError: on every process, if none has seen data, or if they have different settings,
                K or D.
        """
        if not distributed():
            return self
        settings = (type(self).__name__, self.temperature, self.labels, self.bias)
        told = _told((settings, [tuple(part.shape) for part in self._sums]))
        _agreed("settings of their Fishers", [theirs for theirs, _ in told])
        shapes = _agreed("shapes of their Fishers", [theirs for _, theirs in told if theirs])
        if shapes is None:
            raise ValueError(
                f"thinkback: none of {len(told)} processes has seen data; {_CALL_UPDATE}"
            )
        held = self._sums or tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        total = summed(
            torch.cat([*(part.flatten() for part in held), held[0].new_tensor([self.count])])
        )
        parts = total[:-1].split([part.numel() for part in held])
        self._sums = tuple(new.view_as(old) for new, old in zip(parts, held, strict=True))
        self.count = int(total[-1])
        return self

    @property
    def automatic_damping(self) -> float:
        """1 / N, the damping of an inverse where none is given.

        The N gradients are joined by one imaginary gradient of average length, spread evenly over
        all axes. With P weights no score then exceeds ``N P ||g||^2 / mean ||g||^2``, at average
        length about N times the average score: a direction that N samples never took counts as that
        rare, not as infinitely so. It fades as N grows.
        """
        self._held()
        return 1 / self.count

    def _held(self) -> tuple[Tensor, ...]:
        if not self._sums:
            raise ValueError(f"thinkback: the Fisher has seen no data; {_CALL_UPDATE}")
        return self._sums

    @abstractmethod
    def _sums_of(
        self, h: Tensor, z: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> tuple[Tensor, ...]:
        """What a batch adds, float64."""

    def _squared_residual(
        self, logits: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> Tensor:
        if self.labels == "predicted":
            return residual(logits, self.temperature).square()
        if self.labels == "true":
            return residual(logits, self.temperature, _classes(labels, logits)).square()
        # p (1 - p), where 1 - p of the likeliest class is minus its residual, without lost digits
        p = (logits / self.temperature).softmax(1)
        top = p.argmax(1, keepdim=True)
        rest = (1 - p).scatter(
            1, top, -self.temperature * residual(logits, self.temperature).gather(1, top)
        )
        return p * rest / self.temperature**2

    def _second_moment(
        self, logits: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> tuple[Tensor, Tensor, float]:
        """``E_y[r r^T]`` of each sample: its diagonal (N, K); elsewhere sign u u^T, u (N, K)."""
        diagonal = self._squared_residual(logits, labels)
        if self.labels == "model":  # (diag(p) - p p^T) / T^2
            return diagonal, (logits / self.temperature).softmax(1) / self.temperature, -1.0
        y = _classes(labels, logits) if self.labels == "true" else None
        return diagonal, residual(logits, self.temperature, y), 1.0


class DiagonalFisher(_LastLayerFisher):
    """Streaming diagonal Fisher information of the last linear layer, without a backward pass.

    Per sample the gradient is ``r h^T``, so its expected square is ``E_kd = mean_n r_nk^2 h_nd^2``:
    one matrix product a batch, memory O(K D) whatever N. The label under which the gradient is
    taken makes three kinds:

    - ``"predicted"``: the network's own decision, as in the paper's Eq. 6 (an empirical Fisher);
    - ``"true"``: the data set's label (the empirical Fisher of the EWC literature);
    - ``"model"``: the expectation over labels drawn from softmax(z / T), the true Fisher, where
      r_k^2 becomes ``p_k (1 - p_k) / T^2``.

    Args:
        temperature: T, the one that the score will use.
        labels: one of the three kinds.
        bias: append the bias's column, for reading B of the paper.

    Source: Yang & Rossi (2021), Eq. 6.

    >>> fisher = DiagonalFisher(temperature=1.0)
    >>> fisher.update(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).compute()
    tensor([[2.2500, 4.0000], [2.2500, 4.0000]], dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """E, float64 (K, D) or (K, D + 1): the mean squared gradient of each weight."""
        return self._held()[0] / self.count

    def _sums_of(
        self, h: Tensor, z: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> tuple[Tensor, ...]:
        return (self._squared_residual(z, labels).T @ h.square(),)  # (K, D[+1])


class FullFisher(_LastLayerFisher):
    """Streaming Fisher information of the last linear layer, with every off-diagonal term.

    ``F = mean_n vec(r_n h_n^T) vec(r_n h_n^T)^T``; :class:`DiagonalFisher` of the same kind of
    label is its diagonal. For ``"model"``, ``r r^T`` becomes ``(diag(p) - p p^T) / T^2``. No
    backward pass is needed: block (k, j) is ``mean_n r_nk r_nj h_n h_n^T``, that of (j, k) too, so
    K (K + 1) / 2 products of (D, N) with (N, D) make a batch. Memory is 8 (K D)^2 bytes: 13 MB for
    K = 10, D = 128, and out of reach for a thousand classes, where :class:`KroneckerFisher` still
    fits.

    F is always singular: residuals sum to zero, so at most (K - 1) D of its K D eigenvalues are
    positive.

    Args:
        temperature, labels, bias: as in :class:`DiagonalFisher`; weights are ordered as
            ``weight.flatten()``, and with ``bias`` each class's bias follows its D weights.

    Source: the paper's Eq. 6 without the independence that its Eq. 3 assumes.

    >>> h, z = torch.tensor([[3.0], [1.0]]), torch.zeros(2, 2)
    >>> FullFisher(temperature=1.0).update(h, z).compute()
    tensor([[ 1.2500, -1.2500], [-1.2500,  1.2500]], dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """F, float64 (K D, K D) or (K (D + 1), K (D + 1)): symmetric, positive semi-definite."""
        blocks = self._held()[0]
        return blocks.reshape(blocks.shape[0] * blocks.shape[1], -1) / self.count

    def inverse_root(self, damping: float | None = None) -> Tensor:
        """What :func:`scores.thinkback_full` reads: factorise once, score any number of batches.

        Args:
            damping: as in :func:`scores.inverse_root`; not given (None): ``automatic_damping``.
        """
        damping = self.automatic_damping if damping is None else damping
        return inverse_root(self.compute(), damping)

    def _sums_of(
        self, h: Tensor, z: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> tuple[Tensor, ...]:
        diagonal, u, sign = self._second_moment(z, labels)
        K, D = u.shape[1], h.shape[1]
        if memory() < 2 * 8 * (K * D) ** 2:  # the sum and what a batch adds
            raise ValueError(
                f"thinkback: a full Fisher of K = {K} classes and D = {D} features takes twice"
                f" {8 * (K * D) ** 2 / 1e9:,.0f} GB, more than this machine has; KroneckerFisher"
                " (method 'thinkback_kronecker') keeps K^2 + D^2 numbers"
            )
        blocks = h.new_empty(K, D, K, D)
        for k in range(K):
            for j in range(k + 1):
                weights = diagonal[:, k] if j == k else sign * u[:, k] * u[:, j]
                blocks[k, :, j] = blocks[j, :, k] = (h * weights[:, None]).T @ h
        return (blocks,)


class KroneckerFisher(_LastLayerFisher):
    """Streaming factors of ``F = A ⊗ B``: the Fisher if residuals and features were independent.

    ``A = mean_n r_n r_n^T`` and ``B = mean_n h_n h_n^T``: two small products a batch, memory O(K^2
    + D^2). For the kind ``"model"``, ``r r^T`` becomes ``(diag(p) - p p^T) / T^2``. A is always
    singular: residuals sum to zero.

    Args:
        temperature, labels, bias: as in :class:`DiagonalFisher`; ``bias`` appends a constant 1 to
            h.

    Source: Martens & Grosse (2015), for one layer.

    >>> h, z = torch.tensor([[3.0], [1.0]]), torch.zeros(2, 2)
    >>> KroneckerFisher(temperature=1.0).update(h, z).compute()
    (tensor([[ 0.2500, -0.2500], [-0.2500,  0.2500]], dtype=torch.float64),
     tensor([[5.]], dtype=torch.float64))
    """

    def compute(self) -> tuple[Tensor, Tensor]:
        """A, (K, K), and B, (D, D) or (D + 1, D + 1), float64: positive semi-definite."""
        A, B = self._held()
        return A / self.count, B / self.count

    def inverse_root(self, damping: float | None = None) -> tuple[Tensor, Tensor]:
        """What :func:`scores.thinkback_kronecker` reads, for any number of batches.

        Args:
            damping: of either factor, in units of its own mean eigenvalue; that is the split of
                Martens & Grosse (2015, section 6.3) for ``A ⊗ B + damping^2 I`` in units of its
                mean eigenvalue. Not given (None): ``automatic_damping``.
        """
        A, B = self.compute()
        damping = self.automatic_damping if damping is None else damping
        return inverse_root(A, damping), inverse_root(B, damping)

    def _sums_of(
        self, h: Tensor, z: Tensor, labels: Tensor | NDArray[np.integer] | None
    ) -> tuple[Tensor, ...]:
        diagonal, u, sign = self._second_moment(z, labels)
        A = sign * u.T @ u
        A.diagonal().copy_(diagonal.sum(0))
        return A, h.T @ h


def memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes of ``torch.distributed``, on each of them.

    Alone, the tensor itself. Where one process has a number and another a tensor, the number counts
    in every place: 0 of one without data.

    Raises:
        ValueError: on every process, if their tensors have different shapes or types.
    """
    if not distributed():
        return values
    told = _told((tuple(values.shape), str(values.dtype)))
    _agreed("types of what they add", [dtype for _, dtype in told])
    shape = _agreed("shapes of what they add", [shape for shape, _ in told if shape])
    total = (
        values.detach()
        .expand(shape or ())
        .to(_common_device(values), memory_format=torch.contiguous_format, copy=True)
    )
    dist.all_reduce(total)
    return total.to(values.device)


def distributed() -> bool:
    """Whether this process is one of several that ``torch.distributed`` joins."""
    return dist.is_available() and dist.is_initialized()


def _told(mine: Any) -> list[Any]:
    """What each process says, by rank, on every process: all find a fault, and none waits."""
    _common_device()
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine)
    return theirs


def _agreed(what: str, told: Sequence[Any]) -> Any:
    """What all of them say, None if nobody does."""
    if any(one != told[0] for one in told):
        listed = ", ".join(dict.fromkeys(map(str, told)))
        raise ValueError(
            f"thinkback: the processes disagree on the {what}: {listed}; give all the same model"
            " and method"
        )
    return told[0] if told else None


def _common_device(values: Tensor | None = None) -> torch.device:
    """Where processes exchange tensors: under NCCL on the GPU of each, else on the CPU."""
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    if values is not None and values.is_cuda:
        return values.device
    chosen = torch.cuda.current_device()  # 0 also where nobody has chosen
    return torch.device("cuda", chosen) if chosen else process_device("cuda")


def _classes(labels: Tensor | NDArray[np.integer] | None, logits: Tensor) -> Tensor:
    if labels is None:
        raise ValueError(
            "thinkback: a Fisher with labels='true' needs update(features, logits, labels)"
        )
    classes = torch.as_tensor(labels).to(logits.device)
    if classes.shape != logits.shape[:1] or classes.is_floating_point():
        raise ValueError(
            f"thinkback: labels must be integers of shape ({len(logits)},), got {classes.dtype}"
            f" {tuple(classes.shape)}"
        )
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise ValueError(
            f"thinkback: labels must lie in [0, {logits.shape[1]}), got {int(classes.min())} to"
            f" {int(classes.max())}"
        )
    return classes.long()
