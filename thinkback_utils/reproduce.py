"""The whole chain of one network: train (or resume, or read the weights that are there), extract, score, measure."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import data, metrics, scores
from .features import Bundle, Features, extract, save_arrays
from .files import read_json, write_json
from .fisher import DiagonalFisher
from .provenance import describe
from .train import TrainConfig, add_config_arguments, config_from, pick_device, recipe_name, train_network

ID_TRAIN, ID_TEST = "cifar10-train", "cifar10-test"
NEAR = ("cifar100",)  # reported apart: its images resemble the training set, and no paper row is about them

METHODS: dict[str, Callable[[Features, Tensor], Tensor]] = {
    "msp": lambda x, fisher: scores.msp(x.logits),
    "energy": lambda x, fisher: scores.energy(x.logits),
    "thinkback": lambda x, fisher: scores.thinkback(x.features, x.logits, fisher),
    "max_logit": lambda x, fisher: scores.max_logit(x.logits),
    "gradnorm": lambda x, fisher: scores.gradnorm(x.features, x.logits),
    "thinkback_eq5": lambda x, fisher: scores.thinkback(x.features, x.logits),
}
TITLES = {
    "msp": "Softmax",
    "energy": "Energy",
    "thinkback": "Thinkback",
    "max_logit": "MaxLogit",
    "gradnorm": "GradNorm",
    "thinkback_eq5": "Thinkback, Eq. 5",
}

SET_TITLES = {**data.TITLES, "mean": "Mean of the far sets"}

Scores = dict[str, dict[str, NDArray[np.float64]]]  # set -> method -> (N,)


def score_sets(
    sets: Mapping[str, Features], methods: Iterable[str] = METHODS, names: Iterable[str] | None = None
) -> Scores:
    """Every method on the named sets, all but the training set by default, whose features fit the Fisher."""
    train = sets[ID_TRAIN]
    fisher = DiagonalFisher().update(train.features, train.logits).compute()
    chosen = [name for name in sets if name != ID_TRAIN] if names is None else list(names)
    return {name: {m: METHODS[m](sets[name], fisher).numpy() for m in methods} for name in chosen}


def table(
    scored: Scores, n_ood: int = 2000, draws: int = 10, seed: int = 0, prevalence: float = 1 / 6, resamples: int = 0
) -> list[dict[str, Any]]:
    """One record per OOD set and method: the four metrics, mean and standard deviation over seeded draws.

    A set of at most ``n_ood`` images is drawn once, whole: all its draws would be the same.
    With ``resamples``, each record also has 95 % bootstrap intervals over all images of the set.
    """
    records = []
    for name, by_method in scored.items():
        if name == ID_TEST:
            continue
        for method, ood in by_method.items():
            ids, count = scored[ID_TEST][method], draws if n_ood < len(ood) else 1
            values = [metrics.ood_metrics(ids, draw, prevalence) for draw in metrics.draws(ood, n_ood, count, seed)]
            record: dict[str, Any] = {"set": name, "method": method, "draw_seed": seed, "draws": count}
            record |= {"n_id": len(ids), "n_ood": min(n_ood, len(ood)), "prevalence": prevalence}
            for metric in metrics.METRICS:
                column = [value[metric] for value in values]
                record |= {metric: float(np.mean(column)), f"{metric}_std": float(np.std(column))}
            if resamples:
                record["interval95"] = metrics.bootstrap(ids, ood, prevalence, resamples, seed)
            records.append(record)
    return records


def means(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per method: the unweighted mean of each metric over the far sets that were measured."""
    far = [record for record in records if record["set"] not in (*NEAR, "mean")]
    out = []
    for method in dict.fromkeys(record["method"] for record in far):
        rows = [record for record in far if record["method"] == method]
        average = {metric: float(np.mean([row[metric] for row in rows])) for metric in metrics.METRICS}
        out.append({"set": "mean", "sets": [row["set"] for row in rows], "method": method, **average})
    return out


