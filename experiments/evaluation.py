"""From features to the table: methods on sets, with draws, intervals and paired differences."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinkback_utils import data, metrics
from thinkback_utils.features import Features, save_arrays
from thinkback_utils.files import read_arrays, read_json
from thinkback_utils.methods import METHODS
from thinkback_utils.methods import TITLES as METHOD_TITLES

if TYPE_CHECKING:
    import pandas as pd

ID_TRAIN = "cifar10-train"
ID_TEST = "cifar10-test"
SPLITS = {ID_TRAIN: ("cifar10", "train"), ID_TEST: ("cifar10", "test")}
# Reported apart: its images resemble the training set, and no row of the paper is about them.
NEAR = ("cifar100",)
BASELINES = ("msp", "energy")  # what the paper compares itself with
COMPARED = (
    "msp",
    "energy",
    "thinkback",
    "thinkback_averaged",
    "max_logit",
    "gradnorm",
    "thinkback_eq5",
)
OPENOOD_COLUMNS = {"fpr95": "FPR@95", "auroc": "AUROC"}
SET_TITLES = {**data.TITLES, "mean": "Mean of the far sets"}

Scores = dict[str, dict[str, NDArray[np.floating]]]  # set -> method -> (N,)
Record = dict[str, Any]


def score_sets(
    sets: Mapping[str, Features],
    methods: Iterable[str] = COMPARED,
    names: Iterable[str] | None = None,
    train_name: str | None = None,
) -> Scores:
    """Scores of the named sets, by default of all but the training set, which is fitted on.

    Args:
        sets: features and logits by set, of images of any kind and size.
        methods: keys of ``methods.METHODS``.
        names: the sets to score.
        train_name: the set to fit on. None: ``cifar10-train``, or the only set whose name ends in
            ``-train``.

    Raises:
        ValueError: on a method or set that is not there, or if no set, or more than one, can be the
            training set.
    """
    train_name = _the_one(sets, train_name, ID_TRAIN, "train_name")
    chosen = list(methods)
    wanted = [name for name in sets if name != train_name] if names is None else list(names)
    for what, asked, there in (("method", chosen, METHODS), ("set", wanted, sets)):
        if unknown := [name for name in asked if name not in there]:
            raise ValueError(f"thinkback: no {what} {unknown[0]!r}; there are {', '.join(there)}")
    train, out = sets[train_name], {}
    states = {name: METHODS[name].fit([(train.features, train.logits)]) for name in chosen}
    for name in wanted:
        h, z = sets[name].features, sets[name].logits
        out[name] = {
            method: METHODS[method](h, z, state).numpy() for method, state in states.items()
        }
    return out


def _the_one(names: Iterable[str], given: str | None, usual: str, argument: str) -> str:
    """The set of a role: the one given, else the usual one, else the only one with its ending."""
    there, ending = list(names), usual[usual.rindex("-") :]
    alike = [usual] if usual in there else [name for name in there if name.endswith(ending)]
    if given is None and len(alike) == 1:
        return alike[0]
    if given not in there:
        role = "in-distribution training" if argument == "train_name" else "in-distribution"
        which = (
            f"no set {given!r}" if given is not None else f"cannot tell which set is the {role} one"
        )
        raise ValueError(
            f"thinkback: {which}; give {argument}=, one of {', '.join(map(repr, there)) or 'none'}"
        )
    return given


def save_scores(path: str | Path, scored: Scores) -> None:
    """Keep per-sample scores as float32 arrays ``<set>.<method>``, for :func:`load_scores`."""
    flat = {
        f"{name}.{method}": s.astype(np.float32)
        for name, row in scored.items()
        for method, s in row.items()
    }
    save_arrays(path, flat)


def load_scores(folder: str | Path, file_name: str = "scores.npz") -> Scores:
    """The scores that made a run's rows of the table, ``[set][method]``, float64 (N,).

    ``metrics.ood_metrics(kept["cifar10-test"]["energy"], kept["svhn"]["energy"])`` is then a cell
    of it, but for the draws of images. The file holds float32, which float64 holds exactly; a
    threshold of kept scores, one float64 step above the largest of them, then lies above it.

    Raises:
        FileNotFoundError: naming the file and the command that makes it.
        ValueError: if the file is damaged or holds something else.
    """
    path, kept = Path(folder) / file_name, Scores()
    if not path.exists():
        raise FileNotFoundError(
            f"thinkback: no scores at {path}; fetch the repository's results/ folder, or make them"
            " with `python -m experiments.reproduce`"
        )
    remedy = "fetch or make it anew"
    for key, values in read_arrays(path, remedy).items():
        name, _, method = key.rpartition(".")
        if not name or values.ndim != 1 or values.dtype.kind != "f":
            raise ValueError(
                f"thinkback: {path} holds {key!r}, which is no scores of a set and a method;"
                f" {remedy}"
            )
        kept.setdefault(name, {})[method] = values.astype(np.float64)
    return kept


def available_sets() -> list[str]:
    """The OOD sets that can be had: those with an archive, and stand-ins in the data root."""
    stand_ins = [name for name in data.STAND_INS if (data.data_root() / f"{name}.npz").exists()]
    return [*data.PAPER_SETS, *NEAR, *stand_ins]


def image_set(name: str) -> data.ImageSet:
    """The images that a table calls by that name: a split of CIFAR-10, or a set's test split."""
    return data.load(*SPLITS.get(name, (name, "test")))


