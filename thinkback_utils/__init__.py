"""Thinkback: task-specific out-of-distribution detection, in closed form.

>>> import torch
>>> import thinkback_utils as tb
>>> features, logits = torch.rand(100, 8), torch.rand(100, 3)
>>> fisher = tb.fisher.DiagonalFisher().update(features, logits).compute()
>>> tb.scores.thinkback(features, logits, fisher).shape
torch.Size([100])
"""

from . import data, features, fisher, metrics, models, plots, provenance, reproduce, scores, train

__version__ = "0.1.0"
__all__ = ["data", "features", "fisher", "metrics", "models", "plots", "provenance", "reproduce", "scores", "train"]
