"""One forward pass, kept: penultimate features and logits of any classifier, and the bundle that stores them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .files import replacing
from .passes import Images, batches, evaluating, fastest_batch, linears_of, outputs_of, prepared, run, seeing


@dataclass(frozen=True)
class Features:
    """What the last linear layer sees and says: h float32 (N, D), z float32 (N, K), labels int64 (N,) or None."""

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


@torch.no_grad()  # not inference_mode: its tensors could not enter anyone's graph later
def extract(
    model: nn.Module,
    images: Images,
    head: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
) -> Features:
    """Run ``model`` once over ``images`` and keep the input and output of its last linear layer.

    The model is put in evaluation mode for the pass and given back as it was. On a CPU it gets images channels last.

    Args:
        model: any classifier whose logits come out of an ``nn.Linear``.
        images: uint8 (N, 3, H, W), passed on as float in [0, 1]; or an ``ImageSet``; or an iterable of batches, each
            a float or uint8 tensor (B, ...) or a pair (tensor, labels). Float batches are passed on as they are.
        head: name of that layer in ``model.named_modules()``; found when None, by :func:`find_head`.
        batch_size: used where ``images`` is one array; None: what was fastest, 64 on a CPU and 256 elsewhere.
        device: where the pass runs; the model's own when None.

    Returns:
        Features on the CPU, float32.

    Raises:
        ValueError: if there is no image, no such head, or not exactly one candidate (the message lists them).

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> extract(net, torch.zeros(7, 3, 2, 2, dtype=torch.uint8)).features.shape
    torch.Size([7, 5])
    """
    linears = linears_of(model)
    if head is not None and head not in linears:
        raise ValueError(f"thinkback: no nn.Linear named {head!r} in the model; there are {_listed(linears)}")
    home = next(model.parameters(), torch.empty(0)).device
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    try:
        with evaluating(model.to(device or home)):
            for batch, y in batches(images, batch_size or fastest_batch(device or home)):
                x = prepared(batch, model)
                head = find_head(model, x[:2]) if head is None else head
                with seeing({head: linears[head]}) as seen:
                    run(model, x)
                kept.append((*_head_pass(seen, head, len(x)), y))
    finally:
        model.to(home)
    if not kept:
        raise ValueError("thinkback: there is nothing to extract, images is empty")
    h, z = (torch.cat([batch[i] for batch in kept]) for i in (0, 1))  # type: ignore[misc]
    labels = [batch[2] for batch in kept]
    return Features(h, z, None if any(y is None for y in labels) else torch.cat(labels))  # type: ignore[arg-type]


@torch.no_grad()
def find_head(model: nn.Module, x: Tensor) -> str:
    """Name of the last linear layer: the one ``nn.Linear`` whose output the model returns, for these images.

    Args:
        model: any classifier, which runs once and is given back as it was.
        x: a few images as :func:`extract` takes them, float or uint8 (N, ...).

    Raises:
        ValueError: if not exactly one layer fits; the message lists the candidates.

    >>> find_head(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 4))
    '2'
    """
    linears = linears_of(model)
    with evaluating(model), seeing(linears) as seen:
        returned = list(outputs_of(run(model, prepared(x, model))))
    found = [n for n, (_, z) in seen.items() if any(z.shape == o.shape and torch.equal(z, o) for o in returned)]
    if len(found) != 1:
        what = "is returned by the model" if not found else "is the only one returned by the model"
        raise ValueError(
            f"thinkback: no nn.Linear {what}; name the head among {_listed({n: linears[n] for n in found} or linears)}"
        )
    return found[0]


def _head_pass(seen: dict[str, tuple[Tensor, Tensor]], head: str, size: int) -> tuple[Tensor, Tensor]:
    if head not in seen:
        raise ValueError(f"thinkback: the model did not run its layer {head!r}; name another head")
    h, z = seen[head]
    if h.ndim != 2 or len(h) != size:
        raise ValueError(
            f"thinkback: the head {head!r} reads {tuple(h.shape)}, expected one row for each of {size} images"
        )
    return h.float().cpu(), z.float().cpu()


def _listed(linears: Mapping[str, nn.Linear]) -> str:
    names = [f"{name!r} ({layer.in_features} -> {layer.out_features})" for name, layer in linears.items()]
    return ", ".join(names) or "none: the model has no nn.Linear"


@dataclass(frozen=True)
class Bundle:
    """Everything the scores need of a trained network: features of every set, and the last layer (K, D), (K,)."""

    sets: dict[str, Features]
    weight: Tensor
    bias: Tensor

    def save(self, path: str | Path) -> None:
        """Write ``<set>.features`` (float16), ``<set>.logits``, ``<set>.labels`` and ``head.*`` as an ``.npz``.

        The members are LZMA-compressed, a third smaller than ``np.savez_compressed``; ``np.load`` reads both.
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
        """
        if not Path(path).exists():
            raise FileNotFoundError(
                f"thinkback: no feature bundle at {path}; fetch the repository's results/ folder, "
                "or make one with `python -m thinkback_utils.reproduce`"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        names = [name.removesuffix(".logits") for name in arrays if name.endswith(".logits")]
        sets = {}
        for name in names:
            labels = arrays.get(f"{name}.labels")
            features = arrays[f"{name}.features"].float()
            sets[name] = Features(features, arrays[f"{name}.logits"], None if labels is None else labels.long())
        return cls(sets, arrays["head.weight"], arrays["head.bias"])


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An ``.npz`` with LZMA members, written atomically and byte for byte the same from the same arrays.

    Matrices are laid out by columns: neighbours are then values of one feature, which saves another 7 %.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal arrays make equal files
            info.compress_type = zipfile.ZIP_LZMA
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asfortranarray(array), allow_pickle=False)
