"""Where settings are chosen: small networks, and outliers that are none of the test suite.

Two WRN-16-2 stand for the networks of the tables. Each is trained on nine tenths of CIFAR-10's
training split; the last tenth, which it never fits, is in-distribution here. Far outliers are the
validation outliers of :mod:`outliers`, made from images that the network was trained on. Near ones
are images of the three classes that the second network was never shown.

The choice was made twice. In a first round the near half counted for a sixth of the figure (rule 1
says what that is) and the family was smaller; its result, ``choice.json``, is the default of the
package. The second result is ``second_choice.json``.

The rule, fixed before any candidate of this grid was scored:

1. The far half of a candidate's figure is its AUROC, averaged within each group of made outliers
   (noise, changed images), then over the two groups, then over the networks. The near half is its
   AUROC on hidden classes, averaged over the networks that have some. The figure is the mean of the
   halves.
2. Of the candidates less than ``MARGIN`` below the best figure, the one that keeps the fewest
   numbers is the choice; among those, the one with the best figure.
3. Where scores are compared after tuning (:mod:`tuning`), each score with a free setting has the
   same number of candidates, and the one with the best figure represents it.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinkback_utils import data
from thinkback_utils.commands import run_main
from thinkback_utils.data import ImageSet
from thinkback_utils.devices import process_device
from thinkback_utils.features import Features, extract
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.methods import METHODS

from .evaluation import ID_TEST, NEAR, evenly, some
from .family import DAMPINGS, Candidate, Statistics, candidates
from .outliers import CHANGES, NOISES, held_out_classes, validation_outliers
from .provenance import describe
from .run import Run, program_parser
from .training import RECIPES, TrainConfig, train_network

RECIPE = RECIPES["cpu-wrn16"]
HELD_OUT_EVERY = 10  # each tenth training image is kept from the network
FIT_COUNT = 5000  # images that scores are fitted on, and
HELD_COUNT = 1500  # held-out ones, spread evenly over those there are: for time's sake
COUNT = 200  # outliers of each kind that is made
HIDDEN_COUNT = 1500  # images of hidden classes
MARGIN = 0.001  # of AUROC: less than the figures can tell apart
HALVES = ("far", "near")
FIRST, SECOND = "choice.json", "second_choice.json"
FITTED = "fitted"
HELD_OUT = "held_out"
HIDDEN = "hidden"
GROUPS = {
    "noise": [make.__name__ for make in NOISES],
    "changed": [make.__name__ for make in CHANGES],
}


class Figure(NamedTuple):
    """What the rule compares: AUROC of both halves, and their mean."""

    far: float
    near: float
    figure: float


@dataclass(frozen=True)
class DevelopmentNetwork:
    """One network of the set-up: the classes that it never sees, and its recipe."""

    hidden: tuple[int, ...] = ()
    config: TrainConfig = RECIPE


NETWORKS = {
    "wrn16-2-all": DevelopmentNetwork(),
    "wrn16-2-seven": DevelopmentNetwork(hidden=(7, 8, 9)),  # horse, ship and truck: the last three
}


@dataclass(frozen=True)
class Split:
    """Images of CIFAR-10's training split: to train on, never trained on, of hidden classes."""

    fitted: ImageSet
    held_out: ImageSet
    hidden: ImageSet | None


def split(train: ImageSet, hidden: tuple[int, ...] = ()) -> Split:
    """Every tenth image is held out; images of hidden classes are in neither part."""
    known, unknown = held_out_classes(train, hidden) if hidden else (train, None)
    aside = torch.arange(len(known.images)) % HELD_OUT_EVERY == 0
    name = f"nine tenths of {train.name}"
    if hidden:
        name += f" without classes {', '.join(map(str, hidden))}"
    held_out = _rows(known, aside, f"the other tenth of {train.name}")
    return Split(_rows(known, ~aside, name), held_out, unknown)