def paper_table() -> list[Record]:
    """Table 1 of the paper: records ``{set, method, tpr10, fpr95, auroc, aupr}`` in [0, 1]."""
    records: list[Record] = read_json(Path(__file__).with_name("paper_table1.json"))["records"]
    return records


def table(
    scored: Scores,
    n_ood: int = 2000,
    draws: int = 10,
    seed: int = 0,
    prevalence: float = 1 / 6,
    id_name: str | None = None,
) -> list[Record]:
    """One record per OOD set and method: mean and deviation of each metric over seeded draws.

    A set of at most ``n_ood`` images is drawn once, whole: all its draws would be the same.

    Args:
        scored: scores by set and method, higher = more OOD.
        n_ood, draws, seed: size, number and seed of the random subsets of an OOD set.
        prevalence: fraction of OOD samples for the AUPR.
        id_name: the in-distribution set. None: ``cifar10-test``, or the only set whose name ends in
            ``-test``.

    Raises:
        ValueError: if no set, or more than one, can be the in-distribution one; if it lacks a
            method; on bad numbers.

    Warns:
        UserWarning: if scores of a method look like confidences, higher = less OOD
            (``metrics.looks_reversed``).
    """
    id_name = _the_one(scored, id_name, ID_TEST, "id_name")
    reverse, records = [], []
    for name, method, ids, ood in _pairs(scored, id_name):
        count = draws if n_ood < len(ood) else min(draws, 1)
        drawn = metrics.draws(ood, n_ood, count, seed)
        values = [metrics.summary(metrics.roc(ids, draw), prevalence) for draw in drawn]
        record: Record = {"set": name, "method": method, "draw_seed": seed, "draws": count}
        record |= {"n_id": len(ids), "n_ood": min(n_ood, len(ood)), "prevalence": prevalence}
        for metric in metrics.METRICS:
            column = [value[metric] for value in values]
            record |= {metric: float(np.mean(column)), f"{metric}_std": float(np.std(column))}
        records.append(record)
        if metrics.looks_reversed(record["auroc"], record["n_id"], record["n_ood"]):
            reverse.append(f"{record['auroc']:.3f} of {method!r} on {name!r}")
    if reverse:
        warnings.warn(
            f"thinkback: the AUROC is {', '.join(reverse)}; {metrics.REVERSED}", stacklevel=2
        )
    return records


def _pairs(
    scored: Scores, id_name: str
) -> list[tuple[str, str, NDArray[np.floating], NDArray[np.floating]]]:
    """OOD set, method, and the method's scores of the in-distribution and of the OOD set."""
    own = scored[id_name]
    for name, row in scored.items():
        if name == "mean":
            raise ValueError(
                "thinkback: a set cannot be called 'mean', which is what a mean over sets is called"
            )
        if missing := [method for method in row if method not in own]:
            raise ValueError(
                f"thinkback: set {name!r} has scores of {missing[0]!r}, and {id_name!r} has none"
            )
    return [
        (name, m, own[m], ood)
        for name, row in scored.items()
        if name != id_name
        for m, ood in row.items()
    ]


def means(records: Iterable[Mapping[str, Any]], near: Sequence[str] = NEAR) -> list[Record]:
    """One record per method: the unweighted mean of each metric over the paper's five sets.

    Until all five are measured it is over every far set that is, stand-ins included; ``sets`` says
    which they are. Sets in ``near`` are left out.
    """
    far = [record for record in records if record["set"] not in (*near, "mean")]
    if set(data.PAPER_SETS) <= {record["set"] for record in far}:
        far = [record for record in far if record["set"] in data.PAPER_SETS]
    out = []
    for method in dict.fromkeys(record["method"] for record in far):
        rows = [record for record in far if record["method"] == method]
        average = {
            metric: float(np.mean([row[metric] for row in rows])) for metric in metrics.METRICS
        }
        out.append(
            {"set": "mean", "sets": [row["set"] for row in rows], "method": method, **average}
        )
    return out


