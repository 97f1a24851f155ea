"""Networks that other people trained and published, and what the authors printed about them.

    python -m experiments.published --published FOLDER [--results results]

holds the whole chain, from weights to a table, against numbers that nobody here made: three
networks for MNIST of Outlier Exposure (Hendrycks, Mazeika & Dietterich 2019) and what the files
``MNIST/snapshots/*_test.txt`` of its repository print. The folder, or $THINKBACK_PUBLISHED, holds
the weights as safetensors and ``mnist-test.npz``; the repository carries neither.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from thinkback_utils import data, metrics, scores
from thinkback_utils.commands import Parser, run_main
from thinkback_utils.features import extract
from thinkback_utils.files import read_arrays, sha256, write_json
from thinkback_utils.models import read_tensors

from .provenance import describe

DRAWS, SIZE = 10, 2000  # of OOD images, as the authors drew
HALF = 0.005  # half a unit of the last printed digit
KINDS = ("fpr95", "auroc", "aupr")
DENSENET = "densenet-bc100-cifar10"
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of the DenseNet

Spread = tuple[float, float]  # mean and standard deviation over draws, in percent


class Printed(NamedTuple):
    """What the authors' program printed for one network, in percent."""

    error: float
    sets: Mapping[str, tuple[Spread, Spread, Spread]]  # in the order of KINDS


NOTHING: tuple[Spread, Spread, Spread] = ((0.0, 0.0), (100.0, 0.0), (100.0, 0.0))
MNIST: dict[str, Printed] = {
    "oe-mnist-baseline": Printed(
        0.94,
        {
            "Gaussian noise": ((0.21, 0.03), (99.96, 0.00), (99.81, 0.01)),
            "Bernoulli noise": ((1.04, 0.08), (99.81, 0.01), (99.01, 0.05)),
            "CIFAR-10 in grey": ((0.86, 0.06), (99.87, 0.01), (99.34, 0.04)),
            "Negative MNIST": ((5.20, 0.19), (98.55, 0.04), (91.91, 0.16)),
        },
    ),
    "oe-mnist-oe_tune": Printed(
        0.92,
        {
            "Gaussian noise": NOTHING,
            "Bernoulli noise": NOTHING,
            "CIFAR-10 in grey": NOTHING,
            "Negative MNIST": ((0.68, 0.04), (99.90, 0.01), (99.50, 0.03)),
        },
    ),
    "oe-mnist-oe_scratch": Printed(
        1.03,
        {
            "Gaussian noise": NOTHING,
            "Bernoulli noise": NOTHING,
            "CIFAR-10 in grey": NOTHING,
            "Negative MNIST": ((0.18, 0.05), (99.95, 0.00), (99.76, 0.02)),
        },
    ),
}


class ConvNet(nn.Module):
    """The authors' network for MNIST: images (N, 1, 28, 28) in [0, 1] to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = _gelu(F.max_pool2d(self.conv1(x), 2))
        x = _gelu(F.max_pool2d(self.conv2(x), 2))
        logits: Tensor = self.fc2(_gelu(self.fc1(x.flatten(1))))
        return logits


def _gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


class _Grow(nn.Module):
    """One layer of a dense block: its output is joined to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, new], 1)


