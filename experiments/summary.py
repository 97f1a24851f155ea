"""What the records of one network say, as the sentences and tables of the chapter on five sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd

from thinkback_utils.data import ABOUT, PAPER_SETS, STAND_INS
from thinkback_utils.features import Features
from thinkback_utils.methods import TITLES
from thinkback_utils.metrics import METRICS

from . import verdicts
from .evaluation import BASELINES, ID_TEST, ID_TRAIN, NEAR, SET_TITLES, Record, find
from .run import Run
from .verdicts import COLUMNS

SETS = (*PAPER_SETS, *STAND_INS, *NEAR)  # from top to bottom of a table or figure
SIGNS = {verdicts.YES: "✓", verdicts.NO: "✗", verdicts.UNTESTED: "?"}


def set_title(name: str) -> str:
    """Title of a set, with hyphens at which a line does not break."""
    return SET_TITLES[name].replace("-", "‑")


def sets(features: Mapping[str, Features]) -> pd.DataFrame:
    """The OOD sets: images, and what they are."""
    rows = [
        {"set": SET_TITLES[name], "images": f"{len(item):,}", "what it is": ABOUT[name]}
        for name, item in features.items()
        if name not in (ID_TRAIN, ID_TEST)
    ]
    return pd.DataFrame(rows, columns=["set", "images", "what it is"])


@dataclass(frozen=True)
class Summary:
    """Sentences (Markdown) and tables of what was measured on one network.

    Args:
        every: records of all its training seeds, labelled, as ``Benchmark.over`` makes them.
        seed: the training seed that sentences and figures speak of.
        methods: the scores that are compared.
        paper: records of the paper's table.
    """

    every: Sequence[Record]
    seed: int
    methods: Sequence[str]
    paper: Sequence[Record]

    @property
    def own(self) -> list[Record]:
        """Records of the training seed."""
        return [record for record in self.every if record["seed"] == self.seed]

    @property
    def seeds(self) -> int:
        """How many training seeds there are."""
        return len({record["seed"] for record in self.every})

    @property
    def means(self) -> dict[str, Record]:
        """The mean over the far sets by method; empty where no far set was measured."""
        return {record["method"]: record for record in self.own if record["set"] == "mean"}

    @property
    def far_sets(self) -> list[str]:
        """What that mean is over."""
        return next((list(record["sets"]) for record in self.means.values()), [])

    @property
    def testable(self) -> bool:
        """Whether the claims can be put to the records: the paper's scores, and a far set."""
        return {"thinkback", *BASELINES} <= self.means.keys()

    def best(self) -> str:
        """Which score is best in the mean, by metric."""
        found = []
        for metric, title in COLUMNS.items() if self.means else ():
            choose = min if metric in verdicts.LOWER_IS_BETTER else max
            record = choose(self.means.values(), key=lambda row: float(row[metric]))
            share = 100 * record[metric]
            found.append(f"{title}: **{TITLES[record['method']]}** with {share:.1f} %")
        text = "; ".join(found) or "no far set is among them"
        return f"Best in the mean over the far sets measured here, by metric: {text}."

    def against(self, baseline: str) -> str:
        """Whether Thinkback's mean AUROC lies above the baseline's, beyond chance."""
        ((gap, low, high),) = verdicts.gains(self.own, "mean", baseline, "auroc")
        side = "above" if low > 0 else "**below**" if high < 0 else "within chance of"
        return (
            f"Thinkback's mean AUROC is {100 * abs(gap):.1f} points {side} {TITLES[baseline]}'s"
            f" (paired 95 % interval of the gain: {100 * low:+.1f} to {100 * high:+.1f})."
        )

    def spread(self) -> str:
        """The mean AUROC over training seeds, or that there is one only."""
        if self.seeds == 1:
            return (
                "One network was trained ([what it took](06_train_wrn.ipynb)): there is no spread"
                " over training seeds."
            )
        parts = []
        for method in self.methods:
            rows = [r for r in self.every if (r["set"], r["method"]) == ("mean", method)]
            values = [100 * row["auroc"] for row in rows]
            if len(values) > 1:
                spread = np.std(values, ddof=1)
                parts.append(f"{TITLES[method]} {np.mean(values):.2f} ± {spread:.2f} %")
        if not parts:
            return ""
        return (
            f"Over {self.seeds} training seeds the mean AUROC is {', '.join(parts)}. What is said"
            f" and drawn here is of seed {self.seed}; the tables and verdicts below are of all."
        )

    def answer(self) -> str:
        """The three answers: which score is best, by how much, and over how many networks."""
        gaps = [self.against(baseline) for baseline in BASELINES if self.testable]
        return f"{' '.join([self.best(), *gaps])}\n\n{self.spread()}"

    def note(self) -> str:
        """What stands in the cells of the table of results, and what its means are over."""
        several = self.seeds > 1
        draws = "over draws of images"
        what = f"over {self.seeds} training seeds, in brackets {draws}" if several else draws
        return (
            "Below a value stands its 95 % bootstrap interval over the images"
            f"{', of all seeds together' if several else ''}, and what the paper printed, if it"
            f" did; ± is the standard deviation {what}. Our mean is over"
            f" {', '.join(SET_TITLES[name] for name in self.far_sets)} (CIFAR-100 is near and stays"
            " apart); the paper's is over its own five. Where these differ, **the two means must"
            " not be subtracted**."
        )

    def gains(self, baseline: str) -> pd.DataFrame:
        """Thinkback's gain over a baseline in points, a row a set: the mean, and all intervals.

        Below SVHN, the one set of the paper's that is measured as it is, stands the paper's gain.
        """
        measured = [name for name in (*SETS, "mean") if self.testable and find(self.own, set=name)]
        rows = []
        for name in measured:
            gains = {COLUMNS[metric]: self._gain(name, baseline, metric) for metric in METRICS}
            rows.append({"set": set_title(name)} | gains)
            if name == "svhn":
                printed = self._printed(name, baseline, lambda row: f"*{row['points']:+.1f}*")
                rows.append({"set": "*paper, SVHN*"} | printed)
        return pd.DataFrame(rows, columns=["set", *COLUMNS.values()])

    def _gain(self, name: str, baseline: str, metric: str) -> str:
        found = verdicts.gains(self.every, name, baseline, metric)
        values, low, high = zip(*found, strict=True)
        return verdicts.points(float(np.mean(values)), min(low), max(high), digits=1)

    def claims(self, here: Run) -> pd.DataFrame:
        """The verdict on each claim; see :func:`verdicts.table`."""
        if not self.testable:
            return pd.DataFrame(columns=["claim", "verdict", "paper", "here"])
        rows = verdicts.claims(self.every, self.paper, here)
        return pd.DataFrame(verdicts.table(rows, self._differences))

    def printed(self) -> pd.DataFrame:
        """Each difference that the paper printed, in points, with a sign for its verdict."""
        rows = []
        for name, baseline in product((*PAPER_SETS, "mean"), BASELINES):
            title = "Mean of the five" if name == "mean" else set_title(name)
            printed = self._printed(
                name, baseline, lambda row: f"{row['points']:+.2f} {SIGNS[row['verdict']]}"
            )
            rows.append({"set": title, "against": TITLES[baseline]} | printed)
        return pd.DataFrame(rows)

    def _printed(self, name: str, baseline: str, write: Callable[[Record], str]) -> dict[str, str]:
        """Each metric's difference as the paper printed it, by column."""
        return {
            COLUMNS[row["metric"]]: write(row | {"points": 100 * row["printed"]}).replace("-", "−")
            for row in self._differences
            if (row["set"], row["baseline"]) == (name, baseline)
        }

    @cached_property
    def _differences(self) -> list[Record]:
        return verdicts.deltas(self.every, self.paper)

    def lengths(self, features: Mapping[str, Features]) -> str:
        """Median of the squared feature length of each far set, relative to the test set."""

        def median(name: str) -> float:
            return float(features[name].features.square().sum(1).median())

        ratios = [f"{SET_TITLES[n]} {median(n) / median(ID_TEST):.2f}" for n in self.far_sets]
        return (
            "Median of the squared feature length, relative to CIFAR-10 test:"
            f" {', '.join(ratios)}. Below 1, the feature length votes for *in-distribution* on OOD"
            " images, against the residual."
        )

    def takeaway(self) -> str:
        """AUROC and FPR95 of each score in the mean."""
        parts = [
            f"{TITLES[m]} {100 * row['auroc']:.2f} % AUROC and {100 * row['fpr95']:.2f} % FPR95"
            for m, row in self.means.items()
        ]
        return f"On this network and these sets, in the mean: {'; '.join(parts)}."
