"""Forward passes, streamed: of any model and any images, features and logits, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batches import Batch, Forward, Images, Pixels, batches, device_of, unwrapped
from .heads import Head, Name, Runs, candidates, find, tensors_of, watching


class Pass(NamedTuple):
    """What one batch left: features (B, ..., D), logits (B, ..., K), labels (B,) or None, and the
    head's name.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None
    head: Name


@torch.no_grad()  # not inference_mode: its tensors could not enter anyone's graph later
def stream(
    model: nn.Module,
    images: Images,
    head: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    pixels: Pixels | None = None,
    forward: Forward | None = None,
) -> Iterator[Pass]:
    """Run a model over images, and yield what its last layer reads and what it returns.

    Each batch runs in evaluation mode, without gradients, on copies of the images; the model is
    given back as it was after each. ``torch.compile`` and ``DataParallel`` are looked through: what
    runs is the model inside.

    Args:
        model: any classifier with a last layer that :mod:`heads` can find.
        images: as :mod:`batches` says.
        head: name of that layer in ``model.named_modules()``, or names of several that are
            averaged; None: found.
        batch_size: where images are not in batches yet; None: 64 on a CPU, 256 elsewhere.
        pixels: mean and std of the model's images.
        forward: ``forward(model, batch)``, where the model is not called as ``model(x)``.

    Yields:
        :class:`Pass`, on the model's device, in its precision.

    Raises:
        ValueError: on images that are none, no or an ambiguous head, values that are not finite.
    """
    reader = Reader(model, head, forward)
    for batch in batches(images, reader.model, batch_size, pixels, forward):
        with evaluating(reader.model):
            seen = reader(batch)
        yield seen


class Reader:
    """One pass at a time through a model without its wrappers; the head is found at the first."""

    def __init__(
        self,
        model: nn.Module,
        head: str | Sequence[str] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.model, self.forward = unwrapped(model), forward
        self.names = _names(self.model, head)
        self.head: Head | None = None
        self.layers = dict(self.model.named_modules())
        self.channels_last = device_of(self.model).type == "cpu"  # faster there

    def find(self, batch: Batch) -> Head:
        """The head, by a pass of a few samples."""
        watched = (
            candidates(self.model)
            if self.names is None
            else {name: self.layers[name] for name in self.names}
        )
        few = batch.first(2)
        runs, output = self.run(few, watched)
        _all_finite(few, output)
        self.head = find(self.model, runs, output, self.names)
        return self.head

    def __call__(self, batch: Batch) -> Pass:
        """One pass; errors as of :func:`stream`."""
        head = self.head or self.find(batch)
        runs, output = self.run(batch, {name: self.layers[name] for name in head.names})
        try:
            h, z = head.read(runs, output, self.layers)
        except ValueError:
            _all_finite(batch, output)  # the likelier cause
            raise
        if batch.size is not None and len(h) != batch.size:
            read = f"the head {head.name!r} reads {tuple(h.shape)}"
            raise ValueError(
                f"thinkback: {read}, expected one row for each of {batch.size} images. Name another"
                " layer as head, or pass forward=lambda model, batch: ..., which calls the model"
                " once an image"
            )
        return Pass(h, z, batch.labels, head.name)

    def run(self, batch: Batch, layers: dict[str, nn.Module]) -> tuple[Runs, Any]:
        """What the layers did in a pass, and what the model returned."""
        try:
            return self._run(batch, layers)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, say
                raise
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors_of([batch.args, batch.kwargs]))
            raise RuntimeError(
                f"thinkback: the model fails on a batch of shape {shapes}: {error}"
            ) from error

    def _run(self, batch: Batch, layers: dict[str, nn.Module]) -> tuple[Runs, Any]:
        if self.channels_last:
            try:
                with watching(layers) as runs:
                    return runs, batch.run(self.model, self.forward, channels_last=True)
            except RuntimeError as error:
                if "view size is not compatible" not in str(
                    error
                ):  # of a model that flattens its maps by a view
                    raise
                self.channels_last = False
        with watching(layers) as runs:
            return runs, batch.run(self.model, self.forward)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, given back module by module."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _names(model: nn.Module, head: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of the head, if it is named and the model has them."""
    if head is None:
        return None
    names = (head,) if isinstance(head, str) else tuple(head)
    layers = candidates(model)
    for name in names:
        if name not in layers:
            known = ", ".join(map(repr, layers)) or "none"
            raise ValueError(
                f"thinkback: no layer named {name!r} that could be a head in the model; there are"
                f" {known}"
            )
    return names


def _all_finite(batch: Batch, output: Any) -> None:
    for name, given in (
        ("images", [batch.args, batch.kwargs]),
        ("what the model returned", output),
    ):
        for values in tensors_of(given):
            if values.is_floating_point() and not bool((finite := values.isfinite()).all()):
                where = tuple((~finite).nonzero()[0].tolist())
                raise ValueError(
                    f"thinkback: {name} holds {values[where].item()} at {where} of a batch; mask or"
                    " mend it"
                )
