"""Many images over many processes: sources are read by sample, scores are written by block.

Samples are cut into blocks of equal size, the last one shorter, and of W processes each takes every
W-th block: none is padded or read twice, so a sum over all processes is the sum over all samples.
Scores of a block are on disk as a whole or not at all, and need no other process: one that was
killed is started again, alone or with any number of others.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import os
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path, PurePosixPath
from textwrap import shorten
from tokenize import TokenError
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate

from .commands import listed
from .features import save_arrays
from .files import DAMAGED, locking, read_arrays, read_json, write_json
from .images import ImageError, read_rgb, square
from .models import WideResNet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MANIFEST = "manifest.json"
BLOCK = 8192  # samples: a minute of a small network on a CPU core, seconds on a GPU
MEND = "; mend it, remove it, or leave such images out (--skip-broken)"
AGAIN = "run the same command again, it makes that block anew"


class ImageFiles(Dataset[Tensor]):
    """Images of a folder, all levels, by path; or of a ``.tar`` (as WebDataset has it), by name.

    Hidden files and folders (``.name``, ``__MACOSX``) are left out: systems put theirs beside the
    images.

    Args:
        path: the folder or the archive.
        side: the shorter side is scaled to it (bilinear, antialiased), the centre is cropped; None:
            as they are.

    Raises:
        ValueError: there is no image, or the archive is damaged or compressed.
    """

    def __init__(self, path: Path, side: int | None = None) -> None:
        self.path, self.side = path, side
        self.places: list[tuple[int, int]] = []  # offset and size in the archive
        if path.is_dir():
            self.names = sorted(_images_in(path))
        else:
            members = sorted(_members(path), key=lambda member: member.name)
            self.names = [member.name for member in members]
            self.places = [(member.offset_data, member.size) for member in members]
        if not self.names:
            raise ValueError(f"thinkback: no image in {path}; it is read for {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W).

        Raises:
            ImageError: it is broken, or its pixels have no known range.
        """
        place = f"{self.path} holds a broken image, {self.names[i]}"
        try:
            pixels = read_rgb(self._content(i), place)
        except ImageError as error:
            raise ImageError(f"{error}{MEND}") from error
        except OSError as error:
            raise ImageError(f"thinkback: {place}: {error}{MEND}") from error
        return _tensor(pixels if self.side is None else square(pixels, self.side))

    def name(self, i: int) -> str:
        """How a message names image i."""
        return f"{self.names[i]} in {self.path}"

    def known_by(self) -> str:
        """Sizes and times of its files, which tell whether it is still the same source."""
        if self.places:
            return _stamp(self.path)
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name} {_stamp(self.path / name)}\n".encode(errors="surrogateescape"))
        return f"sha256 {digest.hexdigest()} of names, sizes and times"

    def _content(self, i: int) -> bytes:
        if not self.places:
            return (self.path / self.names[i]).read_bytes()
        offset, size = self.places[i]
        with self.path.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)


