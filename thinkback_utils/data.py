"""Image sets as uint8 arrays: downloaded, verified and cached; or made of images in packages."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import string
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, redirect_stderr
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from .files import locking, read_arrays, replacing
from .images import read_rgb

SIDE = 32  # pixels: every set comes at the size of CIFAR-10

PAPER_SETS = ("textures", "svhn", "lsun_crop", "lsun_resize", "isun")
STAND_INS = ("textures10", "places9_crop", "places9_resize", "sun_resize")
EMBEDDED_SETS = ("photo_crops", "letters")
TWO_SPLITS = ("cifar10", "cifar100", "digits")  # every other set has a test split only

TITLES: dict[str, str] = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "textures": "Textures",
    "svhn": "SVHN",
    "lsun_crop": "LSUN-Crop",
    "lsun_resize": "LSUN-Resize",
    "isun": "iSUN",
    "textures10": "Textures-10",
    "places9_crop": "Places9-Crop",
    "places9_resize": "Places9-Resize",
    "sun_resize": "SUN-Resize",
    "digits": "Digits",
    "photo_crops": "Photo crops",
    "letters": "Letters",
}

_KEYS = ("images", "labels", "classes")
ABOUT: dict[str, str] = {
    "svhn": "house numbers: the SVHN test split, or a draw from it",
    "textures": "all of the Describable Textures Dataset (DTD)",
    "lsun_crop": "the paper's archive of LSUN crops",
    "lsun_resize": "the paper's archive of resized LSUN photos",
    "isun": "the paper's archive of resized iSUN photos",
    "textures10": "10 of DTD's 47 classes: a subset of Textures with another mix",
    "places9_crop": "crops of scene photos from 9 of LSUN's 10 classes: stands in for LSUN-Crop",
    "places9_resize": "the same photos, resized whole: stands in for LSUN-Resize",
    "sun_resize": "resized photos of 23 SUN categories: stands in for iSUN",
    "cifar100": "near-OOD: classes that resemble CIFAR-10's; not in the paper",
}

# NumPy arrays under those keys: images uint8 (N, 32, 32, 3), the others where known
Arrays = Mapping[str, Any]


class UnavailableError(FileNotFoundError):
    """A set is absent and cannot be made; the message says what was tried and what to do."""


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, H, W), labels int64 (N,) or None, class names, and the set's name."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def sha256(self) -> str:
        """SHA-256 of the pixels: whether a set is the one that a result was made from."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the cached sets: ``root``, else $THINKBACK_DATA, else ~/.cache/thinkback."""
    return Path(root or os.environ.get("THINKBACK_DATA") or "~/.cache/thinkback").expanduser()


def load(
    name: str, split: str = "test", root: str | Path | None = None, progress: bool = True
) -> ImageSet:
    """Load an image set; an absent one is first downloaded into the data root.

    The cache is ``<name>-<split>.npz``, or ``<name>.npz``, which counts as the test split. Any
    other set laid there in the same form loads by its file name. The embedded sets are made in
    memory and need no file. Of several processes that load an absent set one downloads it, and the
    others wait.

    Args:
        name: A key of ``TITLES``, or the name of a file in the data root.
        split: "test" or, for the sets in ``TWO_SPLITS``, "train".
        root: Data root; see ``data_root``.
        progress: Show a bar while downloading.

    Returns:
        The set: images uint8 (N, 3, 32, 32), labels int64 (N,) or None.

    Raises:
        ValueError: Unknown name or split, or a file that does not hold such a set.
        UnavailableError: The set is absent and could not be downloaded.
        ImportError: The set needs a package that is not installed; the message names the extra.

    >>> digits = load("digits")
    >>> digits.images.shape, digits.classes[:3]
    (torch.Size([450, 3, 32, 32]), ('0', '1', '2'))
    """
    if name in _EMBEDDED:
        _check_known(name, split)
        return _image_set(_EMBEDDED[name](split), name, source=f"the embedded set {name!r}")
    folder = data_root(root)
    if (path := _find(name, split, folder)) is None:
        _check_known(name, split)
        path = _make(name, split, folder, progress)
    return _read(path, name)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_known(name: str, split: str) -> None:
    if name not in TITLES:
        raise ValueError(f"thinkback: unknown set {name!r}; known sets: {', '.join(TITLES)}")
    splits = ("train", "test") if name in TWO_SPLITS else ("test",)
    if split not in splits:
        raise ValueError(
            f"thinkback: set {name!r} has no split {split!r}; it has {' and '.join(splits)}"
        )


