"""Is a score bad because the network is not trained enough? AUROC against accuracy by epoch.

    python -m experiments.epochs --network wrn16-2-cifar10 --seed 0

reads the networks that a run of ``experiments.training`` with ``--keep-epochs`` left beside its
weights, passes each over the same images, and keeps ``epochs.json`` in the run's folder.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from thinkback_utils.commands import run_main
from thinkback_utils.devices import process_device
from thinkback_utils.features import extract
from thinkback_utils.files import read_json, sha256, write_json
from thinkback_utils.metrics import mean_auroc

from .ablations import AblationConfig, score_readings
from .evaluation import ID_TEST, ID_TRAIN, NEAR, available_sets, evenly, image_set, score_sets
from .provenance import describe
from .run import Run, program_parser
from .training import kept_network

SCORES = ("msp", "energy", "thinkback", "thinkback_averaged")
READINGS = ("C", "D", "E")
NUMBER = re.compile(r"checkpoint-epoch(\d+)\.safetensors")


def saved(folder: Path) -> dict[int, Path]:
    """The kept networks by epoch, from 1 on.

    Raises:
        FileNotFoundError: there are none, naming the option that keeps them.
    """
    found = {int(NUMBER.fullmatch(p.name)[1]): p for p in folder.glob("checkpoint-epoch*")}  # type: ignore[index]
    if not found:
        raise FileNotFoundError(
            f"thinkback: no checkpoint-epoch*.safetensors in {folder}; train with --keep-epochs"
        )
    return dict(sorted(found.items()))


def measure(
    model: nn.Module, images: Mapping[str, Tensor], labels: Tensor, config: AblationConfig
) -> dict[str, Any]:
    """Accuracy of a network on test images, and mean AUROC of each score over the far sets.

    Args:
        model: reads pixels in [0, 1].
        images: uint8 (N, 3, H, W) by set, those of CIFAR-10's training split to fit on.
        labels: of the test images.
        config: settings and numbers of images of the readings; all images are used.

    Returns:
        ``{accuracy, auroc: {score: value}}`` in [0, 1].
    """
    seen = {name: extract(model, x, precision="float32") for name, x in images.items()}
    scored = score_sets(seen, SCORES)
    arrays, _ = score_readings(model, images, READINGS, config)  # type: ignore[arg-type]
    for name, row in scored.items():
        row |= {f"reading_{r}": arrays[f"{name}.{r}_eq6"] for r in READINGS}
    far = [name for name in scored if name not in (ID_TEST, *NEAR)]
    auroc = {
        score: mean_auroc(ids, [scored[name][score] for name in far])[0]
        for score, ids in scored[ID_TEST].items()
    }
    right = seen[ID_TEST].logits.argmax(1) == labels
    return {"accuracy": float(right.double().mean()), "auroc": auroc}


def run(
    here: Run, sets: Iterable[str], config: AblationConfig, device: str | None = None
) -> Sequence[dict[str, Any]]:
    """Measure every kept epoch that ``epochs.json`` lacks; keep and return the records."""
    path, start, chosen = here.folder / "epochs.json", time.perf_counter(), process_device(device)
    whole = {name: image_set(name) for name in (ID_TRAIN, ID_TEST, *sets)}
    rows = {name: evenly(len(x.images), config.size(name, READINGS)) for name, x in whole.items()}
    images = {name: x.images[rows[name]] for name, x in whole.items()}
    labels = whole[ID_TEST].labels
    if labels is None:
        raise ValueError(f"thinkback: an accuracy needs labels, and {ID_TEST!r} has none")
    sizes = {name: len(x) for name, x in images.items()}
    old = read_json(path) if path.exists() else {"records": []}
    done = {r["sha256"]: r for r in old["records"] if old.get("sizes") == sizes}
    records = []
    for epoch, file in saved(here.folder).items():
        digest = sha256(file)
        if digest not in done:
            model = kept_network(file).to(chosen)
            found = measure(model, images, labels[rows[ID_TEST]], config)
            done[digest] = {"epoch": epoch, "sha256": digest} | found
        records.append(done[digest])
        seconds = round(time.perf_counter() - start, 1)
        facts = describe(chosen) | {"sizes": sizes, "seconds": seconds}
        write_json(path, facts | {"records": records})
    return records


def main(arguments: list[str] | None = None) -> None:
    """Accuracy and mean AUROC of every kept epoch of a training run; resumes."""
    parser = program_parser("experiments.epochs", main.__doc__)
    parser.add_argument("--sets", nargs="*", help="OOD sets (default: all)")
    for name, default in (("n_fit", 2000), ("n_id", 2000), ("n_ood", 500)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = parser.parse_args(arguments)
    sets = available_sets() if options.sets is None else options.sets
    counts = {name: getattr(options, name) for name in ("n_fit", "n_id", "n_ood")}
    here = Run.at(options.results, options.network, options.seed)
    for row in run(here, sets, AblationConfig(**counts), options.device):
        values = ", ".join(f"{name} {100 * value:.1f}" for name, value in row["auroc"].items())
        print(f"epoch {row['epoch']}: accuracy {100 * row['accuracy']:.1f} %, AUROC {values}")


if __name__ == "__main__":
    sys.exit(run_main(main))