class ImageArray(Dataset[Tensor]):
    """The array ``images``, uint8 (N, H, W, 3), of an ``.npz``; memory holds one file at a time.

    Raises:
        ValueError: the file is damaged, or holds no such array.
    """

    def __init__(self, path: Path, side: int | None = None) -> None:
        self.path, self.side = path, side
        self.shape, dtype, self.crc = _header(path)
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3 or 0 in self.shape:
            raise ValueError(
                f"thinkback: images of {path} must be uint8 (N, H, W, 3), got {dtype} {self.shape};"
                " store pixels from 0 to 255 as uint8, with the channels last"
            )

    def __len__(self) -> int:
        """Number of images."""
        return int(self.shape[0])

    def __getitem__(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W)."""
        pixels = np.array(_images(self.path, self.crc)[i])  # a copy, which anyone may change
        return _tensor(pixels if self.side is None else square(pixels, self.side))

    def name(self, i: int) -> str:
        """How a message names image i."""
        return f"image {i} of {self.path}"

    def known_by(self) -> str:
        """The checksum of the images, which tells whether it is still the same source."""
        return f"crc32 {self.crc:08x} of images"


class Sources(ConcatDataset[Tensor]):
    """Images of several sources, one after the other; index i is the same image in every run.

    Attributes:
        skip_broken: :class:`Batches` leaves out images that cannot be read, instead of an error.
        skipped: those that were, with the reason, by index; each process knows of its own.
    """

    datasets: list[ImageFiles | ImageArray]  # type: ignore[assignment]

    def __init__(self, parts: Sequence[ImageFiles | ImageArray], skip_broken: bool = False) -> None:
        super().__init__(parts)
        self.skip_broken = skip_broken
        self.skipped: dict[int, str] = {}

    def name(self, i: int) -> str:
        """How a message names image i."""
        part = bisect_right(self.cumulative_sizes, i)
        return self.datasets[part].name(i - (self.cumulative_sizes[part - 1] if part else 0))

    def known_by(self) -> list[dict[str, str]]:
        """Path of each source, and what tells whether it is the same still, for :func:`start`."""
        return [{"path": str(part.path), "is": part.known_by()} for part in self.datasets]


def open_sources(
    paths: Iterable[str | Path], side: int | None = None, skip_broken: bool = False
) -> Sources:
    """Folders, ``.tar`` archives and ``.npz`` arrays of images, as one map-style data set.

    Args:
        paths: the sources.
        side: images become squares of that many pixels, see :func:`thinkback_utils.images.square`;
            None: as they are.
        skip_broken: leave images out that cannot be read, and note them in ``skipped``; False: they
            are errors.

    Raises:
        FileNotFoundError: naming the path that is not there.
        ValueError: on another kind of file, or one that is damaged or without images.
    """
    if side is not None and side < 1:
        raise ValueError(f"thinkback: side must be at least 1 pixel, got {side}")
    parts: list[ImageFiles | ImageArray] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        suffix = "" if path.is_dir() else path.suffix.lower()
        if not path.exists():
            raise FileNotFoundError(
                f"thinkback: no source {path}; give folders, .tar archives or .npz files of images"
            )
        if not path.is_dir() and suffix not in (".tar", ".npz"):
            raise ValueError(
                f"thinkback: {path} is no source; give folders, .tar archives or .npz files of"
                " images"
            )
        parts.append(ImageArray(path, side) if suffix == ".npz" else ImageFiles(path, side))
    if not parts:
        raise ValueError(
            "thinkback: no source is given; give folders, .tar archives or .npz files of images"
        )
    return Sources(parts, skip_broken)


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # reading it will be the error
        return "cannot be read"
    return f"{status.st_size} bytes of {status.st_mtime_ns} ns"


def _hidden(name: str) -> bool:
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(map(_hidden, path.parts))


def _images_in(folder: Path) -> Iterator[str]:
    """Paths of the images of a folder, relative to it."""

    def unreadable(error: OSError) -> NoReturn:
        raise ValueError(
            f"thinkback: {error.filename} cannot be listed: {error.strerror}"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = (name for name in folders if not _hidden(name))
        inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        yield from (str(inside / name) for name in files if _is_image(PurePosixPath(name)))


def _members(path: Path) -> list[tarfile.TarInfo]:
    """The images of an archive that is whole."""
    remedy = "make it anew (tar -cf, without compression)"
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = [m for m in archive if m.isfile() and _is_image(PurePosixPath(m.name))]
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"thinkback: {path} cannot be read as a .tar archive ({error}); {remedy}"
        ) from error
    if any(end) or not end:  # tarfile takes a damaged header for the end
        raise ValueError(
            f"thinkback: {path} is damaged or cut short after {archive.offset:,} bytes; {remedy}"
        )
    return members


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, kind and checksum of the array ``images`` of an ``.npz``, without reading it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "images.npy" in names:
                crc = archive.getinfo("images.npy").CRC
                with archive.open("images.npy") as member:
                    first = np.lib.format.read_magic(member) == (1, 0)
                    # Version 3 has other names of fields than 2, and images have none.
                    read: Any = getattr(np.lib.format, f"read_array_header_{2 - first}_0")
                    shape, _, dtype = read(member)
                    return shape, dtype, crc
    except (*DAMAGED, SyntaxError, TokenError) as error:  # the last two: NumPy, of a header
        raise ValueError(
            f"thinkback: {path} cannot be read as an .npz file ({error}); make it anew"
        ) from error
    raise ValueError(
        f"thinkback: {path} holds {', '.join(names) or 'nothing'}, no array named images"
    )


@lru_cache(maxsize=1)
def _images(path: Path, crc: int) -> NDArray[np.uint8]:
    if _header(path)[2] != crc:
        raise ValueError(
            f"thinkback: {path} was replaced while it was in use; run the same command again"
        )
    return read_arrays(path, "make it anew", ["images"])["images"]


def place() -> tuple[int, int]:
    """Rank and number of processes, as ``torchrun`` sets RANK and WORLD_SIZE; else (0, 1).

    Raises:
        ValueError: one of them is missing, or they do not fit.
    """
    if ("RANK" in os.environ) != ("WORLD_SIZE" in os.environ):
        raise ValueError(
            "thinkback: of RANK and WORLD_SIZE one is set; set both, as torchrun does, or none"
        )
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not rank < world:
        raise ValueError(f"thinkback: RANK is {rank} and WORLD_SIZE {world}; ranks count from 0")
    return rank, world


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(
            f"thinkback: the environment variable {variable} must be a whole number, got {text!r}"
        )
    return int(text)


def blocks(total: int, rank: int, world: int, size: int = BLOCK) -> Iterator[tuple[int, range]]:
    """Number and samples of each block that process ``rank`` of ``world`` takes, perhaps none.

    Raises:
        ValueError: a block without samples, or a rank that is none of the world's.

    >>> list(blocks(10, rank=1, world=2, size=4)), list(blocks(10, rank=0, world=2, size=4))
    ([(1, range(4, 8))], [(0, range(0, 4)), (2, range(8, 10))])
    """
    if size < 1:
        raise ValueError(f"thinkback: a block must have at least 1 sample, got {size}")
    if not 0 <= rank < world:
        raise ValueError(
            f"thinkback: rank must be from 0 to world - 1, got rank {rank} of world {world}"
        )
    numbers = range(rank, math.ceil(total / size), world)
    return ((number, range(number * size, min((number + 1) * size, total))) for number in numbers)


class Batches:
    """Batches (B, 3, H, W) of some samples, in their order; a broken image is an error.

    Where the data set is :class:`Sources` with ``skip_broken`` it is left out instead, and noted in
    ``skipped`` here and there; a batch may then be smaller, and one without images does not come.

    Args:
        dataset: of :func:`open_sources`, or any map-style data set.
        indices: the samples.
        batch_size: images in a batch, the last one may have fewer.
        workers: processes that decode; 0: this one does.
    """

    def __init__(
        self, dataset: Dataset[Any], indices: Sequence[int], batch_size: int, workers: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"thinkback: a batch must have at least 1 image, got {batch_size}")
        if workers < 0:
            raise ValueError(f"thinkback: the number of workers must be 0 or more, got {workers}")
        self.dataset = dataset
        self.skipped: dict[int, str] = {}
        self._loader: DataLoader[Any] = DataLoader(
            _Attempts(dataset, indices), batch_size, num_workers=workers, collate_fn=_collated
        )

    def __len__(self) -> int:
        """Number of batches when no image is broken."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches; errors come from here, also those that a worker met."""
        sources = (
            self.dataset if isinstance(self.dataset, Sources) and self.dataset.skip_broken else None
        )
        self.skipped.clear()
        for batch, broken, sizes in self._loader:
            for i, error in broken.items():
                if sources is None:
                    raise error
                self.skipped[i] = sources.skipped[i] = str(error).removesuffix(MEND)
            if len(sizes) > 1:
                raise ValueError(self._mixed(sizes))
            if batch is not None:
                yield batch

    def _mixed(self, sizes: dict[tuple[int, ...], int]) -> str:
        named = isinstance(self.dataset, ImageFiles | ImageArray | Sources)
        examples = [
            f"{self.dataset.name(i) if named else f'sample {i}'} has {' x '.join(map(str, shape))}"  # type: ignore[attr-defined]
            for shape, i in itertools.islice(sizes.items(), 2)
        ]
        return (
            "thinkback: images of one batch differ in size (channels x height x width):"
            f" {' and '.join(examples)}; bring all to one size with side=… (--side)"
        )


