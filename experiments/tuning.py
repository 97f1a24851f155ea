"""Every score with a free setting, ours included, tuned alike on the development networks.

    python -m experiments.tuning                     the settings, from development alone
    python -m experiments.tuning --suite NETWORK …   then the test suite, once

The rule is that of :mod:`development`: each score has ``COUNT`` settings, or one where nothing is
free; the one with the best figure represents it. Ours are members of the family in the forms named
here, with six temperatures and two dampings each. Two published detectors are left at their
published settings, elsewhere: ODIN, which reads images, and OpenMax, which takes a millisecond an
image.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkback_utils import metrics
from thinkback_utils.commands import run_main
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, sha256, write_json
from thinkback_utils.methods import METHODS

from . import detectors, networks
from .development import (
    FITTED,
    NETWORKS,
    auroc,
    default,
    figures,
    halves,
    measure,
    save_records,
    suite_halves,
)
from .evaluation import ID_TEST, ID_TRAIN, NEAR, Scores, evenly
from .family import DAMPINGS, Candidate, Statistics
from .networks import WORK, Network
from .peers import PEERS, last_layer
from .provenance import describe
from .run import Run, program_parser

COUNT = 12
SAMPLE = {"fit": 10_000, "test": 3000, "new": 1000}  # images of the suite's sets
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 75, 100, 200, 300, 500, 1000)
RIDGES = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
SAME_PHOTOS = {"places9_crop": "places9", "places9_resize": "places9"}
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)

Settings = Mapping[str, Any]
Scored = dict[str, Tensor]  # by set: (N, settings)


def _one(name: str, values: Sequence[float]) -> list[Settings]:
    return [{name: value} for value in values]


def _pairs(**values: Sequence[Any]) -> list[Settings]:
    return [dict(zip(values, pair, strict=True)) for pair in itertools.product(*values.values())]


@dataclass(frozen=True)
class Tuned:
    """A score with its settings.

    Args:
        title: what tables call it.
        settings: that are tried.
        score: of a network's last layer, training features and sets, with all these settings.
    """

    title: str
    settings: Sequence[Settings]
    score: Callable[[nn.Module, Features, Mapping[str, Features], Sequence[Settings]], Scored]


Scorer = Callable[[Features], Tensor]  # a fitted detector: scores (N,)


def _each(title: str, settings: Sequence[Settings], make: Callable[..., Scorer]) -> Tuned:
    """A scorer for each setting; ``make`` is given the last layer, training data and setting."""

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        made = [make(layer, fit, setting) for setting in settings]
        return {n: torch.stack([one(x) for one in made], 1) for n, x in sets.items()}

    return Tuned(title, settings, score)


def _softmax(layer: nn.Module, fit: Features, setting: Settings) -> Scorer:
    return lambda x: detectors.Softmax(**setting).predict_logits(x.logits)


def _peer(name: str, settings: Sequence[Settings] = ({},)) -> Tuned:
    """A peer as :mod:`peers` wraps it."""
    peer = PEERS[name]

    def make(layer: nn.Module, fit: Features, setting: Settings) -> Scorer:
        fitted = peer.fit(layer, fit, **setting)
        return lambda x: torch.as_tensor(peer(fitted, x)).double()

    return _each(peer.title, settings, make)


def _distance(title: str, relative: bool = False, unit: bool = False) -> Tuned:
    def make(layer: nn.Module, fit: Features, setting: Settings) -> Scorer:
        if fit.labels is None:
            raise ValueError(
                f"thinkback: {title} is fitted on training data with labels; give both"
            )
        made = detectors.Distance(setting["ridge"], relative, unit)
        made.fit_features(fit.features, fit.labels)
        return lambda x: made.predict_features(x.features)

    return _each(title, _one("ridge", RIDGES), make)


def _method(name: str) -> Tuned:
    method = METHODS[name]

    def make(layer: nn.Module, fit: Features, setting: Settings) -> Scorer:
        state = method.fit([(fit.features, fit.logits)], **setting)
        return lambda x: method(x.features, x.logits, state, **setting)

    temperatures = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
    return _each(method.title, _pairs(temperature=temperatures, damping=(0.0, 1e-3)), make)


def _neighbours(
    layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each set: similarities to its most similar training directions; to those with energy."""
    bank, ks = F.normalize(fit.features.float()), [setting["k"] for setting in settings]
    energy = torch.logsumexp(layer(fit.features.float()), 1)
    for name, x in sets.items():
        plain, guided = [], []
        for part in F.normalize(x.features.float()).split(500):
            similar = part @ bank.T
            plain.append(similar.topk(max(ks), 1).values)
            guided.append((similar * energy).topk(max(ks), 1).values)
        yield name, torch.cat(plain), torch.cat(guided)