def features(
    folder: Path, network: DevelopmentNetwork, device: str | None = None
) -> dict[str, Features]:
    """Train the network (or read it); run it once over fit data, held-out data and outliers."""
    here = Run(folder)
    if kept := here.kept()[1]:
        return kept
    parts = split(data.load("cifar10", "train"), network.hidden)
    train_network(network.config, parts.fitted, folder, device)
    model = here.model(device)
    sets = {FITTED: some(parts.fitted, FIT_COUNT), HELD_OUT: some(parts.held_out, HELD_COUNT)}
    if parts.hidden is not None:
        sets[HIDDEN] = some(parts.hidden, HIDDEN_COUNT)
    few = parts.fitted.images[evenly(len(parts.fitted), COUNT)]
    sets |= validation_outliers(few, network.config.seed)
    seen = {name: extract(model, images, precision="float32") for name, images in sets.items()}
    here.save_bundle(seen, model)
    return seen


def measure(
    sets: Mapping[str, Features],
    fit: str = FITTED,
    found: Callable[[dict[str, NDArray[np.floating]]], dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """A record for every candidate: its fields, numbers kept, and AUROC on each kind of outlier.

    Args:
        sets: of the development set-up, or of the suite.
        fit: the set to fit on; all others are scored.
        found: of the scores by set, what the record is to hold; default: :func:`halves`.
    """
    fitted, others = sets[fit], {name: item for name, item in sets.items() if name != fit}
    K, D, records = fitted.logits.shape[1], fitted.features.shape[1], []
    made, last, values = Statistics(fitted, others), None, {}
    for candidate in candidates():
        if candidate[:-1] != last:  # all dampings at once
            last, values = candidate[:-1], made.of(candidate)
        column = DAMPINGS.index(candidate.damping)
        of = (found or halves)({name: value[:, column].numpy() for name, value in values.items()})
        records.append(candidate._asdict() | {"size": candidate.size(K, D)} | of)
    return records


def suite_halves(values: Mapping[str, NDArray[np.floating]]) -> dict[str, float]:
    """Of the suite: mean AUROC over the far sets, as in the tables, and that of the near ones."""
    ids = np.sort(values[ID_TEST])
    found = {name: auroc(ids, ood) for name, ood in values.items() if name != ID_TEST}
    far = [value for name, value in found.items() if name not in NEAR]
    return {"far": float(np.mean(far)), "near": float(np.mean([found[name] for name in NEAR]))}


def save_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records of candidates as a table."""
    fields = (*Candidate._fields, "size")
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: v if k in fields else f"{v:.5f}" for k, v in record.items()} for record in records
        )


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records that :func:`save_records` wrote, without kinds that a network lacks."""
    types: dict[str, Callable[[str], Any]] = {"form": str, "labels": str, "size": int}
    types |= {"unit": "True".__eq__, "bias": "True".__eq__}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {"damping": None} | {k: types.get(k, float)(v) for k, v in row.items() if v}
            for row in csv.DictReader(file)
        ]


def peers(sets: Mapping[str, Features]) -> dict[str, dict[str, float]]:
    """The same figures of methods that have nothing to choose: ``{method: {kind: AUROC}}``."""
    fit, out = sets[FITTED], {}
    for name in ("msp", "max_logit", "energy", "gradnorm", "thinkback"):
        state = METHODS[name].fit([(fit.features, fit.logits)])
        others = {
            n: METHODS[name](x.features, x.logits, state) for n, x in sets.items() if n != FITTED
        }
        out[name] = halves({n: value.numpy() for n, value in others.items()})
    return out


def load(folder: Path) -> list[dict[str, Any]]:
    """The records of every network's ``candidates.csv``."""
    return [
        {"network": name} | record
        for name in NETWORKS
        for record in read_records(folder / name / "candidates.csv")
    ]


def chosen(folder: Path, name: str = FIRST) -> Candidate:
    """The choice on file."""
    return Candidate(**read_json(folder / name))


def default() -> Candidate:
    """The package's default as a member of the family."""
    method = METHODS["thinkback_averaged"]
    T, damping = method.options["temperature"], method.options["damping"]
    return Candidate("averaged", method.unit, True, "predicted", T, damping)


def figures(records: Iterable[Mapping[str, Any]], *by: str) -> dict[tuple[Any, ...], Figure]:
    """Far, near and figure of each of the records' ``by``, over the networks: step 1 of the rule.

    >>> figures([{"a": 1, "far": 1.0, "near": 0.25}, {"a": 1, "far": 0.5}], "a")
    {(1,): Figure(far=0.75, near=0.25, figure=0.5)}
    """
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for record in records:
        parts = found.setdefault(
            tuple(record[field] for field in by), {half: [] for half in HALVES}
        )
        for half in HALVES:
            if record.get(half) is not None:
                parts[half].append(record[half])
    out = {}
    for key, parts in found.items():
        far, near = (float(np.mean(parts[half])) for half in HALVES)
        out[key] = Figure(far, near, (far + near) / 2)
    return out


def choose(records: Iterable[Mapping[str, Any]]) -> Candidate:
    """The rule of the module, of the records of all networks."""
    every = list(records)
    sizes: dict[Candidate, int] = {}
    for record in every:
        candidate = Candidate(*(record[field] for field in Candidate._fields))
        sizes[candidate] = max(record["size"], sizes.get(candidate, 0))
    found = {Candidate(*k): v.figure for k, v in figures(every, *Candidate._fields).items()}
    close = [candidate for candidate in found if found[candidate] > max(found.values()) - MARGIN]
    return min(close, key=lambda candidate: (sizes[candidate], -found[candidate]))


def halves(values: Mapping[str, NDArray[np.floating]]) -> dict[str, float]:
    """AUROC of held-out data against each kind of outlier, and the halves of the rule."""
    ids = np.sort(values[HELD_OUT])
    out = {name: auroc(ids, ood) for name, ood in values.items() if name != HELD_OUT}
    groups = [[out[kind] for kind in kinds] for kinds in GROUPS.values() if kinds[0] in out]
    found = {"far": float(np.mean([np.mean(group) for group in groups]))}
    return out | found | ({"near": out[HIDDEN]} if HIDDEN in out else {})


def auroc(ids: NDArray[np.floating], ood: NDArray[np.floating]) -> float:
    """AUROC of scores, those in distribution sorted; ties count one half.

    >>> auroc(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.9]))
    0.75
    """
    below = np.searchsorted(ids, ood, "left") + np.searchsorted(ids, ood, "right")
    return float(below.mean() / 2 / len(ids))


def _rows(images: ImageSet, rows: Tensor, name: str) -> ImageSet:
    if images.labels is None:
        raise ValueError(
            f"thinkback: a development network needs labels, and the set {images.name!r} has none"
        )
    kept, labels = images.images[rows], images.labels[rows]
    return dataclasses.replace(images, images=kept, labels=labels, name=name)


def run(results: Path, name: str, device: str | None = None) -> None:
    """Make ``candidates.csv`` and ``.json`` of one network where they or its weights are absent."""
    start, folder = time.perf_counter(), results / "development" / name
    if Run(folder).weights.exists() and (folder / "candidates.json").exists():
        return
    sets = features(folder, NETWORKS[name], device)
    records, reference = measure(sets), peers(sets)
    save_records(folder / "candidates.csv", records)
    facts = describe(process_device(device)) | {"accuracy": sets[HELD_OUT].accuracy()}
    facts |= {"sizes": {n: len(x) for n, x in sets.items()}, "methods": reference}
    facts["seconds"] = round(time.perf_counter() - start, 1)
    write_json(folder / "candidates.json", facts)


def main(arguments: list[str] | None = None) -> None:
    """Train the development networks, score all candidates and choose."""
    parser = program_parser("experiments.development", main.__doc__, "results", "device")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    about = "train and keep features; score nothing"
    parser.add_argument("--features", action="store_true", help=about)
    options = parser.parse_args(arguments)
    if options.features:
        for name in options.networks:
            features(options.results / "development" / name, NETWORKS[name], options.device)
        return
    for name in options.networks:
        run(options.results, name, options.device)
    folder = options.results / "development"
    if all((folder / name / "candidates.json").exists() for name in NETWORKS):
        choice = choose(load(folder))
        write_json(folder / SECOND, choice._asdict())
        print(f"the choice is {choice}")


if __name__ == "__main__":
    sys.exit(run_main(main))
