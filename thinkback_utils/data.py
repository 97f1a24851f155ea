"""Image sets as uint8 arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, H, W), labels int64 (N,) or None, class names, and the name it was loaded by."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"

    def __len__(self) -> int:
        return len(self.images)


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the cached sets: ``root``, else $THINKBACK_DATA, else ~/.cache/thinkback."""
    return Path(root or os.environ.get("THINKBACK_DATA") or "~/.cache/thinkback").expanduser()


def load(name: str, split: str = "test", root: str | Path | None = None) -> ImageSet:
    """Load a set from the data root."""
    folder = data_root(root)
    path = next((p for p in (folder / f"{name}-{split}.npz", folder / f"{name}.npz") if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"thinkback: no set {name!r} ({split}) in {folder}")
    with np.load(path, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        classes = tuple(str(c) for c in arrays["classes"]) if "classes" in arrays else ()
    return ImageSet(images, labels, classes, name)