def _knn(
    layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
) -> Scored:
    """Distance to the k-th nearest training direction, all k by one search."""
    columns = [setting["k"] - 1 for setting in settings]
    return {
        name: (2 - 2 * similar[:, columns]).clamp(min=0).sqrt()
        for name, similar, _ in _neighbours(layer, fit, sets, settings)
    }


def _nnguide(
    layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
) -> Scored:
    """Energy times the mean similarity to k training directions, weighed by their energy."""
    out = {}
    for name, _, guided in _neighbours(layer, fit, sets, settings):
        mean = [guided[:, : setting["k"]].mean(1) for setting in settings]
        out[name] = -torch.stack(mean, 1) * torch.logsumexp(layer(sets[name].features), 1)[:, None]
    return out


def _ours(title: str, form: str) -> Tuned:
    """A form of the family, of directions and with the bias, under the network's decisions."""

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        made, columns = Statistics(fit, sets), []
        for T, group in itertools.groupby(settings, lambda setting: setting["temperature"]):
            values = made.of(Candidate(form, True, True, "predicted", T, None))
            at = [DAMPINGS.index(setting["damping"]) for setting in group]
            columns.append({n: value[:, at] for n, value in values.items()})
        return {n: torch.cat([column[n] for column in columns], 1) for n in sets}

    temperatures = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
    return Tuned(title, _pairs(temperature=temperatures, damping=(1e-2, 1e-1)), score)


TUNED: dict[str, Tuned] = {
    "msp": _each("Softmax", _one("t", TEMPERATURES), _softmax),
    "max_logit": _peer("max_logit"),
    "energy": _peer("energy", _one("t", (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100))),
    "gini": _peer("gini", _one("t", TEMPERATURES)),
    "gen": _peer("gen", _pairs(gamma=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0), M=(5, None))),
    "kl_matching": _peer("kl_matching"),
    "gradnorm": _peer("gradnorm", _one("temperature", TEMPERATURES)),
    "react": _peer(
        "react",
        _one("percentile", (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.999)),
    ),
    "vra": _peer("vra", _pairs(lower=(0.0, 0.2, 0.4, 0.6), upper=(0.9, 0.95, 0.99))),
    "ash": _peer("ash", _one("percentile", SHARES)),
    "scale": _peer("scale", _one("percentile", SHARES)),
    "dice": _peer("dice", _one("p", SHARES)),
    "she": _peer("she"),
    "fdbd": _peer("fdbd"),
    "nci": _peer(
        "nci",
        _one("alpha", (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)),
    ),
    "pnml": _peer("pnml"),
    "knn": Tuned("KNN", _one("k", NEIGHBOURS), _knn),
    "nnguide": Tuned("NNGuide", _one("k", NEIGHBOURS), _nnguide),
    "vim": _peer("vim", _one("share", SHARES)),
    "mahalanobis": _distance("Mahalanobis"),
    "mahalanobis_pp": _distance("Mahalanobis++", unit=True),
    "rmds": _distance("RMDS", relative=True),
    "rmds_pp": _distance("RMDS, unit features", relative=True, unit=True),
    "energy_mahalanobis_pp": _peer("energy_mahalanobis_pp", _one("weight", WEIGHTS)),
    "thinkback": _method("thinkback"),
    "averaged": _ours("Averaged, leverage (the default before)", "averaged"),
    "averaged_means": _ours("Averaged, class means", "averaged_means"),
    "averaged_both": _ours("Averaged, leverage and class means", "averaged_both"),
    "averaged_plain": _ours("Gini × leverage", "averaged_plain"),
    "gini_means": _ours("Gini × class means", "gini_means"),
    "gini_both": _ours("Gini × leverage × class means", "gini_both"),
}
OURS = ("averaged", "averaged_means", "averaged_both", "averaged_plain", "gini_means", "gini_both")


