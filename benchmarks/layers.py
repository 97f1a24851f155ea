"""Gradients of other layers: time in forward passes and memory, against ``vmap(grad)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import thinkback_utils as tb

from .context import Context
from .memory import peak
from .rounds import Call, Record
from .score import loss_of

BATCH, CHUNK = (
    128,
    16,
)  # gradients of a sample in every parameter are 9 MB, so they are made 16 samples at a time
VMAP = ", vmap(grad)"
WAYS = ("A", "C", "D", "E", "C+D+E", "all", f"D{VMAP}", f"E{VMAP}", f"all{VMAP}")

ALONE = ("A", "C", "D", "E", "all", f"all{VMAP}")  # whose memory is measured


def by_vmap(model: nn.Module, x: Tensor, names: Sequence[str]) -> Tensor:
    """Squared gradients of these parameters, (N, P), by ``torch.func`` through the network."""
    wanted = {name: value.detach() for name, value in model.named_parameters() if name in names}

    def loss(parameters: Mapping[str, Tensor], image: Tensor) -> Tensor:
        return loss_of(torch.func.functional_call(model, dict(parameters), (image[None],))[0])

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(wanted, x)
    return torch.cat([g.flatten(1) for g in per_sample.values()], 1).square_()


def parameters_of(model: nn.Module, x: Tensor, reading: str) -> list[str]:
    """Names of the parameters that a reading differentiates."""
    layer = "" if reading == "all" else f"{tb.gradients.find_layers(model, x)[reading]}."
    return [name for name, _ in model.named_parameters() if name.startswith(layer)]


def work(model: tb.models.WideResNet, x: Tensor, way: str) -> Callable[[], object]:
    """Eq. 6 of a batch in one of the ``WAYS``, forward pass included, with any E."""
    layers = tb.gradients.find_layers(model, x[:2])
    if way == "A":
        inverse = torch.ones_like(model.get_classifier().weight, dtype=torch.float64, device="cpu")

        def run() -> None:
            out = tb.features.extract(model, x, layers["C"], len(x))
            tb.scores.thinkback_diagonal(out.features, out.logits, inverse)

    elif way.endswith(VMAP):
        names = parameters_of(model, x[:2], way.removesuffix(VMAP))

        def run() -> None:
            for part in x.split(CHUNK):
                squares = by_vmap(model, part, names)
                tb.gradients.score(squares, torch.ones_like(squares[0]))

    else:
        readings, size = way.split("+"), CHUNK if way == "all" else len(x)

        def run() -> None:
            for squares in tb.gradients.squared_gradients(
                model, x, readings, layers, batch_size=size
            ):
                for g in squares.values():
                    tb.gradients.score(g, torch.ones_like(g[0]))

    return run


def alone(way: str, batch: int, results: str, device: str = "cpu") -> Callable[[], object]:
    """The same, prepared in a process of its own; ``"forward"`` is the plain pass."""
    context = Context(torch.device(device), results=Path(results))
    model, x = context.network(), context.images(batch)
    with torch.no_grad():
        model(x[:2])  # loads libraries
    return torch.no_grad()(lambda: model(x)) if way == "forward" else work(model, x, way)


def run(context: Context) -> list[Record]:
    """Time all ways in forward passes of the same batch, then measure their memory one by one."""
    batch = 4 if context.quick else BATCH
    model, x = context.network(), context.images(batch)
    calls: dict[str, Callable[[], object] | Call] = {"forward": torch.no_grad()(lambda: model(x))}
    for way in WAYS:
        few = x[:CHUNK] if VMAP in way or way == "all" else x  # that many forward passes a sample
        calls[way] = Call(work(model, few, way), len(few) / batch)
    records = context.measure(calls, "forward", budget=20, batch=batch)
    options = {
        "batch": batch,
        "results": str(context.results.resolve()),
        "device": str(context.device),
    }
    for way in ("forward",) if context.quick else ("forward", *ALONE):
        grown = peak("layers", "alone", way=way, **options)
        records.append({"what": f"memory, {way}", "batch": batch, "peak_bytes": grown})
    return records
