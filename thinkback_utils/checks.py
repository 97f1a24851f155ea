"""Signs that the fit data, or the model, are not as intended, each said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .commands import listed
from .fisher import summed

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

FEW = 20  # images: a class with fewer, and far fewer than its share, is hardly known
UNSURE = 0.1  # mean confidence, 0 at chance and 1 at certainty, below which a model hardly decides
WRONG = 0.5  # accuracy, on the same scale
SPREAD = 3.0  # factor of a variance; natural sets of images differ by less
PREPARED = "Were images prepared as in its training? See mean and std"
SIGMOIDS = 0.1  # share of images of which sigmoids are sure and the softmax is not


class FitData:
    """Counts over the fit data, which stream; :meth:`remarks` says in words what looks wrong."""

    def __init__(self) -> None:
        self.predicted = torch.zeros((), dtype=torch.float64)  # images by predicted class (K,)
        self.active = torch.zeros((), dtype=torch.float64)  # images with a feature not 0 (D,)
        # number of images, sum of confidences; images of sigmoids, with a label, with the right one
        self.sums = torch.zeros(5, dtype=torch.float64)

    def update(self, features: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        """Add a batch: features (B, D), logits (B, K), class labels (B,) if there are any."""
        z, (size, classes) = logits.double(), logits.shape
        decision, p = z.argmax(1), z.softmax(1)
        self.predicted = self.predicted + torch.bincount(decision, minlength=classes)
        self.active = self.active + (features != 0).sum(0)
        # Independent sigmoids: each is sure of its class (entropy below 0.1 nats), yet several or
        # none of them say yes.
        undecided = p.amax(1) < 0.9
        q = z.sigmoid()
        entropy = -(q * F.logsigmoid(z) + (1 - q) * F.logsigmoid(-z)).mean(1)
        sigmoids = (undecided & (entropy < 0.1) & (classes > 2)).sum()
        known = right = torch.tensor(0)
        if labels is not None and labels.shape == decision.shape:
            y = labels.to(decision.device)
            inside = (y >= 0) & (y < classes)
            known, right = inside.sum(), (inside & (y == decision)).sum()
        sums = torch.tensor(size), p.amax(1).sum(), sigmoids, known, right
        self.sums += torch.stack(sums).double()

    def all_reduce(self) -> FitData:
        """Sum over the processes of ``torch.distributed``; alone, do nothing."""
        self.predicted, self.active, self.sums = (
            summed(part) for part in (self.predicted, self.active, self.sums)
        )
        return self

    def remarks(self, silent: bool = True) -> list[str]:
        """A sentence for each thing that looks wrong.

        Args:
            silent: whether features that are always 0 matter, as they do without damping.
        """
        count, confidence, sigmoids, known, right = self.sums.tolist()
        if not count:
            return []
        classes, found = len(self.predicted), []
        if missing := _which(self.predicted == 0):
            found.append(
                f"classes never predicted on the fit data: {missing}; inputs that are given one"
                " tend to score far out. Fit on data of every class"
            )
        few = (self.predicted > 0) & (self.predicted < min(FEW, count / classes / 10))
        if rare := _which(few):
            found.append(
                f"classes predicted for fewer than {FEW} of {count:,.0f} fit images: {rare}; most"
                " of their inputs may be called OOD, though the promise holds on average. Add data"
                ' of them, or calibrate(by="predicted")'
            )
        if silent and (off := _which(self.active == 0)):
            found.append(
                f"features that are 0 in all fit data: {off}; with damping=0 nothing says how"
                " unusual other values are. Set damping, 1e-3 say"
            )
        if known >= FEW and _above_chance(right / known, classes) < WRONG:
            found.append(
                f"the model is right for {100 * right / known:.0f} % of the labelled fit images."
                f" {PREPARED}"
            )
        elif _above_chance(confidence / count, classes) < UNSURE:
            found.append(
                "the model is hardly sure of any fit image: its mean confidence is"
                f" {confidence / count:.2g}, and chance is {1 / classes:.2g}. {PREPARED}"
            )
        if sigmoids / count > SIGMOIDS:
            found.append(
                "the classes look like independent sigmoids: in"
                f" {100 * sigmoids / count:.0f} % of the fit images each is sure, and not just one"
                " says yes. Scores of a softmax then call sure inputs OOD: use"
                ' method="joint_energy"'
            )
        return found


@contextmanager
def first_norm(model: nn.Module | None) -> Iterator[list[str]]:
    """Compare what the first BatchNorm reads with what it read in training.

    It looks at the first batch that runs meanwhile.

    Yields: A list that gets a remark if, for half the channels or more, the variance of the inputs
        is ``SPREAD`` times another than in training, or their mean is a standard deviation away.
    """
    layers = () if model is None else model.modules()
    norms = (layer for layer in layers if isinstance(layer, _NORMS))
    trained = [n for n in norms if n.running_mean is not None and int(n.num_batches_tracked or 0)]
    found: list[str] = []

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        handle.remove()  # one batch says it
        x = inputs[0].detach().float().transpose(0, 1).flatten(1)  # (channels, values)
        variance = layer.running_var.float() + layer.eps
        ratio = x.var(1, correction=0) / variance
        shift = (x.mean(1) - layer.running_mean.float()).abs() / variance.sqrt()
        if not 1 / SPREAD < float(ratio.median()) < SPREAD or float(shift.median()) > 1:
            found.append(
                "the first BatchNorm of the model sees other inputs than in its training:"
                f" {float(ratio.median()):.2g} times the variance, means"
                f" {float(shift.median()):.2g} standard deviations off. {PREPARED}"
            )

    if not trained:
        yield found
        return
    handle = trained[0].register_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _which(chosen: Tensor) -> str:
    """Which entries of a mask (N,) are true, in words."""
    return listed(chosen.nonzero().flatten().tolist())


def _above_chance(rate: float, classes: int) -> float:
    """0 at chance, 1 at best."""
    return (rate - 1 / classes) / (1 - 1 / classes)
