"""What checks of a chapter measure: how far two results lie apart, and how long a call takes."""

from __future__ import annotations

from collections.abc import Callable
from timeit import repeat

from torch import Tensor


def relative_error(a: Tensor, b: Tensor, within: float = 1e-9) -> float:
    """Largest ``|a - b| / |b|`` over all entries; two zeros agree.

    Args:
        a, b: float64, of one shape.
        within: what it must not exceed.

    Raises:
        AssertionError: it exceeds that, or an entry is not a number.
        ValueError: the shapes differ.

    >>> import torch
    >>> relative_error(torch.tensor([1.5, 0.0]), torch.tensor([1.0, 0.0]), within=1)
    0.5
    """
    if a.shape != b.shape:
        raise ValueError(f"thinkback: shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    error = float(((a - b).abs() / b.abs()).where(a != b, 0.0).max())
    if not error <= within:
        raise AssertionError(f"thinkback: relative error {error:.1e}, allowed are {within:.1e}")
    return error


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Time of the fastest of a few calls, in seconds."""
    return min(repeat(call, number=1, repeat=repeats))