def with_intervals(
    records: Iterable[Mapping[str, Any]],
    scored: Scores,
    prevalence: float = 1 / 6,
    resamples: int = 200,
    seed: int = 0,
    id_name: str | None = None,
) -> list[Record]:
    """The records (of sets and of means) with 95 % bootstrap intervals over all their images.

    Args:
        records: as :func:`table` and :func:`means` make them from ``scored``.
        scored, prevalence, id_name: as in :func:`table`.
        resamples, seed: of the bootstrap.

    Returns: Each record with ``interval95`` of its metrics, ``{metric: (low, high)}``, and
        ``minus_msp`` and ``minus_energy``, the intervals of its paired difference to the baseline
        on the same images.

    Raises:
        ValueError: as :func:`table` does; if a record's scores are not there; or if the methods of
            a set have scores of different numbers of images, whose differences would not be paired.
    """
    id_name = _the_one(scored, id_name, ID_TEST, "id_name")
    for name, row in scored.items():
        if len({len(scores) for scores in row.values()}) > 1:
            raise ValueError(
                f"thinkback: methods of set {name!r} have scores of different numbers of images"
            )
    values = {
        (name, method): metrics.resampled(ids, ood, prevalence, resamples, seed)
        for name, method, ids, ood in _pairs(scored, id_name)
    }
    out = []
    for record in records:
        sets, method = record.get("sets", [record["set"]]), record["method"]
        if lost := [name for name in sets if (name, method) not in values]:
            raise ValueError(
                f"thinkback: a record is of {method!r} on {lost[0]!r}, and there are no such scores"
            )
        own = np.mean([values[name, method] for name in sets], axis=0)
        extended = {**record, "interval95": metrics.interval95(own)}
        for baseline in BASELINES:
            if baseline != method and all((name, baseline) in values for name in sets):
                other = np.mean([values[name, baseline] for name in sets], axis=0)
                extended[f"minus_{baseline}"] = metrics.interval95(own - other)
        out.append(extended)
    return out


def near_far(
    records: Iterable[Mapping[str, Any]],
    near: Sequence[str] = NEAR,
    columns: Mapping[str, str] = OPENOOD_COLUMNS,
) -> pd.DataFrame:
    """A table in OpenOOD's layout, in percent: near-OOD sets, their mean; far-OOD sets, theirs.

    ``near_far(records).to_csv("table.csv")`` and
    ``.to_latex("table.tex", float_format="%.2f", escape=True)`` write it.

    Args:
        records: of :func:`table`, one for each set and method; a row "mean" of :func:`means` is
            passed over.
        near: the sets that are near the training set; all others are far.
        columns: metrics of the records, with the names to print. In ``fpr95`` OOD is the positive
            class, as in OpenOOD.

    Returns: A row for each method; columns of two levels, set and metric, the means under
        "Near-OOD" and "Far-OOD".

    Raises:
        ValueError: if a method lacks a set, has it twice (choose one run), or a metric is not in
            the records.
    """
    import pandas as pd  # here, since only this needs it

    rows = [record for record in records if record["set"] != "mean"]
    if not rows:
        raise ValueError("thinkback: there is no record of an OOD set to lay out")
    sets, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "method"))
    found = {(row["set"], row["method"]): row for row in rows}
    if len(found) != len(rows):
        raise ValueError(
            "thinkback: the records hold a set and method twice; choose those of one network and"
            " seed"
        )
    if absent := [
        (name, method) for name in sets for method in methods if (name, method) not in found
    ]:
        raise ValueError(f"thinkback: there is no record of {absent[0][1]!r} on {absent[0][0]!r}")
    if unknown := [metric for metric in columns if metric not in rows[0]]:
        raise ValueError(
            f"thinkback: the records hold no {unknown[0]!r}; metrics are"
            f" {', '.join(metrics.METRICS)}"
        )
    laid: dict[tuple[str, str], list[float]] = {}
    for title, far in (("Near-OOD", False), ("Far-OOD", True)):
        group = [name for name in sets if (name not in near) == far]
        for label, part in [
            *((SET_TITLES.get(name, name), [name]) for name in group),
            (title, group),
        ]:
            for metric, printed in columns.items() if part else ():
                laid[label, printed] = [
                    100 * float(np.mean([found[name, method][metric] for name in part]))
                    for method in methods
                ]
    index = pd.Index([METHOD_TITLES.get(method, method) for method in methods], name="method")
    return pd.DataFrame(laid, index=index)


def evenly(total: int, count: int) -> Tensor:
    """Indices of ``count`` images spread evenly over ``total``, or all: some sets are sorted.

    >>> evenly(10, 4)
    tensor([0, 2, 5, 7])
    """
    if total < 0 or count < 1:
        raise ValueError(f"thinkback: cannot spread {count} images over a set of {total}")
    count = min(count, total)
    return torch.arange(count) * total // count


def some(images: data.ImageSet, count: int) -> data.ImageSet:
    """``count`` images of a set, evenly spread, with their labels if it has any."""
    rows = evenly(len(images.images), count)
    labels = None if images.labels is None else images.labels[rows]
    return dataclasses.replace(images, images=images.images[rows], labels=labels)


def find(records: Iterable[Record], **fields: Any) -> Record | None:
    """The first record with these fields, or None."""
    return next((record for record in records if fields.items() <= record.items()), None)
