"""Published detectors beside ours, on the same kept features: wrappers around pytorch-ood.

    python -m experiments.peers --results results [--network wrn40-2-cifar10 --seed 0] [--skip odin]

Nothing is tuned here. A hyper-parameter has the authors' value for CIFAR-10; where they name none,
their default; where there is none, the package's. What is learned from training data follows the
published rule. Detectors that change the activations do so where their authors do in a network like
ours: at the input of the last layer, which the bundle holds. So only ODIN needs images.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from thinkback_utils import data
from thinkback_utils.commands import run_main
from thinkback_utils.devices import process_device
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, write_json
from thinkback_utils.methods import METHODS, Method, State

from . import detectors
from .benchmark import Benchmark
from .evaluation import (
    BASELINES,
    COMPARED,
    ID_TEST,
    ID_TRAIN,
    NEAR,
    Record,
    Scores,
    evenly,
)
from .provenance import describe
from .run import Run, program_parser

NEEDS = ("training data", "labels", "OOD data", "backward pass", "images")
BATCH = 1000  # rows scored at a time, ours and theirs
IMAGE_BATCH = 100
IMAGES_ID = 2000  # of the test set, for detectors that need images
IMAGES_OOD = 1000  # of each other set


@dataclass(frozen=True)
class Peer:
    """One line of the table.

    Args:
        title: what figures and tables call it.
        source: where it was published.
        build: of ``pytorch_ood.detector``, the model and the settings' values: a detector, not
            fitted. The model is the last layer, which maps features (N, D) to logits (N, K); the
            whole network where images are read.
        reads: what it is given: logits (N, K), features (N, D), the same as maps (N, D, 1, 1), or
            images in [0, 1].
        needs: those of ``NEEDS`` that it cannot do without, as published.
        settings: each hyper-parameter, and what else there was to choose, as
            ``(value, why this value)``.
        unit: it is given h / ||h|| for h.
        correct: it is fitted on correctly classified data alone.

    >>> train = Features(torch.eye(4), torch.eye(4), torch.arange(4))
    >>> energy, head = PEERS["energy"], nn.Linear(4, 4)
    >>> energy(energy.fit(head, train), Features(torch.zeros(1, 4), torch.zeros(1, 4)))  # -log 4
    tensor([-1.3863])
    """

    title: str
    source: str
    build: Callable[[Any, Any, Mapping[str, Any]], Any]
    reads: Literal["logits", "features", "feature_maps", "images"]
    needs: Collection[str] = ()
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    unit: bool = False
    correct: bool = False

    def fit(self, model: nn.Module, train: Features | None = None, **others: Any) -> Any:
        """The detector around ``model``, fitted if it learns anything.

        Args:
            model: as of ``build``.
            train: training data.
            others: settings in place of the published ones.

        Raises:
            ValueError: if it does and there is no training data with labels.
            ModuleNotFoundError: without pytorch-ood.
        """
        settings = {name: value for name, (value, _) in self.settings.items()} | others
        detector = self.build(_detectors(), model, settings)
        if "training data" in self.needs:
            if train is None or train.labels is None:
                raise ValueError(
                    f"thinkback: {self.title} is fitted on training data with labels; give both"
                )
            rows = train.logits.argmax(1) == train.labels if self.correct else slice(None)
            getattr(detector, f"fit_{self.reads}")(self._input(train)[rows], train.labels[rows])
        return detector

    def __call__(self, detector: Any, batch: Features | Tensor) -> Tensor:
        """Scores (N,) of features, or of images uint8 (N, 3, H, W), higher = more OOD."""
        # Gradient detectors have predict alone.
        predict = getattr(detector, f"predict_{self.reads}", None) or detector.predict
        scores: Tensor = predict(self._input(batch))
        return scores

    def _input(self, batch: Features | Tensor) -> Tensor:
        if isinstance(batch, Tensor):
            return batch / 255
        if self.reads == "logits":
            return batch.logits
        h = F.normalize(batch.features) if self.unit else batch.features
        return h[:, :, None, None] if self.reads == "feature_maps" else h


_TRAINING = ("training data",)
_LABELS = (*_TRAINING, "labels")
PEERS: dict[str, Peer] = {
    "msp": Peer(
        "Softmax", "Hendrycks & Gimpel, ICLR 2017", lambda d, head, v: d.MaxSoftmax(None), "logits"
    ),
    "max_logit": Peer(
        "MaxLogit", "Hendrycks et al., ICML 2022", lambda d, head, v: d.MaxLogit(None), "logits"
    ),
    "energy": Peer(
        "Energy",
        "Liu et al., NeurIPS 2020",
        lambda d, head, v: d.EnergyBased(None, **v),
        "logits",
        settings={"t": (1.0, "the authors' for every network")},
    ),
    "gen": Peer(
        "GEN",
        "Liu et al., CVPR 2023",
        lambda d, head, v: d.GEN(None, **v),
        "logits",
        settings={
            "gamma": (0.1, "the authors' for every network"),
            "M": (None, "all ten classes; the authors' 100 are of ImageNet's 1,000"),
        },
    ),
    "kl_matching": Peer(
        "KL matching",
        "Hendrycks et al., ICML 2022",
        lambda d, head, v: d.KLMatching(None),
        "logits",
        _TRAINING,
        {
            "fitted on": (
                "training data",
                "the authors take a validation set, which the bundle does not hold",
            )
        },
    ),
    "openmax": Peer(
        "OpenMax",
        "Bendale & Boult, CVPR 2016",
        lambda d, head, v: d.OpenMax(None, v["tailsize"], v["alpha"], v["euclid_weight"]),
        "logits",
        _LABELS,
        {
            "tailsize": (20, "the authors' default, made for ImageNet"),
            "alpha": (10, "the authors' default, made for ImageNet; here all classes"),
            "euclid_weight": (1.0, "the package's default; the authors add the cosine distance"),
            "fitted on": (
                "correctly classified training data",
                "the authors'; the package takes what it is given",
            ),
        },
        correct=True,
    ),
    "gradnorm": Peer(
        "GradNorm",
        "Huang et al., NeurIPS 2021",
        lambda d, head, v: d.GradNorm(head, lambda name: name == "weight", BATCH, **v),
        "features",
        ("backward pass",),
        {
            "temperature": (
                1.0,
                "the authors' for every network; they too take the last layer's weight alone",
            )
        },
    ),
    "react": Peer(
        "ReAct",
        "Sun et al., NeurIPS 2021",
        lambda d, head, v: d.ReAct(None, nn.Sequential(nn.Flatten(), head), **v),
        "feature_maps",
        _TRAINING,
        {"percentile": (0.9, "the authors'; the threshold follows from training data")},
    ),
    "ash": Peer(
        "ASH-S",
        "Djurisic et al., ICLR 2023",
        lambda d, head, v: d.ASH(None, nn.Sequential(nn.Flatten(), head), **v),
        "feature_maps",
        settings={
            "variant": ("ash-s", "the authors' configuration for CIFAR-10"),
            "percentile": (
                0.9,
                "the authors' configuration for CIFAR-10; the package's default is 0.65",
            ),
        },
    ),
    "scale": Peer(
        "SCALE",
        "Xu et al., ICLR 2024",
        lambda d, head, v: d.SCALE(None, nn.Sequential(nn.Flatten(), head), **v),
        "feature_maps",
        settings={
            "percentile": (0.85, "the authors' default, made for ImageNet; the package's is 0.65")
        },
    ),
    "dice": Peer(
        "DICE",
        "Sun & Li, ECCV 2022",
        lambda d, head, v: d.DICE(None, head.weight, head.bias, **v),
        "features",
        _TRAINING,
        {"p": (0.9, "the authors' for CIFAR-10; which weights go follows from training data")},
    ),
    "she": Peer(
        "SHE", "Zhang et al., ICLR 2023", lambda d, head, v: d.SHE(None, head), "features", _LABELS
    ),
    "knn": Peer(
        "KNN",
        "Sun et al., ICML 2022",
        lambda d, head, v: d.KNN(None, **v),
        "features",
        _TRAINING,
        {"k": (50, "the authors' for CIFAR-10, with all training images")},
    ),
    "vim": Peer(
        "ViM",
        "Wang et al., CVPR 2022",
        lambda d, head, v: d.ViM(
            None, round(head.in_features * v["share"]), head.weight, head.bias
        ),
        "features",
        _TRAINING,
        {
            "share": (
                0.5,
                (
                    "the authors' 512 are more than D, which the package then halves; theirs is"
                    " ImageNet's"
                ),
            )
        },
    ),
    "mahalanobis": Peer(
        "Mahalanobis",
        "Lee et al., NeurIPS 2018",
        lambda d, head, v: d.Mahalanobis(None),
        "features",
        _LABELS,
        {
            "layers": (
                "last",
                (
                    "the authors add other layers and input noise with weights that are fitted on"
                    " OOD data"
                ),
            )
        },
    ),
    "mahalanobis_pp": Peer(
        "Mahalanobis++",
        "Müller & Hein, ICML 2025",
        lambda d, head, v: d.Mahalanobis(None),
        "features",
        _LABELS,
        unit=True,
    ),
    "rmds": Peer(
        "RMDS", "Ren et al., arXiv 2021", lambda d, h, v: d.RMD(None), "features", _LABELS
    ),
    "rmds_pp": Peer(
        "RMDS, unit features",
        "Ren et al., arXiv 2021",
        lambda d, head, v: d.RMD(None),
        "features",
        _LABELS,
        unit=True,
    ),
    "pnml": Peer(
        "pNML",
        "Bibas et al., NeurIPS 2021",
        lambda d, head, v: d.PNML(None, head),
        "features",
        _TRAINING,
    ),
    "fdbd": Peer(
        "fDBD",
        "Liu & Qin, ICML 2024",
        lambda d, head, v: d.fDBD(None, head),
        "features",
        _TRAINING,
    ),
    "nnguide": Peer(
        "NNGuide",
        "Park et al., ICCV 2023",
        lambda d, head, v: d.NNGuide(None, head, **v),
        "features",
        _TRAINING,
        {"k": (10, "the package's default, with all training images")},
    ),
    "nci": Peer(
        "NCI",
        "Liu & Qin, CVPR 2025",
        lambda d, head, v: d.NCI(None, head, **v),
        "features",
        _TRAINING,
        {"alpha": (0.0, "the package's default: the angle alone; the authors choose it on data")},
    ),
    "vra": Peer(
        "VRA",
        "Xu et al., NeurIPS 2023",
        lambda d, head, v: detectors.VRA(head, **v),
        "features",
        _TRAINING,
        {
            "lower": (0.5, "half of the activations; chosen on data by the authors"),
            "upper": (0.95, "as ReAct does, milder; chosen on data by the authors"),
        },
    ),
    "energy_mahalanobis_pp": Peer(
        "Energy + Mahalanobis++",
        "a control of this book",
        lambda d, head, v: detectors.EnergyAndDistance(head, **v),
        "features",
        _LABELS,
        {"weight": (1.0, "both standardised on training features")},
    ),
    "gini": Peer(
        "Gini",
        "a control of this book",
        lambda d, head, v: detectors.Gini(**v),
        "logits",
        settings={"t": (1.0, "as Softmax")},
    ),
    "odin": Peer(
        "ODIN",
        "Liang et al., ICLR 2018",
        lambda d, model, v: d.ODIN(model, **v),
        "images",
        ("OOD data", "backward pass", "images"),
        {
            "temperature": (1000.0, "the authors' for every network"),
            "eps": (
                0.0014,
                (
                    "the authors' for their DenseNet, pixels in [0, 1]; they choose it anew for"
                    " each OOD set"
                ),
            ),
        },
    ),
}

ABSENT = {
    "PCA and clusters of penultimate features": (
        "Both steps are a line of scikit-learn, but the score hangs on the numbers of components"
        " and clusters and on a rule from distances to a score, and we know of none published for"
        " features like these: with ours it would be another method."
    ),
    "Extreme value machine (Rudd et al., TPAMI 2018)": (
        "It takes a Weibull fit around each of the 50,000 training images, for a tail size that has"
        " no default and is searched for on each data set; its package (evm 0.1.2) was last"
        " released in 2018 and needs libmr."
    ),
}


def _detectors() -> Any:
    # which the package imports, and which may not fit the installed torch
    data.import_torchvision()
    try:
        return importlib.import_module("pytorch_ood.detector")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "thinkback: published detectors come from the package pytorch-ood; "
            "`pip install 'thinkback-utils[peers]'` brings it"
        ) from error


def last_layer(bundle: Bundle) -> nn.Linear:
    """The layer that turned a bundle's features into its logits, without gradients."""
    layer = nn.Linear(bundle.weight.shape[1], bundle.weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(bundle.weight, False), nn.Parameter(bundle.bias, False)
    return layer


def kept_bytes(detector: object, network: Collection[Tensor] = ()) -> int:
    """Bytes of all tensors and arrays that a fitted detector holds beside the network's own.

    >>> kept_bytes({"centers": np.zeros(3), "more": [torch.zeros(2, 2)]})
    40
    """
    walk = _Walk(io.BytesIO())
    walk.dump(detector)
    own = {tensor.data_ptr() for tensor in network}
    return sum(walk.sizes[address] for address in walk.sizes.keys() - own)


class _Walk(pickle.Pickler):
    """Goes through an object as pickle does, and only notes the tensors and arrays it meets."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.sizes: dict[int, int] = {}  # by address: two views of one array count once

    def persistent_id(self, value: object) -> str | None:
        if isinstance(value, Tensor | np.ndarray):
            address = value.data_ptr() if isinstance(value, Tensor) else value.ctypes.data
            self.sizes[address] = value.nbytes
            return "array"
        return "code" if isinstance(value, FunctionType) else None


def measure(
    fit: Callable[[], Any],
    score: Callable[[Any, Any], Tensor],
    batches: Mapping[str, Sequence[Any]],
    network: Collection[Tensor] = (),
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Fit a detector and score the batches of every set.

    Returns: Scores by set, on the CPU; and what it took: ``fit_seconds``,
        ``score_seconds_per_1000`` images (a first batch warms up), and ``bytes``, as in
        :func:`kept_bytes`.
    """
    start = time.perf_counter()
    detector = fit()
    fitted = time.perf_counter()
    score(detector, next(iter(batches.values()))[0])
    warm = time.perf_counter()
    scores = {
        name: torch.cat([score(detector, batch) for batch in parts]).cpu()
        for name, parts in batches.items()
    }
    scored = (time.perf_counter() - warm) / sum(map(len, scores.values()))
    cost = {"fit_seconds": fitted - start, "score_seconds_per_1000": 1000 * scored}
    return scores, cost | {"bytes": kept_bytes(detector, network)}


def run(
    folder: str | Path,
    sets: Collection[str] | None = None,
    device: str | torch.device | None = None,
    images: bool = True,
) -> None:
    """Fit all peers on the training features of a run, and score its test set and its other sets.

    Peers that an earlier run has scored on the same weights and images are kept as they are.

    Writes beside the bundle: ``peers.npz`` (scores, float32, "<set>.<peer>"), ``peers.json``
    (provenance; what each peer needs, its hyper-parameters, and what it cost, with our methods
    timed in the same way) and ``peers_table.json`` (:func:`table`). No metric is printed.

    Args:
        folder: ``results/<network>/seed<k>``.
        sets: those of the bundle to score beside the test set; all by default.
        device: where the network runs for peers that read images. Features are scored on the CPU.
        images: whether to run these, on some images of each set: ``IMAGES_ID`` and ``IMAGES_OOD``,
            spread evenly.
    """
    here, start = Run(Path(folder)), time.perf_counter()
    _detectors()  # now, since an import must not count as fitting
    bundle = here.bundle()
    names = [ID_TEST, *(sets or [name for name in bundle.sets if name not in (ID_TRAIN, ID_TEST)])]
    if unknown := set(names) - set(bundle.sets):
        raise ValueError(
            f"thinkback: no sets {sorted(unknown)} in {here.folder / 'bundle.npz'}, only"
            f" {list(bundle.sets)}"
        )
    record = here.describe("cpu", names)
    record |= {"pytorch_ood": version("pytorch-ood"), "batch": BATCH, "absent": ABSENT}
    record |= {"peers": {}, "ours": {}}
    kept, old = _kept(here, record)
    record |= {key: old[key] for key in ("peers", "ours", "images") if key in old}
    scored = _run_features(bundle, names, record)
    if images and "odin" not in kept[ID_TEST]:
        for name, row in _run_images(here, names, process_device(device), record).items():
            scored[name] |= row
    new = set(scored[ID_TEST])
    scored = {name: kept.get(name, {}) | row for name, row in scored.items()}
    here.save_scores(scored, "peers.npz")
    seconds = round(time.perf_counter() - start, 1)
    record["earlier"] = [*old.get("earlier", ()), *_runs_of(old)]
    write_json(here.folder / "peers.json", record | {"seconds": seconds})
    path = here.folder / "peers_table.json"
    rows = [] if not kept[ID_TEST] else read_json(path)
    rows = [row for row in rows if row["method"] not in new]
    write_json(path, rows + table(folder, peers=new))


def _kept(here: Run, record: Record) -> tuple[Scores, Record]:
    """Scores and record of an earlier run on the same weights and images; else none."""
    try:
        old = here.made("peers")
    except (FileNotFoundError, ValueError):
        return {ID_TEST: {}}, {}
    same = all(old.get(key) == record[key] for key in ("images_sha256", "pytorch_ood", "batch"))
    return (here.scores("peers.npz"), old) if same else ({ID_TEST: {}}, {})


def _runs_of(old: Record) -> list[Record]:
    """When and by what the peers of an earlier run were scored."""
    keys = ("command", "commit", "started", "device", "versions", "seconds")
    return [{key: old[key] for key in keys} | {"peers": [*old["peers"]]}] if old else []


def _run_features(bundle: Bundle, names: Sequence[str], record: Record) -> Scores:
    """Scores of all peers but those of images; what they cost, and ours, goes into the record."""
    train, layer = _by_rows(bundle.sets[ID_TRAIN]), last_layer(bundle)
    batches = {name: _split(_by_rows(bundle.sets[name])) for name in names}
    for name in COMPARED if not record["ours"] else ():
        record["ours"][name] = _cost_of_ours(METHODS[name], train, batches)
    return _score(False, lambda peer: peer.fit(layer, train), batches, layer, record)


def _run_images(here: Run, names: Sequence[str], device: torch.device, record: Record) -> Scores:
    """As :func:`_run_features`, of the others."""
    few = {
        name: item.images[evenly(len(item), IMAGES_ID if name == ID_TEST else IMAGES_OOD)]
        for name, item in here.images(names).items()
    }
    batches = {name: x.to(device).split(IMAGE_BATCH) for name, x in few.items()}
    model = here.model(device)
    record["images"] = {"device": describe(device)["device"], "batch": IMAGE_BATCH}
    record["images"]["count"] = {name: len(x) for name, x in few.items()}
    return _score(True, lambda peer: peer.fit(model), batches, model, record)


def _score(
    images: bool,
    fit: Callable[[Peer], Any],
    batches: Mapping[str, Sequence[Any]],
    model: nn.Module,
    record: Record,
) -> Scores:
    """Scores ``[set][peer]`` of the peers that read images, or of the others."""
    scored: Scores = {name: {} for name in batches}
    own = list(model.state_dict().values())
    todo = {n: peer for n, peer in _peers(images).items() if n not in record["peers"]}
    for name, peer in tqdm(todo.items(), desc="peers", unit=" peers"):
        found, cost = measure(partial(fit, peer), peer, batches, own)
        record["peers"][name] = _facts(peer) | cost
        for key, values in found.items():
            scored[key][name] = values.numpy()
    return scored


def _peers(images: bool) -> dict[str, Peer]:
    return {name: peer for name, peer in PEERS.items() if (peer.reads == "images") == images}


def _facts(peer: Peer) -> Record:
    settings = {name: {"value": value, "why": why} for name, (value, why) in peer.settings.items()}
    needs = {need: need in peer.needs for need in NEEDS}
    return {"title": peer.title, "source": peer.source, "needs": needs, "settings": settings}


def _cost_of_ours(
    method: Method, train: Features, batches: Mapping[str, Sequence[Features]]
) -> dict[str, float]:
    def fit() -> State:
        return method.fit([(train.features, train.logits)])

    cost = measure(fit, lambda state, x: method(x.features, x.logits, state), batches)[1]
    return cost


def _by_rows(item: Features) -> Features:
    """The same laid out by rows; a bundle lies by columns, which slows down reading a few rows."""
    return Features(item.features.contiguous(), item.logits.contiguous(), item.labels)


def _split(item: Features) -> list[Features]:
    pairs = zip(item.features.split(BATCH), item.logits.split(BATCH), strict=True)
    return [Features(*pair) for pair in pairs]


def load(folder: str | Path) -> tuple[Scores, Record]:
    """What :func:`run` wrote: scores, ``[set][peer]``, float64 (N,), and the record.

    Raises:
        FileNotFoundError: if it has not run there.
        ValueError: if the folder's weights are no longer those that were scored.
    """
    here = Run(Path(folder))
    record = here.made("peers")
    return here.scores("peers.npz"), record


def table(
    folder: str | Path, resamples: int = 200, peers: Collection[str] | None = None
) -> list[Record]:
    """The four metrics of every peer on every set, with 95 % intervals, from the kept scores.

    Rows are as those of ``evaluation.table`` and ``evaluation.means``, the mean being over the far
    sets, with their intervals and paired differences to Softmax and Energy, and ``near``: whether
    the set is near the training set. Peers that read images have fewer (``n_id``, ``n_ood``); they
    are paired with Softmax and Energy of the same images.

    Args:
        folder: ``results/<network>/seed<k>``.
        resamples: of the bootstrap; 200 take a few minutes for all peers.
        peers: those of the table; default: all.
    """
    scored, _ = load(folder)
    records = []
    for images in (False, True):
        those = [name for name in _peers(images) if name in scored[ID_TEST]]
        those = [name for name in those if peers is None or name in peers]
        if not those:
            continue
        group = {name: {peer: row[peer] for peer in those} for name, row in scored.items()}
        for name, row in scored.items():
            rows = evenly(len(row[BASELINES[0]]), len(row[those[0]])).numpy()
            group[name] |= {baseline: row[baseline][rows] for baseline in BASELINES}
        records += [
            record | {"near": record["set"] in NEAR}
            for record in Benchmark(resamples=resamples).records(group)
            if record["method"] in those
        ]
    return records


def main(arguments: list[str] | None = None) -> None:
    """Fit published detectors on the kept features of a network; keep scores, cost and table.

    The device is that of the network, for detectors that read images.
    """
    parser = program_parser("experiments.peers", main.__doc__)
    parser.add_argument(
        "--skip", choices=[*_peers(images=True)], help="leave out the peer that reads images"
    )
    options = parser.parse_args(arguments)
    folder = Run.at(options.results, options.network, options.seed).folder
    run(folder, device=options.device, images=not options.skip)
    print(f"wrote {folder / 'peers.npz'}, peers.json and peers_table.json")


if __name__ == "__main__":
    sys.exit(run_main(main))
