"""Scores tuned alike, on every network: what the chapter on them says, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

from thinkback_utils.files import read_json
from thinkback_utils.methods import METHODS

from . import development, tuning
from .development import Figure, figures
from .family import Candidate
from .tuning import CHOICE, OURS, TUNED

DEFAULT = "averaged"  # in the form of the package's default
TITLE = "Thinkback, averaged"
NETWORKS = {  # what tables call it, and its folder in results
    "WRN-40-2": "wrn40-2-cifar10/seed0",
    "WRN-16-2": "development/wrn16-2-all",
    "DenseNet-BC": "densenet-bc100-cifar10/seed0",
}
KINDS = {
    "noise": development.GROUPS["noise"],
    "changed images": ["jigsaw", "speckle", "pixelate", "rgb_ghost", "invert"],
    "two images mixed": ["arithmetic_mean", "geometric_mean"],
    "hidden classes": [development.HIDDEN],
}


@dataclass(frozen=True)
class Comparison:
    """Tables and sentences from what was tuned, and from the suite that was run afterwards.

    Args:
        results: folder of the runs.
    """

    results: Path

    @cached_property
    def tuned(self) -> Mapping[str, Any]:
        """What was tuned on the development networks."""
        return tuning.read(self.results)

    @cached_property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The suite's record of each network on which it has run."""
        paths = {name: self.results / folder / "tuned.json" for name, folder in NETWORKS.items()}
        return {name: read_json(path) for name, path in paths.items() if path.exists()}

    @cached_property
    def choice(self) -> Candidate:
        """The candidate that the rule chose."""
        return development.chosen(self.results / "development")

    def title(self, score: str) -> str:
        """What tables call a score."""
        return TITLE if score in (DEFAULT, CHOICE) else TUNED[score].title

    def standing(self, kind: str = "tuned") -> pd.DataFrame:
        """Mean AUROC of every score over the networks, best mean of far and near first.

        Args:
            kind: at ``tuned`` or ``published`` settings; ours has its default in the second.

        Returns: Rows by score: ``title``, ``far``, ``near``, then the same of each network
            ("WRN-40-2, far"), and how far the default is ahead, as ``ahead_far``, ``ahead_near``,
            their mean over the networks; AUROC in [0, 1].
        """
        rows: dict[str, dict[str, Any]] = {}
        for network, record in self.networks.items():
            for found in record[kind]:
                name = DEFAULT if found["score"] == CHOICE else found["score"]
                if kind == "tuned" and found["score"] == CHOICE:
                    continue  # its form is there with its own twelve settings
                row = rows.setdefault(name, {"title": self.title(name)})
                for half in development.HALVES:
                    row[f"{network}, {half}"] = found[half]
        frame = pd.DataFrame.from_dict(rows, orient="index")
        for half in development.HALVES:
            columns = [f"{network}, {half}" for network in self.networks]
            frame[half] = frame[columns].mean(axis=1)
        frame["mean"] = (frame["far"] + frame["near"]) / 2
        return frame.sort_values("mean", ascending=False)

    def settings(self) -> pd.DataFrame:
        """What the rule took for every score, and its figures on the development networks."""
        rows = []
        for name, choice in self.tuned["choice"].items():
            setting = ", ".join(
                f"{k} {v:g}" if v is not None else f"{k} all" for k, v in choice["setting"].items()
            )
            row = {"score": self.title(name), "settings tried": len(TUNED[name].settings)}
            row |= {"chosen": setting or "none is free"}
            rows.append(row | {half: 100 * choice[half] for half in development.HALVES})
        frame = pd.DataFrame(rows)
        return frame.sort_values("far", ascending=False, ignore_index=True)

    def answer(self) -> str:
        """The answer of the chapter, one plain sentence and one about what it does not win."""
        frame = self.standing()
        far, near = (frame.sort_values(half, ascending=False) for half in development.HALVES)
        own, leader = frame.loc[DEFAULT], near.iloc[0]
        best = frame.drop(index=[name for name in OURS if name in frame.index]).iloc[0]
        return (
            f"With every score tuned alike, **{TITLE}** has {_percent(own['far'])} mean AUROC on"
            f" the far sets, place {_place(far, DEFAULT)} of {len(frame)}, and"
            f" {_percent(own['near'])} on the near one, place {_place(near, DEFAULT)}. On the near"
            f" set {leader['title']} leads with {_percent(leader['near'])}; Energy has"
            f" {_percent(frame.loc['energy', 'near'])}. Of the scores of others {best['title']} has"
            f" the best mean of both ({_percent(best['far'])} and {_percent(best['near'])})."
        )

    def differences(self, against: Sequence[str], kind: str = "tuned") -> pd.DataFrame:
        """How far the rule's choice is ahead of these scores, in points of AUROC.

        Returns: A row for each score and half; of each network the difference with its 95 %
            interval over images, then the mean over networks with its interval over networks
            (Student's t; none from one network).
        """
        rows = []
        for name in against:
            for half in development.HALVES:
                row: dict[str, Any] = {"against": self.title(name), "sets": half}
                values = []
                for network, record in self.networks.items():
                    found = next(r for r in record[kind] if r["score"] == name)
                    row[network] = [100 * end for end in found[f"ahead_{half}"]]
                    values.append(row[network][0])
                row["networks"] = _over_networks(values)
                rows.append(row)
        return pd.DataFrame(rows)

    def ladder(self) -> pd.DataFrame:
        """From the diagonal to the chosen form and past it: each step at its best T and damping.

        Returns: A row for each step: ``step``; ``far``, ``near`` on development; the same on the
            suite, meaned over the networks on which all candidates ran, or missing; in percent.
        """
        developed = self._figures(development.load(self.results / "development"))
        suite = self._suite()
        rows = []
        for title, fixed in LADDER.items():
            matching = [c for c in developed if all(getattr(c, k) == v for k, v in fixed.items())]
            best = max(matching, key=lambda candidate: developed[candidate].figure)
            row = {"step": title, "T": best.temperature, "damping": _damping(best.damping)}
            for where, found in (("development", developed), ("suite", suite)):
                for half in development.HALVES:
                    value = getattr(found[best], half) if best in found else None
                    row[f"{where}, {half}"] = None if value is None else 100 * value
            rows.append(row)
        return pd.DataFrame(rows)

    def candidates(self) -> pd.DataFrame:
        """Every candidate with its halves on development and on the suite, in [0, 1]."""
        developed = self._figures(development.load(self.results / "development"))
        suite = self._suite()
        return pd.DataFrame(
            [
                {"form": c.form, "unit": c.unit, "far": d.far, "near": d.near}
                | {"suite_far": suite[c].far, "suite_near": suite[c].near}
                for c, d in developed.items()
                if c in suite
            ]
        )

    def prediction(self) -> dict[str, tuple[float, float]]:
        """Rank correlation of development and suite: over the tuned scores, over all candidates."""
        scores = self.standing()
        out = {}
        for half in development.HALVES:
            own = [self.tuned["choice"][name][half] for name in scores.index]
            of_scores = float(spearmanr(own, scores[half]).statistic)
            every = self.candidates()
            of_candidates = (
                float(spearmanr(every[half], every[f"suite_{half}"]).statistic)
                if len(every)
                else float("nan")
            )
            out[half] = (of_scores, of_candidates)
        return out

    def kinds(self, candidate: Candidate | None = None) -> pd.DataFrame:
        """AUROC of the choice and of Energy on kinds of development outliers, in percent."""
        chosen = candidate or self.choice
        rows: dict[str, dict[str, list[float]]] = {}
        for network in development.NETWORKS:
            folder = self.results / "development" / network
            energy = read_json(folder / "candidates.json")["methods"]["energy"]
            ours = next(
                r
                for r in development.read_records(folder / "candidates.csv")
                if all(r[k] == v for k, v in chosen._asdict().items())
            )
            for kind, names in KINDS.items():
                for title, found in ((TITLE, ours), ("Energy", energy)):
                    values = [found[name] for name in names if name in found]
                    rows.setdefault(kind, {}).setdefault(title, []).extend(values)
        return pd.DataFrame(
            {
                kind: {k: 100 * float(np.mean(v)) for k, v in row.items()}
                for kind, row in rows.items()
            }
        ).T.rename_axis("outliers")

    def _suite(self) -> dict[Candidate, Figure]:
        paths = [self.results / folder / "candidates_suite.csv" for folder in NETWORKS.values()]
        records = [r for path in paths if path.exists() for r in development.read_records(path)]
        return self._figures(records)

    @staticmethod
    def _figures(records: Sequence[Mapping[str, Any]]) -> dict[Candidate, Figure]:
        return {Candidate(*k): v for k, v in figures(records, *Candidate._fields).items()}


