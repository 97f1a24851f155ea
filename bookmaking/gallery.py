"""Where the scores fail: the numbers of the page on limits, its gallery, and images to browse.

This module picks and counts; :mod:`bookmaking.gallery_page` puts into figures and words what it
found.

Images of three sets may be shown, as few small pictures: CIFAR-10, CIFAR-100 and SVHN. Of all
others only numbers are.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments import plots
from experiments.evaluation import ID_TEST, ID_TRAIN, NEAR, Scores, evenly, score_sets
from experiments.provenance import describe
from experiments.run import Run, program_parser
from thinkback_utils import scores
from thinkback_utils.calibration import Calibration
from thinkback_utils.commands import run_main
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.methods import TITLES
from thinkback_utils.metrics import mean_auroc

from . import gallery_page
from .gallery_page import CLASSES, Facts

METHODS = ("msp", "energy", "thinkback", "thinkback_kronecker", "thinkback_averaged")
BROWSED = ("msp", "energy", "thinkback", "thinkback_averaged")  # the scores of the example browser
SHOWN = {"svhn": 6, "cifar100": 6}  # misses of each method with a picture
COUNT = 12  # false alarms of each method; lowest OOD images of each
EXAMPLES = {ID_TEST: 96, "svhn": 48, "cifar100": 48}
MOST_IMAGES = 300  # pictures in all
ALPHA = 0.05  # false alarms at the threshold that tells missed from caught
SURE = 0.99  # a confidence
FEWEST = 20  # images in a group that is described
LOUDNESS = tuple(2.0 ** (k / 2) for k in range(-4, 9))

Vector = NDArray[np.float64]
Statistics = Mapping[str, Mapping[str, Vector]]  # set -> statistic -> (N,)


def percentiles(id_scores: NDArray[Any], values: NDArray[Any]) -> Vector:
    """How many of 100 in-distribution test scores lie below each value.

    For an image from elsewhere ``1 - percentile / 100`` is the conformal p-value, but for one image
    in n + 1.

    >>> percentiles(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.5, 4.0]))
    array([ 0., 50., 75.])
    """
    return 100 * np.searchsorted(np.sort(id_scores), values) / len(id_scores)


def alarms(scored: Scores, name: str, method: str) -> NDArray[np.bool_]:
    """Which images of a set raise an alarm, bool (N,), where ``ALPHA`` of the test images do."""
    return Calibration.of(scored[ID_TEST][method], ALPHA).rejects(scored[name][method])


def outliers(scored: Scores, near: bool = True) -> list[str]:
    """Names of the OOD sets, those near the training set included or not."""
    return [name for name in scored if name != ID_TEST and (near or name not in NEAR)]


def described(bundle: Bundle, scored: Scores, method: str, name: str, index: int) -> Facts:
    """Set and index in ``data.load(set)``, the network's answer, the percentile of the score.

    Under ``true`` the true class, if it has a name.
    """
    item = bundle.sets[name]
    known = name in CLASSES and item.labels is not None
    true = CLASSES[name][int(item.labels[index])] if known else None  # type: ignore[index]
    answer = CLASSES[ID_TEST][int(item.logits[index].argmax())]
    place = percentiles(scored[ID_TEST][method], scored[name][method][[index]])[0]
    facts = {"set": name, "index": index, "predicted": answer, "true": true}
    return facts | {"percentile": _short(place)}


def extremes(bundle: Bundle, scored: Scores, method: str) -> Facts:
    """The images that one score gets most wrong; among equals those that come first.

    Returns:
        Lists of what :func:`described` says. ``lowest``: the ``COUNT`` lowest of all OOD images;
        ``pictured``: the lowest of each set in ``SHOWN``; ``alarms``: the ``COUNT`` highest of the
        test images.
    """

    def first(name: str, count: int, sign: int = 1) -> list[Facts]:
        rows = np.argsort(sign * scored[name][method], kind="stable")[:count].tolist()
        return [described(bundle, scored, method, name, row) for row in rows]

    candidates = [row for name in outliers(scored) for row in first(name, COUNT)]
    candidates.sort(key=lambda row: float(scored[row["set"]][method][row["index"]]))
    return {
        "lowest": candidates[:COUNT],
        "pictured": {name: first(name, count) for name, count in SHOWN.items()},
        "alarms": first(ID_TEST, COUNT, -1),
    }


def examples(
    bundle: Bundle, scored: Scores, counts: Mapping[str, int], seed: int = 0
) -> list[Facts]:
    """Images to browse, spread evenly over the range of each score in ``BROWSED``.

    Each score gets an equal part of a set's count: it ranks the images that are not drawn yet, cuts
    the list into as many pieces of equal length, and one image is drawn from each.

    Returns:
        What :func:`described` says, without the one percentile but with ``norm2``, ``residual2`` (T
        = 5), ``residual2_T1`` and, by method, ``scores``, ``percentiles`` and ``alarms``; in the
        order of sets and indices.
    """
    generator, out = np.random.default_rng(seed), []
    for name, count in counts.items():
        item, drawn = bundle.sets[name], np.zeros(len(bundle.sets[name]), dtype=bool)
        raised = {method: alarms(scored, name, method) for method in BROWSED}
        for method in BROWSED:
            ranked = np.argsort(scored[name][method], kind="stable")
            pieces = np.array_split(ranked[~drawn[ranked]], count // len(BROWSED))
            drawn[[generator.choice(piece) for piece in pieces]] = True
        seen, sharp = network_statistics(item), scores.residual(item.logits, 1.0).square().sum(1)
        for index in np.flatnonzero(drawn).tolist():
            facts = described(bundle, scored, BROWSED[0], name, index)
            del facts["percentile"]
            facts |= {key: _short(seen[key][index]) for key in ("norm2", "residual2")}
            facts["residual2_T1"] = _short(sharp[index])
            own = {m: scored[name][m][index] for m in BROWSED}
            facts["scores"] = {m: _short(value) for m, value in own.items()}
            facts["percentiles"] = {
                m: _short(percentiles(scored[ID_TEST][m], own[m])) for m in BROWSED
            }
            facts["alarms"] = {m: bool(raised[m][index]) for m in BROWSED}
            out.append(facts)
    return out


def network_statistics(item: Features) -> dict[str, Vector]:
    """What a score may read of each image: ``‖h‖²``, ``‖r‖²`` at T = 5, and the confidence."""
    return {
        "norm2": item.features.double().square().sum(1).numpy(),
        "residual2": scores.residual(item.logits, 5.0).square().sum(1).numpy(),
        "confidence": -scores.msp(item.logits).numpy(),
    }


def pixel_statistics(images: Tensor) -> dict[str, Vector]:
    """What an eye sees of each image, uint8 (N, 3, H, W), as gray levels in [0, 1].

    ``brightness`` is their mean, ``contrast`` their standard deviation, ``edges`` the root mean
    square difference of neighbors, ``detail`` the share of the spectrum's power above 1/4 cycle a
    pixel (0 for a flat image), and ``size`` the bytes of the colored pixels after zlib.
    """
    gray = images.double().mean(1) / 255  # (N, H, W)
    down, right = (gray.diff(dim=axis).square().mean((1, 2)) for axis in (1, 2))
    power = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(side) for side in gray.shape[1:])
    fine = power[:, (rows[:, None].square() + columns.square()).sqrt() > 0.25].sum(1)
    return {
        "brightness": gray.mean((1, 2)).numpy(),
        "contrast": gray.std((1, 2), correction=0).numpy(),
        "edges": ((down + right) / 2).sqrt().numpy(),
        "detail": (fine / power.sum((1, 2)).clamp_min(1e-12)).numpy(),
        "size": np.array(
            [len(zlib.compress(image.numpy().tobytes(), 9)) for image in images], dtype=np.float64
        ),
    }


def shared(bundle: Bundle, scored: Scores, statistics: Statistics, method: str) -> Facts:
    """What images on the wrong side of the threshold share, against the others of their set.

    Wrong is no alarm for an OOD image and an alarm for a test image.

    Returns:
        For each set, unless a side has fewer than ``FEWEST`` images: AUROC and half-width of its 95
        % interval for each statistic (0.5: no difference; 1: each image on the wrong side has more
        of it); under ``answer`` the network's answer that is most overrepresented on the wrong
        side, with its share there and on the right side; for test images under ``errors`` the share
        of wrong answers on both sides.
    """
    out: Facts = {}
    for name, columns in statistics.items():
        wrong = alarms(scored, name, method) == (name == ID_TEST)
        if min(wrong.sum(), (~wrong).sum()) < FEWEST:
            continue
        out[name] = {
            key: [_short(v) for v in mean_auroc(x[~wrong], [x[wrong]])]
            for key, x in columns.items()
        }
        item, classes = bundle.sets[name], len(CLASSES[ID_TEST])
        answers = item.logits.argmax(1).numpy()
        sides = (wrong, ~wrong)
        here, there = (np.bincount(answers[s], minlength=classes) / s.sum() for s in sides)
        top = int((here - there).argmax())
        out[name]["answer"] = [CLASSES[ID_TEST][top], _short(here[top]), _short(there[top])]
        if name == ID_TEST and item.labels is not None:
            errors = answers != item.labels.numpy()
            out[name]["errors"] = [_short(errors[side].mean()) for side in sides]
    return out


def louder(bundle: Bundle, names: Iterable[str], count: int = 200) -> dict[str, Features]:
    """Images of each set with features multiplied by each of ``LOUDNESS``, and their logits."""
    out: dict[str, Features] = {}
    for name in names:
        h = bundle.sets[name].features[evenly(len(bundle.sets[name]), count)]
        out |= {
            f"{name}*{c:g}": Features(c * h, c * h @ bundle.weight.T + bundle.bias)
            for c in LOUDNESS
        }
    return out


def confident(bundle: Bundle, scored: Scores) -> Facts:
    """How many images a set has, how many the network is ``SURE`` of, how many of these alarm."""
    out: Facts = {}
    for name in scored:
        sure = network_statistics(bundle.sets[name])["confidence"] >= SURE
        out[name] = {"images": len(sure), "sure": int(sure.sum())}
        out[name] |= {method: int(alarms(scored, name, method)[sure].sum()) for method in METHODS}
    return out


def lengths(bundle: Bundle, scored: Scores) -> Facts:
    """AUROC of each OOD set for the scores ``‖h‖²``, ``‖r‖²``, their product (Eq. 5), and Eq. 6."""
    columns: Scores = {}
    for name in scored:
        seen = network_statistics(bundle.sets[name])
        h, r = seen["norm2"], seen["residual2"]
        columns[name] = {"norm2": h, "residual2": r, "product": h * r}
        columns[name]["thinkback"] = scored[name]["thinkback"]
    far = outliers(scored)
    return {name: {key: _auroc(columns, name, key) for key in columns[name]} for name in far}


def rates(bundle: Bundle, scored: Scores, loud: Scores, method: str) -> Facts:
    """What one method does at the threshold.

    Returns: ``auroc`` and ``caught``, the share of alarms, of each OOD set; ``classes`` and
        ``near``, the share of alarms in each class of the test images and of CIFAR-100; ``louder``,
        the share of alarms at each of ``LOUDNESS``, in the mean over the far sets.
    """
    raised = {name: alarms(scored, name, method) for name in scored}
    at = {name: alarms({**loud, ID_TEST: scored[ID_TEST]}, name, method).mean() for name in loud}
    far = outliers(scored, near=False)

    def by_class(name: str) -> list[float]:
        labels = np.asarray(bundle.sets[name].labels)
        return [_short(raised[name][labels == c].mean()) for c in range(len(CLASSES[name]))]

    return {
        "auroc": {name: _auroc(scored, name, method) for name in outliers(scored)},
        "caught": {name: _short(raised[name].mean()) for name in outliers(scored)},
        "classes": by_class(ID_TEST),
        "near": by_class(NEAR[0]),
        "louder": [_short(np.mean([at[f"{name}*{c:g}"] for name in far])) for c in LOUDNESS],
    }


def gather(bundle: Bundle) -> tuple[Facts, Facts, Scores]:
    """What a bundle alone says of both JSON files, all but :func:`shared`; and the scores."""
    far = [name for name in bundle.sets if name not in (ID_TRAIN, ID_TEST, *NEAR)]
    extra = louder(bundle, far)
    scored = score_sets({**bundle.sets, **extra}, METHODS)
    loud = {name: scored.pop(name) for name in extra}
    facts: Facts = {"alpha": ALPHA, "sure": SURE, "loudness": [_short(c) for c in LOUDNESS]}
    facts |= {"confident": confident(bundle, scored), "lengths": lengths(bundle, scored)}
    facts["methods"] = {
        m: rates(bundle, scored, loud, m) | extremes(bundle, scored, m) for m in METHODS
    }
    browsed = {
        "alpha": ALPHA,
        "methods": {m: TITLES[m] for m in BROWSED},
        "images": examples(bundle, scored, EXAMPLES),
    }
    return facts, browsed, scored


def number(facts: Facts, browsed: Facts) -> list[tuple[str, int]]:
    """Give each picture its ``tile``, a place in the sprite; returns set and index of each tile.

    Raises:
        ValueError: if there are more than ``MOST_IMAGES``, or one of a set that may not be shown.
    """
    rows = [*browsed["images"]]
    for own in facts["methods"].values():
        rows += [*own["alarms"], *(row for part in own["pictured"].values() for row in part)]
    tiles = sorted({(row["set"], row["index"]) for row in rows})
    if len(tiles) > MOST_IMAGES or {name for name, _ in tiles} - set(CLASSES):
        names = ", ".join(sorted({name for name, _ in tiles}))
        raise ValueError(
            f"thinkback: {len(tiles)} pictures from {names}: at most {MOST_IMAGES} from"
            f" {', '.join(CLASSES)} may be kept; lower gallery.EXAMPLES or gallery.SHOWN"
        )
    for row in rows:
        row["tile"] = tiles.index((row["set"], row["index"]))
    return tiles


def _auroc(columns: Scores, name: str, key: str) -> float:
    return _short(mean_auroc(columns[ID_TEST][key], [columns[name][key]])[0])


def _short(value: Any) -> float:
    """To six digits: files stay small and do not depend on the last bit."""
    return float(f"{float(value):.6g}")


def run(here: Run) -> Path:
    """Write ``gallery/``, ``gallery.md`` and ``examples.md`` of one run; returns the folder.

    Raises:
        ValueError: if an image set is not the one that the bundle was made of.
    """
    provenance, record, bundle = describe(), here.record, here.bundle()
    out = here.results / "gallery"
    facts, browsed, scored = gather(bundle)
    sets = here.images(scored)
    images, statistics = {}, {}
    for name in scored:
        images[name] = sets[name].images
        statistics[name] = network_statistics(bundle.sets[name]) | pixel_statistics(images[name])
    for method, own in facts["methods"].items():
        own["shared"] = shared(bundle, scored, statistics, method)
    rows = read_json(here.results / "table1.json")
    facts["runs"] = sorted({row["seed"] for row in rows if row["network"] == here.network})
    accuracy = record["accuracy"][ID_TEST]
    facts["network"] = {"recipe": record["recipe"], "seed": here.seed, "accuracy": accuracy}
    tiles = number(facts, browsed)
    browsed |= {"network": facts["network"], "columns": gallery_page.COLUMNS}
    save(out, facts, browsed, gallery_page.sprite(tiles, images))
    provenance |= {"weights_sha256": here.digest(), "pictures": len(tiles)}
    write_json(out / "provenance.json", provenance)
    texts = {"gallery": gallery_page.limits(facts), "examples": gallery_page.browser(browsed)}
    for name, text in texts.items():
        with replacing(here.results / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return out


def save(folder: Path, facts: Facts, browsed: Facts, pictures: Image.Image) -> None:
    """The files of ``results/gallery/`` but its provenance."""
    write_json(folder / "limits.json", facts)
    write_json(folder / "examples.json", browsed)
    with replacing(folder / "sprite.png") as temporary:
        pictures.save(temporary, "PNG", optimize=True)
    plots.use_style()
    figures = {
        "shared": gallery_page.plot_shared(facts),
        "louder": gallery_page.plot_louder(facts),
        "examples": gallery_page.plot_examples(browsed),
    }
    for name, figure in figures.items():
        with replacing(folder / f"{name}.svg") as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Write what the page on limits and the example browser show: numbers, pictures, figures."""
    parser = program_parser("bookmaking.gallery", main.__doc__, "results", "network", "seed")
    print(f"wrote {run(Run.at(**vars(parser.parse_args(arguments))))}")


if __name__ == "__main__":
    sys.exit(run_main(main))
