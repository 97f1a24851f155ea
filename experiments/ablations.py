"""The score with other layers' gradients, on a trained network: what each separates and costs."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from thinkback_utils import scores
from thinkback_utils.commands import run_main
from thinkback_utils.devices import process_device
from thinkback_utils.features import Bundle, Features, extract, save_arrays
from thinkback_utils.files import read_arrays, read_json, write_json
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.gradients import (
    READINGS,
    MeanSquare,
    activation_gradients,
    find_layers,
    score,
    squared_gradients,
)
from thinkback_utils.models import WideResNet

from .evaluation import ID_TEST, ID_TRAIN, evenly
from .run import Run, program_parser

FORMS = ("eq5", "eq6", "eq6damped")
PASSES = (("C", "D", "E"), ("all",))  # the readings that share one pass over the images


@dataclass(frozen=True)
class AblationConfig:
    """What decides the scores, saved beside them; five minutes on two CPU cores with WRN-40-2."""

    temperature: float = 5.0  # the paper's
    eps: float = 1e-16  # the paper's floor under E
    damping: float = 1e-3  # the damped variant's floor, times mean(E): dead units have E = 0
    n_fit: int = 10_000  # training images for E
    n_id: int = 5_000  # CIFAR-10 test images scored
    n_ood: int = 2_000  # images scored of each OOD set
    n_fit_all: int = 1_000  # as n_fit for all parameters, at many forward passes an image
    n_all: int = 250  # as n_id and n_ood there
    batch_size: int = 128
    batch_size_all: int = 16  # 36 MB a sample
    rounds: int = 3  # of timing, alternating between the readings

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("eps", "damping")):
                raise ValueError(
                    f"thinkback: AblationConfig.{field.name} must be positive, got {value}"
                )

    def size(self, name: str, readings: Sequence[str]) -> int:
        """How many images of the set of that name are read."""
        if "all" in readings:
            return self.n_fit_all if name == ID_TRAIN else self.n_all
        return {ID_TRAIN: self.n_fit, ID_TEST: self.n_id}.get(name, self.n_ood)

    def batch(self, readings: Sequence[str]) -> int:
        """Batch size for those readings."""
        return self.batch_size_all if "all" in readings else self.batch_size


def score_readings(
    model: WideResNet, images: Mapping[str, Tensor], readings: Sequence[str], config: AblationConfig
) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
    """Fit E of the readings on training images and score every other set, in one pass over them.

    Returns: ``{"<set>.<reading>_<form>": float32 (n,)}``, higher = more OOD, and what is known of
        each reading's E.
    """
    start = time.perf_counter()
    chosen = {n: x[evenly(len(x), config.size(n, readings))] for n, x in images.items()}
    layers = find_layers(model, chosen[ID_TRAIN][:2].to(next(model.parameters()).device) / 255)
    arrays: dict[str, NDArray[np.float32]] = {}
    total, names = sum(map(len, chosen.values())), ", ".join(readings)
    with tqdm(total=total, desc=f"readings {names}", unit=" images") as bar:

        def stream(x: Tensor) -> Iterator[dict[str, Tensor]]:
            rest = (layers, config.temperature, config.batch(readings))
            for squares in squared_gradients(model, x, readings, *rest):
                yield squares
                bar.update(len(squares[readings[0]]))

        expected = _means(stream(chosen[ID_TRAIN]), readings)
        for name in [name for name in chosen if name != ID_TRAIN]:
            made = _scores(stream(chosen[name]), expected, config)
            arrays |= {f"{name}.{key}": values for key, values in made.items()}
    shared = {
        "n_fit": len(chosen.pop(ID_TRAIN)),
        "images": {name: len(x) for name, x in chosen.items()},
        "together_with": list(readings),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return arrays, {
        reading: {"layer": layers.get(reading)} | _facts(expected[reading], config) | shared
        for reading in readings
    }


def _means(stream: Iterable[dict[str, Tensor]], readings: Sequence[str]) -> dict[str, Tensor]:
    """E of each reading."""
    means = {reading: MeanSquare() for reading in readings}
    for squares in stream:
        for reading, mean in means.items():
            mean.update(squares[reading])
    return {reading: mean.compute() for reading, mean in means.items()}


def _scores(
    stream: Iterable[dict[str, Tensor]], expected: Mapping[str, Tensor], config: AblationConfig
) -> dict[str, NDArray[np.float32]]:
    """Scores by ``<reading>_<form>``, (n,)."""
    parts: dict[str, list[Tensor]] = {}
    for squares in stream:
        for reading, mean in expected.items():
            own = squares[reading]
            forms = {
                "eq5": score(own),
                "eq6": score(own, mean, config.eps),
                "eq6damped": score(own, mean, config.eps, config.damping),
            }
            for form, values in forms.items():
                parts.setdefault(f"{reading}_{form}", []).append(values)
    return {k: torch.cat(values).cpu().numpy().astype(np.float32) for k, values in parts.items()}


def _facts(expected: Tensor, config: AblationConfig) -> dict[str, int]:
    zeros, small = int(expected.eq(0).sum()), int(expected.lt(config.eps).sum())
    return {"numbers": expected.numel(), "zeros": zeros, "below_eps": small}


def measure_costs(model: WideResNet, x: Tensor, config: AblationConfig) -> dict[str, Any]:
    """Time of Eq. 6 per image, in forward passes of the same batch x: medians over mixed rounds.

    Every reading includes its own forward pass and is timed alone; E is given.
    """
    x = (x.to(next(model.parameters()).device) / 255).contiguous(memory_format=torch.channels_last)
    layers, head = find_layers(model, x[:2]), model.get_classifier()
    ones = torch.ones_like(head.weight, dtype=torch.float64)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    def closed_form() -> None:
        out = extract(model, x, layers["C"], config.batch_size, precision="float32")
        scores.thinkback(out.features, out.logits, ones.cpu(), config.temperature)

    def reading(name: str) -> Callable[[], None]:
        rest = (layers, config.temperature, config.batch([name]))

        def run() -> None:
            for squares in squared_gradients(model, x, [name], *rest):
                score(squares[name], torch.ones_like(squares[name][0]))

        return run

    names = [name for group in PASSES for name in group]
    calls = {"forward": forward, "A": closed_form} | {name: reading(name) for name in names}
    seconds = _by_turns(calls, config.rounds, x.device)
    forwards = seconds.pop("forward")
    ratio = {
        name: [a / b for a, b in zip(values, forwards, strict=True)]
        for name, values in seconds.items()
    }
    return {
        "batch_size": len(x),
        "rounds": config.rounds,
        "forward_milliseconds": 1e3 * statistics.median(forwards) / len(x),
        "forward_passes": {name: statistics.median(values) for name, values in ratio.items()},
        "range": {name: [min(values), max(values)] for name, values in ratio.items()},
    }


def _by_turns(
    calls: Mapping[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def run(folder: Path, config: AblationConfig, device: str | None = None) -> dict[str, Any]:
    """Score every set of a run by every reading; keep ``ablations.npz`` and ``ablations.json``.

    A command that was killed goes on with the readings that are missing; other weights, parameters,
    sets or images start again.

    Returns:
        What ``ablations.json`` holds.
    """
    here, chosen = Run(folder), process_device(device)
    model = here.model(chosen)
    record = here.describe(chosen) | {"config": asdict(config), "readings": {}}
    arrays: dict[str, NDArray[np.float32]] = {}
    if all((folder / f"ablations.{suffix}").exists() for suffix in ("json", "npz")):
        old = read_json(folder / "ablations.json")
        if all(old.get(k) == record[k] for k in ("weights_sha256", "config", "images_sha256")):
            arrays, record = load(folder)
    images = {name: item.images for name, item in here.images().items()}
    for readings in PASSES:
        done = {r: set(facts["images"]) | {ID_TRAIN} for r, facts in record["readings"].items()}
        missing = [reading for reading in readings if done.get(reading) != set(images)]
        if missing:
            scored, facts = score_readings(model, images, missing, config)
            arrays, record["readings"] = arrays | scored, record["readings"] | facts
            save_arrays(folder / "ablations.npz", arrays)
            write_json(folder / "ablations.json", record)
    if "cost" not in record:
        record["cost"] = measure_costs(model, images[ID_TEST][: config.batch_size], config)
        write_json(folder / "ablations.json", record)
    return record


def load(folder: str | Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """What :func:`run` kept: scores, ``{"<set>.<reading>_<form>": (n,)}``, and the record.

    Raises:
        FileNotFoundError: if it has not run there.
        ValueError: if the folder's weights are no longer those that were scored, or on damage.
    """
    record = Run(Path(folder)).made("ablations")
    return read_arrays(Path(folder) / "ablations.npz", "run the command again"), record


Forms = dict[str, dict[str, Tensor]]


def of_run(here: Run, readings: Iterable[str]) -> dict[str, Forms]:
    """Scores of a run's readings, ``{reading: {form: {set: (N,)}}}``: eq5, eq6, and eq6damped.

    A, B and C follow from the features and logits of all images; the others are those of
    :func:`load`, of fewer images, and have the damped form.

    Raises:
        ValueError: on a reading that is none.
    """
    chosen = list(readings)
    if not chosen or set(chosen) - set(READINGS):
        raise ValueError(f"thinkback: layers are some of {list(READINGS)}, got {chosen}")
    (kept, record), bundle = load(here.folder), here.bundle()
    names = [name for name in bundle.sets if name != ID_TRAIN]
    out: dict[str, Forms] = {}
    for reading in chosen:
        if reading in ("A", "B", "C"):
            out[reading] = _from_features(bundle, reading, AblationConfig(**record["config"]))
        else:
            forms = {f: {n: kept[f"{n}.{reading}_{f}"] for n in names} for f in FORMS}
            out[reading] = {
                f: {n: torch.from_numpy(v) for n, v in s.items()} for f, s in forms.items()
            }
    return out


def _from_features(bundle: Bundle, reading: str, config: AblationConfig) -> Forms:
    """Eq. 5 and Eq. 6 of reading A, B or C, without a network."""
    T, train = config.temperature, bundle.sets[ID_TRAIN]
    items = {name: item for name, item in bundle.sets.items() if name != ID_TRAIN}
    if reading == "C":

        def squares(x: Features) -> Tensor:
            return activation_gradients(x.logits, bundle.weight, T).square()

        E = squares(train).mean(0)
        found = {name: squares(x) for name, x in items.items()}
        return {
            "eq5": {name: score(s) for name, s in found.items()},
            "eq6": {name: score(s, E, config.eps) for name, s in found.items()},
        }
    fisher = DiagonalFisher(T, bias=reading == "B").update(train.features, train.logits)
    E = fisher.compute()
    weights = {"eq5": (torch.ones_like(E), 0.0), "eq6": (E, config.eps)}  # of 1: Eq. 5
    return {
        form: {n: scores.thinkback(x.features, x.logits, e, T, eps) for n, x in items.items()}
        for form, (e, eps) in weights.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Score every set of a trained network with the gradients of other layers.

    A killed command goes on where it was.
    """
    parser = program_parser("experiments.ablations", main.__doc__)
    fields = dataclasses.fields(AblationConfig)
    for field in fields:
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    options = parser.parse_args(arguments)
    config = AblationConfig(**{field.name: getattr(options, field.name) for field in fields})
    here = Run.at(options.results, options.network, options.seed)
    cost = run(here.folder, config, options.device)["cost"]["forward_passes"]
    passes = ", ".join(f"{name} {value:.2f}" for name, value in cost.items())
    print(f"cost in forward passes: {passes}")


if __name__ == "__main__":
    sys.exit(run_main(main))
