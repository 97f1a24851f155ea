"""What the machine can do at best: dense matrix products and copies, units of every estimate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .context import Context
from .rounds import Record


def product(
    side: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """A product of two square matrices: ``2 side^3`` operations."""
    a, b = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def copy(length: int, device: torch.device) -> Callable[[], object]:
    """A copy of so many float32 numbers: ``2 * 4 * length`` bytes are read and written."""
    source = torch.rand(length, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def run(context: Context) -> list[Record]:
    """Dense products in both precisions and a copy beyond any cache; their operations and bytes."""
    side, length = (512, 1 << 22) if context.quick else (2048, 1 << 26)
    calls = {
        f"product {n}": product(side, context.device, getattr(torch, n))
        for n in ("float32", "float64")
    }
    work = {name: {"operations": 2 * side**3} for name in calls} | {
        "copy": {"bytes": 2 * 4 * length}
    }
    records = context.measure(
        {**calls, "copy": copy(length, context.device)}, "product float32", budget=10
    )
    return [record | work[record["what"]] for record in records]
