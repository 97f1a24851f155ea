"""From features to the table: every method on every set, with draws, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import data, metrics
from .features import Features, save_arrays
from .files import read_json
from .methods import METHODS

ID_TRAIN, ID_TEST = "cifar10-train", "cifar10-test"
SPLITS = {ID_TRAIN: ("cifar10", "train"), ID_TEST: ("cifar10", "test")}  # of others, the test split of their name
NEAR = ("cifar100",)  # reported apart: its images resemble the training set, and no paper row is about them
BASELINES = ("msp", "energy")  # what the paper compares itself with

COMPARED = ("msp", "energy", "thinkback", "thinkback_averaged", "max_logit", "gradnorm", "thinkback_eq5")
SET_TITLES = {**data.TITLES, "mean": "Mean of the far sets"}

Scores = dict[str, dict[str, NDArray[np.floating]]]  # set -> method -> (N,)
Record = dict[str, Any]


def score_sets(
    sets: Mapping[str, Features], methods: Iterable[str] = COMPARED, names: Iterable[str] | None = None
) -> Scores:
    """Those of ``methods.METHODS`` on the named sets, all but the training set by default, on which they are fitted."""
    train, out = sets[ID_TRAIN], {}
    states = {name: METHODS[name].fit([(train.features, train.logits)]) for name in methods}
    for name in [name for name in sets if name != ID_TRAIN] if names is None else names:
        h, z = sets[name].features, sets[name].logits
        out[name] = {method: METHODS[method](h, z, state).numpy() for method, state in states.items()}
    return out


def save_scores(path: str | Path, scored: Scores) -> None:
    """Keep per-sample scores as float32 arrays ``<set>.<method>``, for :func:`load_scores`."""
    flat = {f"{name}.{method}": s.astype(np.float32) for name, row in scored.items() for method, s in row.items()}
    save_arrays(path, flat)


def load_scores(folder: str | Path, file_name: str = "scores.npz") -> Scores:
    """The per-sample scores that made a run's rows of the table: ``load_scores(folder)[set][method]``, float32 (N,).

    ``metrics.ood_metrics(kept["cifar10-test"]["energy"], kept["svhn"]["energy"])`` is then a cell of it, but for the
    draws of images.
    """
    kept: Scores = {}
    with np.load(Path(folder) / file_name, allow_pickle=False) as file:
        for key in file.files:
            name, method = key.rsplit(".", 1)
            kept.setdefault(name, {})[method] = file[key]
    return kept


def available_sets() -> list[str]:
    """The OOD sets that can be had: those with an archive, and the stand-ins that lie in the data root."""
    stand_ins = [name for name in data.STAND_INS if (data.data_root() / f"{name}.npz").exists()]
    return [*data.PAPER_SETS, *NEAR, *stand_ins]


def load_verified(digests: Mapping[str, str]) -> dict[str, data.ImageSet]:
    """The sets of a results folder, verified to be the images that its bundle was made from.

    Args:
        digests: ``images_sha256`` of its provenance, by set.

    Raises:
        ValueError: if the data root holds other images under a set's name.
    """
    sets = {}
    for name, expected in digests.items():
        sets[name] = data.load(*SPLITS.get(name, (name, "test")))
        if (found := sets[name].sha256()) != expected:
            raise ValueError(
                f"thinkback: {name!r} in the data root {data.data_root()} is not the set that the bundle was made from "
                f"(sha256 {found[:12]}…, expected {expected[:12]}…); run `python -m thinkback_utils.reproduce` anew"
            )
    return sets


def paper_table() -> list[Record]:
    """Table 1 of the paper as printed: records ``{set, method, tpr10, fpr95, auroc, aupr}`` in [0, 1]."""
    records: list[Record] = read_json(Path(__file__).with_name("paper_table1.json"))["records"]
    return records


def table(scored: Scores, n_ood: int = 2000, draws: int = 10, seed: int = 0, prevalence: float = 1 / 6) -> list[Record]:
    """One record per OOD set and method: the four metrics, mean and standard deviation over seeded draws.

    A set of at most ``n_ood`` images is drawn once, whole: all its draws would be the same.
    """
    records = []
    for name, by_method in scored.items():
        if name == ID_TEST:
            continue
        for method, ood in by_method.items():
            ids, count = scored[ID_TEST][method], draws if n_ood < len(ood) else 1
            values = [metrics.ood_metrics(ids, draw, prevalence) for draw in metrics.draws(ood, n_ood, count, seed)]
            record: Record = {"set": name, "method": method, "draw_seed": seed, "draws": count}
            record |= {"n_id": len(ids), "n_ood": min(n_ood, len(ood)), "prevalence": prevalence}
            for metric in metrics.METRICS:
                column = [value[metric] for value in values]
                record |= {metric: float(np.mean(column)), f"{metric}_std": float(np.std(column))}
            records.append(record)
    return records


def means(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """One record per method: the unweighted mean of each metric over the paper's five sets.

    Until all five are measured it is over every far set that is, stand-ins included; ``sets`` says which they are.
    """
    far = [record for record in records if record["set"] not in (*NEAR, "mean")]
    if set(data.PAPER_SETS) <= {record["set"] for record in far}:
        far = [record for record in far if record["set"] in data.PAPER_SETS]
    out = []
    for method in dict.fromkeys(record["method"] for record in far):
        rows = [record for record in far if record["method"] == method]
        average = {metric: float(np.mean([row[metric] for row in rows])) for metric in metrics.METRICS}
        out.append({"set": "mean", "sets": [row["set"] for row in rows], "method": method, **average})
    return out


def with_intervals(
    records: Iterable[Mapping[str, Any]],
    scored: Scores,
    prevalence: float = 1 / 6,
    resamples: int = 200,
    seed: int = 0,
) -> list[Record]:
    """The records (of sets and of means) with 95 % bootstrap intervals over all images of their sets.

    Returns:
        Each record with ``interval95`` of its metrics, ``{metric: (low, high)}``, and ``minus_msp`` and
        ``minus_energy``, the intervals of its paired difference to the baseline on the same images.
    """
    values = {
        (name, method): metrics.resampled(scored[ID_TEST][method], ood, prevalence, resamples, seed)
        for name, row in scored.items()
        if name != ID_TEST
        for method, ood in row.items()
    }
    out = []
    for record in records:
        sets, method = record.get("sets", [record["set"]]), record["method"]
        own = np.mean([values[name, method] for name in sets], axis=0)
        extended = {**record, "interval95": metrics.interval95(own)}
        for baseline in BASELINES:
            if baseline != method and all((name, baseline) in values for name in sets):
                other = np.mean([values[name, baseline] for name in sets], axis=0)
                extended[f"minus_{baseline}"] = metrics.interval95(own - other)
        out.append(extended)
    return out


def evenly(total: int, count: int) -> Tensor:
    """Indices of ``count`` images spread evenly over a set of ``total``, all if it has fewer: some sets are sorted.

    >>> evenly(10, 4)
    tensor([0, 2, 5, 7])
    """
    count = min(count, total)
    return torch.arange(count) * total // count


def find(records: Iterable[Record], **fields: Any) -> Record | None:
    """The first record with these fields, or None."""
    return next((record for record in records if fields.items() <= record.items()), None)


def float16_error(exact: Mapping[str, Features]) -> float:
    """Largest change of any metric of any method when the features are rounded to float16, on the sets of ``exact``."""
    rounded = table(score_sets({name: item.half() for name, item in exact.items()}), draws=1)
    precise = table(score_sets(exact), draws=1)
    return max(float(abs(a[m] - b[m])) for a, b in zip(rounded, precise, strict=True) for m in metrics.METRICS)
