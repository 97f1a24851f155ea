"""Thinkback: task-specific out-of-distribution detection, in closed form.

>>> import torch
>>> import thinkback_utils as tb
>>> features, logits = torch.rand(100, 8), torch.rand(100, 3)
>>> fisher = tb.fisher.DiagonalFisher().update(features, logits).compute()
>>> tb.scores.thinkback(features, logits, fisher).shape
torch.Size([100])
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        adapters,
        arrays,
        batches,
        calibrate,
        calibration,
        checks,
        commands,
        data,
        detector,
        devices,
        export,
        features,
        files,
        fisher,
        fit,
        gradients,
        heads,
        identity,
        images,
        kernels,
        methods,
        metrics,
        models,
        passes,
        reference,
        score,
        scores,
        shards,
    )

__version__ = "0.1.0"
__all__ = [
    "adapters",
    "arrays",
    "batches",
    "calibrate",
    "calibration",
    "checks",
    "commands",
    "data",
    "detector",
    "devices",
    "export",
    "features",
    "files",
    "fisher",
    "fit",
    "gradients",
    "heads",
    "identity",
    "images",
    "kernels",
    "methods",
    "metrics",
    "models",
    "passes",
    "reference",
    "score",
    "scores",
    "shards",
]


def __getattr__(name: str) -> ModuleType:
    """Import a module when it is first named: a score needs no plotting, and ``python -m`` must run
    a module once.
    """
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
