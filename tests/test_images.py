"""Pixels of every kind, against ramps written here: scaled by their own range, or refused."""

import io
import itertools
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from thinkback_utils.images import FORMATS, ImageError, read_rgb, square

BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = Image.fromarray(BYTES)
BLACK = Image.new("L", GREY.size)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, width, bits, photometric=1, sample_format=1):
    """A little-endian grey TIFF of one row, written by hand."""
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric}
    entries |= {273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: 1, 279: len(values), 339: sample_format}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + values


def grey_of(pixels):
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return [int(value) for value in pixels[..., 0].ravel()]


IN_MEMORY = {
    "L": lambda: GREY,
    "LA": lambda: Image.merge("LA", (GREY, GREY)),
    "La": lambda: Image.merge("LA", (GREY, Image.new("L", GREY.size, 255))).convert("La"),
    "P": lambda: GREY.convert("P"),
    "PA": lambda: GREY.convert("PA"),
    "RGB": lambda: GREY.convert("RGB"),
    "RGBA": lambda: Image.merge("RGBA", (GREY, GREY, GREY, GREY)),
    "RGBa": lambda: GREY.convert("RGBA").convert("RGBa"),
    "RGBX": lambda: GREY.convert("RGBX"),
    "CMYK": lambda: Image.merge("CMYK", [BLACK, BLACK, BLACK, Image.fromarray(255 - BYTES)]),
    "YCbCr": lambda: Image.merge("YCbCr", [GREY, *[Image.new("L", GREY.size, 128)] * 2]),
    "HSV": lambda: Image.merge("HSV", [BLACK, BLACK, GREY]),
}


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_a_grey_ramp_of_8_bits_stays_what_it_is(mode):
    image = IN_MEMORY[mode]()
    assert image.mode == mode
    assert grey_of(read_rgb(image)) == list(range(256))


def test_an_image_of_1_bit_is_black_and_white():
    image = Image.fromarray(np.array([[False, True]]))
    assert image.mode == "1"
    assert grey_of(read_rgb(image)) == grey_of(read_rgb(encoded(image, "PNG"))) == [0, 255]


def test_lightness_of_lab_is_that_of_srgb():
    lightness = np.array([0, 25, 50, 75, 100])
    values = np.zeros((1, 5, 3), np.uint8)
    values[0, :, 0] = np.round(lightness * 2.55)
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    curved = 1.055 * luminance ** (1 / 2.4) - 0.055
    expected = 255 * np.where(luminance > 0.0031308, curved, 12.92 * luminance)
    found = read_rgb(encoded(Image.frombytes("LAB", (5, 1), values.tobytes()), "TIFF"))
    assert np.abs(found[0].astype(int) - expected[:, None]).max() <= 2


WORDS = np.array([[0, 128, 129, 257, 1000, 32768, 65278, 65535]], np.uint16)
ROUNDED = [round(int(value) / 257) for value in WORDS[0]]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_in_memory_are_scaled_by_their_own_range(mode):
    order = ">" if mode == "I;16B" else "<" if mode == "I;16L" else "="
    content = WORDS.astype(f"{order}u2").tobytes()
    image = Image.frombytes("I;16" if mode == "I;16N" else mode, (8, 1), content)
    assert grey_of(read_rgb(image)) == ROUNDED


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bits_in_a_file_are_scaled_by_their_own_range(kind):
    image = Image.fromarray(WORDS.repeat(8, axis=0))
    assert grey_of(read_rgb(encoded(image, kind)))[:8] == ROUNDED


def test_whole_numbers_that_pillow_made_of_16_bits_are_known_by_their_format():
    image = Image.fromarray(WORDS.astype(np.int32))
    assert image.mode == "I"
    with refused("32-bit", ImageError):
        read_rgb(image)
    image.format = "PNG"  # as older versions of Pillow open 16-bit files
    assert grey_of(read_rgb(image)) == ROUNDED
    pgm = b"P5 4 1 1023\n" + struct.pack(">4H", 0, 341, 682, 1023)
    assert grey_of(read_rgb(pgm)) == [0, 85, 170, 255]


def test_12_bits_and_white_as_zero_of_a_tiff():
    def twelve(*values):
        digits = "".join(f"{value:03x}" for value in values)
        return bytes.fromhex(digits)

    assert grey_of(read_rgb(tiff(twelve(0, 1365, 2730, 4095), 4, 12))) == [0, 85, 170, 255]
    words = struct.pack("<4H", 0, 21845, 43690, 65535)
    assert grey_of(read_rgb(tiff(words, 4, 16))) == [0, 85, 170, 255]
    assert grey_of(read_rgb(tiff(words, 4, 16, photometric=0))) == [255, 170, 85, 0]
    assert grey_of(read_rgb(tiff(bytes([0, 85, 255]), 3, 8, photometric=0))) == [255, 170, 0]