def _step(form: str, **fixed: Any) -> dict[str, Any]:
    return {"form": form} | fixed


LADDER: dict[str, dict[str, Any]] = {
    "the diagonal, as the paper": _step("diagonal", unit=False, bias=False, labels="predicted"),
    "+ correlations (Kronecker)": _step("kronecker", unit=False, bias=False, labels="predicted"),
    "+ directions": _step("kronecker", unit=True, bias=False, labels="predicted"),
    "+ average over labels": _step("averaged", unit=True, bias=False, labels="predicted"),
    "+ bias: the default's form": _step("averaged", unit=True, bias=True, labels="predicted"),
    "… without damping": _step("averaged", unit=True, bias=True, labels="predicted", damping=0.0),
    "… labels of the model in A": _step("averaged", unit=True, bias=True, labels="model"),
    "… A = 1: Gini × leverage": _step("averaged_plain", unit=True, bias=True),
    "… doubt alone": _step("doubt"),
    "… Gini alone, no training data": _step("gini"),
    "… class means for leverage": _step("averaged_means", unit=True, labels="predicted"),
    "… class means and leverage": _step("averaged_both", unit=True, labels="predicted"),
    "… Gini × class means": _step("gini_means", unit=True),
    "… Gini × both": _step("gini_both", unit=True),
    "the full Fisher, directions": _step("full", unit=True),
}


def default() -> Candidate:
    """The package's default as a member of the family."""
    method = METHODS["thinkback_averaged"]
    options = method.options
    return Candidate(
        "averaged", method.unit, True, "predicted", options["temperature"], options["damping"]
    )


def _over_networks(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval over networks; NaN ends from one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, float("nan"), float("nan")]
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return [mean, mean - half, mean + half]


def _place(frame: pd.DataFrame, score: str) -> int:
    return list(frame.index).index(score) + 1


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _damping(value: float | None) -> str:
    return "1/N" if value is None else f"{value:g}"