def _cache_file(name: str, split: str) -> str:
    return f"{name}-{split}.npz" if name in TWO_SPLITS else f"{name}.npz"


def _find(name: str, split: str, folder: Path) -> Path | None:
    files = [f"{name}-{split}.npz", *([f"{name}.npz"] if split == "test" else [])]
    return next((folder / file for file in files if (folder / file).exists()), None)


def _read(path: Path, name: str) -> ImageSet:
    remedy = "replace it, or remove it so that it is made anew"
    return _image_set(read_arrays(path, remedy, _KEYS), name, source=path)


def _image_set(arrays: Arrays, name: str, source: str | Path) -> ImageSet:
    """The checked arrays of a set, (N, 32, 32, 3), as tensors, (N, 3, 32, 32)."""
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
        found = "none" if images is None else f"{images.dtype} {images.shape}"
        raise ValueError(
            f"thinkback: {source} must hold 'images' uint8 (N, {SIDE}, {SIDE}, 3), found {found}"
        )
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        found = f"{labels.dtype} {labels.shape}"
        raise ValueError(
            f"thinkback: {source} must hold 'labels' as integers ({len(images)},), found {found}"
        )
    return ImageSet(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(str(c) for c in arrays.get("classes", ())),
        name=name,
    )


def _write(path: Path, arrays: Arrays) -> None:
    """Write a cache file atomically; uncompressed, since photographs hardly shrink."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


@dataclass(frozen=True)
class Known:
    """A set that torchvision has: its class downloads, verifies and unpacks the original archive.

    Args:
        dataset: name of that class.
        read: of the class and a folder, arrays by split.
        size: images of the test split: a check that the right ones were read.
        file: the archive, which may be laid in the data root by hand.
        url: of the page that has it.
        folder: where the class looks for the archive, inside its root.
    """

    dataset: str
    read: Callable[[Any, Path], dict[str, Arrays]]
    size: int
    file: str
    url: str
    folder: str = ""

    def splits(self, name: str, split: str, folder: Path, progress: bool) -> dict[str, Arrays]:
        """Arrays by split; nothing else stays in the folder."""
        kind = getattr(import_torchvision(f"set {name!r}").datasets, self.dataset)
        by_hand = folder / self.file
        quiet = nullcontext() if progress else redirect_stderr(io.StringIO())
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch, quiet:
                if by_hand.exists():
                    place = Path(scratch, self.folder, self.file)
                    place.parent.mkdir(exist_ok=True)
                    shutil.copyfile(by_hand, place)
                return self.read(kind, Path(scratch))
        except (OSError, HTTPException, RuntimeError) as error:  # the last: another checksum
            reason = f"torchvision could not download and unpack it there ({error!r})"
            remedy = f"Put {self.file} from {self.url} in that folder"
            raise _unavailable(name, split, folder, reason, remedy) from error


def _read_cifar(kind: Any, root: Path) -> dict[str, Arrays]:
    sets = {split: kind(root, split == "train", download=True) for split in ("train", "test")}
    return {
        split: {
            "images": each.data,
            "labels": np.array(each.targets, np.int64),
            "classes": np.array(each.classes),
        }
        for split, each in sets.items()
    }


def _read_svhn(kind: Any, root: Path) -> dict[str, Arrays]:
    svhn = kind(root, "test", download=True)
    images = svhn.data.transpose(0, 2, 3, 1)
    classes = np.array(list(string.digits))
    return {"test": {"images": images, "labels": svhn.labels, "classes": classes}}


def _read_textures(kind: Any, root: Path) -> dict[str, Arrays]:
    """All splits of DTD: shorter side to 32 (bilinear, antialiased by PIL), centre crop 32."""
    transforms = import_torchvision().transforms
    square = transforms.Compose([transforms.Resize(SIDE), transforms.CenterCrop(SIDE)])
    parts = [
        kind(root, split, transform=square, download=True) for split in ("train", "val", "test")
    ]
    pairs = [part[i] for part in parts for i in range(len(part))]
    images = np.stack([np.asarray(image) for image, _ in pairs])
    labels = np.array([label for _, label in pairs], np.int64)
    return {"test": {"images": images, "labels": labels, "classes": np.array(parts[0].classes)}}


@dataclass(frozen=True)
class Archive:
    """An archive of images that is fetched here, since a broken download has to go on.

    Args:
        file: its name.
        url: of the file itself.
        md5: its checksum.
        folder: of the images inside it.
        size: how many there are: a check that the right folder was read.
        sides: sizes in pixels that its images may have; larger ones are cropped at the centre.
    """

    file: str
    url: str
    md5: str
    folder: str
    size: int
    sides: tuple[int, ...] = (SIDE,)

    def splits(self, name: str, split: str, folder: Path, progress: bool) -> dict[str, Arrays]:
        """The images, as the test split, in the order of their names."""
        path = _fetch(name, split, self, folder, progress)
        photos: dict[str, NDArray[np.uint8]] = {}
        with tarfile.open(path) as tar:
            for member in tar:  # nothing is written: a path out of the folder leads nowhere
                if member.isfile() and self._holds(PurePosixPath(member.name)):
                    content: Any = tar.extractfile(member)
                    photos[member.name] = self._photo(content.read(), member.name, path)
        images = [photos[name] for name in sorted(photos)]
        return {"test": {"images": np.array(images, np.uint8).reshape(-1, SIDE, SIDE, 3)}}

    def _holds(self, path: PurePosixPath) -> bool:
        known = path.suffix in (".jpg", ".jpeg", ".png") and path.name[0] != "."
        return known and path.parent.name == self.folder

    def _photo(self, content: bytes, name: str, path: Path) -> NDArray[np.uint8]:
        image = read_rgb(content, f"{path} holds a broken image, {name}")
        height, width, _ = image.shape
        if width != height or width not in self.sides:
            sides = " or ".join(f"{side}x{side}" for side in self.sides)
            raise ValueError(f"thinkback: {name} in {path} is {width}x{height} pixels, not {sides}")
        border = (width - SIDE) // 2
        return image[border : border + SIDE, border : border + SIDE]


def _make(name: str, split: str, folder: Path, progress: bool) -> Path:
    """Path of a set that was absent; while this process waits for the lock another may make it."""
    if name not in ARCHIVES:
        reason = "it has no address to download from"
        remedy = f"Put {_cache_file(name, split)} in that folder"
        raise _unavailable(name, split, folder, reason, remedy)
    with ExitStack() as stack:
        try:  # one lock for all splits, which come from one archive
            stack.enter_context(locking(folder / name))
        except OSError as error:
            reason = f"nothing can be put there ({error.__cause__})"
            remedy = "Make that folder one that can be written"
            raise _unavailable(name, split, folder, reason, remedy) from error
        return _find(name, split, folder) or _build(name, split, folder, progress)


def _build(name: str, split: str, folder: Path, progress: bool) -> Path:
    """Cache all splits of a set that are absent, so that one download is enough.

    A downloaded archive is removed then; one that was laid there by hand is its owner's and stays.
    """
    archive = ARCHIVES[name]
    by_hand = (folder / archive.file).exists()
    splits = archive.splits(name, split, folder, progress)
    if (found := len(splits["test"]["images"])) != archive.size:
        raise ValueError(
            f"thinkback: {archive.file} holds {found:,} test images of {name}, not {archive.size:,}"
        )
    for each, arrays in splits.items():
        if _find(name, each, folder) is None:
            _write(folder / _cache_file(name, each), arrays)
    if not by_hand:
        (folder / archive.file).unlink(missing_ok=True)
    return folder / _cache_file(name, split)


def _unavailable(name: str, split: str, folder: Path, reason: str, remedy: str) -> UnavailableError:
    file = _cache_file(name, split)
    return UnavailableError(
        f"thinkback: set {name!r} ({split}) is not in {folder} (looked for {file}), and {reason}. "
        f"{remedy}, or set THINKBACK_DATA to a folder that holds {file}."
    )


def _fetch(name: str, split: str, archive: Archive, folder: Path, progress: bool) -> Path:
    """Path of the verified archive, downloaded unless it is there; a part waits as ``*.part``."""
    path, part = folder / archive.file, folder / f"{archive.file}.part"

    def unavailable(reason: str) -> UnavailableError:
        remedy = f"Put {archive.file} from {archive.url} in that folder"
        return _unavailable(name, split, folder, reason, remedy)

    if path.exists():
        if (md5 := _md5(path)) != archive.md5:
            raise unavailable(f"the {archive.file} there has md5 {md5}, not {archive.md5}")
        return path
    try:
        _download(archive.url, part, progress)
    except (OSError, HTTPException) as error:
        kept = "; what arrived is kept, and the next call goes on from there" * part.exists()
        raise unavailable(f"the download from {archive.url} failed ({error!r}){kept}") from error
    if (md5 := _md5(part)) != archive.md5:
        part.unlink()
        raise unavailable(
            f"what came from {archive.url} has md5 {md5}, not {archive.md5}; it was deleted"
        )
    return part.replace(path)


def _download(url: str, part: Path, progress: bool) -> None:
    """Fetch a file into a partial one, going on after the bytes already there if the server can."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "thinkback", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # no byte is left to send: the checksum decides
            return
        raise
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(
            desc=part.stem,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        with part.open("ab" if start else "wb") as file, bar:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := part.stat().st_size) < total:
        raise ConnectionError(f"the connection broke after {size:,} of {total:,} bytes")