def run(results: Path, networks: Sequence[str] = tuple(NETWORKS)) -> None:
    """Score all settings on the development networks; keep figures and choices: ``tuned.json``.

    The networks' features must have been made: ``python -m experiments.development --features``.
    """
    start, records = time.perf_counter(), []
    seconds: dict[str, float] = {}
    for network in networks:
        bundle = Run(results / "development" / network).bundle()
        sets = {n: x for n, x in bundle.sets.items() if n != FITTED}
        for name, tuned in TUNED.items():
            began = time.perf_counter()
            made = tuned.score(last_layer(bundle), bundle.sets[FITTED], sets, tuned.settings)
            for i in range(len(tuned.settings)):
                found = halves({n: value[:, i].double().numpy() for n, value in made.items()})
                records.append({"network": network, "score": name, "setting": i} | found)
            seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - began, 1)
    facts: dict[str, Any] = describe("cpu") | {"count": COUNT, "seconds_each": seconds}
    facts["choice"] = choices(records)
    facts |= {"records": records, "seconds": round(time.perf_counter() - start, 1)}
    write_json(results / "development" / "tuned.json", facts)


def choices(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each score the setting with the best figure, the first of equals, and that figure."""
    found = figures(records, "score", "setting")
    out = {}
    for name, tuned in TUNED.items():
        own = {i: found[name, i] for i in range(len(tuned.settings)) if (name, i) in found}
        if not own:
            continue
        best = max(own, key=lambda i: own[i].figure)
        out[name] = {"title": tuned.title, "setting": dict(tuned.settings[best]), "index": best}
        out[name] |= own[best]._asdict()
    return out


PUBLISHED: dict[str, Settings] = {
    "msp": {"t": 1.0},
    "knn": {"k": 50},
    "nnguide": {"k": 10},
    **{key: {"ridge": 0.0} for key in ("mahalanobis", "mahalanobis_pp", "rmds", "rmds_pp")},
    "thinkback": {"temperature": 5.0, "damping": 0.0},
}  # of scores whose wrapper here does not know them
CHOICE = "choice"  # the default of the package, beside all others
Both = dict[str, Scores]  # by kind of setting


def score_suite(bundle: Bundle, tuned: Mapping[str, Mapping[str, Any]]) -> Both:
    """Scores of all sets of a bundle but the fit data, at the tuned and at the published settings.

    Args:
        bundle: features of the suite and of the fit data, and the last layer.
        tuned: what :func:`choices` gave.

    The default of the package, in either, is the score ``CHOICE``.
    """
    layer, fitted = last_layer(bundle), bundle.sets[ID_TRAIN]
    sets = {n: x for n, x in bundle.sets.items() if n != ID_TRAIN}
    out: Both = {kind: {n: {} for n in sets} for kind in ("tuned", "published")}
    for name, choice in tuned.items():
        settings = [choice["setting"]]
        if name not in OURS:
            settings.append(PUBLISHED.get(name, {}))
        made = TUNED[name].score(layer, fitted, sets, settings)
        for kind, column in zip(out, range(len(settings)), strict=False):
            for n, value in made.items():
                out[kind][n][name] = value[:, column].double().numpy()
    chosen = default()
    values = Statistics(fitted, sets).of(chosen)
    for n, value in values.items():
        for kind in out:
            out[kind][n][CHOICE] = value[:, DAMPINGS.index(chosen.damping)].numpy()
    return out


def compare(scored: Scores) -> list[dict[str, Any]]:
    """What the scores separate: a record each, with the difference to ``CHOICE``, in [0, 1].

    ``far`` and ``near`` are mean AUROC; ``fpr95_far`` and ``fpr95_near`` mean FPR95; ``ahead_far``
    and ``ahead_near`` how far ``CHOICE`` is ahead in AUROC, with 95 % intervals over the images
    (:func:`difference`).
    """
    far = [n for n in scored if n not in (*NEAR, ID_TEST)]
    near = [n for n in scored if n in NEAR]
    out = []
    for name in scored[ID_TEST]:
        record: dict[str, Any] = {"score": name}
        ids = scored[ID_TEST][name]
        order = np.sort(ids)
        record["sets"] = {n: auroc(order, scored[n][name]) for n in (*far, *near)}
        for half, names in (("far", far), ("near", near)):
            record[half] = float(np.mean([record["sets"][n] for n in names]))
            curves = [metrics.roc(ids, scored[n][name]) for n in names]
            record[f"fpr95_{half}"] = float(np.mean([metrics.fpr_at_tpr(c) for c in curves]))
            record[f"ahead_{half}"] = difference(scored, CHOICE, name, names)
        out.append(record)
    return out


def difference(scored: Scores, a: str, b: str, names: Sequence[str]) -> tuple[float, float, float]:
    """Mean AUROC of score a less that of b over these sets, on the same images: value, low, high.

    An AUROC is a mean over the images of one side of the share of the other side that they beat;
    so is a difference, and the variances of both sides add up (DeLong et al. 1988). Sets share
    their in-distribution images, which are averaged over the sets first. Two sets of the same
    photos (``SAME_PHOTOS``) are taken as wholly dependent: their deviations add, not their
    variances.

    Args:
        scored: ``[set][score]``, with the in-distribution test set.
        a, b: scores.
        names: the OOD sets.
    """
    ids = scored[ID_TEST]
    of_ids, deviation, value = np.zeros(len(ids[a])), dict.fromkeys(names, 0.0), 0.0
    for name in names:
        ood = scored[name]
        of_ids += (metrics.rank(ids[b], ood[b]) - metrics.rank(ids[a], ood[a])) / len(names)
        of_ood = metrics.rank(ood[a], ids[a]) - metrics.rank(ood[b], ids[b])
        value += of_ood.mean() / len(names)
        deviation[name] = of_ood.std(ddof=1) / np.sqrt(len(of_ood)) / len(names)
    source: dict[str, float] = {}
    for name, own in deviation.items():
        photos = SAME_PHOTOS.get(name, name)
        source[photos] = source.get(photos, 0.0) + own
    variance = of_ids.var(ddof=1) / len(of_ids) + sum(part**2 for part in source.values())
    half = 1.96 * float(np.sqrt(variance))
    return float(value), float(value) - half, float(value) + half


def suite(results: Path, network: Network, work: Path = WORK) -> None:
    """Run the test suite on a network, once and after the choice.

    ``tuned.npz`` and ``tuned.json`` hold every score at its tuned and at its published setting;
    ``candidates_suite.csv`` every candidate of the family. The last says how well development ranks
    candidates, and what a look at the suite would have won. Nothing is chosen by it.

    Args:
        results: where ``development`` holds the choices.
        network: of ``networks.NETWORKS``.
        work: folder of bundles that are not committed.
    """
    start, here, made = time.perf_counter(), network.run(results), describe("cpu")
    bundle = sample(network.bundle(results, work))
    both = score_suite(bundle, read(results)["choice"])
    here.save_scores(
        {
            n: {f"{s}-{kind}": v for kind in both for s, v in both[kind][n].items()}
            for n in both["tuned"]
        },
        "tuned.npz",
    )
    facts: dict[str, Any] = made | {"fit": ID_TRAIN}
    facts["weights_sha256"] = here.digest() if here.weights.exists() else None  # of others
    facts["images"] = {n: len(x) for n, x in bundle.sets.items()}
    facts["tuned_sha256"] = sha256(results / "development" / "tuned.json")
    facts |= {kind: compare(scored) for kind, scored in both.items()}
    write_json(
        here.folder / "tuned.json", facts | {"seconds": round(time.perf_counter() - start, 1)}
    )
    records = measure(bundle.sets, ID_TRAIN, suite_halves)
    save_records(here.folder / "candidates_suite.csv", records)


def sample(bundle: Bundle) -> Bundle:
    """A part of a bundle, evenly spread, so that all scores run in a minute: ``SAMPLE``.

    The tables of single sets are made with all images; here the comparison of scores counts, which
    is paired.
    """
    sets = {}
    for name, item in bundle.sets.items():
        role = {ID_TRAIN: "fit", ID_TEST: "test"}.get(name, "new")
        rows = evenly(len(item), SAMPLE[role])
        labels = None if item.labels is None else item.labels[rows]
        sets[name] = Features(item.features[rows], item.logits[rows], labels)
    return Bundle(sets, bundle.weight, bundle.bias)


def read(results: Path) -> dict[str, Any]:
    """What :func:`run` kept."""
    kept: dict[str, Any] = read_json(results / "development" / "tuned.json")
    return kept


def main(arguments: list[str] | None = None) -> None:
    """Tune every score on the development networks; or run the suite with what was tuned."""
    parser = program_parser("experiments.tuning", main.__doc__, "results")
    about = "do not tune; run the test suite on these networks"
    parser.add_argument("--suite", nargs="+", choices=list(networks.NETWORKS), help=about)
    parser.add_argument("--work", type=Path, default=WORK, help="of bundles not committed")
    options = parser.parse_args(arguments)
    if options.suite:
        for name in options.suite:
            suite(options.results, networks.NETWORKS[name], options.work)
        return
    run(options.results)
    for name, choice in read(options.results)["choice"].items():
        print(f"{name:24}{100 * choice['figure']:.2f} {choice['setting']}")


if __name__ == "__main__":
    sys.exit(run_main(main))
