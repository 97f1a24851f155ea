"""What a model is called with: one rule for arrays, data sets and batches of every kind.

**Images** are one of

- an array (N, ...), torch or NumPy, a pandas frame, a list of images or rows of one size, or a
  single one;
- an ``ImageSet``; a tuple of arrays or a mapping of arrays, all with N rows, that are one large
  batch as below, such as ``(array, labels)``;
- a ``Dataset``, which is read in order;
- any other iterable of batches, a ``DataLoader`` say, which is read as it comes.

**A batch** is one of

- an array (B, ...);
- a tuple or list of arrays: the arguments of the model in their order. A last vector (B,) that the
  model does not need as an argument holds labels. Entries that are no numbers, such as file names,
  are not read;
- a mapping: entries named as an argument of ``model.forward`` are that argument, all of them if it
  takes ``**kwargs``; else the one entry named as in ``INPUTS`` is the first argument. ``LABELS``
  names labels.

An entry that is none of these is an error, and the hook ``forward(model, batch)`` takes whatever is
left.

**Pixels**: uint8 becomes float in [0, 1], then ``(x - mean) / std`` if both are known; images whose
channels come last, (N, H, W, C), are turned round where the first convolution of the model tells C.
Other numbers stay as they are, but for their precision, which becomes that of the model's weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from .data import ImageSet
from .images import read_rgb

Images = Tensor | NDArray[Any] | ImageSet | Mapping[str, Any] | Iterable[Any]
Forward = Callable[[Any, Any], Any]

LABELS = ("labels", "label", "targets", "target", "y")
INPUTS = (
    "pixel_values",
    "data",
    "images",
    "image",
    "inputs",
    "input",
    "input_values",
    "features",
    "x",
)


@dataclass(frozen=True)
class Batch:
    """One call of a model: its arguments, and the labels (B,) that came along.

    ``size`` is B, None where only a ``forward`` hook knows it.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    labels: Tensor | None = None
    size: int | None = None

    def run(
        self, model: nn.Module, forward: Forward | None = None, channels_last: bool = False
    ) -> Any:
        """What the model returns; it gets copies, which it may change in place."""
        args, kwargs = _copied(self.args, channels_last), _copied(self.kwargs or {}, channels_last)
        if forward is None:
            return model(*args, **kwargs)
        return forward(model, kwargs or (args[0] if len(args) == 1 else args))

    def split(self, size: int) -> Iterator[Batch]:
        """Batches of that many samples, the last one may have fewer."""
        for start in range(0, self.size or 0, size):
            rows = slice(start, start + size)
            kwargs = {name: value[rows] for name, value in (self.kwargs or {}).items()}
            labels = None if self.labels is None else self.labels[rows]
            args = tuple(value[rows] for value in self.args)
            yield Batch(args, kwargs, labels, len((*args, *kwargs.values())[0]))


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel of pixels in [0, 1], as in the model's training.

    Args:
        mean, std: one number a channel; None: those of the model's own configuration if it has one
            (timm), else 0, 1.

    Given numbers apply to float images, too, which must then lie in [0, 1]; those of a
    configuration to uint8 alone, since floats were prepared by someone already.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"thinkback: mean and std go together, got mean={self.mean}, std={self.std}"
            )
        if self.mean is None or self.std is None:
            return
        for name in ("mean", "std"):  # a list or an array will do
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            raise ValueError(
                "thinkback: mean and std are one finite number a channel, std positive; got"
                f" {self.mean} and {self.std}"
            )

    def __call__(self, x: Tensor, model: nn.Module) -> Tensor:
        """Pixels as the model reads them, uint8 or float (B, C, H, W)."""
        whole = x.dtype == torch.uint8
        x = x.to(dtype_of(model)).div_(255) if whole else x
        given = self.mean is not None
        if not given and not whole:
            return x
        found = {"mean": self.mean, "std": self.std} if given else normalization(config_of(model))
        if not found:
            return x
        mean, std = (x.new_tensor(found[name])[:, None, None] for name in ("mean", "std"))
        if x.ndim < 3 or x.shape[-3] != len(mean):
            raise ValueError(
                f"thinkback: mean and std have {len(mean)} channels, and images of shape"
                f" {tuple(x.shape)} have not"
            )
        if given and not whole and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise ValueError(
                "thinkback: mean and std are of pixels in [0, 1], and the images go from"
                f" {float(x.min()):.3g} to {float(x.max()):.3g}; were they normalised before? Then"
                " leave mean and std out"
            )
        return (x - mean) / std


