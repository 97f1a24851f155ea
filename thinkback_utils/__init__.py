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
        ablations,
        adapters,
        audit,
        claims,
        data,
        demo,
        detector,
        development,
        evaluation,
        explorers,
        export,
        family,
        features,
        files,
        fisher,
        fit,
        gallery,
        gallery_page,
        gradients,
        methods,
        metrics,
        models,
        opening,
        outliers,
        peers,
        plots,
        provenance,
        reproduce,
        score,
        scores,
        shards,
        train,
        variants,
    )

__version__ = "0.1.0"
__all__ = [
    "ablations",
    "adapters",
    "audit",
    "claims",
    "data",
    "demo",
    "detector",
    "development",
    "evaluation",
    "explorers",
    "export",
    "family",
    "features",
    "files",
    "fisher",
    "fit",
    "gallery",
    "gallery_page",
    "gradients",
    "methods",
    "metrics",
    "models",
    "opening",
    "outliers",
    "peers",
    "plots",
    "provenance",
    "reproduce",
    "score",
    "scores",
    "shards",
    "train",
    "variants",
]


def __getattr__(name: str) -> ModuleType:
    """Import a module when it is first named: a score needs no plotting, and ``python -m`` must run a module once."""
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
