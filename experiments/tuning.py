"""Every score with a free setting, ours included, tuned alike on the development networks.

    python -m experiments.tuning --results results            the settings, from development alone
    python -m experiments.tuning --results results --suite    then the test suite, once

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkback_utils.commands import run_main
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, write_json
from thinkback_utils.methods import METHODS

from . import detectors
from .development import FITTED, HELD_OUT, NETWORKS, figures, halves
from .evaluation import ID_TRAIN, Scores
from .family import DAMPINGS, Candidate, Statistics
from .peers import PEERS, last_layer
from .provenance import describe
from .run import Run, program_parser

COUNT = 12
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 75, 100, 200, 300, 500, 1000)
RIDGES = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
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


def _each(make: Callable[[Any, Any, Settings], Any], reads: str = "features") -> Any:
    """Fit one detector a setting; ``make`` is given the last layer, training data and setting."""

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        made = [make(layer, fit, setting) for setting in settings]
        return {
            n: torch.stack([getattr(one, f"predict_{reads}")(getattr(x, reads)) for one in made], 1)
            for n, x in sets.items()
        }

    return score


def _peer(name: str, settings: Sequence[Settings] = ({},), title: str | None = None) -> Tuned:
    """A peer as :mod:`peers` wraps it; ``d`` of ViM is given as a share of D."""
    peer = PEERS[name]

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        made = [peer.fit(layer, fit, **setting) for setting in settings]
        return {
            n: torch.stack([torch.as_tensor(peer(one, x)).double() for one in made], 1)
            for n, x in sets.items()
        }

    return Tuned(title or peer.title, settings, score)


def _distance(title: str, **kind: bool) -> Tuned:
    def make(layer: nn.Module, fit: Features, setting: Settings) -> detectors.Distance:
        return detectors.Distance(**kind, **setting).fit_features(fit.features, fit.labels)

    return Tuned(title, _one("ridge", RIDGES), _each(make))


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


def _ours(title: str, form: str, unit: bool, bias: bool = True) -> Tuned:
    """A form of the family; no Fisher has other labels than the network's decision here."""

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        made, columns = Statistics(fit, sets), []
        for T, group in itertools.groupby(settings, lambda setting: setting["temperature"]):
            values = made.of(Candidate(form, unit, bias, "predicted", T, None))
            at = [DAMPINGS.index(setting["damping"]) for setting in group]
            columns.append({n: value[:, at] for n, value in values.items()})
        return {n: torch.cat([column[n] for column in columns], 1) for n in sets}

    temperatures = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
    return Tuned(title, _pairs(temperature=temperatures, damping=(1e-2, 1e-1)), score)


def _method(name: str) -> Tuned:
    method = METHODS[name]

    def score(
        layer: nn.Module, fit: Features, sets: Mapping[str, Features], settings: Sequence[Settings]
    ) -> Scored:
        out: dict[str, list[Tensor]] = {n: [] for n in sets}
        for setting in settings:
            state = method.fit([(fit.features, fit.logits)], **setting)
            for n, x in sets.items():
                out[n].append(method(x.features, x.logits, state, **setting))
        return {n: torch.stack(parts, 1) for n, parts in out.items()}

    temperatures = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
    return Tuned(method.title, _pairs(temperature=temperatures, damping=(0.0, 1e-3)), score)


TUNED: dict[str, Tuned] = {
    "msp": Tuned(
        "Softmax",
        _one("t", TEMPERATURES),
        _each(lambda layer, fit, v: detectors.Softmax(**v), "logits"),
    ),
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
    "averaged": _ours("Averaged, leverage (the default before)", "averaged", unit=True),
    "averaged_means": _ours("Averaged, class means", "averaged_means", unit=True),
    "averaged_both": _ours("Averaged, leverage and class means", "averaged_both", unit=True),
    "averaged_plain": _ours("Gini × leverage", "averaged_plain", unit=True),
    "gini_means": _ours("Gini × class means", "gini_means", unit=True),
    "gini_both": _ours("Gini × leverage × class means", "gini_both", unit=True),
}
OURS = ("averaged", "averaged_means", "averaged_both", "averaged_plain", "gini_means", "gini_both")


def run(results: Path, networks: Sequence[str] = tuple(NETWORKS)) -> None:
    """Score all settings on the development networks; keep figures and choices: ``tuned.json``.

    The networks' features must have been made: ``python -m experiments.development --features``.
    """
    start, records, seconds = time.perf_counter(), [], {}
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
        best = max(own, key=lambda i: own[i].figure)
        out[name] = {"title": tuned.title, "setting": dict(tuned.settings[best]), "index": best}
        out[name] |= own[best]._asdict()
    return out


def score_suite(bundle: Bundle, chosen: Mapping[str, Mapping[str, Any]], fit: str) -> Scores:
    """Scores ``[set][score]`` (N,) of the tuned scores on all sets of a bundle but the fit data."""
    sets = {n: x for n, x in bundle.sets.items() if n not in (fit, ID_TRAIN, FITTED, HELD_OUT)}
    out: Scores = {n: {} for n in sets}
    for name, choice in chosen.items():
        made = TUNED[name].score(last_layer(bundle), bundle.sets[fit], sets, [choice["setting"]])
        for n, value in made.items():
            out[n][name] = value[:, 0].double().numpy()
    return out


def read(results: Path) -> dict[str, Any]:
    """What :func:`run` kept."""
    kept: dict[str, Any] = read_json(results / "development" / "tuned.json")
    return kept


def main(arguments: list[str] | None = None) -> None:
    """Tune every score on the development networks."""
    parser = program_parser("experiments.tuning", main.__doc__, "results")
    options = parser.parse_args(arguments)
    run(options.results)
    for name, choice in read(options.results)["choice"].items():
        print(f"{name:24}{100 * choice['figure']:.2f} {choice['setting']}")


if __name__ == "__main__":
    sys.exit(run_main(main))
