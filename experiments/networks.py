"""The networks that the tables are about, and the pass of each over every image.

    python -m experiments.networks [--only NAME ...] [--published FOLDER] [--work FOLDER]

A network is a folder of ``results/`` or the weights of other people. One pass over an image gives
what the last layer reads, the logits, and the gradients of the readings C, D and E, so that all
scores of a network are of the same images. What is too large to be committed stays in the work
folder, in pieces, and a command that was killed goes on after the last whole piece.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from thinkback_utils.arrays import doubled
from thinkback_utils.batches import batches
from thinkback_utils.commands import run_main
from thinkback_utils.data import ImageSet
from thinkback_utils.devices import process_device
from thinkback_utils.features import Features, save_arrays
from thinkback_utils.files import read_arrays, read_json, sha256, write_json
from thinkback_utils.gradients import find_layers, gradients, score
from thinkback_utils.heads import hooked

from . import published
from .evaluation import ID_TEST, ID_TRAIN, Scores, available_sets, evenly, image_set, score_sets
from .provenance import describe
from .run import Run, program_parser

LAYERS = ("C", "D", "E")  # the readings below the last layer
FORMS = ("eq5", "eq6", "eq6damped")
PIECE = 2_000  # images of one file


class Normalized(nn.Module):
    """A network for normalised images as one for pixels in [0, 1].

    Args:
        network: reads (N, 3, H, W), of each channel (pixel - mean) / std.
        mean, std: of the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([*mean])[:, None, None])
        self.register_buffer("std", torch.tensor([*std])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W) in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Network:
    """One trained classifier of CIFAR-10.

    Args:
        name: by which tables tell it from the others.
        title: for people.
        folder: where its results lie, within ``results/``.
        published: the weights are those of other people, and lie elsewhere.
        held_out: every so-many-th training image was kept from it; 0 if none was.
    """

    name: str
    title: str
    folder: str
    published: bool = False
    held_out: int = 0

    def run(self, results: str | Path) -> Run:
        """Its folder."""
        return Run(Path(results) / self.folder)

    def weights(self, results: str | Path, given: str | Path | None = None) -> Path:
        """The file of its weights; ``given`` as in ``published.folder``."""
        if self.published:
            return published.folder(given) / f"{self.name}.safetensors"
        return self.run(results).weights

    def model(
        self, results: str | Path, device: torch.device, given: str | Path | None = None
    ) -> nn.Module:
        """The network in evaluation mode; it reads pixels in [0, 1]."""
        if not self.published:
            return self.run(results).model(device)
        means = published.CIFAR10_MEAN, published.CIFAR10_STD
        return Normalized(published.load(self.name, given), *means).eval().to(device)

    def rows(self, name: str, total: int, count: int) -> Tensor:
        """Which images of a set are used: ``count``, spread evenly over those that may be.

        Of the training set only what the network was trained on may be.
        """
        every, known = torch.arange(total), torch.ones(total, dtype=torch.bool)
        if name == ID_TRAIN and self.held_out:
            known = every % self.held_out != 0
        return every[known][evenly(int(known.sum()), count)]

    def images(self, name: str, count: int) -> ImageSet:
        """These images of a set, with their labels if it has any."""
        found = image_set(name)
        rows = self.rows(name, len(found.images), count)
        labels = None if found.labels is None else found.labels[rows]
        return ImageSet(found.images[rows], labels, name=found.name)


NETWORKS = {
    network.name: network
    for network in (
        Network("wrn40-2", "WRN-40-2", "wrn40-2-cifar10/seed0"),
        Network("wrn16-2", "WRN-16-2", "development/wrn16-2-all", held_out=10),
        Network(published.DENSENET, "DenseNet", f"{published.DENSENET}/seed0", published=True),
    )
}


@dataclass(frozen=True)
class Rules:
    """What decides the scores of the readings; kept beside them."""

    temperature: float = 5.0  # the paper's
    eps: float = 1e-16  # the paper's floor under E
    damping: float = 1e-3  # of the damped form: its floor, times mean(E)
    n_fit: int = 10_000  # training images for E and for whatever else a score fits
    n_id: int = 5_000  # CIFAR-10 test images
    n_ood: int = 2_000  # images of each OOD set
    batch_size: int = 16

    def size(self, name: str) -> int:
        """How many images of the set of that name are used."""
        return {ID_TRAIN: self.n_fit, ID_TEST: self.n_id}.get(name, self.n_ood)


