"""Outliers to choose settings on, made from training images: nobody looks at the test suite.

Eleven kinds, with the parameters of Outlier Exposure (Hendrycks et al. 2019, ``CIFAR/test.py``):
its eight validation outliers, and gaussian, rademacher and blob, which it counts among its test
sets. Each is a pure function of images, uint8 (N, 3, 32, 32), and a seed, and returns as many of
the same form. Three points differ from the source:

- The images are the network's own training images. The source makes outliers of a CIFAR-10 network
  from CIFAR-100, which is in this book's test suite: do not pass it.
- Noise is in units of normalised pixels. Their 0 and 1 are mean and standard deviation, channel by
  channel, of the images given; the source uses CIFAR's constants, which training images meet up to
  sampling.
- Everything is rounded to uint8, like images of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from thinkback_utils.data import SIDE, ImageSet

HALF, QUARTER = SIDE // 2, SIDE // 4


def gaussian(images: Tensor, seed: int = 0) -> Tensor:
    """Noise ``clip(N(0, 0.5^2), -1, 1)`` in units of normalised pixels, whatever the content."""
    noise = _rng(images, seed, "gaussian").normal(0, 0.5, images.shape)
    return _denormalized(noise.clip(-1, 1), images)


def rademacher(images: Tensor, seed: int = 0) -> Tensor:
    """Noise of -1 or 1, equally likely, in units of normalised pixels."""
    return _denormalized(_rng(images, seed, "rademacher").choice([-1.0, 1.0], images.shape), images)


def blob(images: Tensor, seed: int = 0) -> Tensor:
    """Smooth blobs on a flat ground: ``2 b - 1``, b binary noise, blurred, 0 where below 0.75.

    A pixel is 1 with probability 0.7; the Gaussian blur, sigma 1.5, runs over the channels too, as
    in the source (its ``multichannel=False``), so that the blobs of the three channels overlap.
    """
    binary = _rng(images, seed, "blob").binomial(1, 0.7, images.shape).astype(np.float32)
    blurred = gaussian_filter(binary, sigma=(0, 1.5, 1.5, 1.5), mode="nearest")
    return _denormalized(2 * np.where(blurred < 0.75, 0, blurred) - 1, images)


def uniform(images: Tensor, seed: int = 0) -> Tensor:
    """Noise, uniform on [-1, 1] in units of normalised pixels."""
    return _denormalized(_rng(images, seed, "uniform").uniform(-1, 1, images.shape), images)


def arithmetic_mean(images: Tensor, seed: int = 0) -> Tensor:
    """``(x + y) / 2``, y another of the images, drawn uniformly for each x."""
    partners = _partners(images, seed, "arithmetic_mean")
    return _uint8((images.float() + images[partners]) / 2)


def geometric_mean(images: Tensor, seed: int = 0) -> Tensor:
    """``sqrt(x y)`` pixel by pixel, y another of the images: dark where either of them is."""
    partners = _partners(images, seed, "geometric_mean")
    return _uint8((images.float() * images[partners]).sqrt())


def jigsaw(images: Tensor, seed: int = 0) -> Tensor:
    """Patches in another place: a fixed permutation, which the seed does not touch.

    The upper left quadrant stays, its upper and lower half swapped; the lower left one goes to the
    upper right, the lower right one to the lower left, and the upper right one to the lower right,
    its left and right half swapped.
    """
    top, bottom = _checked(images).split(HALF, dim=2)
    upper_left, upper_right = top.split(HALF, dim=3)
    upper = torch.cat([upper_left.roll(QUARTER, dims=2), bottom[..., :HALF]], dim=3)
    lower = torch.cat([bottom[..., HALF:], upper_right.roll(QUARTER, dims=3)], dim=3)
    return torch.cat([upper, lower], dim=2)


def speckle(images: Tensor, seed: int = 0) -> Tensor:
    """``x + x n`` with n from N(0, 1), clipped: noise that grows with brightness."""
    noise = _rng(images, seed, "speckle").standard_normal(images.shape, dtype=np.float32)
    return _uint8(images * (1 + torch.from_numpy(noise)))


def pixelate(images: Tensor, seed: int = 0) -> Tensor:
    """Averaged down to 6x6 pixels (a fifth of 32) and enlarged, by PIL's box filter; no seed."""
    box, small = Image.Resampling.BOX, int(0.2 * SIDE)
    pixels = _checked(images).permute(0, 2, 3, 1).contiguous().numpy()
    photos = [Image.fromarray(image).resize((small, small), box) for image in pixels]
    coarse = [np.asarray(photo.resize((SIDE, SIDE), box)) for photo in photos]
    return torch.from_numpy(np.stack(coarse)).permute(0, 3, 1, 2).contiguous()


def rgb_ghost(images: Tensor, seed: int = 0) -> Tensor:
    """Green, mirrored left to right, as red; blue as green; red as blue; no seed."""
    red, green, blue = _checked(images).split(1, dim=1)
    return torch.cat([green.flip(3), blue, red], dim=1)


def invert(images: Tensor, seed: int = 0) -> Tensor:
    """Green and blue inverted, ``255 - x``, red kept; no seed.

    A negative of all three would look more natural.
    """
    return torch.cat([_checked(images)[:, :1], 255 - images[:, 1:]], dim=1)


