"""Penultimate features and logits of any classifier, and the bundle that stores them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batches import Forward, Images, Pixels, device_of
from .files import read_arrays, replacing
from .passes import Precision, stream


@dataclass(frozen=True)
class Features:
    """Features float32 (N, D), logits float32 (N, K), labels int64 (N,) or None.

    What the last layer reads, and what the model returns. Of a model that classifies each token or
    pixel, h is (N, ..., D) and z (N, ..., K).
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def accuracy(self) -> float:
        """Fraction of samples whose largest logit is their label."""
        if self.labels is None:
            raise ValueError("thinkback: the accuracy needs labels, and the set has none")
        return float((self.logits.argmax(1) == self.labels).double().mean())

    def half(self) -> Features:
        """The same with features rounded to float16, as a bundle stores them."""
        return Features(self.features.half().float(), self.logits, self.labels)


def extract(
    model: nn.Module,
    images: Images,
    head: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    forward: Forward | None = None,
    precision: Precision = "auto",
) -> Features:
    """Run ``model`` once over ``images``; return what its last layer reads and what it returns.

    The model is put in evaluation mode for the pass and given back as it was. On a CPU it gets
    images channels last.

    Args:
        model: any classifier that ends in a linear layer, or one that :mod:`heads` can find.
        images: arrays, data sets or batches, as :mod:`batches` says: uint8 (N, 3, H, W), a
            ``DataLoader``, ...
        head: name of that layer in ``model.named_modules()``, or names of several that are
            averaged; found when None.
        batch_size: where images are not in batches yet; None: what was fastest, 64 on a CPU and 256
            elsewhere.
        device: where the pass runs; the model's own when None.
        mean, std: of each channel of pixels in [0, 1], as the model was trained on; see
            :class:`batches.Pixels`.
        forward: ``forward(model, batch)``, where the model is not called as ``model(x)``.
        precision: ``"auto"`` computes all but the last layer in bfloat16 where that is expected to
            be faster; ``"float32"`` gives the same on every machine. Features that are compared
            need one precision. See :func:`passes.settled`.

    Returns:
        Features on the CPU, float32.

    Raises:
        ValueError: if there is no image, no such head, or not exactly one candidate (the message
            lists them).

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> extract(net, torch.zeros(7, 3, 2, 2, dtype=torch.uint8)).features.shape
    torch.Size([7, 5])
    """
    before, pixels = device_of(model), Pixels(mean, std)  # type: ignore[arg-type]
    try:
        model.to(device or before)
        passes = [
            (item.features.float().cpu(), item.logits.float().cpu(), item.labels)
            for item in stream(model, images, head, batch_size, pixels, forward, precision)
        ]
    finally:
        model.to(before)
    if not passes:
        raise ValueError("thinkback: there is nothing to extract, images is empty")
    features, logits, labels = zip(*passes, strict=True)
    known = None if any(y is None for y in labels) else torch.cat(labels).cpu()
    return Features(torch.cat(features), torch.cat(logits), known)


@dataclass(frozen=True)
class Bundle:
    """Everything the scores need of a network: features by set, and the last layer (K, D), (K,)."""

    sets: dict[str, Features]
    weight: Tensor
    bias: Tensor

    def save(self, path: str | Path) -> None:
        """Write all arrays as one ``.npz``, features as float16.

        They are ``<set>.features``, ``<set>.logits``, ``<set>.labels`` and ``head.*``. The members
        are LZMA-compressed, a third smaller than ``np.savez_compressed``; ``np.load`` reads both.
        """
        arrays = {"head.weight": self.weight.numpy(), "head.bias": self.bias.numpy()}
        for name, item in self.sets.items():
            arrays[f"{name}.features"] = item.features.half().numpy()
            arrays[f"{name}.logits"] = item.logits.float().numpy()
            if item.labels is not None:
                arrays[f"{name}.labels"] = item.labels.numpy().astype(np.int16)
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle; no pickle is involved.

        Raises:
            FileNotFoundError: naming the file and the command that makes it.
            ValueError: if the file is damaged, or no bundle; it names it.
        """
        if not Path(path).exists():
            raise FileNotFoundError(
                f"thinkback: no feature bundle at {path}; fetch the repository's results/ folder, "
                "or make one with `python -m experiments.reproduce`"
            )
        remedy = (
            "fetch the repository's results/ folder again, or run `python -m experiments.reproduce`"
        )
        arrays = {name: torch.from_numpy(a) for name, a in read_arrays(path, remedy).items()}
        names = [name.removesuffix(".logits") for name in arrays if name.endswith(".logits")]
        lacks = {"head.weight", "head.bias", *(f"{name}.features" for name in names)} - set(arrays)
        if lacks:
            raise ValueError(
                f"thinkback: {path} is no feature bundle, it lacks {', '.join(sorted(lacks))};"
                f" {remedy}"
            )
        sets = {}
        for name in names:
            labels = arrays.get(f"{name}.labels")
            known = None if labels is None else labels.long()
            h, z = arrays[f"{name}.features"].float(), arrays[f"{name}.logits"]
            sets[name] = Features(h, z, known)
        return cls(sets, arrays["head.weight"], arrays["head.bias"])


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` with LZMA members atomically; equal arrays make equal bytes.

    Matrices are laid out by columns: neighbours are then values of one feature, which saves another
    7 %.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: equal arrays make equal files
            info.compress_type = zipfile.ZIP_LZMA
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asfortranarray(array), allow_pickle=False)