def normalization(source: Any) -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std`` as a configuration states them; empty where it does not.

    Args:
        source: a timm ``pretrained_cfg``, a Hugging Face image processor, the ``transforms()`` of
            torchvision's weights, or any mapping or object with ``mean`` and ``std`` or
            ``image_mean`` and ``image_std``.

    >>> normalization({"image_mean": [0.5], "image_std": [0.25]})
    {'mean': (0.5,), 'std': (0.25,)}
    """
    get: Callable[[str], Any] = (
        source.get if isinstance(source, Mapping) else partial(_attribute, source)
    )
    for prefix in ("image_", ""):
        mean, std = get(f"{prefix}mean"), get(f"{prefix}std")
        if mean is not None and std is not None:
            return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    return {}


def _attribute(source: Any, name: str) -> Any:
    return getattr(source, name, None)


def config_of(model: nn.Module) -> Any:
    """Where timm's models say how their images were prepared; None in others."""
    return getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and ``DataParallel``, which hide its layers from hooks."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are; the CPU for one without."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of the model's weights; float32 for one without."""
    kinds = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(kinds, torch.float32)


def fastest_batch(device: str | torch.device) -> int:
    """The batch size that was fastest: on CPUs, feature maps of few images stay in the caches."""
    return 64 if torch.device(device).type == "cpu" else 256


def batches(
    images: Images,
    model: nn.Module,
    batch_size: int | None = None,
    pixels: Pixels | None = None,
    forward: Forward | None = None,
) -> Iterator[Batch]:
    """Batches as :meth:`Batch.run` takes them, on the model's device; empty ones are left out.

    Args:
        images: as this module says.
        model: without wrappers (:func:`unwrapped`).
        batch_size: where images are not in batches yet; None: :func:`fastest_batch`.
        pixels: how uint8 becomes float.
        forward: the hook that gets each batch as it came, its tensors on the model's device.

    Raises:
        ValueError: on what is neither images nor a batch; it says what it is.

    >>> [batch.size for batch in batches(torch.rand(5, 2), nn.Linear(2, 2), batch_size=3)]
    [3, 2]
    """
    size, device = batch_size or fastest_batch(device_of(model)), device_of(model)
    for given in _in_batches(images, model, size):
        if forward is not None and not isinstance(given, Batch | Tensor | np.ndarray):
            yield Batch((_moved(given, device),))
            continue
        batch = given if isinstance(given, Batch) else _read(given, model)
        if batch.size:
            yield _prepared(batch, model, pixels or Pixels())


def _in_batches(images: Images, model: nn.Module, size: int) -> Iterator[Any]:
    """Slices of arrays, with their labels, and batches as they come."""
    if isinstance(images, ImageSet):
        images = images.images if images.labels is None else (images.images, images.labels)
    if isinstance(images, str | bytes):
        raise ValueError(
            f"thinkback: images are arrays or batches, got the text {images[:40]!r}; read the file"
            " first"
        )
    if isinstance(images, Mapping) or (isinstance(images, tuple) and _is_whole(images, model)):
        whole = _read(images, model)
        entries = [*whole.args, *(whole.kwargs or {}).values()]
        if len({len(value) for value in entries}) > 1:
            shapes = ", ".join(str(tuple(value.shape)) for value in entries)
            raise ValueError(
                "thinkback: the arrays of one set need the same number of rows, got shapes"
                f" {shapes}"
            )
        yield from whole.split(size)
    elif isinstance(images, Tensor | np.ndarray | Image) or hasattr(images, "to_numpy"):
        yield from as_images(as_tensor(images), model, lone=True).split(size)
    elif isinstance(images, Dataset) or hasattr(images, "__getitems__"):  # of Hugging Face
        yield from DataLoader(images, size, collate_fn=_collated)  # type: ignore[arg-type]
    elif isinstance(images, list) and images and _is_sample(images[0], model):
        yield from as_images(_stacked(images), model).split(size)
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise ValueError(
            f"thinkback: images are arrays, a data set or batches, got {type(images).__name__}"
        )


