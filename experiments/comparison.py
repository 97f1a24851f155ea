"""Scores tuned alike, on every network: what the chapter on them says, in words and tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from thinkback_utils.files import read_json
from thinkback_utils.methods import METHODS

from . import development, tuning
from .development import SECOND, Figure, chosen, default, figures
from .evaluation import ID_TEST
from .family import Candidate
from .networks import NETWORKS, over_networks
from .run import Run
from .summary import signed
from .tuning import CHOICE, OURS, TUNED

DEFAULT = "averaged"  # in the form of the package's default
TITLE = "Thinkback, averaged"
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
        seed: training run of the WRN-40-2.
    """

    results: Path
    seed: int = 0

    @cached_property
    def tuned(self) -> Mapping[str, Any]:
        """What was tuned on the development networks."""
        return tuning.read(self.results)

    @cached_property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The suite's record of each network on which it has run.

        Raises:
            FileNotFoundError: it has not run on the first.
        """
        paths = {n: folder / "tuned.json" for n, folder in self.folders.items()}
        first = next(iter(paths.values()))
        if not first.exists():
            raise FileNotFoundError(
                f"thinkback: no tuned scores at {first}; fetch the repository's results/ folder, or"
                f" run `python -m experiments.tuning --suite {next(iter(NETWORKS))}`"
            )
        return {name: read_json(path) for name, path in paths.items() if path.exists()}

    @property
    def folders(self) -> dict[str, Path]:
        """Where the runs of the networks lie."""
        runs = {network.title: network.run(self.results) for network in NETWORKS.values()}
        own = next(iter(runs))
        runs[own] = Run.at(self.results, runs[own].folder.parent.name, self.seed)
        return {title: run.folder for title, run in runs.items()}

    @cached_property
    def choice(self) -> Candidate:
        """The candidate that the rule chose in the second round, of the present family."""
        return chosen(self.results / "development", SECOND)

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

    def table(self, kind: str = "tuned") -> pd.DataFrame:
        """:meth:`standing` in percent, by title: the mean over networks, then each network."""
        frame = self.standing(kind)
        own = {half: f"{half}, mean" for half in development.HALVES}
        columns = [f"{n}, {half}" for n in self.networks for half in development.HALVES]
        made = 100 * frame[[*own, *columns]].rename(columns=own)
        titles = [f"**{t}**" if name == DEFAULT else t for name, t in frame["title"].items()]
        return made.set_axis(pd.Index(titles, name="score"), axis=0)

    def suite_words(self) -> str:
        """On which networks the suite was run, and with how many images."""
        parts = []
        for network, record in self.networks.items():
            images = record["images"]
            new = [n for name, n in images.items() if name not in (record["fit"], ID_TEST)]
            each = f"{min(new):,}" if min(new) == max(new) else f"{min(new):,} to {max(new):,}"
            parts.append(
                f"- **{network}**: fitted on {images[record['fit']]:,} images, tested on"
                f" {images[ID_TEST]:,} of CIFAR-10 and {each} of each set."
            )
        return "\n".join(parts)

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
        return (
            f"With every score tuned alike, **{TITLE}** has {_percent(own['far'])} mean AUROC on"
            f" the far sets, place {_place(far, DEFAULT)} of {len(frame)}, and"
            f" {_percent(own['near'])} on the near one, place {_place(near, DEFAULT)}. On the near"
            f" set {leader['title']} leads with {_percent(leader['near'])}; Energy has"
            f" {_percent(frame.loc['energy', 'near'])}."
        )

    def differences(self, against: Sequence[str]) -> pd.DataFrame:
        """How far the rule's choice is ahead of these scores, in points of AUROC.

        Returns: A row for each score and half; of each network the difference with its 95 %
            interval over images, then the mean over networks with its interval over networks
            (Student's t; none from one network).
        """
        rows = []
        if unknown := [name for name in against if name not in TUNED]:
            raise ValueError(
                f"thinkback: no tuned score {unknown[0]!r}; there are {', '.join(TUNED)}"
            )
        for name in against:
            for half in development.HALVES:
                row: dict[str, Any] = {"against": self.title(name), "sets": half}
                values = []
                for network, record in self.networks.items():
                    found = next(r for r in record["tuned"] if r["score"] == name)
                    row[network] = [100 * end for end in found[f"ahead_{half}"]]
                    values.append(row[network][0])
                row["networks"] = over_networks(values)
                rows.append(row)
        return pd.DataFrame(rows)

    def differences_table(self, against: Sequence[str]) -> pd.DataFrame:
        """:meth:`differences` as text."""
        frame = self.differences(against)
        for column in (*self.networks, "networks"):
            frame[column] = [_signed(*value) for value in frame[column]]
        return frame.rename(columns={"networks": "mean over networks"})

    def goal(self) -> str:
        """Whether one score is at or above every tuned score of others, far and near."""
        frame = self.standing()
        ours = frame.loc[[name for name in OURS if name in frame.index]]
        others = frame.drop(index=ours.index)
        best = {half: others[half].idxmax() for half in development.HALVES}
        short = pd.DataFrame({half: ours[half] - others[half].max() for half in best})
        nearest = short.min(axis=1).idxmax()
        told = [
            f"{frame.loc[nearest, half] * 100:.1f} {half},"
            f" {signed(100 * short.loc[nearest, half])} to {others.loc[name, 'title']}"
            for half, name in best.items()
        ]
        reached = [name for name in ours.index if short.loc[name].min() >= 0]
        return (
            "The goal was one score, at one setting, at or above every tuned score of others on far"
            f" and on near sets, in the mean over networks: **{'' if reached else 'not '}reached.**"
            f" The default has {signed(100 * short.loc[DEFAULT, 'far'])} points far and"
            f" {signed(100 * short.loc[DEFAULT, 'near'])} near to the best of them. Of our forms"
            f" *{self.title(nearest)}* comes nearest: {'; '.join(told)}."
        )

    def choice_words(self) -> str:
        """What the rule chose, what the default is, and how far they are apart on development."""
        found = self._figures(development.load(self.results / "development"))
        own, best = self.choice, max(found.values(), key=lambda value: value.figure)
        text = (
            f"Of {len(found):,} candidates the best has a figure of {_percent(best.figure)}. The"
            f" rule takes {_named(own)}, with {_percent(found[own].figure)}."
        )
        if own == default():
            return f"{text} That is the default of the package."
        suite = self._suite()
        parts = [
            f"{_percent(suite[c].far)} far and {_percent(suite[c].near)} near"
            for c in (own, default())
        ]
        return (
            f"{text} The default of the package, chosen in a first round when the near half"
            f" counted for a sixth and the family was smaller, is {_named(default())}: it has"
            f" {_percent(found[default()].figure)} here. On the suite, which was run afterwards,"
            f" the rule's new choice has {parts[0]}, the default {parts[1]}. The default has not"
            " been changed: all tables of this book are made with it, and among equal numbers of"
            " settings, below, its form and its setting come out again."
            if self._again()
            else f"{text} The default has not been changed: all tables of this book are made with"
            f" it. On the suite the new choice has {parts[0]}, the default {parts[1]}."
        )

    def _again(self) -> bool:
        """Whether the default has the best figure of all tuned scores, at its own setting."""
        tuned, own = self.tuned["choice"], default()
        best = max(tuned, key=lambda name: tuned[name]["figure"])
        setting = {"temperature": own.temperature, "damping": own.damping}
        return bool(best == DEFAULT and tuned[best]["setting"] == setting)

    def takeaway(self) -> str:
        """The takeaway of the chapter, with one number."""
        found = self.differences(["energy"]).set_index("sets")["networks"]
        return (
            "> **Takeaway.** Correlations between weights, directions of features and an average"
            f" over labels make one score. Against tuned Energy its AUROC differs by"
            f" {_signed(*found['far'])} points on far sets and by {_signed(*found['near'])} on the"
            f" near one ({len(self.networks)} networks; in brackets 95 % over networks). It is a"
            " combination of known parts, chosen on other networks and other outliers."
        )

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
            row: dict[str, Any] = {
                "step": title,
                "T": f"{best.temperature:g}",
                "damping": _damping(best.damping),
            }
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
        """AUROC of the default and of Energy on kinds of development outliers, in percent."""
        own = (candidate or default())._asdict()
        rows: dict[str, dict[str, list[float]]] = {}
        for network in development.NETWORKS:
            folder = self.results / "development" / network
            energy = read_json(folder / "candidates.json")["methods"]["energy"]
            ours = next(
                r
                for r in development.read_records(folder / "candidates.csv")
                if all(r[k] == v for k, v in own.items())
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
        paths = [folder / "candidates_suite.csv" for folder in self.folders.values()]
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


def rule() -> str:
    """How settings were chosen, as the module that does so says it: Markdown, as a quotation."""
    text = (inspect.getdoc(development) or "").split("\n\n", 1)[1]
    text = text.replace(":mod:", "").replace("``MARGIN``", f"{development.MARGIN:g}")
    return "\n".join(f"> {line}" for line in text.replace("``", "`").splitlines())


def collapse(features: Tensor, labels: Tensor) -> dict[str, float]:
    """How far features have collapsed to their class means (Papyan et al. 2020).

    Args:
        features: (N, D), in distribution.
        labels: class of each, (N,).

    Returns: ``between``, the share of their variance that lies between the class means, 1 at full
        collapse; ``cosine`` and ``spread``, mean and deviation of the cosines between two centered
        class means, -1 / (K - 1) and 0 at full collapse.

    >>> collapse(torch.eye(3).double(), torch.arange(3))
    {'between': 1.0, 'cosine': -0.5, 'spread': 0.0}
    """
    h = features.double() - features.double().mean(0)
    means = torch.stack([h[labels == k].mean(0) for k in labels.unique()])
    within = (h - means[labels]).square().sum()
    unit = means / means.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(len(means), dtype=torch.bool)]
    spread = cosines.std(correction=0)
    share = 1 - within / h.square().sum()
    found = {"between": share, "cosine": cosines.mean(), "spread": spread}
    return {name: round(float(value), 12) + 0.0 for name, value in found.items()}


def needs(record: Mapping[str, Any]) -> pd.DataFrame:
    """What each detector keeps of its fit, in kB, and what it cannot do without.

    Times are not shown: not all were taken on a machine that did nothing else.

    Args:
        record: that of ``python -m experiments.peers``.
    """
    rows = {}
    for found in record["peers"].values():
        needed = [need for need, is_needed in found["needs"].items() if is_needed]
        listed = ", ".join(needed) or "\N{EN DASH}"
        rows[found["title"]] = {"keeps (kB)": found["bytes"] / 1e3, "needs": listed}
    for name, found in record["ours"].items():
        fitted = METHODS[name].fisher is not None
        listed = "training data" if fitted else "\N{EN DASH}"
        rows[METHODS[name].title] = {"keeps (kB)": found["bytes"] / 1e3, "needs": listed}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("detector")


def _named(candidate: Candidate) -> str:
    inputs = "directions" if candidate.unit else "features as they are"
    bias = "with bias" if candidate.bias else "without bias"
    return (
        f"*{candidate.form.replace('_', ' ')}* ({inputs}, {bias}, labels *{candidate.labels}*,"
        f" $T$ = {candidate.temperature:g}, damping {_damping(candidate.damping)})"
    )


def _signed(value: float, low: float, high: float) -> str:
    ends = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    text = f"{value:+.1f}{ends}".replace("-", "\N{MINUS SIGN}")
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _place(frame: pd.DataFrame, score: str) -> int:
    return list(frame.index).index(score) + 1


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _damping(value: float | None) -> str:
    return "1/N" if value is None else f"{value:g}"
