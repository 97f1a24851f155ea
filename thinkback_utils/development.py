"""Where settings are chosen: small networks and outliers that have nothing in common with the test suite.

Two WRN-16-2 stand for the WRN-40-2 of the table. Each is trained on nine tenths of CIFAR-10's training split; the last
tenth, which it never fits, is in-distribution here. Outliers are the validation outliers of :mod:`outliers`, made from
images the network was trained on, and for the second network the three classes that it was never shown.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from . import data
from .data import ImageSet
from .outliers import held_out_classes
from .train import RECIPES, TrainConfig, train_network

# The first cycle of the recipe of the table's network.
RECIPE = RECIPES["cpu"].override(depth=16, epochs=15, restarts=(), resolutions=RECIPES["cpu"].resolutions)
HELD_OUT_EVERY = 10  # each tenth training image is kept from the network


@dataclass(frozen=True)
class DevelopmentNetwork:
    """One network of the set-up: its recipe, and the classes that it never sees."""

    hidden: tuple[int, ...] = ()
    config: TrainConfig = RECIPE


NETWORKS = {
    "wrn16-2-all": DevelopmentNetwork(),
    "wrn16-2-seven": DevelopmentNetwork(hidden=(7, 8, 9)),  # horse, ship and truck: the last three
}


@dataclass(frozen=True)
class Split:
    """Images of CIFAR-10's training split: to train on, never trained on, and of hidden classes (or None)."""

    fitted: ImageSet
    held_out: ImageSet
    hidden: ImageSet | None


def split(train: ImageSet, hidden: tuple[int, ...] = ()) -> Split:
    """Every tenth image is held out; images of hidden classes are in neither part."""
    known, unknown = held_out_classes(train, hidden) if hidden else (train, None)
    aside = torch.arange(len(known.images)) % HELD_OUT_EVERY == 0
    name = f"nine tenths of {train.name}" + (f" without classes {', '.join(map(str, hidden))}" if hidden else "")
    return Split(_rows(known, ~aside, name), _rows(known, aside, f"the other tenth of {train.name}"), unknown)


def _rows(images: ImageSet, rows: torch.Tensor, name: str) -> ImageSet:
    if images.labels is None:
        raise ValueError(f"thinkback: a development network needs labels, and the set {images.name!r} has none")
    return dataclasses.replace(images, images=images.images[rows], labels=images.labels[rows], name=name)


def main(arguments: list[str] | None = None) -> None:
    """Train the development networks."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.development", description=main.__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that is filled")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU when there is one")
    options = parser.parse_args(arguments)
    for name in options.networks:
        network, folder = NETWORKS[name], options.results / "development" / name
        parts = split(data.load("cifar10", "train"), network.hidden)
        train_network(network.config, parts.fitted, folder, options.device)


if __name__ == "__main__":
    main()