class _Attempts(Dataset[tuple[int, Any]]):
    """Samples with their indices; of a broken one the error, whose text a worker would lose."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[int, Any]:
        i = self.indices[k]
        try:
            return i, self.dataset[i]
        except ImageError as error:
            return i, error


def _collated(
    samples: list[tuple[int, Any]],
) -> tuple[Any, dict[int, ImageError], dict[tuple[int, ...], int]]:
    """The batch or None, the broken samples by index, and of each size the first sample's index."""
    broken = {i: sample for i, sample in samples if isinstance(sample, ImageError)}
    good = [sample for _, sample in samples if not isinstance(sample, ImageError)]
    sizes: dict[tuple[int, ...], int] = {}
    for i, sample in samples:
        if isinstance(sample, Tensor):
            sizes.setdefault(tuple(sample.shape), i)
    return default_collate(good) if good and len(sizes) < 2 else None, broken, sizes


def score_samples(
    score: Callable[[Iterable[Tensor]], Mapping[str, Tensor]],
    dataset: Dataset[Any],
    indices: Sequence[int],
    blank: Mapping[str, float],
    **options: int,
) -> dict[str, Tensor]:
    """Scores and verdicts of these samples, with a blank for each that was skipped.

    Args:
        score: takes batches (B, 3, H, W) and returns arrays by name, each with one entry an image,
            (n,).
        dataset, indices, options: as :class:`Batches` takes them.
        blank: names of the arrays, and what stands for a skipped sample: NaN for scores.

    Returns:
        Arrays (len(indices),) by name, in the order of the indices; floats as float64.
    """
    batches = Batches(dataset, indices, **options)
    out = {}
    for name, value in blank.items():
        dtype = torch.float64 if isinstance(value, float) else None
        out[name] = torch.full((len(indices),), value, dtype=dtype)
    stream = iter(batches)
    if (first := next(stream, None)) is not None:  # else all of them are broken
        found = score(itertools.chain([first], stream))
        read = torch.tensor([i not in batches.skipped for i in indices])
        for name, values in found.items():
            out[name][read] = values.to(out[name])
    return out


