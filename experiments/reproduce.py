"""The whole chain of one network: train (or resume, or read the weights that are there), extract,
score, measure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from thinkback_utils import data
from thinkback_utils.commands import Parser, run_main
from thinkback_utils.devices import process_device
from thinkback_utils.evaluation import (
    ID_TEST,
    ID_TRAIN,
    NEAR,
    SPLITS,
    Scores,
    available_sets,
    float16_error,
    means,
    save_scores,
    score_sets,
    table,
    with_intervals,
)
from thinkback_utils.features import Bundle, Features, extract
from thinkback_utils.files import read_json, write_json
from thinkback_utils.provenance import describe
from thinkback_utils.shards import place
from thinkback_utils.train import (
    TrainConfig,
    add_config_arguments,
    config_from,
    recipe_name,
    train_network,
)

from . import ablations, variants, verdicts


def run(
    config: TrainConfig, folder: Path, sets: Iterable[str], device: str | None = None
) -> Scores:
    """Train (or finish training) one network; write bundle, weights, scores and provenance into
    ``folder``.

    Sets that a bundle of the same weights holds already are kept, as long as their images are the
    same; those it lacks, and those whose images were replaced in the data root, are run through the
    network.

    Returns:
        The scores, as saved in ``scores.npz``.
    """
    start, chosen = time.perf_counter(), process_device(device)
    provenance, record = describe(chosen), folder / "provenance.json"
    finished = (folder / "weights.safetensors").exists() and record.exists()
    before, kept = (
        _finished(folder) if finished else ({"images_sha256": {}, "float16_metric_error": 0.0}, {})
    )
    known: dict[str, str] = before["images_sha256"]
    splits = SPLITS | {
        name: (name, "test") for name in (*sets, *known, *kept) if name not in SPLITS
    }
    now: dict[str, str] = {}
    for name, split in splits.items():  # what cannot be had should fail now, not after the training
        try:
            now[name] = data.load(*split).sha256()
        except data.UnavailableError:
            if name not in kept or not known.get(name):
                raise
    missing = [name for name in now if name not in kept or now[name] != known.get(name)]
    model, training = train_network(config, "cifar10", folder, str(chosen))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    hashes = known | {name: now[name] for name in missing}
    if (
        finished and missing
    ):  # if it is killed with a new bundle, nothing says that this is the old one
        write_json(record, before | {"images_sha256": hashes | dict.fromkeys(missing, "")})
    exact = {
        name: extract(model, data.load(*splits[name])) if name in missing else kept[name]
        for name in hashes
    }
    head = model.get_classifier()
    Bundle(exact, head.weight.detach().cpu(), head.bias.detach().cpu()).save(folder / "bundle.npz")
    scored = score_sets(Bundle.load(folder / "bundle.npz").sets)
    save_scores(folder / "scores.npz", scored)
    facts = {
        "recipe": recipe_name(config),
        "seed": config.seed,
        "accuracy": {name: exact[name].accuracy() for name in (ID_TRAIN, ID_TEST)},
        "training": training,
        "float16_metric_error": max(before["float16_metric_error"], float16_error(exact)),
        "images_sha256": hashes,
    }
    this = provenance | {"sets": missing, "seconds": round(time.perf_counter() - start, 1)}
    if finished:  # the first run keeps its command, commit and time
        facts["scored"] = this
        before["additions"] = [*before.get("additions", []), *([this] if missing else [])]
    write_json(record, (before if finished else this) | facts)
    return scored


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Features]]:
    """The record of a run, and the sets of its bundle if that is there."""
    path, bundle = folder / "provenance.json", folder / "bundle.npz"
    before: dict[str, Any] = read_json(path)
    if not isinstance(before, dict) or not {"images_sha256", "float16_metric_error"} <= set(before):
        raise ValueError(
            f"thinkback: {path} is no record of a run; fetch it anew, or delete it to make all anew"
        )
    return before, Bundle.load(bundle).sets if bundle.exists() else {}


def explore(folder: Path, device: str | None = None) -> None:
    """Other layers and other conditions on one finished network, then the verdicts; what is there
    already stays.
    """
    ablations.run(folder, ablations.AblationConfig(), device)
    variants.run(folder, device=device)
    if set(read_json(folder / "provenance.json")["images_sha256"]) <= {ID_TRAIN, ID_TEST, *NEAR}:
        return  # every claim is about far sets
    for row in verdicts.write(folder.parents[1], folder.parent.name, folder.name):
        print(f"{row['verdict']}: {row['claim']} ({row['measured']})")


def main(arguments: list[str] | None = None) -> None:
    """Train networks, extract features, score every set and write the table, resuming where it was
    killed.

    Under ``torchrun`` the processes share the seeds; the same command without it then gives the
    verdicts over all.
    """
    parser = Parser(prog="python -m experiments.reproduce", description=main.__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="one network for each (default: that of --seed)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder that is filled"
    )
    parser.add_argument(
        "--sets", nargs="*", help="OOD sets, by their names in thinkback_utils.data (default: all)"
    )
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU when there is one")
    options = parser.parse_args(arguments)
    config = config_from(options)
    network, path = f"wrn{config.depth}-{config.width}-cifar10", options.results / "table1.json"
    sets = available_sets() if options.sets is None else options.sets
    seeds = list(
        dict.fromkeys(options.seeds or [config.seed])
    )  # two processes must not make one network
    (rank, world), device = place(), str(process_device(options.device))
    for seed in seeds[rank::world]:  # under torchrun the processes share the seeds, one GPU each
        options.seed, folder = seed, options.results / network / f"seed{seed}"
        scored = run(config_from(options, folder), folder, sets, device)
        records = table(scored)
        records = with_intervals([*records, *means(records)], scored)
        label = {"network": network, "seed": seed}
        with FileLock(path.with_suffix(".lock")):
            old = [
                row
                for row in (read_json(path) if path.exists() else [])
                if not label.items() <= row.items()
            ]
            write_json(path, [*old, *(label | record for record in records)])
        accuracy = read_json(folder / "provenance.json")["accuracy"][ID_TEST]
        print(f"test accuracy {accuracy:.4f}, results in {folder}")
    if rank == 0:
        explore(options.results / network / f"seed{seeds[0]}", device)


if __name__ == "__main__":
    sys.exit(run_main(main))
