"""The fit: what it adds to the pass, and memory that does not grow with the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import thinkback_utils as tb

from .context import Context, pytorch_ood, skipped
from .costs import kept_bytes
from .memory import peak
from .rounds import Call, Record

BATCH = 200
K, D = 10, 128
SAMPLES = (10**4, 10**5, 10**6, 10**7)
PEERS = ("KNN", "ViM", "Mahalanobis")
FISHERS: dict[str, Callable[[], Any]] = {
    "diagonal": tb.fisher.DiagonalFisher,
    "Kronecker": tb.fisher.KroneckerFisher,
    "full": tb.fisher.FullFisher,
}


@cache
def drawn(device: str) -> list[Tensor]:
    """Ten batches of synthetic features, (1000, D)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1000, D, generator=generator).to(device) for _ in range(10)]


def batches(samples: int, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """A stream of features (B, D) and labels (B,) of any length, out of ten batches that repeat."""
    for start in range(0, samples, 1000):
        h = drawn(device)[start // 1000 % 10][: samples - start]
        yield h, torch.arange(len(h), device=device) % K


def whole_fit(method: str, samples: int, device: str = "cpu") -> Any:
    """Fit a key of ``FISHERS`` on so many samples, or one of ``PEERS`` as pytorch-ood does."""
    head = torch.nn.Linear(D, K).requires_grad_(False).to(device)
    if method in FISHERS:
        fisher = FISHERS[method]()
        for h, _ in batches(samples, device):
            fisher.update(h, head(h))
        return fisher
    more = (D // 2, head.weight, head.bias) if method == "ViM" else ()
    detector = getattr(pytorch_ood().detector, method)(torch.nn.Identity(), *more).to(device)
    return detector.fit(batches(samples, device))


def stream(method: str, samples: int, device: str = "cpu") -> Callable[[], Any]:
    """The same, ready to run: libraries are loaded and the ten batches drawn."""
    whole_fit(method, 1000, device)
    return partial(whole_fit, method, samples, device)


def updates(context: Context) -> list[Record]:
    """What one batch adds to each Fisher, beside the pass that gives features and logits."""
    batch = 8 if context.quick else BATCH
    model, x = context.network(), context.images(batch)
    with torch.no_grad():
        h = model.forward_features(x)
        z = model.forward_head(h)
    fishers = {name: make().update(h, z) for name, make in FISHERS.items()}
    calls: dict[str, Callable[[], object] | Call] = {"forward": torch.no_grad()(lambda: model(x))}
    calls |= {f"update, {name}": partial(fisher.update, h, z) for name, fisher in fishers.items()}
    records = context.measure(calls, "forward", batch=batch, K=K, D=D)
    once = {
        f"finish, {name}": getattr(fisher, "inverse_root", fisher.compute)
        for name, fisher in fishers.items()
    }
    return records + context.measure(once, "finish, diagonal", budget=5, K=K, D=D)


def fits(context: Context) -> list[Record]:
    """Seconds of the whole fit on features that are there already, ours and the peers'."""
    samples = 2000 if context.quick else 50_000
    methods = ["diagonal", "Kronecker", *([] if isinstance(pytorch_ood(), str) else PEERS)]
    calls = {f"fit, {method}": stream(method, samples, str(context.device)) for method in methods}
    return context.measure(calls, "fit, diagonal", budget=5, samples=samples, K=K, D=D)


def memories(context: Context) -> list[Record]:
    """Peak memory of the fit at growing N, each in its own process, and the bytes that stay."""
    records, device = [], str(context.device)
    library = pytorch_ood()
    for method in ("diagonal", "KNN") if context.quick else ("diagonal", "Kronecker", *PEERS):
        for samples in SAMPLES[:1] if context.quick else SAMPLES[method in PEERS :]:
            facts = {
                "samples": samples,
                "K": K,
                "D": D,
                "kept_bytes": kept_bytes(method, samples, K, D),
            }
            if method in PEERS and isinstance(library, str):
                records.append(skipped(f"memory, {method}", library, **facts))
            elif method in PEERS and samples > 10**6:
                records.append(
                    skipped(f"memory, {method}", "its features alone take gigabytes", **facts)
                )
            else:
                grown = peak("fit", "stream", method=method, samples=samples, device=device)
                records.append({"what": f"memory, {method}", **facts, "peak_bytes": grown})
    return records


def run(context: Context) -> list[Record]:
    """Time an update, time a whole fit, and watch the memory."""
    return updates(context) + fits(context) + memories(context)
