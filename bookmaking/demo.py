"""The live demo: a detector for the reader's browser, and the pictures that it is tried on."""

from __future__ import annotations

import gzip
import sys
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.provenance import describe, label
from experiments.run import Run, program_parser
from thinkback_utils import data
from thinkback_utils.calibration import conformal_threshold
from thinkback_utils.commands import run_main
from thinkback_utils.detector import OODDetector
from thinkback_utils.features import extract
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.methods import METHODS

from . import palette
from .gallery_page import CLASSES, parts
from .markup import fill
from .tables import percent

N_CALIBRATION = 5000  # test images, the first; the pictures are of the others
ALPHA = 0.05
ALPHAS = tuple(i / 200 for i in range(1, 41))  # places of the slider
FIRST = {ID_TEST: N_CALIBRATION, "svhn": 0, "cifar100": 0}  # index of the first picture of each set
KINDS = {  # of pictures in plain words: the name of the row, and what one of its pictures shows
    ID_TEST: ("Kinds that it knows", "{a} {name}"),
    "svhn": ("House numbers", "a house number with the {name}"),
    "cifar100": ("Other animals and things", "{a} {name}"),
}
COUNT = 6  # pictures of each, in the sets' own order: nobody chose them
BINS = 40
SITE = "book/extra/demo"  # served as demo/
RUNTIME = "book/vendor/onnxruntime/ort-wasm-simd.wasm.gz"


def detector(results: Path) -> OODDetector:
    """The committed network with the default score, fitted and calibrated on its bundle."""
    here = Run.at(results)
    model, sets = here.model("cpu"), here.bundle().sets
    # To the last layer alone, features are the images. What is exported computes in float32.
    said = OODDetector(model.fc, "", precision="float32")
    said.fit(sets[ID_TRAIN].features).calibrate(sets[ID_TEST].features[:N_CALIBRATION], ALPHA)
    said.model, said.head = model, "fc"
    return said


def save_pictures(results: Path) -> None:
    """Write ``demo/pictures.png``, one row of tiles of the image sets, and what they are."""
    tiles, pictures = [], []
    for name, first in FIRST.items():
        known = name.removesuffix("-test")
        images = data.load(known, "test")
        for index in range(first, first + COUNT):
            what = "" if images.labels is None else CLASSES[name][int(images.labels[index])]
            tiles.append(images.images[index].permute(1, 2, 0).numpy())
            place = {"set": name, "index": index}
            pictures.append(place | {"title": data.TITLES[known], "class": what})
    with replacing(results / "demo" / "pictures.png") as temporary:
        Image.fromarray(np.concatenate(tiles, 1)).save(temporary, "PNG", optimize=True)
    write_json(results / "demo" / "pictures.json", {**describe(), "pictures": pictures})


