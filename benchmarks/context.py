"""What all groups share: the device, how long to measure, the network and the images."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import thinkback_utils as tb
from experiments.run import Run

from .rounds import Call, Record, alternate, summarize


@dataclass(frozen=True)
class Context:
    """One run of the benchmarks.

    Args:
        device: where networks and scores run.
        quick: few rounds and small sizes: to see that everything works, not to report.
        results: folder of the committed runs, for the network and its features.
    """

    device: torch.device
    quick: bool = False
    results: Path = Path("results")

    def measure(
        self,
        calls: Mapping[str, Callable[[], object] | Call],
        reference: str,
        budget: float = 6.0,
        least: int = 5,
        **facts: Any,
    ) -> list[Record]:
        """Time the calls by turns, about ``budget`` seconds; the facts go into every record."""
        wrapped = {k: call if isinstance(call, Call) else Call(call) for k, call in calls.items()}
        least, most = (min(least, 2), 2) if self.quick else (least, 101)
        records = summarize(alternate(wrapped, budget, least, most, self.clock), reference, **facts)
        return [record | {"share": wrapped[record["what"]].share} for record in records]

    def clock(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def network(self) -> tb.models.WideResNet:
        """The book's WRN-40-2, in evaluation mode; without its file, with random weights."""
        weights = Run.at(self.results).weights
        model = tb.models.WideResNet.load(weights) if weights.exists() else tb.models.WideResNet()
        return model.eval().to(self.device)

    def images(self, count: int) -> Tensor:
        """scikit-learn's digits, which need no download: float (count, 3, 32, 32) in [0, 1]."""
        images = tb.data.load("digits", "train").images
        return images[torch.arange(count) % len(images)].to(self.device) / 255

    def bundle(self) -> tb.features.Bundle | None:
        """Features and logits of all sets, or None where the file is not there."""
        here = Run.at(self.results)
        return here.bundle() if (here.folder / "bundle.npz").exists() else None


def skipped(what: str, reason: str, **facts: Any) -> Record:
    """The record of something that was not measured, and why."""
    return {"what": what, **facts, "skipped": reason}


def pytorch_ood() -> Any:
    """The library, its detectors and metrics loaded; or the reason why it is not to be had."""
    try:
        tb.data.import_torchvision()  # which it imports, and which may not fit the installed torch
        parts = ("pytorch_ood.detector", "pytorch_ood.metrics", "pytorch_ood")
        return [importlib.import_module(part) for part in parts][-1]
    except ImportError as error:
        return f"pytorch-ood cannot be imported: {error}"