@dataclass
class Pass:
    """A network's way over sets of images, kept in pieces.

    Args:
        model: reads pixels in [0, 1].
        work: folder of the pieces.
        rules: of the scores.
        stamp: what the pieces were made from; pieces of anything else are thrown away.
    """

    model: nn.Module
    work: Path
    rules: Rules
    stamp: Mapping[str, Any]
    layers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path, own = self.work / "stamp.json", dict(self.stamp) | {"rules": asdict(self.rules)}
        if path.exists() and read_json(path) != own:
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(path, own)

    def over(self, name: str, images: ImageSet, make: Callable[..., dict[str, Any]]) -> list[Path]:
        """The pieces of one set, those that are not there yet made by ``make(stream)``."""
        paths = []
        for start in range(0, len(images.images), PIECE):
            rows = slice(start, start + PIECE)
            path = self.work / f"{name}.{start // PIECE:02d}.npz"
            if not path.exists():
                arrays = make(self.stream(images.images[rows], path.stem))
                if images.labels is not None:
                    arrays["labels"] = images.labels[rows].numpy()
                save_arrays(path, arrays)
            paths.append(path)
        return paths

    def stream(self, images: Tensor, title: str) -> Iterator[tuple[Tensor, Tensor, dict]]:
        """Features (B, D), logits (B, K), and squared gradients (B, P) by reading."""
        device = next(self.model.parameters()).device
        if not self.layers:
            self.layers = find_layers(self.model, images[:2].to(device) / 255)
        head, calls = {"head": self.model.get_submodule(self.layers["C"])}, []

        def keep(_: str, layer: nn.Module) -> Any:
            return layer.register_forward_hook(lambda *call: calls.append((call[1][0], call[2])))

        rest = (LAYERS, self.layers, self.rules.temperature)
        with tqdm(total=len(images), desc=title, unit=" images", mininterval=5) as bar:
            for batch in batches(images, self.model, self.rules.batch_size):
                (x,) = batch.args
                with hooked(head, keep):
                    found = gradients(self.model, x, *rest)
                h, z = (values.detach().float().cpu() for values in calls.pop())
                yield h, z, {r: doubled(g).square() for r, g in found.items()}
                bar.update(len(h))

    def fit(self, images: ImageSet) -> dict[str, Tensor]:
        """Pass over the training images; E of each reading, float64 (P,)."""

        def make(stream: Iterable[Any]) -> dict[str, Any]:
            parts, sums = [], dict.fromkeys(LAYERS, torch.zeros(()))
            for h, z, squares in stream:
                parts.append((h, z))
                sums = {r: sums[r] + squares[r].sum(0).cpu() for r in sums}
            return _joined(parts) | {f"{r}.sum": total.numpy() for r, total in sums.items()}

        pieces = self.over(ID_TRAIN, images, make)
        kept = [read_arrays(path, "delete it") for path in pieces]
        size = len(images.images)
        return {
            r: torch.from_numpy(sum(piece[f"{r}.sum"] for piece in kept)) / size
            for r in LAYERS
        }

    def scores(self, name: str, images: ImageSet, expected: Mapping[str, Tensor]) -> None:
        """Pass over other images, and score each reading in each form."""

        def make(stream: Iterable[Any]) -> dict[str, Any]:
            parts: list[tuple[Tensor, Tensor]] = []
            found: dict[str, list[Tensor]] = {}
            for h, z, squares in stream:
                parts.append((h, z))
                for key, values in self.forms(squares, expected).items():
                    found.setdefault(key, []).append(values.cpu())
            return _joined(parts) | {key: torch.cat(v).numpy() for key, v in found.items()}

        self.over(name, images, make)

    def forms(
        self, squares: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scores by ``<reading>_<form>``, float64 (B,)."""
        eps, out = self.rules.eps, {}
        for reading, mean in expected.items():
            own, E = squares[reading], mean.to(squares[reading].device)
            out[f"{reading}_eq5"] = score(own)
            out[f"{reading}_eq6"] = score(own, E, eps)
            out[f"{reading}_eq6damped"] = score(own, E, eps, self.rules.damping)
        return out


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> dict[str, NDArray[Any]]:
    h, z = zip(*parts, strict=True)
    return {"features": torch.cat(h).numpy(), "logits": torch.cat(z).numpy()}


def extract(
    network: Network,
    results: Path,
    work: Path,
    sets: Iterable[str],
    given: Path | None = None,
    device: str | None = None,
    rules: Rules = Rules(),
) -> Path:
    """The whole pass of one network; returns the folder of its pieces."""
    names = [ID_TRAIN, ID_TEST, *sets]
    stamp = {
        "weights_sha256": sha256(network.weights(results, given)),
        "images_sha256": {name: image_set(name).sha256() for name in names},
    }
    model = network.model(results, process_device(device), given)
    way = Pass(model, work / network.name, rules, stamp)
    expected = way.fit(network.images(ID_TRAIN, rules.n_fit))
    for name in names[1:]:
        way.scores(name, network.images(name, rules.size(name)), expected)
    return way.work