class _Dense(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(_Grow(channels + i * growth, growth) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """All layers."""
        grown: Tensor = self.layer(x)
        return grown


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the channels, half the side."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-BC of depth 100 and growth 12 (Huang et al. 2017), for normalised 32x32 images.

    Source of the weights: DICE (Sun & Li 2022), whose tables for CIFAR-10 are about this network.
    """

    def __init__(self, growth: int = 12, layers: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1 = _Dense(channels, growth, layers)
        channels += layers * growth
        self.trans1, channels = _Transition(channels), channels // 2
        self.block2 = _Dense(channels, growth, layers)
        channels += layers * growth
        self.trans2, channels = _Transition(channels), channels // 2
        self.block3 = _Dense(channels, growth, layers)
        channels += layers * growth
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, 32, 32)."""
        x = self.trans2(self.block2(self.trans1(self.block1(self.conv1(x)))))
        logits: Tensor = self.fc(F.relu(self.bn1(self.block3(x))).mean((2, 3)))
        return logits


def folder(given: str | Path | None = None) -> Path:
    """Where the published weights lie: ``given``, else $THINKBACK_PUBLISHED.

    Raises:
        FileNotFoundError: if neither says so.
    """
    named = given or os.environ.get("THINKBACK_PUBLISHED")
    if not named:
        raise FileNotFoundError(
            "thinkback: published networks are not part of this repository; name the folder that"
            " holds their weights by --published or $THINKBACK_PUBLISHED"
        )
    return Path(named).expanduser()


def load(name: str, given: str | Path | None = None) -> nn.Module:
    """A published network with its authors' weights, in evaluation mode.

    Args:
        name: ``densenet-bc100-cifar10``, or a key of ``MNIST``.
        given: as in :func:`folder`.
    """
    path = folder(given) / f"{name}.safetensors"
    model = DenseNet() if name == DENSENET else ConvNet()
    tensors, _ = read_tensors(path, "fetch it again")
    model.load_state_dict(tensors)
    return model.eval()


def outliers(digits: NDArray[np.uint8], photos: NDArray[np.uint8]) -> Iterator[tuple[str, Tensor]]:
    """The authors' sets that can be made here: name, and images (N, 1, 28, 28) in [0, 1].

    Args:
        digits: MNIST's test split, (N, 28, 28).
        photos: CIFAR-10's test split, (N, 32, 32, 3).
    """
    random, shape = np.random.default_rng(0), (DRAWS * SIZE, 1, 28, 28)
    noise = random.normal(0.5, 0.5, shape).clip(0, 1)
    yield "Gaussian noise", torch.from_numpy(noise).float()
    yield "Bernoulli noise", torch.from_numpy(random.integers(2, size=shape)).float()
    small = [Image.fromarray(x).resize((28, 28), Image.Resampling.BILINEAR) for x in photos]
    grey = np.stack([np.asarray(x.convert("L")) for x in small])
    yield "CIFAR-10 in grey", torch.from_numpy(grey)[:, None].float() / 255
    yield "Negative MNIST", 1 - torch.from_numpy(digits)[:, None].float() / 255


def measure(given: str | Path | None = None, names: Iterable[str] = tuple(MNIST)) -> pd.DataFrame:
    """Every number of these networks of ``MNIST``, printed and measured by this package.

    Returns:
        A row for each network, set and metric: ``printed`` and ``spread`` over the authors' draws,
        ``measured`` and ``own_spread`` over ours, in percent. ``meets``: the difference is at most
        the printed spread, each printed number taken as half a unit of its last digit either way.
        The authors' FPR95 is that of the threshold whose recall is nearest to 95 %.
    """
    place = folder(given)
    arrays = read_arrays(place / "mnist-test.npz", "fetch it again", ("images", "labels"))
    digits = torch.from_numpy(arrays["images"])[:, None].float() / 255
    photos = data.load("cifar10").images.permute(0, 2, 3, 1).numpy()
    sets = dict(outliers(arrays["images"], photos))
    rows: list[dict[str, Any]] = []
    for name in names:
        model, printed = load(name, place), MNIST[name]
        own = extract(model, digits, precision="float32")
        inside = scores.msp(own.logits)
        wrong = own.logits.argmax(1).numpy() != arrays["labels"]
        row: dict[str, Any] = {"network": name, "set": "MNIST", "metric": "error"}
        rows.append(row | {"printed": printed.error, "measured": 100 * wrong.mean()})
        for title, images in sets.items():
            outside = scores.msp(extract(model, images, precision="float32").logits)
            drawn = list(_draws(inside.numpy(), outside.numpy()))
            for kind, (mean, spread) in zip(KINDS, printed.sets[title], strict=True):
                values = 100 * np.array([values[kind] for values in drawn])
                row = {"network": name, "set": title, "metric": kind, "printed": mean}
                row |= {"spread": spread, "measured": values.mean(), "own_spread": values.std()}
                rows.append(row)
    frame = pd.DataFrame(rows)
    apart = (frame["measured"] - frame["printed"]).abs()
    halves = np.where(frame["spread"].isna(), 1, 2)  # the spread is a printed number too
    frame["meets"] = apart <= frame["spread"].fillna(0) + halves * HALF
    return frame


def _draws(inside: NDArray[Any], outside: NDArray[Any]) -> Iterator[dict[str, float]]:
    for drawn in metrics.draws(outside, SIZE, DRAWS, seed=0):
        curve = metrics.roc(inside, drawn)
        values = metrics.summary(curve, SIZE / (SIZE + len(inside)))
        yield values | {"fpr95": metrics.fpr_at_tpr(curve, rule="nearest")}


def main(arguments: list[str] | None = None) -> None:
    """Hold the chain against the printed numbers, and keep both as ``published.json``."""
    parser = Parser(prog="python -m experiments.published", description=main.__doc__)
    parser.add_argument("--published", type=Path, help="folder of the published weights")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    start, record = time.perf_counter(), describe()
    frame = measure(options.published)
    place = folder(options.published)
    files = [*(place / f"{name}.safetensors" for name in MNIST), place / "mnist-test.npz"]
    record["sha256"] = {path.name: sha256(path) for path in files}
    record["seconds"] = round(time.perf_counter() - start, 1)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    write_json(options.results / "published.json", {"provenance": record, "records": rows})
    print(frame.to_string(index=False))


if __name__ == "__main__":
    sys.exit(run_main(main))