def float16_error(exact: Mapping[str, Features]) -> float:
    """Largest change of any metric of any method when the features are rounded to float16, on the sets of ``exact``."""
    rounded = table(score_sets({name: item.half() for name, item in exact.items()}), draws=1)
    precise = table(score_sets(exact), draws=1)
    return max(float(abs(a[m] - b[m])) for a, b in zip(rounded, precise, strict=True) for m in metrics.METRICS)


def available_sets() -> list[str]:
    """The OOD sets that can be had: those with an archive, and the stand-ins that lie in the data root."""
    stand_ins = [name for name in data.STAND_INS if (data.data_root() / f"{name}.npz").exists()]
    return [*data.PAPER_SETS, *NEAR, *stand_ins]


def run(config: TrainConfig, folder: Path, sets: Iterable[str], device: str | None = None) -> Scores:
    """Train (or finish training) one network; write bundle, weights, scores and provenance into ``folder``.

    Sets that a bundle of the same weights holds already are kept, those it lacks are added.

    Returns:
        The scores, as saved in ``scores.npz``.
    """
    start, provenance = time.perf_counter(), describe(pick_device(device))
    splits = {ID_TRAIN: ("cifar10", "train"), ID_TEST: ("cifar10", "test"), **{name: (name, "test") for name in sets}}
    finished = (folder / "weights.safetensors").exists() and (folder / "provenance.json").exists()
    old = Bundle.load(folder / "bundle.npz").sets if finished else {}
    before: dict[str, Any] = (
        read_json(folder / "provenance.json") if finished else {"images_sha256": {}, "float16_metric_error": 0.0}
    )
    missing = [name for name in splits if name not in old]
    for name in missing:  # what cannot be had should fail now, not after the training
        data.load(*splits[name])
    model, training = train_network(config, "cifar10", folder, device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact, hashes = dict(old), dict(before["images_sha256"])
    for name in missing:
        images = data.load(*splits[name])
        exact[name] = extract(model, images)
        hashes[name] = hashlib.sha256(images.images.numpy().tobytes()).hexdigest()
    head = model.get_classifier()
    Bundle(exact, head.weight.detach().cpu(), head.bias.detach().cpu()).save(folder / "bundle.npz")
    scored = score_sets(Bundle.load(folder / "bundle.npz").sets)
    flat = {f"{name}.{method}": s.astype(np.float32) for name, row in scored.items() for method, s in row.items()}
    save_arrays(folder / "scores.npz", flat)
    provenance |= {
        "recipe": recipe_name(config),
        "seed": config.seed,
        "accuracy": {name: exact[name].accuracy() for name in (ID_TRAIN, ID_TEST)},
        "training": training,
        "float16_metric_error": max(before["float16_metric_error"], float16_error(exact)),
        "images_sha256": hashes,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(folder / "provenance.json", provenance)
    return scored


def main(arguments: list[str] | None = None) -> None:
    """Train one network, extract its features, score every set and write the table, resuming where it was killed."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.reproduce", description=main.__doc__)
    add_config_arguments(parser)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that is filled")
    parser.add_argument("--sets", nargs="*", help="OOD sets, by their names in thinkback_utils.data (default: all)")
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU when there is one")
    options = parser.parse_args(arguments)
    config = config_from(options)
    network = f"wrn{config.depth}-{config.width}-cifar10"
    folder = options.results / network / f"seed{config.seed}"
    sets = available_sets() if options.sets is None else options.sets
    records = table(run(config_from(options, folder), folder, sets, options.device), resamples=200)
    path, label = options.results / "table1.json", {"network": network, "seed": config.seed}
    old = [record for record in (read_json(path) if path.exists() else []) if not label.items() <= record.items()]
    write_json(path, [*old, *(label | record for record in [*records, *means(records)])])
    accuracy = read_json(folder / "provenance.json")["accuracy"][ID_TEST]
    print(f"test accuracy {accuracy:.4f}, results in {folder}")


if __name__ == "__main__":
    main()