def _read(given: Any, model: nn.Module) -> Batch:
    """The arguments and labels of a batch."""
    if isinstance(given, Mapping):
        return _read_mapping(given, model)
    if not isinstance(given, tuple | list):
        x = as_tensor(given)
        return Batch((x,), size=_rows(x))
    entries = [as_tensor(value) for value in given if _numeric(value)]
    if not entries:
        raise ValueError(
            f"thinkback: a batch of {[type(value).__name__ for value in given]} holds no numbers"
        )
    size, (least, most) = _rows(entries[0]), arguments_of(model)
    inputs, last = entries[:-1], entries[-1]
    if inputs and last.shape == (size,) and least <= len(inputs) <= most:
        return Batch(tuple(inputs), labels=_classes(last), size=size)
    if least <= len(entries) <= most:
        return Batch(tuple(entries), size=size)
    shapes = ", ".join(str(tuple(value.shape)) for value in entries)
    takes = str(least) if least == most else f"{least} to {most}"
    several = last.ndim == 2 and bool(((last == 0) | (last == 1)).all())
    hint = (
        ' Labels of several classes at once are for method="joint_energy", without them.'
        if several
        else ""
    )
    raise ValueError(
        f"thinkback: a batch has entries of shapes {shapes}, and the model takes {takes}; labels"
        f" would be a last vector ({size},). Leave out what it does not read, or pass"
        f" forward=lambda model, batch: ...{hint}"
    )


def _read_mapping(given: Mapping[str, Any], model: nn.Module) -> Batch:
    entries = {str(name): as_tensor(value) for name, value in given.items() if _numeric(value)}
    labels = next((entries[name] for name in LABELS if name in entries), None)
    entries = {name: value for name, value in entries.items() if name not in LABELS and value.ndim}
    names, (_, most) = parameters_of(model), arguments_of(model)
    named = {name: value for name, value in entries.items() if name in names}
    if takes_any_name(model) and (named or not names):
        named = entries
    first = next((name for name in INPUTS if name in entries), None)
    args: tuple[Tensor, ...]
    if named:
        args, kwargs, rest = (), named, set(entries) - set(named)
    elif first is not None or len(entries) == 1:
        first = first or next(iter(entries))
        args, kwargs, rest = (entries[first],), {}, set(entries) - {first} if most > 1 else set()
    else:
        args, kwargs, rest = (), {}, set(entries)
    if rest or not (args or kwargs):
        raise ValueError(
            f"thinkback: a batch has the entries {sorted(given)}, and model.forward takes"
            f" {sorted(names)}; leave out {sorted(rest) or 'nothing'}, or pass forward=lambda"
            " model, batch: ..."
        )
    size = _rows(next(iter((*args, *kwargs.values()))))
    whole = labels is not None and labels.shape == (size,)
    return Batch(args, kwargs, _classes(labels) if whole and labels is not None else None, size)


def _prepared(batch: Batch, model: nn.Module, pixels: Pixels) -> Batch:
    device, kind = device_of(model), dtype_of(model)

    def ready(value: Tensor, image: bool) -> Tensor:
        value = value.to(device)
        if image:
            value = pixels(as_images(value, model), model)
        return value.to(kind) if value.is_floating_point() else value

    args = tuple(ready(value, i == 0) for i, value in enumerate(batch.args))
    kwargs = {name: ready(value, name in INPUTS) for name, value in (batch.kwargs or {}).items()}
    return Batch(args, kwargs, batch.labels, batch.size)


def as_tensor(values: Any) -> Tensor:
    """Numbers as a tensor; an error that says what they are instead."""
    if isinstance(values, Image):
        values = np.moveaxis(read_rgb(values), 2, 0)
    if hasattr(values, "to_numpy"):  # a pandas frame or series
        values = values.to_numpy()
    if (isinstance(values, np.ndarray) and not values.flags.writeable) or isinstance(
        values, list | tuple
    ):
        values = np.array(values)
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(
            f"thinkback: images and batches are numbers, got {kind}: {error}"
        ) from error


