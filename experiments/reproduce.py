"""The whole chain of one network: train it (or read its weights), extract, score, measure."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from thinkback_utils import data
from thinkback_utils.commands import run_main
from thinkback_utils.devices import process_device
from thinkback_utils.features import Features
from thinkback_utils.metrics import METRICS
from thinkback_utils.shards import place

from . import ablations, variants, verdicts
from .benchmark import Benchmark, keep
from .evaluation import (
    ID_TEST,
    ID_TRAIN,
    NEAR,
    Scores,
    available_sets,
    image_set,
    score_sets,
    table,
)
from .provenance import describe
from .run import Run, program_parser
from .training import (
    TrainConfig,
    add_config_arguments,
    config_from,
    recipe_name,
    train_network,
)


def run(
    config: TrainConfig, folder: Path, sets: Iterable[str], device: str | None = None
) -> Scores:
    """Train (or finish training) one network; keep its features, scores and record in ``folder``.

    Sets that a bundle of the same weights holds already are kept, as long as their images are the
    same; those it lacks, and those whose images were replaced in the data root, are run through the
    network. A run that was killed anywhere goes on from what is there.

    Returns:
        The scores, as saved in ``scores.npz``.
    """
    start, chosen, here = time.perf_counter(), process_device(device), Run(folder)
    this = describe(chosen)
    before = here.record if here.finished else {}
    stated, kept = here.kept()
    known, recorded = stated["images_sha256"], before.get("images_sha256", {})
    suite = Benchmark([*known, *recorded, *kept, *sets])
    hashes = {name: _hash(name, known.get(name)) for name in suite.names}
    same = {name: item for name, item in kept.items() if hashes[name] == known.get(name)}
    _, training = train_network(config, "cifar10", folder, str(chosen))
    model = here.model(chosen)
    exact = suite.features(model, same)
    errors = (stated["float16_metric_error"], before.get("float16_metric_error", 0.0))
    error = max(*errors, float16_error(exact))
    here.save_bundle(exact, model, images_sha256=hashes, float16_metric_error=error)
    scored = suite.scores(here.bundle().sets)
    here.save_scores(scored)
    new = [n for n in hashes if n not in same or hashes[n] != recorded.get(n)]
    this |= {"sets": new, "seconds": round(time.perf_counter() - start, 1)}
    facts = {
        "recipe": recipe_name(config),
        "seed": config.seed,
        "accuracy": {name: exact[name].accuracy() for name in (ID_TRAIN, ID_TEST)},
        "training": training,
        "float16_metric_error": error,
        "images_sha256": hashes,
    }
    if before:  # the first run keeps its command, commit and time
        facts["scored"] = this
        before["additions"] = [*before.get("additions", []), *([this] if new else [])]
    here.save_record((before or this) | facts)
    return scored


def _hash(name: str, known: str | None) -> str:
    """Hash of a set's images in the data root, or the known one if they cannot be had any more.

    What cannot be had and is not known should fail here, not after the training.
    """
    try:
        return image_set(name).sha256()
    except data.UnavailableError:
        if not known:
            raise
        return known


def float16_error(exact: Mapping[str, Features]) -> float:
    """Largest change of any metric of any method when features are rounded to float16."""
    rounded = table(score_sets({name: item.half() for name, item in exact.items()}), draws=1)
    precise = table(score_sets(exact), draws=1)
    changes = (abs(a[m] - b[m]) for a, b in zip(rounded, precise, strict=True) for m in METRICS)
    return max(map(float, changes), default=0.0)  # no OOD set, no metric


def explore(here: Run, device: str | None = None) -> None:
    """Other layers and other conditions on a finished network, then the verdicts.

    What is there already stays.
    """
    ablations.run(here.folder, ablations.AblationConfig(), device)
    variants.run(here.folder, device=device)
    if set(here.stated()["images_sha256"]) <= {ID_TRAIN, ID_TEST, *NEAR}:
        return  # every claim is about far sets
    verdicts.report(verdicts.write(here))


def main(arguments: list[str] | None = None) -> None:
    """Train networks, extract features, score every set and write the table.

    A killed command goes on where it was. Under ``torchrun`` the processes share the seeds; the
    same command without it then gives the verdicts over all.
    """
    parser = program_parser("experiments.reproduce", main.__doc__, "results", "device")
    add_config_arguments(parser)
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="one network for each (default: that of --seed)"
    )
    parser.add_argument(
        "--sets", nargs="*", help="OOD sets, by their names in thinkback_utils.data (default: all)"
    )
    options = parser.parse_args(arguments)
    config = config_from(options)
    network = f"wrn{config.depth}-{config.width}-cifar10"
    sets = available_sets() if options.sets is None else options.sets
    seeds = list(dict.fromkeys(options.seeds or [config.seed]))  # each network has one process
    runs = [Run.at(options.results, network, seed) for seed in seeds]
    (rank, world), device = place(), str(process_device(options.device))
    for here in runs[rank::world]:  # under torchrun the processes share the seeds, one GPU each
        options.seed = here.seed
        scored = run(config_from(options, here.folder), here.folder, sets, device)
        keep(options.results / "table1.json", here, Benchmark().records(scored))
        accuracy = here.record["accuracy"][ID_TEST]
        print(f"test accuracy {accuracy:.4f}, results in {here.folder}")
    if rank == 0:
        explore(runs[0], device)


if __name__ == "__main__":
    sys.exit(run_main(main))