ODIN = "https://www.dropbox.com/s/"  # its authors share these; dl=1 asks for the file itself
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
ARCHIVES: dict[str, Known | Archive] = {
    "cifar10": Known("CIFAR10", _read_cifar, 10_000, "cifar-10-python.tar.gz", CIFAR),
    "cifar100": Known("CIFAR100", _read_cifar, 10_000, "cifar-100-python.tar.gz", CIFAR),
    "svhn": Known(
        "SVHN", _read_svhn, 26_032, "test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"
    ),
    "textures": Known(
        "DTD",
        _read_textures,
        5_640,
        "dtd-r1.0.1.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd",
    ),
    "lsun_crop": Archive(
        "LSUN.tar.gz",
        f"{ODIN}fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1",
        "458a0a0ab8e5f1cb4516d7400568e460",
        "test",
        10_000,
        (32, 36),
    ),
    "lsun_resize": Archive(
        "LSUN_resize.tar.gz",
        f"{ODIN}moqh2wh8696c3yl/LSUN_resize.tar.gz?dl=1",
        "278b7b31c8cb7e804a1465a8ce03a2dc",
        "LSUN_resize",
        10_000,
    ),
    "isun": Archive(
        "iSUN.tar.gz",
        f"{ODIN}ssz7qxfqae0cca5/iSUN.tar.gz?dl=1",
        "be77b0f2c26fda898afac5f99645ee70",
        "iSUN_patches",
        8_925,
    ),
}