def as_images(x: Tensor, model: nn.Module, lone: bool = False) -> Tensor:
    """Images (N, C, H, W) for a model that begins with a convolution; others as they are.

    Args:
        x: of any shape.
        model: whose first convolution has C input channels.
        lone: a vector, or one image (C, H, W) or (H, W, C), becomes a batch of one.
    """
    inputs = (layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    channels = next(inputs, 0)
    if channels > 4:  # not of a picture: a later layer may be registered first
        channels = 0
    if lone and x.ndim == 1:
        return x[None]
    if channels and lone and x.ndim == 3:
        if channels in (x.shape[0], x.shape[2]):
            x = x[None]
        elif channels == 1 and x.dtype == torch.uint8:  # grey images (N, H, W)
            x = x[:, None]
    if channels and x.ndim == 4 and x.shape[1] != channels and x.shape[3] == channels:
        x = x.movedim(3, 1)
    return x


def arguments_of(model: nn.Module) -> tuple[int, float]:
    """How many positional arguments ``model.forward`` needs, and takes at most."""
    parameters = _signature(model)
    if parameters is None:
        return 1, 1
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = math.inf if any(p.kind == p.VAR_POSITIONAL for p in parameters) else len(places)
    return sum(p.default is p.empty for p in places), most


def parameters_of(model: nn.Module) -> set[str]:
    """Names of the arguments of ``model.forward``."""
    return {
        p.name
        for p in _signature(model) or ()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def takes_any_name(model: nn.Module) -> bool:
    """Whether ``model.forward`` has a parameter like ``**kwargs``."""
    return any(p.kind == p.VAR_KEYWORD for p in _signature(model) or ())


def _signature(model: nn.Module) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # of a compiled program
        return None


def _is_whole(images: tuple[Any, ...], model: nn.Module) -> bool:
    """Whether a tuple holds inputs and labels of one set, not batches of a model with one input."""
    if len(images) < 2 or not all(
        isinstance(x, Tensor | np.ndarray) or hasattr(x, "to_numpy") for x in images
    ):
        return False
    shapes = {tuple(x.shape[1:]) for x in images}
    return len(shapes) > 1 or len(images) <= arguments_of(model)[1]


def _is_sample(value: Any, model: nn.Module) -> bool:
    """Whether the first element of a list is one image or row, not a batch."""
    if isinstance(value, Image):
        return True
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(number, int | float) for number in value)
    if not isinstance(value, Tensor | np.ndarray):
        return False
    x = torch.as_tensor(value)
    return x.ndim == 1 or as_images(x, model, lone=True).ndim > x.ndim


def _stacked(samples: Sequence[Any]) -> Tensor:
    tensors = [as_tensor(sample) for sample in samples]
    if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
        raise ValueError(
            "thinkback: the images of a list differ in shape,"
            f" {' and '.join(map(str, sorted(shapes)[:2]))}; bring them to one size"
        )
    return torch.stack(tensors)


def _collated(samples: list[Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, Image):
            return as_tensor(value)
        if isinstance(value, tuple | list):
            return [plain(part) for part in value]
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items()}
        return value

    return default_collate([plain(sample) for sample in samples])


def _numeric(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(
            isinstance(part, int | float) or _numeric(part) for part in value
        )
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, Tensor) or hasattr(value, "to_numpy")


def _rows(x: Tensor) -> int:
    if not x.ndim:
        raise ValueError(
            f"thinkback: a batch is an array of samples, got the single number {x.item()}"
        )
    return len(x)


def _classes(labels: Tensor) -> Tensor | None:
    """Labels as integers; None where they are none."""
    whole = labels.long()
    return whole if bool((whole == labels).all()) else None


def _copied(value: Any, channels_last: bool) -> Any:
    """Tensors in tuples and mappings of any depth, copied; images channels last if asked for."""

    def copy(tensor: Tensor) -> Tensor:
        last = channels_last and tensor.ndim == 4
        return tensor.clone(memory_format=torch.channels_last if last else torch.contiguous_format)

    return _mapped(value, copy)


def _moved(value: Any, device: torch.device) -> Any:
    return _mapped(value, lambda tensor: tensor.to(device))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(part, change) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(part, change) for part in value)
    return value
