"""Check arrays that users give, torch or NumPy, and convert them to float64."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[np.floating])


def doubled(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its device has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def as_matrix(name: str, values: object) -> Tensor:
    """``values`` as a finite float64 matrix, or a ValueError that says why they are none."""
    tensor = _floating(name, values)
    bad = _not_finite(tensor)
    if bad is not None:
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"thinkback: {name} has {int(bad.sum())} values that are not finite, "
            f"the first is {tensor[row, column].item()} at row {row}, column {column}"
        )
    return tensor.double()


def as_pair(features: object, logits: object) -> tuple[Tensor, Tensor]:
    """Features and logits in float64, checked to agree on N and device, with K >= 2.

    Whether features are finite is left to :func:`as_given`, since no score hides it.
    """
    h, z = _floating("features", features).double(), as_matrix("logits", logits)
    if len(h) != len(z):
        raise ValueError(
            f"thinkback: features {tuple(h.shape)} and logits {tuple(z.shape)} disagree on N"
        )
    if h.device != z.device:
        raise ValueError(
            f"thinkback: features are on {h.device} and logits on {z.device}; move one"
        )
    if z.shape[1] < 2:
        raise ValueError(
            "thinkback: logits have K = 1 class, whose softmax is always 1; give two columns,"
            " (0, z)"
        )
    return h, z


def as_weights(name: str, values: object, features: Tensor) -> Tensor:
    """Weights that a fit left, in float64 on the features' device.

    Whether they are finite is left to :func:`as_given`, since they are larger than a batch.
    """
    return doubled(_floating(name, values)).to(features.device)


def as_given(score: Tensor, given: Array, **causes: Tensor) -> Array:
    """The score as the kind of array that was given; one that is not finite is an error.

    The error names the first cause that is not finite, or the largest numbers.
    """
    if _not_finite(score) is not None:
        for name, values in causes.items():
            as_matrix(name, values)
        largest = ", ".join(
            f"{name} up to {values.abs().max().item():.3g}" for name, values in causes.items()
        )
        raise ValueError(
            "thinkback: scores overflow float64, from finite but huge numbers"
            f" ({largest or 'logits'})"
        )
    return score if isinstance(given, Tensor) else score.cpu().numpy()


def positive(temperature: float) -> float:
    """Return the temperature T, which must be positive and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"thinkback: temperature must be positive and finite, got {temperature}")
    return temperature


def as_numpy(values: object) -> object:
    """A tensor as an array on the CPU, a floating one in float64: NumPy has no bfloat16."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def _not_finite(tensor: Tensor) -> Tensor | None:
    """A mask of the values that are not finite; None if all are."""
    if math.isfinite(tensor.sum().item()):  # faster than a look at each value
        return None
    bad = ~tensor.isfinite()
    return bad if bool(bad.any()) else None


def _floating(name: str, values: object) -> Tensor:
    values = values.to_numpy() if hasattr(values, "to_numpy") else values  # a pandas frame
    try:
        tensor = torch.as_tensor(
            np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"thinkback: {name} must be an array of numbers, got {type(values).__name__}: {error}"
        ) from error
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor  # which has no float64
    if not tensor.is_floating_point():
        raise ValueError(
            f"thinkback: {name} must be floating point, got {tensor.dtype}; convert with .float()"
        )
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(
            f"thinkback: {name} must be a non-empty matrix (N, ·), got shape {tuple(tensor.shape)}"
        )
    return tensor
