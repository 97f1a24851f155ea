"""One pass of a model: images of any kind in, layers watched from inside, everything given back as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .data import ImageSet

Images = Tensor | NDArray[Any] | ImageSet | Iterable[Any]


def batches(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images and, where there are any, labels: one array is split, batches of an iterable come as they are."""
    if isinstance(images, ImageSet):
        y = None if images.labels is None else images.labels.split(batch_size)
        for i, x in enumerate(images.images.split(batch_size)):
            yield x, None if y is None else y[i]
    elif isinstance(images, Tensor | np.ndarray):
        for x in torch.as_tensor(images).split(batch_size):
            yield x, None
    else:
        for batch in images:
            x, y = (*batch, None)[:2] if isinstance(batch, tuple | list) else (batch, None)
            yield torch.as_tensor(x), None if y is None else torch.as_tensor(y)


def prepared(x: Tensor, model: nn.Module) -> Tensor:
    """Images where the model is; uint8 as its kind of float in [0, 1], floats as they are."""
    parameter = next(model.parameters(), torch.empty(0))
    x = x.to(parameter.device)
    return x.to(parameter.dtype).div_(255) if x.dtype == torch.uint8 else x


def fastest_batch(device: str | torch.device) -> int:
    """On CPUs the feature maps of few images stay in the caches, and memory is not asked for anew at each layer."""
    return 64 if torch.device(device).type == "cpu" else 256


def run(model: nn.Module, x: Tensor) -> Any:
    """The model's output; CPUs convolve faster with channels last, and weights follow the images."""
    if x.ndim == 4 and x.device.type == "cpu":
        try:
            return model(x.contiguous(memory_format=torch.channels_last))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):  # of a model that flattens its feature maps by a view
                raise
    return model(x)


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
def seeing(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Last input and output of each layer that runs meanwhile, by name, in the order of their first runs."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: (inputs[0], output)})

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def outputs_of(output: Any) -> Iterator[Tensor]:
    """All tensors in what a model returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from outputs_of(value)


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Its linear layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