def load_model(name: str) -> nn.Module:
    """A classifier by name, in evaluation mode.

    Args:
        name: a file that ``WideResNet.save`` wrote; or ``package.module:name``, a function that
            returns a ``torch.nn.Module``, or such a module itself.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the file or the name is wrong, or what it names is no model.
        Any other: of the function, as it raised it, since its author needs the whole traceback.
    """
    if name.endswith(".safetensors"):
        return WideResNet.load(name)
    module, _, path = name.partition(":")
    if not module or not path or module.startswith("."):
        raise ValueError(
            f"thinkback: model {name!r} is neither a .safetensors file nor package.module:function"
        )
    try:
        model = attrgetter(path)(importlib.import_module(module))
    except (ImportError, SyntaxError, AttributeError) as error:
        cause = shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"thinkback: model {name!r} cannot be made, {cause}") from error
    if not isinstance(model, nn.Module) and callable(model):
        try:
            model = model()
        except SystemExit as error:  # else the command would end there, perhaps with status 0
            raise ValueError(
                f"thinkback: model {name!r} cannot be made, SystemExit: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"thinkback: {name} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model.eval()


def start(folder: Path, job: dict[str, Any]) -> None:
    """Write of which job the scores in ``folder`` are; what is written already must be the same.

    Args:
        folder: of the scores.
        job: JSON types; ``samples`` and ``block`` cut the blocks, ``sources`` is
            :meth:`Sources.known_by`.

    Raises:
        ValueError: naming what differs, or that the manifest is damaged or missing.
    """
    path = folder / MANIFEST
    job = json.loads(json.dumps(job))  # tuples become lists, as they will be when it is read
    if not path.exists():
        with locking(path):
            if not path.exists():
                if old := sorted(folder.glob("block-*.npz")):
                    raise ValueError(
                        f"thinkback: {folder} holds {old[0].name} but no {MANIFEST} that says of"
                        " which job; remove the blocks, or name another folder"
                    )
                write_json(path, job)
    held = _manifest(folder)
    if differing := [
        words for key, value in job.items() for words in _differences(key, held.get(key), value)
    ]:
        raise ValueError(
            f"thinkback: {folder} holds scores of another job ({listed(differing, '; ')}); name"
            " another"
        )


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    """What makes two jobs differ, in words; of sources, the one that does."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{key}[{i}]", before, now)
    elif (
        isinstance(old, dict)
        and isinstance(new, dict)
        and "path" in old
        and old["path"] == new.get("path")
    ):
        if old != new:
            yield (
                f"the source {old['path']} changed: it was {old.get('is')}, and is {new.get('is')}"
            )
    elif old != new:
        yield f"{key} {old!r} != {new!r}"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"thinkback: {folder} holds no scores, it lacks {MANIFEST}; was another folder meant?"
        )
    job = read_json(path)
    if not isinstance(job, dict):
        raise ValueError(
            f"thinkback: {path} is damaged, it is no JSON object; remove {folder} and score again"
        )
    return job


def _cut(folder: Path) -> tuple[int, int]:
    """Number of samples of a folder's job, and of one block."""
    job = _manifest(folder)
    samples, size = job.get("samples"), job.get("block")
    if not (isinstance(samples, int) and isinstance(size, int) and samples > 0 and size > 0):
        path = folder / MANIFEST
        raise ValueError(
            f"thinkback: {path} is damaged, it lacks samples or block; remove {folder} and score"
            " again"
        )
    return samples, size


def _length(folder: Path, number: int) -> int:
    samples, size = _cut(folder)
    return max(0, min(size, samples - number * size))


def block_file(folder: Path, number: int) -> Path:
    """Where the scores of a block lie."""
    return folder / f"block-{number:06d}.npz"


def block_done(folder: Path, number: int) -> bool:
    """Whether the scores of a block are there and whole; else it is to be made again."""
    try:
        _read_block(block_file(folder, number), _length(folder, number))
    except (FileNotFoundError, ValueError):
        return False
    return True


def write_block(folder: Path, number: int, arrays: dict[str, Tensor]) -> None:
    """All of a block's arrays, each (n,), or none of them.

    Raises:
        ValueError: an array is not as long as the block.
    """
    length = _length(folder, number)
    for name, array in arrays.items():
        if array.shape != (length,):
            raise ValueError(
                f"thinkback: block {number} of {folder} has {length} samples, and its {name}"
                f" {tuple(array.shape)}"
            )
    save_arrays(block_file(folder, number), {name: array.numpy() for name, array in arrays.items()})


def _read_block(file: Path, length: int) -> dict[str, NDArray[Any]]:
    arrays = read_arrays(file, AGAIN)
    shapes = {name: array.shape for name, array in arrays.items()}
    if not shapes or any(shape != (length,) for shape in shapes.values()):
        raise ValueError(
            f"thinkback: {file} is not whole, it holds {shapes or 'nothing'}, not ({length},);"
            f" {AGAIN}"
        )
    return arrays


def read_blocks(folder: str | Path) -> dict[str, Tensor]:
    """The arrays of all blocks, each (N,), in the order of the samples; NaN for skipped images.

    Raises:
        FileNotFoundError: if blocks are missing, with their numbers.
        ValueError: if a block or the manifest is damaged, with its name.
    """
    folder = Path(folder)
    samples, size = _cut(folder)
    lengths = {
        block_file(folder, number): len(block) for number, block in blocks(samples, 0, 1, size)
    }
    if missing := [file.name for file in lengths if not file.exists()]:
        again = "run the same command again, it goes on there"
        raise FileNotFoundError(f"thinkback: {folder} lacks {listed(missing)}; {again}")
    parts = [_read_block(file, length) for file, length in lengths.items()]
    for file, part in zip(lengths, parts, strict=True):
        if part.keys() != parts[0].keys():
            raise ValueError(
                f"thinkback: {file} holds {sorted(part)}, and others {sorted(parts[0])}; {AGAIN}"
            )
    return {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]
    }
