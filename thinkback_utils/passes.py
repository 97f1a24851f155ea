"""Forward passes, streamed: of any model and any images, features and logits, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .batches import Batch, Forward, Images, Pixels, batches, device_of, dtype_of, unwrapped
from .devices import has_fast_bfloat16
from .heads import Head, Name, Runs, candidates, find, tensors_of, watching

Precision = Literal["float32", "bfloat16", "auto"]
PRECISION = "THINKBACK_PRECISION"  # environment variable: what "auto" means in this process


class Pass(NamedTuple):
    """Features (B, ..., D), logits (B, ..., K), labels (B,) or None, and the head's name."""

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
    precision: Precision = "float32",
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
        precision: see :func:`settled`.

    Yields:
        :class:`Pass`, on the model's device, in its precision.

    Raises:
        ValueError: on images that are none, no or an ambiguous head, values that are not finite.
    """
    reader = Reader(model, head, forward, precision)
    for batch in batches(images, reader.model, batch_size, pixels, forward):
        with evaluating(reader.model):
            seen = reader(batch)
        yield seen


def settled(precision: Precision, model: nn.Module) -> Literal["float32", "bfloat16"]:
    """In which precision a model computes up to its last layer.

    Args:
        precision: ``"float32"``: as the model is. ``"bfloat16"``: matrix products and convolutions
            before the last layer of a float32 model in bfloat16 (autocast), the last layer in
            float32; where the hardware has no such products they are emulated, and slow.
            ``"auto"``: what the environment variable ``THINKBACK_PRECISION`` says; without it
            bfloat16 where :func:`~.devices.has_fast_bfloat16` expects a gain, else float32.
        model: without wrappers.

    Raises:
        ValueError: on another word.
    """
    asked = os.environ.get(PRECISION, "auto") if precision == "auto" else precision
    if asked not in get_args(Precision):
        known = ", ".join(map(repr, get_args(Precision)))
        name = f"the environment variable {PRECISION}" if precision == "auto" else "precision"
        raise ValueError(f"thinkback: {name} is one of {known}, got {asked!r}")
    if asked == "auto" and device_of(model).type == "cpu" and has_fast_bfloat16():
        asked = "bfloat16"
    return "bfloat16" if asked == "bfloat16" and dtype_of(model) == torch.float32 else "float32"


class Reader:
    """One pass at a time through a model without its wrappers; the head is found at the first."""

    def __init__(
        self,
        model: nn.Module,
        head: str | Sequence[str] | None = None,
        forward: Forward | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.model, self.forward = unwrapped(model), forward
        self.mixed = settled(precision, self.model) == "bfloat16"
        self.names = _names(self.model, head)
        self.head: Head | None = None
        self.layers = dict(self.model.named_modules())
        self.channels_last = device_of(self.model).type == "cpu"  # faster there

    def find(self, batch: Batch) -> Head:
        """The head, by a pass of a few samples, in the model's own precision."""
        watched = (
            candidates(self.model)
            if self.names is None
            else {name: self.layers[name] for name in self.names}
        )
        few = next(batch.split(2), batch)  # all, where samples cannot be told apart
        runs, output = self.run(few, watched)
        _all_finite(few, output)
        self.head = find(self.model, runs, output, self.names)
        return self.head

    def __call__(self, batch: Batch) -> Pass:
        """One pass; errors as of :func:`stream`."""
        head = self.head or self.find(batch)
        layers = {name: self.layers[name] for name in head.names}
        with _mixed(layers, device_of(self.model), self.mixed):
            runs, output = self.run(batch, layers)
        if self.mixed:  # the trunk's last output is in bfloat16, and means of it must not be
            runs = {name: [(h.float(), z.float()) for h, z in own] for name, own in runs.items()}
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


@contextmanager
def _mixed(layers: Mapping[str, nn.Module], device: torch.device, wanted: bool) -> Iterator[None]:
    """bfloat16 meanwhile for all but these layers, if it is wanted."""
    with ExitStack() as stack:
        if wanted:
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            for layer in layers.values():
                stack.enter_context(_in_float32(layer, device))
        yield


@contextmanager
def _in_float32(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """A layer whose forward leaves the autocast around it."""
    known, forward = vars(layer).get("forward"), layer.forward

    def plain(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return forward(*_as_float32(args), **_as_float32(kwargs))

    layer.forward = plain
    try:
        yield
    finally:
        del layer.forward
        if known is not None:
            layer.forward = known


def _as_float32(value: Any) -> Any:
    """bfloat16 tensors in arguments as float32; the rest as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, dict):
        return {name: _as_float32(part) for name, part in value.items()}
    return tuple(_as_float32(part) for part in value) if type(value) is tuple else value


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
