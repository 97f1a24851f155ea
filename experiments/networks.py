"""The networks that the tables are about, and the pass of each over every image.

    python -m experiments.networks [--only NAME ...] [--published FOLDER] [--work FOLDER]

A network is a folder of ``results/`` or the weights of other people. One pass over an image gives
what the last layer reads, the logits, and the gradients of the readings C, D and E, so that all
scores of a network are of the same images. What is too large to be committed stays in the work
folder, in pieces, and a command that was killed goes on after the last whole piece.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor, nn
from tqdm import tqdm

from thinkback_utils.arrays import doubled
from thinkback_utils.batches import batches
from thinkback_utils.commands import run_main
from thinkback_utils.data import ImageSet
from thinkback_utils.devices import process_device
from thinkback_utils.features import Bundle, Features, save_arrays
from thinkback_utils.files import read_arrays, read_json, sha256, write_json
from thinkback_utils.gradients import find_layers, gradients, score
from thinkback_utils.heads import hooked

from . import ablations, published
from .benchmark import Benchmark
from .evaluation import (
    BASELINES,
    ID_TEST,
    ID_TRAIN,
    Record,
    Scores,
    available_sets,
    evenly,
    image_set,
    load_scores,
    save_scores,
    score_sets,
    some,
)
from .provenance import describe
from .run import Run, program_parser

if TYPE_CHECKING:
    from argparse import Namespace

LAYERS = ("C", "D", "E")  # the readings below the last layer
PIECE = 1_000  # images of one file
WORK = Path("_build/networks")  # of the pieces, and of bundles that are not committed


class Normalized(nn.Module):
    """A network for normalised images as one for pixels in [0, 1].

    Args:
        network: reads (N, 3, H, W), of each channel (pixel - mean) / std.
        mean, std: of the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([*mean])[:, None, None])
        self.register_buffer("std", torch.tensor([*std])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W) in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


METHODS = (  # JointEnergy is not among them: it is for labels that do not exclude each other
    "msp",
    "energy",
    "max_logit",
    "gradnorm",
    "thinkback",
    "thinkback_eq5",
    "thinkback_kronecker",
    "thinkback_averaged",
)
READING_TITLES = {"thinkback": "Thinkback, reading A"} | {
    f"reading_{reading}": f"Thinkback, reading {reading}" for reading in LAYERS
}
COMPARED = (*BASELINES, "thinkback", "reading_C", "reading_D", "reading_E", "thinkback_averaged")
SEALED = (
    "The network was scored after the choice in `development/choice.json` had been committed, and"
    " nothing was chosen or tuned on it."
)


@dataclass(frozen=True)
class Network:
    """One trained classifier of CIFAR-10.

    Args:
        name: by which tables tell it from the others.
        title: for people.
        folder: where its results lie, within ``results/``.
        published: the weights are those of other people, and lie elsewhere.
    """

    name: str
    title: str
    folder: str
    published: bool = False

    def run(self, results: str | Path) -> Run:
        """Its folder."""
        return Run(Path(results) / self.folder)

    def weights(self, results: str | Path, given: str | Path | None = None) -> Path:
        """The file of its weights; ``given`` as in ``published.folder``."""
        if self.published:
            return published.folder(given) / f"{self.name}.safetensors"
        return self.run(results).weights

    def model(
        self, results: str | Path, device: torch.device, given: str | Path | None = None
    ) -> nn.Module:
        """The network in evaluation mode; it reads pixels in [0, 1]."""
        if not self.published:
            return self.run(results).model(device)
        means = published.CIFAR10_MEAN, published.CIFAR10_STD
        return Normalized(published.load(self.name, given), *means).eval().to(device)

    def bundle(self, results: str | Path, work: Path) -> Bundle:
        """Features of all sets: of its finished run, or what :func:`main` left in ``work``.

        Raises:
            FileNotFoundError: there are none, naming the command that makes them.
        """
        own, made = self.run(results), work / f"{self.name}.npz"
        if (own.folder / "bundle.npz").exists():
            return own.bundle()
        if not made.exists():
            raise FileNotFoundError(
                f"thinkback: no features of {self.title} at {made}; make them with"
                f" `python -m experiments.networks --only {self.name} --work {work}`"
            )
        return Bundle.load(made)


NETWORKS = {
    network.name: network
    for network in (
        Network("wrn40-2", "WRN-40-2", "wrn40-2-cifar10/seed0"),
        Network("wrn16-2", "WRN-16-2", "wrn16-2-cifar10/seed0"),
        Network(published.DENSENET, "DenseNet", f"{published.DENSENET}/seed0", published=True),
    )
}
# The same once more, trained from other random seeds. They show how far a seed alone moves a score.
# They are in no mean over networks, where one kind of network would count three times.
OTHER_SEEDS = {
    f"{name}-seed{seed}": Network(
        f"{name}-seed{seed}", f"{NETWORKS[name].title}, seed {seed}", f"{name}-cifar10/seed{seed}"
    )
    for name in ("wrn40-2", "wrn16-2")
    for seed in (1, 2)
}
KNOWN = {  # all of both, by kind
    name: network
    for kind in NETWORKS
    for name, network in (NETWORKS | OTHER_SEEDS).items()
    if name.startswith(kind)
}


