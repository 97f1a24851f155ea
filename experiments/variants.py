"""The trained network under other conditions: augmented training images, and bfloat16."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from thinkback_utils.commands import run_main
from thinkback_utils.data import ImageSet
from thinkback_utils.devices import process_device
from thinkback_utils.features import Features, extract
from thinkback_utils.files import read_json, write_json
from thinkback_utils.models import WideResNet

from .evaluation import ID_TEST, ID_TRAIN, NEAR, Scores, evenly, score_sets
from .run import Run, program_parser
from .training import TrainConfig, augmented_batches

AUGMENTED = f"{ID_TRAIN}-augmented"  # set of variants.npz; the others are "<set>@bfloat16"


def variants(
    model: WideResNet,
    train: ImageSet,
    sets: Mapping[str, ImageSet],
    augmented: int = 10_000,
    bfloat16: int = 300,
    seed: int = 0,
) -> dict[str, Features]:
    """Features of augmented training images, and of a few images of each set in bfloat16.

    Args:
        model: the network; its device is used.
        train: labelled training images, of which ``augmented``, spread evenly, are cropped and
            flipped at random as in training and then run in evaluation mode.
        sets: images by name, of which ``bfloat16`` each, spread evenly, run in bfloat16 but for the
            last layer. The same rows of the bundle (see :func:`evaluation.evenly`) are their
            float32 counterparts.
        seed: of crops and flips.

    Returns: ``cifar10-train-augmented`` (in the order in which that epoch would show them) and
        ``<set>@bfloat16``.
    """
    changed = augment(_few(train, augmented), seed)
    out = {AUGMENTED: extract(model, changed, precision="float32")}
    for name, images in sets.items():
        few = _few(images, bfloat16)
        out[f"{name}@bfloat16"] = extract(model, few, batch_size=250, precision="bfloat16")
    return out


def _few(images: ImageSet, count: int) -> ImageSet:
    rows = evenly(len(images), count)
    labels = None if images.labels is None else images.labels[rows]
    return ImageSet(images.images[rows], labels, name=images.name)


def augment(
    images: ImageSet, seed: int = 0, batch_size: int = 250
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the reference recipe's batches: shuffled, and at random cropped and mirrored.

    Yields:
        Images in [0, 1], float (B, 3, H, W), and labels (B,).
    """
    if images.labels is None:
        raise ValueError(
            f"thinkback: augmentation goes through training batches, and {images.name!r} has no"
            " labels"
        )
    config = TrainConfig(seed=seed, batch_size=batch_size)
    return augmented_batches(images.images, images.labels, config, epoch=0)


def bfloat16_scores(folder: Path, methods: Iterable[str]) -> tuple[Scores, Scores]:
    """Scores of the same images in float32 and in bfloat16, fitted on the former.

    Args:
        folder: with ``bundle.npz`` and ``variants.npz``.
        methods: keys of ``methods.METHODS``.

    Returns:
        Twice set -> method -> (N,), exact and low.
    """
    whole, made = Run(folder).bundle().sets, Run(folder).bundle("variants.npz").sets
    exact, low = {}, {}
    for key, item in made.items():
        name, _, kind = key.partition("@")
        if kind == "bfloat16":
            rows = evenly(len(whole[name]), len(item))
            exact[name] = Features(whole[name].features[rows], whole[name].logits[rows])
            low[name] = item
    train, chosen = {ID_TRAIN: whole[ID_TRAIN]}, tuple(methods)
    return score_sets(train | exact, chosen), score_sets(train | low, chosen)


def run(
    folder: Path,
    augmented: int = 10_000,
    bfloat16: int = 300,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Write ``variants.npz`` and ``variants.json`` beside the weights that lie in ``folder``.

    Files that hold the same of these weights already stay as they are.
    """
    start, here, chosen = time.perf_counter(), Run(folder), process_device(device)
    names = [n for n in here.stated()["images_sha256"] if n not in (ID_TRAIN, ID_TEST, *NEAR)]
    record = here.describe(chosen, [ID_TRAIN, ID_TEST, *names]) | {"sets": names}
    record |= {"seed": seed, "augmented": augmented, "bfloat16": bfloat16}
    path = folder / "variants.json"
    asked = ("weights_sha256", "images_sha256", "sets", "seed", "augmented", "bfloat16")
    if path.exists():
        old = read_json(path)
        if all(old.get(key) == record[key] for key in asked):
            return
    sets = here.images(record["images_sha256"])
    model, train = here.model(chosen), sets.pop(ID_TRAIN)
    made = variants(model, train, sets, augmented, bfloat16, seed)
    here.save_bundle(made, model, "variants.npz")
    sizes = {name: len(item) for name, item in made.items()}
    seconds = round(time.perf_counter() - start, 1)
    write_json(path, record | {"sizes": sizes, "seconds": seconds})


def main(arguments: list[str] | None = None) -> None:
    """Run a finished network on augmented images and in bfloat16; keep the features.

    The seed names the training run, and is also that of crops and flips.
    """
    parser = program_parser("experiments.variants", main.__doc__)
    parser.add_argument(
        "--augmented", type=int, default=10_000, help="training images that are augmented"
    )
    parser.add_argument(
        "--bfloat16", type=int, default=300, help="images of each set that run in bfloat16"
    )
    options = parser.parse_args(arguments)
    folder = Run.at(options.results, options.network, options.seed).folder
    run(folder, options.augmented, options.bfloat16, options.seed, options.device)
    print(f"wrote {folder / 'variants.npz'}")


if __name__ == "__main__":
    sys.exit(run_main(main))
