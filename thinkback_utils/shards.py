"""Many images over many processes: sources that are read sample by sample, and scores that are written shard by shard.

Samples are cut into blocks of equal size, the last one shorter, and of W processes each takes every W-th block: none is
padded or read twice, so a sum over all processes is the sum over all samples. Scores of a block are on disk as a whole
or not at all, and need no other process: one that was killed is started again, alone or with any number of others.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from .features import save_arrays
from .files import read_json, write_json
from .models import WideResNet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MANIFEST = "manifest.json"
BLOCK = 8192  # samples: a minute of a small network on a CPU core, seconds on a GPU


class ImageFiles(Dataset[Tensor]):
    """Images of a folder, all levels, by path; or of a ``.tar`` of them (as WebDataset keeps them), by name.

    Args:
        path: the folder or the archive.
        side: the shorter side is scaled to it (bilinear, antialiased), the centre is cropped; None: as they are.
    """

    def __init__(self, path: Path, side: int | None = None) -> None:
        self.path, self.side = path, side
        self.names: list[str] = []
        self.places: list[tuple[int, int]] = []  # offset and size in the archive
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            self.names = sorted(file.relative_to(path).as_posix() for file in files)
        else:
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.isfile() and m.name.lower().endswith(SUFFIXES)]
            members.sort(key=lambda member: member.name)
            self.names = [member.name for member in members]
            self.places = [(member.offset_data, member.size) for member in members]
        if not self.names:
            raise ValueError(f"thinkback: no image in {path}; it is read for {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W)."""
        try:
            image = Image.open(io.BytesIO(self._content(i))).convert("RGB")
        except OSError as error:
            raise ValueError(f"thinkback: {self.path} holds a broken image, {self.names[i]}: {error}") from error
        if self.side is not None:
            scale = self.side / min(image.size)
            width, height = (max(self.side, round(length * scale)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - self.side) // 2, (height - self.side) // 2
            image = image.crop((left, top, left + self.side, top + self.side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _content(self, i: int) -> bytes:
        if not self.places:
            return (self.path / self.names[i]).read_bytes()
        offset, size = self.places[i]
        with self.path.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)


class ImageArray(Dataset[Tensor]):
    """The array ``images``, uint8 (N, H, W, 3), of an ``.npz``; one file at a time is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            if "images.npy" not in archive.namelist():
                raise ValueError(f"thinkback: {path} holds {', '.join(archive.namelist())}, no array named images")
            with archive.open("images.npy") as member:
                np.lib.format.read_magic(member)
                self.shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3:
            raise ValueError(f"thinkback: images of {path} must be uint8 (N, H, W, 3), got {dtype} {self.shape}")

    def __len__(self) -> int:
        """Number of images."""
        return int(self.shape[0])

    def __getitem__(self, i: int) -> Tensor:
        """Image i, uint8 (3, H, W)."""
        return torch.from_numpy(_images(self.path)[i]).permute(2, 0, 1)


@lru_cache(maxsize=1)
def _images(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as file:
        return file["images"]


def open_sources(paths: Iterable[str | Path], side: int | None = None) -> Dataset[Tensor]:
    """Folders of images, ``.tar`` archives of images and ``.npz`` arrays, one after the other, as a map-style data set.

    Raises:
        FileNotFoundError: naming the path that is not there.
        ValueError: on another kind of file, or one without images.
    """
    parts: list[Dataset[Tensor]] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"thinkback: no source {path}; give folders, .tar archives or .npz files of images")
        if not path.is_dir() and path.suffix not in (".tar", ".npz"):
            raise ValueError(f"thinkback: {path} is no source; give folders, .tar archives or .npz files of images")
        parts.append(ImageArray(path) if path.suffix == ".npz" else ImageFiles(path, side))
    return ConcatDataset(parts)


def place() -> tuple[int, int]:
    """Rank and number of processes, as ``torchrun`` sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def blocks(total: int, rank: int, world: int, size: int = BLOCK) -> Iterator[tuple[int, range]]:
    """Number and samples of each block that process ``rank`` of ``world`` takes.

    >>> list(blocks(10, rank=1, world=2, size=4)), list(blocks(10, rank=0, world=2, size=4))
    ([(1, range(4, 8))], [(0, range(0, 4)), (2, range(8, 10))])
    """
    for number in range(rank, math.ceil(total / size), world):
        yield number, range(number * size, min((number + 1) * size, total))


def loader(dataset: Dataset[Any], indices: Sequence[int], batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Batches of those samples, in that order."""
    return DataLoader(Subset(dataset, indices), batch_size, num_workers=workers)


def load_model(name: str) -> nn.Module:
    """A classifier by name: a file that ``WideResNet.save`` wrote, or ``package.module:function`` that returns one."""
    if name.endswith(".safetensors"):
        return WideResNet.load(name)
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"thinkback: model {name!r} is neither a .safetensors file nor package.module:function")
    model = getattr(importlib.import_module(module), function)()
    if not isinstance(model, nn.Module):
        raise ValueError(f"thinkback: {name} returned {type(model).__name__}, not a torch.nn.Module")
    return model.eval()


def start(folder: Path, job: dict[str, Any]) -> None:
    """Write what makes the scores in ``folder`` what they are; where it is written already, it must be the same.

    Raises:
        ValueError: naming what differs.
    """
    path = folder / MANIFEST
    if path.exists():
        held = read_json(path)
        differing = [f"{key} {held.get(key)!r} != {value!r}" for key, value in job.items() if held.get(key) != value]
        if differing:
            raise ValueError(f"thinkback: {folder} holds scores of another job ({'; '.join(differing)}); name another")
    else:
        write_json(path, job)


def block_file(folder: Path, number: int) -> Path:
    """Where the scores of a block lie."""
    return folder / f"block-{number:06d}.npz"


def write_block(folder: Path, number: int, arrays: dict[str, Tensor]) -> None:
    """All of a block's arrays, each (n,), or none of them."""
    save_arrays(block_file(folder, number), {name: array.numpy() for name, array in arrays.items()})


def read_blocks(folder: str | Path) -> dict[str, Tensor]:
    """The arrays of all blocks, each (N,), in the order of the samples.

    Raises:
        FileNotFoundError: if blocks are missing, with their numbers.
    """
    folder = Path(folder)
    job = read_json(folder / MANIFEST)
    files = [block_file(folder, number) for number, _ in blocks(job["samples"], 0, 1, job["block"])]
    if missing := [file.name for file in files if not file.exists()]:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FileNotFoundError(f"thinkback: {folder} lacks {listed}; run the same command again, it goes on there")
    parts = [dict(np.load(file, allow_pickle=False)) for file in files]
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