@dataclass(frozen=True)
class Rules:
    """What decides the scores of the readings; kept beside them."""

    temperature: float = 5.0  # the paper's
    eps: float = 1e-16  # the paper's floor under E
    damping: float = 1e-3  # of the damped form: its floor, times mean(E)
    n_fit: int = 10_000  # training images for E and for whatever else a score fits
    n_id: int = 5_000  # CIFAR-10 test images
    n_ood: int = 2_000  # images of each OOD set
    batch_size: int = 16

    def size(self, name: str) -> int:
        """How many images of the set of that name are used."""
        return {ID_TRAIN: self.n_fit, ID_TEST: self.n_id}.get(name, self.n_ood)


@dataclass
class Pass:
    """A network's way over sets of images, kept in pieces.

    Args:
        model: reads pixels in [0, 1].
        work: folder of the pieces.
        rules: of the scores.
        stamp: what the pieces were made from; pieces of anything else are thrown away.
    """

    model: nn.Module
    work: Path
    rules: Rules
    stamp: Mapping[str, Any]
    layers: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        path, own = self.work / "stamp.json", dict(self.stamp) | {"rules": asdict(self.rules)}
        if path.exists() and read_json(path) != own:
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(path, own)
        device = next(self.model.parameters()).device
        self.layers = find_layers(self.model, torch.rand(2, 3, 32, 32, device=device))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        layer = self.model.get_submodule(self.layers["C"])
        assert isinstance(layer, nn.Linear)  # find_layers finds no other
        return layer

    def over(self, name: str, images: ImageSet, make: Callable[..., dict[str, Any]]) -> list[Path]:
        """The pieces of one set, those that are not there yet made by ``make(stream)``."""
        paths = []
        for start in range(0, len(images.images), PIECE):
            rows = slice(start, start + PIECE)
            path = self.work / f"{name}.{start // PIECE:02d}.npz"
            if not path.exists():
                arrays = make(self.stream(images.images[rows], path.stem))
                if images.labels is not None:
                    arrays["labels"] = images.labels[rows].numpy()
                save_arrays(path, arrays)
            paths.append(path)
        return paths

    def stream(
        self, images: Tensor, title: str
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Features (B, D), logits (B, K), and squared gradients (B, P) by reading."""
        head, calls = {"head": self.head}, []

        def keep(_: str, layer: nn.Module) -> Any:
            return layer.register_forward_hook(lambda *call: calls.append((call[1][0], call[2])))

        rest = (LAYERS, self.layers, self.rules.temperature)
        with tqdm(total=len(images), desc=title, unit=" images", mininterval=5) as bar:
            for batch in batches(images, self.model, self.rules.batch_size):
                (x,) = batch.args
                with hooked(head, keep):
                    found = gradients(self.model, x, *rest)
                h, z = (values.detach().float().cpu() for values in calls.pop())
                yield h, z, {r: doubled(g).square() for r, g in found.items()}
                bar.update(len(h))

    def fit(self, images: ImageSet) -> dict[str, Tensor]:
        """Pass over the training images; E of each reading, float64 (P,)."""

        def make(stream: Iterable[Any]) -> dict[str, Any]:
            parts, sums = [], dict.fromkeys(LAYERS, torch.zeros(()))
            for h, z, squares in stream:
                parts.append((h, z))
                sums = {r: sums[r] + squares[r].sum(0).cpu() for r in sums}
            return _joined(parts) | {f"{r}.sum": total.numpy() for r, total in sums.items()}

        pieces = self.over(ID_TRAIN, images, make)
        kept = [read_arrays(path, "delete it") for path in pieces]
        size = len(images.images)
        return {
            r: torch.from_numpy(sum(piece[f"{r}.sum"] for piece in kept)) / size for r in LAYERS
        }

    def scores(self, name: str, images: ImageSet, expected: Mapping[str, Tensor]) -> None:
        """Pass over other images, and score each reading in each form."""

        def make(stream: Iterable[Any]) -> dict[str, Any]:
            parts: list[tuple[Tensor, Tensor]] = []
            found: dict[str, list[Tensor]] = {}
            for h, z, squares in stream:
                parts.append((h, z))
                for key, values in self.forms(squares, expected).items():
                    found.setdefault(key, []).append(values.cpu())
            return _joined(parts) | {key: torch.cat(v).numpy() for key, v in found.items()}

        self.over(name, images, make)

    def forms(
        self, squares: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scores by ``<reading>_<form>``, float64 (B,)."""
        eps, out = self.rules.eps, {}
        for reading, mean in expected.items():
            own, E = squares[reading], mean.to(squares[reading].device)
            out[f"{reading}_eq5"] = score(own)
            out[f"{reading}_eq6"] = score(own, E, eps)
            out[f"{reading}_eq6damped"] = score(own, E, eps, self.rules.damping)
        return out


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> dict[str, NDArray[Any]]:
    h, z = zip(*parts, strict=True)
    return {"features": torch.cat(h).numpy(), "logits": torch.cat(z).numpy()}


def extract(network: Network, options: Namespace, sets: Iterable[str], rules: Rules) -> Pass:
    """The whole pass of one network over its images; see :func:`main` for the options."""
    results, given, images = options.results, options.published, {}
    for name in (ID_TRAIN, ID_TEST, *sets):
        images[name] = image_set(name)
    stamp = {
        "weights_sha256": sha256(network.weights(results, given)),
        "images_sha256": {name: item.sha256() for name, item in images.items()},
    }
    model = network.model(results, process_device(options.device), given)
    way = Pass(model, options.work / network.name, rules, stamp)
    few = {name: some(item, rules.size(name)) for name, item in images.items()}
    expected = way.fit(few.pop(ID_TRAIN))
    for name, item in few.items():
        way.scores(name, item, expected)
    return way


@dataclass(frozen=True)
class Seen:
    """What one pass left of a network: features of the images, and scores of the readings.

    Args:
        features: by set.
        readings: ``{"<set>.<reading>_<form>": (N,)}``, of the same images.
        rules: which images, and the settings of the readings.
    """

    features: Mapping[str, Features]
    readings: Mapping[str, NDArray[np.floating]]
    rules: Record

    def scores(self) -> Scores:
        """Every method and every reading, ``[set][method]`` (N,)."""
        out = score_sets(self.features, METHODS, train_name=ID_TRAIN)
        for key, values in self.readings.items():
            name, _, form = key.rpartition(".")
            reading, _, equation = form.partition("_")
            if name in out and reading in LAYERS:
                method = f"reading_{reading}" + equation.removeprefix("eq6").replace("eq5", "_eq5")
                out[name][method] = values
        return out


def from_pieces(work: Path) -> Seen:
    """What :func:`extract` left in a folder."""
    parts: dict[str, dict[str, list[NDArray[Any]]]] = {}
    for path in sorted(work.glob("*.npz")):
        arrays = read_arrays(path, "delete it and run the command again")
        own = parts.setdefault(path.stem.rpartition(".")[0], {})
        for key, values in arrays.items():
            own.setdefault(key, []).append(values)
    features: dict[str, Features] = {}
    readings: dict[str, NDArray[Any]] = {}
    for name, own in parts.items():
        whole = {k: np.concatenate(v) for k, v in own.items() if not k.endswith(".sum")}
        kept = [torch.from_numpy(whole.pop(k)) for k in ("features", "logits")]
        labels = whole.pop("labels", None)
        known = None if labels is None else torch.from_numpy(labels)
        features[name] = Features(kept[0], kept[1], known)
        readings |= {f"{name}.{key}": values for key, values in whole.items()}
    return Seen(features, readings, read_json(work / "stamp.json")["rules"])


def from_run(here: Run) -> Seen:
    """The same images of a finished run, from its bundle and its ``ablations``."""
    arrays, record = ablations.load(here.folder)
    sizes = record["readings"]["E"]["images"] | {ID_TRAIN: record["readings"]["E"]["n_fit"]}
    features = {}
    for name, item in here.bundle().sets.items():
        rows = evenly(len(item), sizes[name])
        labels = None if item.labels is None else item.labels[rows]
        features[name] = Features(item.features[rows], item.logits[rows], labels)
    return Seen(features, arrays, record["config"])


def keep(network: Network, seen: Seen, results: Path, facts: Record) -> None:
    """Write ``readings.npz`` and ``readings.json`` of a network."""
    folder = network.run(results).folder
    folder.mkdir(parents=True, exist_ok=True)
    scored = seen.scores()
    save_scores(folder / "readings.npz", scored)
    sizes = {name: len(item) for name, item in seen.features.items()}
    facts |= {"title": network.title, "rules": dict(seen.rules), "sizes": sizes}
    facts["accuracy"] = seen.features[ID_TEST].accuracy()
    facts["features"] = seen.features[ID_TEST].features.shape[1]
    facts |= {"sealed": SEALED} if network.published else {}
    write_json(folder / "readings.json", facts)


def scores_of(results: str | Path, names: Iterable[str] = ()) -> dict[str, Scores]:
    """Scores by network, of those that keep ``readings.npz``; see :class:`Seen`.

    Args:
        results: the folder of results.
        names: keys of ``KNOWN``; default: all of ``NETWORKS``.
    """
    chosen = [KNOWN[name] for name in names or NETWORKS]
    folders = {network.name: network.run(results).folder for network in chosen}
    return {
        name: load_scores(folder, "readings.npz")
        for name, folder in folders.items()
        if (folder / "readings.npz").exists()
    }


def records_of(scored: Scores, resamples: int = 200) -> list[Record]:
    """A network's rows of ``networks.json``: all metrics, and the AUPR at 1/2 as ``aupr_even``."""
    few = {n: {m: row[m] for m in COMPARED if m in row} for n, row in scored.items()}
    rows, even = (
        Benchmark(draws=1, prevalence=prevalence, resamples=resamples).records(few)
        for prevalence in (1 / 6, 1 / 2)
    )
    for row, other in zip(rows, even, strict=True):
        row["aupr_even"] = other["aupr"]
        row["interval95"]["aupr_even"] = other["interval95"]["aupr"]
        for baseline in BASELINES:
            if f"minus_{baseline}" in row:
                row[f"minus_{baseline}"]["aupr_even"] = other[f"minus_{baseline}"]["aupr"]
    return rows


def over_networks(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean over networks, and its 95 % interval of Student's t: how other networks may differ.

    One network has no spread: both ends are NaN. The networks are too few and too different to be a
    sample of anything, so the interval says how far the mean may move, and no more.

    >>> [round(value, 2) for value in over_networks([0.90, 0.92, 0.94])]
    [0.92, 0.87, 0.97]
    """
    found = np.array([*values])
    mean = float(found.mean())
    if len(found) < 2:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return mean, mean - half, mean + half


def load(results: str | Path) -> list[Record]:
    """The records of ``networks.json``; none where the command has not run."""
    path = Path(results) / "networks.json"
    return read_json(path)["records"] if path.exists() else []


def others(here: Run) -> dict[str, list[Record]]:
    """The records of the networks that are not this run, by their titles."""
    out: dict[str, list[Record]] = {}
    for record in load(here.results):
        if NETWORKS[record["network"]].run(here.results) != here:
            out.setdefault(record["title"], []).append(record)
    return out


def write(results: Path, made: Record) -> list[Record]:
    """Measure every network that keeps its scores; write ``networks.json``, as ``made``."""
    start = time.perf_counter()
    records = [
        {"network": name, "title": NETWORKS[name].title} | row
        for name, scored in scores_of(results).items()
        for row in records_of(scored)
    ]
    made = made | {"seconds": round(time.perf_counter() - start, 1)}
    write_json(results / "networks.json", {"provenance": made, "records": records})
    return records


def measure(network: Network, options: Namespace, sets: list[str]) -> None:
    """Run one network over all images, unless a finished run keeps what is needed."""
    start, results, device = time.perf_counter(), options.results, process_device(options.device)
    here, facts = network.run(results), describe(device)
    if all((here.folder / name).exists() for name in ("bundle.npz", "ablations.npz")):
        record = here.made("ablations")
        facts |= {key: record[key] for key in ("weights_sha256", "images_sha256")}
        seen = from_run(here)
    else:
        counts = {name: getattr(options, name) for name in ("n_fit", "n_id", "n_ood")}
        way = extract(network, options, sets, Rules(**counts))
        facts |= dict(way.stamp) | {"layers": way.layers}
        seen, head = from_pieces(way.work), way.head
        whole = Bundle(dict(seen.features), head.weight.detach(), head.bias.detach())
        whole.save(options.work / f"{network.name}.npz")
    facts["seconds"] = round(time.perf_counter() - start, 1)
    keep(network, seen, results, facts)


def main(arguments: list[str] | None = None) -> None:
    """Run every network over the same images; write its scores and the table of all.

    Networks of other people are left out where their weights are not at hand.
    """
    parser = program_parser("experiments.networks", main.__doc__, "results", "device")
    parser.add_argument("--only", nargs="*", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--published", type=Path, help="folder of the weights of other people")
    parser.add_argument("--work", type=Path, default=WORK, help="of the pieces")
    parser.add_argument("--sets", nargs="*", help="OOD sets (default: all)")
    for name in ("n_fit", "n_id", "n_ood"):
        option, default = f"--{name.replace('_', '-')}", getattr(Rules, name)
        parser.add_argument(option, type=int, default=default, help="images; see Rules")
    options = parser.parse_args(arguments)
    sets = available_sets() if options.sets is None else options.sets
    made = describe()  # before a file of the repository changes
    for name in options.only:
        measure(KNOWN[name], options, sets)
    for row in write(options.results, made):
        if row["set"] == "mean":
            print(f"{row['title']}: {row['method']} {100 * row['auroc']:.1f} % mean AUROC")


if __name__ == "__main__":
    sys.exit(run_main(main))
