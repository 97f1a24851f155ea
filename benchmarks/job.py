"""The whole job, images in and scores out: a detector of the package beside pytorch-ood's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import thinkback_utils as tb

from .context import Context, pytorch_ood, skipped
from .memory import peak
from .rounds import Record

IMAGES = 1000  # to fit on, and as many to score
BATCH = 128
OURS = ("energy", "thinkback", "thinkback_averaged")
PEERS = ("EnergyBased", "KNN", "ViM", "Mahalanobis")


def title(method: str) -> str:
    """What the chapter calls it."""
    return (
        f"{method.removesuffix('Based')}, pytorch-ood"
        if method in PEERS
        else tb.methods.TITLES[method]
    )


def job(method: str, images: int, results: str, device: str = "cpu") -> Callable[[], object]:
    """Fit on so many images, then score as many, by the library's defaults: ready to run."""
    context = Context(torch.device(device), results=Path(results))
    model, x = context.network().requires_grad_(False), context.images(images)
    if method in OURS:
        return lambda: tb.detector.OODDetector(model, method=method).fit(x).score(x)
    head, loader = (
        model.get_classifier(),
        DataLoader(TensorDataset(x, torch.arange(images) % 10), BATCH),
    )
    more = (head.in_features // 2, head.weight, head.bias) if method == "ViM" else ()
    maker = getattr(pytorch_ood().detector, method)

    @torch.no_grad()
    def run() -> torch.Tensor:
        detector = maker(model if method == "EnergyBased" else model.forward_features, *more).to(
            device
        )
        detector.fit(loader)
        return torch.cat([detector.predict(batch.to(device)) for batch, _ in loader])

    return run


def run(context: Context) -> list[Record]:
    """All jobs by turns, then the memory of each in a process of its own."""
    library, images = pytorch_ood(), 20 if context.quick else IMAGES
    options: dict[str, Any] = {
        "images": images,
        "results": str(context.results.resolve()),
        "device": str(context.device),
    }
    peers = () if isinstance(library, str) else PEERS
    methods = [*OURS, *peers][: 1 if context.quick else None]
    calls = {title(method): job(method, **options) for method in methods}
    records = context.measure(calls, title(OURS[0]), budget=60, least=3, images=images)
    for method in methods:
        grown = peak("job", "job", method=method, **options)
        records.append({"what": f"memory, {title(method)}", "images": images, "peak_bytes": grown})
    if isinstance(library, str):
        records += [skipped(title(method), library, images=images) for method in PEERS]
    return records
