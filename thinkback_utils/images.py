"""Image files as RGB pixels: each kind scaled by its own range, refused where none is known."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# none runs another program, as EPS does
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
PILLOW = (  # what its readers let through of a damaged file
    OSError,  # cut short, or a decoder that stops
    EOFError,
    SyntaxError,  # a header that is none
    ValueError,
    struct.error,  # fields that end early
    zlib.error,
    LookupError,  # tags and modes that do not exist
    TypeError,  # tags of another kind
    ArithmeticError,  # a resolution of 1/0, a size beyond integers
    MemoryError,  # a size that nothing can hold
    Image.DecompressionBombError,
)
# Pillow scales these
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
UNSIGNED = 1  # of the sample formats


class ImageError(ValueError):
    """An image that is damaged, without pixels, or of pixels whose range is not known."""


def read_rgb(image: bytes | Image.Image, place: str = "the image") -> NDArray[np.uint8]:
    """Pixels of an image file, or of a Pillow image, as RGB.

    Every kind of pixel is scaled by its own range: 1, 8, 12 and 16 bits, palettes, CMYK, YCbCr, LAB
    and HSV. 32-bit integers, signed integers and floating-point numbers have no range that the file
    tells, and are refused.

    Pixels come as they are stored, as torchvision's reader gives them to the networks that train on
    them: EXIF orientation and colour profiles are not applied, and transparency is left out, not
    laid on a ground. Of several frames the first is read. 16-bit grey is rounded to 8 bits; of
    16-bit colours Pillow keeps the upper 8.

    Args:
        image: content of a file (``FORMATS``), or an image that is open.
        place: how a message names the image.

    Returns:
        uint8 (H, W, 3), 0 to 255.

    Raises:
        ImageError: the image is damaged, has no pixels, or pixels of no known range.

    Source: PNG specification, section 13.12 (scaling of sample depths).

    >>> read_rgb(Image.fromarray(np.array([[0, 257, 65535]], np.uint16))).tolist()
    [[[0, 0, 0], [1, 1, 1], [255, 255, 255]]]
    """
    if isinstance(image, bytes) and not image:
        raise ImageError(f"thinkback: {place}: the file is empty")
    try:
        opened = (
            Image.open(io.BytesIO(image), formats=FORMATS) if isinstance(image, bytes) else image
        )
        opened.load()
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(
            f"thinkback: {place}: it is no {known} file that Pillow can read, or is damaged"
        ) from error
    except PILLOW as error:
        raise ImageError(f"thinkback: {place}: {error}") from error
    if 0 in opened.size:
        raise ImageError(f"thinkback: {place}: it has no pixels, {opened.width} x {opened.height}")
    if reason := _refused(opened):
        raise ImageError(f"thinkback: {place}: {reason}; save it with 8 or 16 bits a channel")
    return _rgb(opened)


def square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The shorter side scaled to ``side`` (bilinear, antialiased), then the centre cropped.

    Args:
        pixels: uint8 (H, W, 3).
        side: pixels of the square's side.

    Returns:
        uint8 (side, side, 3).
    """
    image = Image.fromarray(pixels)
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return np.array(image.crop((left, top, left + side, top + side)))


def _refused(image: Image.Image) -> str | None:
    """Why the range of its pixels is not known, if it is not."""
    if any(kind != UNSIGNED for kind in _tag(image, SAMPLE_FORMAT)) or image.mode == "F":
        return "signed or floating-point pixels have no range that the file tells"
    sixteen = image.format in ("PNG", "PPM")  # which older versions of Pillow read as I
    if image.mode == "I" and not sixteen:
        return "32-bit pixels have no range that the file tells"
    if image.mode not in (*CONVERTIBLE, *PREMULTIPLIED, *SIXTEEN_BITS, "I"):
        return f"pixels of Pillow's mode {image.mode!r} are not known"
    return None


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in (*SIXTEEN_BITS, "I"):
        return np.repeat(_grey(image)[..., None], 3, axis=2)
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB Pillow warns
    return np.array(image.convert("RGB"))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey as 8 bits, rounded."""
    white = 2**12 - 1 if _tag(image, BITS) == (12,) else 2**16 - 1
    grey = (np.asarray(image).astype(np.int64) * 255 + white // 2) // white
    if _tag(image, PHOTOMETRIC) == (0,):  # white is zero, which Pillow heeds in 8 bits only
        grey = 255 - grey
    return grey.astype(np.uint8)


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """Values of a TIFF tag; none of another kind of image."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)