@pytest.mark.parametrize(
    "content",
    [
        tiff(struct.pack("<3f", 0, 0.5, 1), 3, 32, sample_format=3),
        tiff(struct.pack("<3I", 0, 1, 2**32 - 1), 3, 32),
        tiff(struct.pack("<3i", 0, -5, 99999), 3, 32, sample_format=2),
        tiff(struct.pack("<3h", 0, -5, 32767), 3, 16, sample_format=2),
        tiff(struct.pack("<3b", 0, -5, 127), 3, 8, sample_format=2),
    ],
)
def test_pixels_without_a_known_range_are_refused(content):
    with refused(
        r"^thinkback: ramp\.tif: .*no range that the file tells; save it with 8 or", ImageError
    ):
        read_rgb(content, "ramp.tif")


def test_floats_in_memory_are_refused():
    with refused("floating-point", ImageError):
        read_rgb(Image.fromarray(np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3)))


def test_16_bit_colours_keep_their_upper_8():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16)
    rows = b"\0" + np.repeat(ramp[:, None], 3, 1).astype(">u2").tobytes()

    def chunk(kind, body):
        size, checksum = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
        return size + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 1, 16, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + header + content
    assert grey_of(read_rgb(png)) == list(range(256))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_colours_of_a_lossless_file_are_pillows(kind):
    pixels = np.random.default_rng(0).integers(256, size=(7, 5, 3), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read_rgb(encoded(Image.fromarray(pixels), kind, **options)), pixels)


def test_cmyk_of_a_jpeg_is_not_turned_into_its_negative():
    patches = {(255, 255, 255): (0, 0, 0, 0), (0, 0, 0): (0, 0, 0, 255)}
    patches[255, 0, 0] = (0, 255, 255, 0)
    for colour, inks in patches.items():
        content = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
        assert b"Adobe" in content[:64]  # whose inks are stored inverted
        assert np.abs(read_rgb(content)[8, 8].astype(int) - colour).max() <= 3


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_transparency_is_left_out(alpha):
    ramp = Image.merge("LA", (GREY, Image.new("L", GREY.size, alpha)))
    assert grey_of(read_rgb(encoded(ramp, "PNG"))) == list(range(256))
    assert grey_of(read_rgb(encoded(ramp.convert("RGBA"), "PNG"))) == list(range(256))


@pytest.mark.parametrize("transparency", [7, bytes(range(256))])
def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(transparency):
    content = encoded(GREY.convert("P"), "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grey_of(read_rgb(content)) == list(range(256))


def test_orientation_is_not_applied_and_the_first_frame_is_read():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0] = 200
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter
    assert np.array_equal(read_rgb(encoded(Image.fromarray(pixels), "PNG", exif=exif)), pixels)
    frames = [Image.new("RGB", (4, 4), (level, level, level)) for level in (10, 200)]
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert set(grey_of(read_rgb(content))) == {10}


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_an_error(kind):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    read_rgb(content)
    with refused(r"^thinkback: photo: ", ImageError):
        read_rgb(content[: len(content) // 2], "photo")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image" * 9, "it is no PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it is no PNG"),
    ],
)
def test_what_is_no_image_says_so(content, reason):
    with refused(rf"^thinkback: photo: {reason}", ImageError):
        read_rgb(content, "photo")


def test_an_image_without_pixels_is_an_error():
    with refused(r"^thinkback: photo: it has no pixels, 0 x 4", ImageError):
        read_rgb(Image.new("RGB", (0, 4)), "photo")


def test_a_bomb_is_an_error(monkeypatch):
    content = encoded(Image.new("RGB", (64, 64)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with refused(r"^thinkback: photo: .*decompression bomb", ImageError):
        read_rgb(content, "photo")


def test_damage_of_any_kind_is_the_same_kind_of_error():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(12, 12, 3), dtype=np.uint8))
    files = [encoded(image, kind) for kind in FORMATS]
    files.append(encoded(image, "TIFF", compression="tiff_lzw"))
    files.append(encoded(image.convert("P"), "PNG", transparency=3))
    for content in itertools.islice(itertools.cycle(files), 400):
        damaged = bytearray(content)
        for place in rng.integers(min(len(damaged), 200), size=3):
            damaged[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(ImageError):
                assert read_rgb(bytes(damaged)).shape[2] == 3


def test_a_square_is_the_centre_of_the_shorter_side():
    pixels = np.random.default_rng(0).integers(256, size=(8, 20, 3), dtype=np.uint8)
    assert np.array_equal(square(pixels, 8), pixels[:, 6:14])
    flat = np.full((9, 5, 3), 77, np.uint8)
    assert np.array_equal(square(flat, 3), np.full((3, 3, 3), 77))
