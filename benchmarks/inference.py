"""Set-ups of the forward pass: memory format, precision, batch size, compilation, export."""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import thinkback_utils as tb
from experiments.training import has_compiler

from .context import Context, skipped
from .rounds import Call, Record

IMAGES = 256
BATCHES = (16, 64, 128, 256)
T = 5.0


@dataclass(frozen=True)
class Setup:
    """How the backbone runs; head and scores stay in float32 and float64, for small residuals."""

    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    exported: bool = False
    batch: int = 128

    def __str__(self) -> str:
        parts = {"channels last": self.channels_last, "bfloat16 backbone": self.bfloat16}
        parts |= {"compiled": self.compiled, "ONNX graph, score included": self.exported}
        chosen = ", ".join(name for name, wanted in parts.items() if wanted)
        return f"{chosen or 'plain float32'}, batch {self.batch}"


PLAIN = Setup()
SETUPS = (
    PLAIN,
    Setup(channels_last=True),
    Setup(bfloat16=True),
    Setup(channels_last=True, bfloat16=True),
    Setup(channels_last=True, compiled=True),
    *(
        Setup(channels_last, batch=batch)
        for channels_last in (False, True)
        for batch in BATCHES
        if batch != PLAIN.batch
    ),
    Setup(batch=1),
    *(Setup(exported=True, batch=batch) for batch in (1, 64)),
)


def forward(model: tb.models.WideResNet, setup: Setup) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Features and logits of images, by that set-up; of an exported one scores and logits."""
    if setup.exported:
        return graph(model, setup.batch)
    layout = torch.channels_last if setup.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    features = torch.compile(model.forward_features) if setup.compiled else model.forward_features

    @torch.no_grad()
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for part in x.split(setup.batch):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=setup.bfloat16):
                h = features(part.contiguous(memory_format=layout))
            found.append((h.float(), model.forward_head(h.float())))
        h, z = (torch.cat(parts) for parts in zip(*found, strict=True))
        return h, z

    return run


def graph(model: tb.models.WideResNet, batch: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Scores (Eq. 5) and logits by onnxruntime, of what :meth:`OODDetector.export` writes."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        detector = tb.detector.OODDetector(
            model, method="thinkback_eq5", precision="float32", temperature=T
        )
        detector.export(path, torch.rand(1, 3, 32, 32))
        session = onnxruntime.InferenceSession(path)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        found = [
            session.run(["score", "logits"], {"images": part.numpy()}) for part in x.split(batch)
        ]
        scores, logits = (
            torch.cat([torch.from_numpy(part) for part in parts])
            for parts in zip(*found, strict=True)
        )
        return scores, logits

    return run


def why_not(setup: Setup, context: Context) -> str:
    """The reason why a set-up is left out, empty if it is not."""
    if setup.compiled and context.device.type == "cpu":
        if context.quick:
            return "compiling takes a minute, and this is a quick run"
        if not has_compiler():
            return "no C++ compiler on this machine"
    if setup.exported and context.device.type != "cpu":
        return "the graph is timed on CPUs only"
    if setup.exported and importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    return ""


def agreement(found: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Median relative change of the score (Eq. 5), and the share of decisions that change."""
    scores = [
        first if first.ndim == 1 else tb.scores.thinkback(first.cpu(), z.cpu(), temperature=T)
        for first, z in (found, plain)
    ]
    moved = (scores[0] / scores[1] - 1).abs().median()
    decided = (found[1].argmax(1) != plain[1].argmax(1)).double().mean()
    return {"score_change": float(moved), "decisions_changed": float(decided)}


def probe(
    context: Context, setup: Setup, x: Tensor, plain: tuple[Tensor, Tensor]
) -> tuple[Call, Record]:
    """A set-up ready to be timed, and facts of its first call; an emulated one does a part."""
    run_once = forward(context.network(), setup)
    few = x[: setup.batch if setup.compiled else 16]  # a compiled one is compiled for its batch
    start = time.perf_counter()
    first = run_once(few)
    seconds = time.perf_counter() - start
    part = x[:8] if setup.bfloat16 and seconds > 1 else x[:64] if setup.batch == 1 else x
    facts = {"batch": setup.batch, "first_call_seconds": seconds}
    facts |= agreement(first, (plain[0][: len(few)], plain[1][: len(few)]))
    return Call(partial(run_once, part), len(part) / len(x)), facts


def run(context: Context) -> list[Record]:
    """All set-ups by turns on the same images."""
    x, left, facts = context.images(16 if context.quick else IMAGES), [], {}
    calls: dict[str, Callable[[], object] | Call] = {}
    plain = forward(context.network(), PLAIN)(x)
    for setup in SETUPS[:2] if context.quick else SETUPS:
        name, reason = str(setup), why_not(setup, context)
        if not reason:
            try:
                calls[name], facts[name] = probe(context, setup, x, plain)
            except (
                RuntimeError,
                OSError,
                ImportError,
            ) as error:  # of a compiler, which says where on this machine
                traceback.print_exc()
                reason = f"it failed with {type(error).__name__}"
        if reason:
            left.append(skipped(name, reason, batch=setup.batch))
    measured = context.measure(calls, str(PLAIN), budget=40, images=len(x))
    return [record | facts[record["what"]] for record in measured] + left