def load_pictures(results: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images uint8 (N, 3, 32, 32), and of each its set and index, and the names of both."""
    with Image.open(results / "demo" / "pictures.png") as sprite:
        tiles = torch.from_numpy(np.array(sprite.convert("RGB"))).permute(2, 0, 1)
    pictures = read_json(results / "demo" / "pictures.json")["pictures"]
    return torch.stack(tiles.split(tiles.shape[1], 2)), pictures


def assets(folder: Path, root: Path = Path()) -> None:
    """Add to a staged book the model that runs, and the parts that demo.md includes.

    Args:
        folder: of the staged sources; it gets ``book/extra/demo/model.onnx.gz`` and
            ``results/demo.md``.
        root: of the repository, whose ``results/`` hold the network, its bundle and the pictures.
    """
    results = root / "results"
    said, (images, pictures) = detector(results), load_pictures(results)
    with tempfile.TemporaryDirectory() as scratch:
        said.export(Path(scratch, "model.onnx"), images[:1] / 255)
        packed = gzip.compress(Path(scratch, "model.onnx").read_bytes(), 9, mtime=0)
    with replacing(folder / SITE / "model.onnx.gz") as temporary:
        temporary.write_bytes(packed)
    for picture, tile, expected in zip(pictures, images, _answers(said, images), strict=True):
        picture |= {"png": _png(tile), **expected}
    size = len(packed) + (root / RUNTIME).stat().st_size
    texts = {"facts": _facts(said, results), "widget": _widget(said, pictures, size)}
    with replacing(folder / "results" / "demo.md") as temporary:
        temporary.write_text(parts(texts), encoding="utf-8")


def _answers(said: OODDetector, images: Tensor) -> list[dict[str, Any]]:
    """What PyTorch says about each image."""
    seen = extract(said.model, images, precision="float32")  # type: ignore[arg-type]
    probabilities = seen.logits.double().softmax(1)
    rows = zip(probabilities, said.score(images), said.p_value(images), strict=True)
    return [
        {"probabilities": p.tolist(), "score": float(score), "p": float(value)}
        for p, score, value in rows
    ]


def _facts(said: OODDetector, results: Path) -> str:
    given = {name: value for name, value in said.options.items() if value is not None}
    options = ", ".join(f"{name} = {value:g}" for name, value in given.items())
    score = METHODS[said.method].title + (f" ({options})" if options else "")
    network = label(Run.at(results).folder)
    return (
        f"The classifier is {network}. The score is {score}, fitted on all training"
        f" images. Its p-values compare with the scores of the first {N_CALIBRATION:,} test images"
        f" of CIFAR-10. The pictures of CIFAR-10 that can be chosen are the next {COUNT} test"
        f" images, those of other sets the first {COUNT} in the book's copy: no picture was chosen"
        " for what a score says about it."
    )


def _widget(said: OODDetector, pictures: list[dict[str, Any]], size: int) -> str:
    """The demo without JavaScript, a table, and the numbers that demo.js makes more of.

    ``size`` is that of what the button loads, in bytes.
    """
    scores = said.calibration.scores  # type: ignore[union-attr]
    facts = {
        "classes": CLASSES[ID_TEST],
        "bytes": size,
        "count": len(scores),
        "alphas": ALPHAS,
        "thresholds": [conformal_threshold(scores, alpha) for alpha in ALPHAS],
        "start": ALPHAS.index(ALPHA),
        "histogram": _histogram(scores.numpy(), [picture["score"] for picture in pictures]),
        "title": METHODS[said.method].title,
        "pictures": [
            {
                "kind": KINDS[picture["set"]][0],
                "set": picture["title"],
                "shows": _shows(picture),
                "class": picture["class"] if picture["set"] == ID_TEST else None,
                "score": picture["score"],
            }
            for picture in pictures
        ],
    }
    colors = ((name, palette.both(palette.PALETTE[name])) for name in ("ink", "id", "ood"))
    style = "; ".join(f"--tb-{name}: {color}" for name, color in colors)
    rows = [_row(picture) for picture in pictures]
    return fill("demo", facts=facts, pictures=rows, style=style, alpha=percent(ALPHA, 0))


def _shows(picture: Mapping[str, Any]) -> str:
    """What a picture shows, as a sentence goes on: "a ship".

    >>> _shows({"set": "cifar10-test", "class": "airplane"})
    'an airplane'
    """
    name = picture["class"]
    return KINDS[picture["set"]][1].format(a="an" if name[0] in "aeiou" else "a", name=name)


def _row(picture: Mapping[str, Any]) -> dict[str, Any]:
    best = int(np.argmax(picture["probabilities"]))
    answer = f"{CLASSES[ID_TEST][best]} ({percent(picture['probabilities'][best], 0)})"
    verdict = "alarm" if picture["p"] <= ALPHA else "no alarm"
    cells = (answer, verdict, f"{picture['p']:.4f}")
    return {"png": picture["png"], "name": _shows(picture), "cells": cells}


def _histogram(scores: np.ndarray, shown: list[float]) -> dict[str, Any]:
    """Counts of the calibration scores, the lowest in the first bin; logarithmic if all are > 0."""
    logarithmic = bool(scores.min() > 0)
    values, others = scores, np.asarray(shown)
    if logarithmic:
        values, others = (np.log10(np.maximum(x, 1e-300)) for x in (values, others))
    low = float(np.quantile(values, 0.005))
    high = float(max(values.max(), others.max()))
    counts, _ = np.histogram(values.clip(low), BINS, (low, high))
    return {"log": logarithmic, "range": [low, high], "counts": counts.tolist()}


def _png(tile: Tensor) -> str:
    file = BytesIO()
    Image.fromarray(tile.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return b64encode(file.getvalue()).decode()


def main(arguments: list[str] | None = None) -> None:
    """Take the pictures of the demo from the image sets; the build of the book makes the rest."""
    parser = program_parser("bookmaking.demo", main.__doc__, "results")
    save_pictures(parser.parse_args(arguments).results)


if __name__ == "__main__":
    sys.exit(run_main(main))
