"""The trained network under other conditions: augmented training images, and a backbone that
computes in bfloat16.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkback_utils.commands import Parser, run_main
from thinkback_utils.data import ImageSet
from thinkback_utils.evaluation import (
    ID_TEST,
    ID_TRAIN,
    NEAR,
    Scores,
    evenly,
    load_verified,
    score_sets,
)
from thinkback_utils.features import Bundle, Features, extract
from thinkback_utils.files import read_json, write_json
from thinkback_utils.models import WideResNet
from thinkback_utils.provenance import describe, digest
from thinkback_utils.train import TrainConfig, augmented_batches, pick_device

AUGMENTED = f"{ID_TRAIN}-augmented"  # set of variants.npz; the others are "<set>@bfloat16"


def variants(
    model: WideResNet,
    train: ImageSet,
    sets: Mapping[str, ImageSet],
    augmented: int = 10_000,
    bfloat16: int = 300,
    seed: int = 0,
) -> dict[str, Features]:
    """Features of augmented training images, and of a few images of each set through a bfloat16
    backbone.

    Args:
        model: the network; its device is used.
        train: labelled training images, of which ``augmented``, spread evenly, are cropped and
            flipped at random as in training and then run in evaluation mode.
        sets: images by name, of which ``bfloat16`` each, spread evenly, run under autocast; the
            last layer stays in float32. The same rows of the bundle (see :func:`evaluation.evenly`)
            are their float32 counterparts.
        seed: of crops and flips.

    Returns: ``cifar10-train-augmented`` (in the order in which that epoch would show them) and
        ``<set>@bfloat16``.
    """
    rows = evenly(len(train), augmented)
    chosen = ImageSet(
        train.images[rows], None if train.labels is None else train.labels[rows], name=train.name
    )
    out = {AUGMENTED: extract(model, augment(chosen, seed))}
    for name, images in sets.items():
        rows = evenly(len(images), bfloat16)
        labels = None if images.labels is None else images.labels[rows]
        out[f"{name}@bfloat16"] = in_bfloat16(
            model, ImageSet(images.images[rows], labels, name=name)
        )
    return out


def augment(
    images: ImageSet, seed: int = 0, batch_size: int = 250
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the reference recipe's batches: shuffled, cropped after padding by 4 pixels,
    mirrored at random.

    Yields:
        Images in [0, 1], float (B, 3, H, W), and labels (B,).
    """
    if images.labels is None:
        raise ValueError(
            f"thinkback: augmentation goes through training batches, and {images.name!r} has no"
            " labels"
        )
    return augmented_batches(
        images.images, images.labels, TrainConfig(seed=seed, batch_size=batch_size), epoch=0
    )


def in_bfloat16(model: WideResNet, images: ImageSet, batch_size: int = 250) -> Features:
    """Features of a backbone that convolves in bfloat16 (autocast), and the float32 head's logits
    of them.
    """
    head = model.get_classifier()
    with torch.autocast(head.weight.device.type, torch.bfloat16):
        half = extract(model, images, batch_size=batch_size)
    logits = F.linear(half.features, head.weight.detach().cpu(), head.bias.detach().cpu())
    return Features(half.features, logits, images.labels)


def bfloat16_scores(folder: Path, methods: Iterable[str]) -> tuple[Scores, Scores]:
    """Scores of the same images through the float32 backbone and through the bfloat16 one, fitted
    on the former.

    Args:
        folder: with ``bundle.npz`` and ``variants.npz``.
        methods: keys of ``methods.METHODS``.

    Returns:
        Twice set -> method -> (N,), exact and low.
    """
    bundle, made = Bundle.load(folder / "bundle.npz"), Bundle.load(folder / "variants.npz")
    low = {
        name.removesuffix("@bfloat16"): item
        for name, item in made.sets.items()
        if name.endswith("@bfloat16")
    }
    exact = {}
    for name, item in low.items():
        rows, whole = evenly(len(bundle.sets[name]), len(item)), bundle.sets[name]
        exact[name] = Features(whole.features[rows], whole.logits[rows])
    train, chosen = {ID_TRAIN: bundle.sets[ID_TRAIN]}, tuple(methods)
    return score_sets(train | exact, chosen), score_sets(train | low, chosen)


def run(
    folder: Path,
    augmented: int = 10_000,
    bfloat16: int = 300,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Write ``variants.npz`` and ``variants.json`` beside the weights and the bundle that lie in
    ``folder``.

    Files that hold the same of these weights already stay as they are.
    """
    start, chosen = time.perf_counter(), pick_device(device)
    names = [
        name
        for name in Bundle.load(folder / "bundle.npz").sets
        if name not in (ID_TRAIN, ID_TEST, *NEAR)
    ]
    known = read_json(folder / "provenance.json")["images_sha256"]
    asked: dict[str, Any] = {"weights_sha256": digest(folder), "sets": names}
    asked["images_sha256"] = {name: known[name] for name in (ID_TRAIN, ID_TEST, *names)}
    asked |= {"seed": seed, "augmented": augmented, "bfloat16": bfloat16}
    record = folder / "variants.json"
    if record.exists() and asked.items() <= read_json(record).items():
        return
    sets = load_verified(asked["images_sha256"])
    train = sets.pop(ID_TRAIN)
    model = WideResNet.load(folder / "weights.safetensors").to(chosen)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = variants(model, train, sets, augmented, bfloat16, seed)
    head = model.get_classifier()
    Bundle(made, head.weight.detach().cpu(), head.bias.detach().cpu()).save(folder / "variants.npz")
    sizes = {name: len(item) for name, item in made.items()}
    seconds = round(time.perf_counter() - start, 1)
    write_json(record, describe(chosen) | asked | {"sizes": sizes, "seconds": seconds})


def main(arguments: list[str] | None = None) -> None:
    """Run a finished network on augmented training images and in bfloat16, and keep the features
    beside its bundle.
    """
    parser = Parser(prog="python -m experiments.variants", description=main.__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the finished runs"
    )
    parser.add_argument(
        "--network", default="wrn40-2-cifar10", help="folder of the network inside it"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which training run; also the seed of crops and flips"
    )
    parser.add_argument(
        "--augmented", type=int, default=10_000, help="training images that are augmented"
    )
    parser.add_argument(
        "--bfloat16", type=int, default=300, help="images of each set that run in bfloat16"
    )
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU when there is one")
    options = parser.parse_args(arguments)
    folder = options.results / options.network / f"seed{options.seed}"
    run(folder, options.augmented, options.bfloat16, options.seed, options.device)
    print(f"wrote {folder / 'variants.npz'}")


if __name__ == "__main__":
    sys.exit(run_main(main))