_SCHEMAS: list[Any] = []  # a Library takes its schemas away when it is collected


def import_torchvision(what: str = "this") -> Any:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    A torchvision built for CUDA beside a CPU-only torch cannot load its operators and stops at
    declaring two of them. Datasets, transforms and models need neither, so the two schemas are
    declared here and the import repeated; where the builds match nothing is done.

    Raises:
        ImportError: it is not installed; the message says that ``what`` needs it.
    """
    try:
        return _needed("torchvision", what)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library  # untyped in torch
    _SCHEMAS.append(library.Library("torchvision", "FRAGMENT"))
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _SCHEMAS[-1].define(schema)
    return import_module("torchvision")


def _needed(package: str, what: str) -> Any:
    """A package that only some sets need; an error that names the extra which installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        remedy = "pip install 'thinkback-utils[data]'"
        raise ImportError(f"thinkback: {what} needs {package}: {remedy}") from error


def _enlarge(coarse: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey images (N, 8, 8) of levels 0 to 16 as smooth RGB ones, uint8 (N, 32, 32, 3)."""
    grey = np.round(coarse * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for image in grey
    ]
    return np.repeat(np.stack(large)[..., None], 3, axis=3)


def _digits(split: str) -> Arrays:
    """scikit-learn's 1,797 handwritten digits: 1,347 to train on, 450 to test on, a fixed draw."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    chosen = order[450:] if split == "train" else order[:450]
    classes = np.array(list(string.digits))
    return {
        "images": _enlarge(digits.images[chosen]),
        "labels": digits.target[chosen],
        "classes": classes,
    }


def _letters(split: str) -> Arrays:
    """510 printed capitals with the 8x8 pixels and 17 grey levels of the digits: new shapes only.

    B, D, G, I, J, O, Q, S and Z are left out: at this size they can be read as 8, 0, 6, 1, 1, 0, 0,
    5 and 2.
    """
    matplotlib = _needed("matplotlib", "set 'letters'")
    letters = [letter for letter in string.ascii_uppercase if letter not in "BDGIJOQSZ"]
    faces = (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSerif",
        "DejaVuSansMono",
        "STIXGeneral",
    )
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [
        ImageFont.truetype(str(folder / f"{face}.ttf"), size)
        for face in faces
        for size in range(32, 44, 2)
    ]
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(len(letters)), 30)
    coarse = []
    for label in labels:
        canvas = Image.new("L", (SIDE, SIDE))
        centre = tuple(SIDE / 2 + rng.uniform(-2, 2, size=2))
        font = fonts[rng.integers(len(fonts))]
        ImageDraw.Draw(canvas).text(centre, letters[label], fill=255, font=font, anchor="mm")
        pixels = np.asarray(canvas.reduce(4))
        # full contrast, so that thin strokes are not dimmer ones
        coarse.append(np.round(pixels * (16 / pixels.max())))
    return {"images": _enlarge(np.stack(coarse)), "labels": labels, "classes": np.array(letters)}


def _photo_crops(split: str) -> Arrays:
    """200 random crops of each of three photos that scikit-learn and matplotlib carry."""
    from sklearn.datasets import load_sample_image

    matplotlib = _needed("matplotlib", "set 'photo_crops'")
    hopper = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    photos = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    photos["grace_hopper"] = read_rgb(hopper.read_bytes(), str(hopper))
    rng, images = np.random.default_rng(2), []
    for photo in photos.values():
        for _ in range(200):
            x, y = (rng.integers(length - SIDE, endpoint=True) for length in photo.shape[1::-1])
            images.append(photo[y : y + SIDE, x : x + SIDE])
    labels = np.repeat(np.arange(len(photos)), 200)
    return {"images": np.stack(images), "labels": labels, "classes": np.array(list(photos))}


_EMBEDDED: dict[str, Callable[[str], Arrays]] = {  # split -> arrays; a fixed seed each
    "digits": _digits,
    "photo_crops": _photo_crops,
    "letters": _letters,
}