NOISES = (gaussian, rademacher, blob, uniform)
CHANGES = (arithmetic_mean, geometric_mean, jigsaw, speckle, pixelate, rgb_ghost, invert)
OUTLIERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    make.__name__: make for make in (*NOISES, *CHANGES)
}
ABOUT: dict[str, str] = {
    "gaussian": "Gaussian noise, half as strong as the contrast of the images",
    "rademacher": "noise of two levels, one standard deviation above or below the mean",
    "blob": "smooth blobs, light or coloured, on a flat dark ground",
    "uniform": "uniform noise, up to one standard deviation from the mean",
    "arithmetic_mean": "the average of two images",
    "geometric_mean": "the geometric mean of two images: dark where either is",
    "jigsaw": "an image with its patches in another place",
    "speckle": "an image under noise that grows with brightness",
    "pixelate": "an image of 6x6 large pixels",
    "rgb_ghost": "an image with its colour channels exchanged, one of them mirrored",
    "invert": "an image with green and blue inverted",
}


def validation_outliers(images: Tensor, seed: int = 0) -> dict[str, ImageSet]:
    """All kinds of outliers, of each as many as there are images.

    Args:
        images: uint8 (N, 3, 32, 32), N >= 2, on the CPU: training images that nothing else in the
            choice uses.
        seed: of noise and pairs; each kind draws from its own stream.

    Returns:
        ``{kind: ImageSet}`` in the order of ``OUTLIERS``, without labels.

    Raises:
        ValueError: on images of another type, shape or number, or a negative seed.

    Source: Hendrycks et al. (2019), "Deep Anomaly Detection with Outlier Exposure", and its code.

    >>> images = torch.randint(256, (4, 3, 32, 32)).byte()
    >>> made = validation_outliers(images)
    >>> len(made), made["invert"].images.shape
    (11, torch.Size([4, 3, 32, 32]))
    """
    return {kind: ImageSet(make(images, seed), name=kind) for kind, make in OUTLIERS.items()}


def held_out_classes(
    image_set: ImageSet, classes: Iterable[str | int]
) -> tuple[ImageSet, ImageSet]:
    """Split a set into classes to train on and classes that are then outliers.

    Args:
        image_set: images with labels (N,); a set without class names has their numbers as names.
        classes: names or numbers of the classes to hold out.

    Returns: (kept, held out), each labelled 0 to K'-1 in the order of the classes of the set, with
        their names.

    Raises:
        ValueError: on a set without labels, an unknown class, none to hold out, or fewer than two
            left.

    >>> images = torch.zeros(4, 3, 32, 32).byte()
    >>> digits = ImageSet(images, torch.tensor([0, 1, 2, 3]), tuple("abcd"))
    >>> kept, out = held_out_classes(digits, ["b", 3])
    >>> kept.classes, kept.labels, out.classes, out.labels
    (('a', 'c'), tensor([0, 1]), ('b', 'd'), tensor([0, 1]))
    """
    if (labels := image_set.labels) is None or not len(labels):
        raise ValueError(
            f"thinkback: holding out classes needs labels and the set {image_set.name!r} has none"
        )
    names = image_set.classes or tuple(str(k) for k in range(int(labels.max()) + 1))
    chosen = set()
    for each in classes:
        if each not in names and each not in range(len(names)):
            raise ValueError(
                f"thinkback: set {image_set.name!r} has no class {each!r}; it has"
                f" {', '.join(names)}"
            )
        chosen.add(names.index(each) if isinstance(each, str) else each)
    if not 1 <= len(chosen) <= len(names) - 2:
        raise ValueError(
            f"thinkback: hold out 1 to {len(names) - 2} of {len(names)} classes, got {len(chosen)}"
        )
    kept = [k for k in range(len(names)) if k not in chosen]
    return _only(image_set, kept, names), _only(image_set, sorted(chosen), names)


def _only(image_set: ImageSet, classes: list[int], names: tuple[str, ...]) -> ImageSet:
    """The images of these classes, labelled by their place in the list."""
    place = torch.full((len(names),), -1)
    place[classes] = torch.arange(len(classes))
    labels = place[image_set.labels]
    rows = labels >= 0
    kept = tuple(names[k] for k in classes)
    return ImageSet(image_set.images[rows], labels[rows], kept, image_set.name)


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, SIDE, SIDE) or not len(images):
        found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise ValueError(
            f"thinkback: outliers are made from images uint8 (N, 3, {SIDE}, {SIDE}), got {found}"
        )
    return images


def _rng(images: Tensor, seed: int, kind: str) -> np.random.Generator:
    """A stream for each kind, so that no two of them share noise or pairs."""
    _checked(images)
    if seed < 0:
        raise ValueError(f"thinkback: the seed of outliers must not be negative, got {seed}")
    return np.random.default_rng([seed, *kind.encode()])


def _partners(images: Tensor, seed: int, kind: str) -> Tensor:
    """For each image the index of another one, int64 (N,)."""
    rng, count = _rng(images, seed, kind), len(images)
    if count < 2:
        raise ValueError(
            f"thinkback: {kind} mixes pairs of images and got only {count}; pass two or more"
        )
    return torch.from_numpy((np.arange(count) + rng.integers(1, count, count)) % count)


def _denormalized(values: NDArray[np.floating], images: Tensor) -> Tensor:
    """Pixels uint8 of values in units of each channel's standard deviation around its mean."""
    axes, pixels = (0, 2, 3), images.numpy()
    mean, std = pixels.mean(axes, keepdims=True), pixels.std(axes, keepdims=True)
    return _uint8(torch.from_numpy(mean + std * values))


def _uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).byte()
