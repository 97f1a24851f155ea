"""What the records say, as the sentences and tables of the chapters on five sets and on layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from thinkback_utils.data import ABOUT, PAPER_SETS, STAND_INS
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.gradients import READINGS
from thinkback_utils.methods import TITLES as METHOD_TITLES
from thinkback_utils.metrics import METRICS, interval95, mean_auroc, ood_metrics, resampled

from . import verdicts
from .evaluation import BASELINES, ID_TEST, ID_TRAIN, NEAR, SET_TITLES, Record, Scores, find
from .networks import COMPARED, KNOWN, NETWORKS, READING_TITLES, over_networks, scores_of
from .run import Run
from .verdicts import COLUMNS

SETS = (*PAPER_SETS, *STAND_INS, *NEAR)  # from top to bottom of a table or figure
SIGNS = {verdicts.YES: "✓", verdicts.NO: "✗", verdicts.OPEN: "~", verdicts.UNTESTED: "?"}
TITLES = METHOD_TITLES | READING_TITLES
WIDE = {**COLUMNS, "aupr": "AUPR at 1/6", "aupr_even": "AUPR at 1/2"}  # with two mixes


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
        networks: records of several networks, all on the same images: of ``networks.load``.
    """

    every: Sequence[Record]
    seed: int
    methods: Sequence[str]
    paper: Sequence[Record]
    networks: Sequence[Record] = ()

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
        side = "above" if low > 0 else "**below**" if high < 0 else "away from, and so level with,"
        return (
            f"Thinkback (reading A) is {100 * abs(gap):.1f} points {side} {TITLES[baseline]}"
            f" (paired 95 % interval of the gain: {100 * low:+.1f} to {100 * high:+.1f})."
        ).replace("-", "−")

    def spread(self) -> str:
        """The mean AUROC over training seeds, or that there is one only."""
        if self.seeds == 1:
            return (
                "Of this network there is one training seed ([what it took](06_train_wrn.ipynb))."
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
            f" {', '.join(ratios)}. Below 1, features are shorter on OOD images, and a score that"
            " grows with the length calls such images *less* OOD."
        )

    def of_networks(self) -> dict[str, dict[str, Record]]:
        """Each network's records of the mean over the far sets, by title and score."""
        out: dict[str, dict[str, Record]] = {}
        for record in self.networks:
            if record["set"] == "mean":
                out.setdefault(record["title"], {})[record["method"]] = record
        return out

    def readings(self) -> pd.DataFrame:
        """The mean over the far sets in percent: the paper's row, then each network's scores."""
        rows = [
            {"network": "*the paper's*", "score": f"*{METHOD_TITLES[row['method']]}*"}
            | {COLUMNS.get(m, m) if m != "aupr" else WIDE[m]: 100 * row[m] for m in METRICS}
            for row in self.paper
            if row["set"] == "mean"
        ]
        for title, found in self.of_networks().items():
            for method, record in found.items():
                values = {head: 100 * record[metric] for metric, head in WIDE.items()}
                rows.append({"network": title, "score": TITLES[method]} | values)
        return pd.DataFrame(rows, columns=["network", "score", *WIDE.values()])

    def across(
        self, metric: str = "auroc", baseline: str = "energy", name: str = "mean"
    ) -> pd.DataFrame:
        """Each score minus a baseline on one set, by default the mean of the far sets, in points.

        A column a network, with the interval over its images; then the mean over networks, with
        the interval over networks.
        """
        found = self.of_networks()
        rows = []
        for method in dict.fromkeys(m for records in found.values() for m in records):
            if method == baseline:
                continue
            row, values = {"score": TITLES[method]}, []
            for title in found:
                of = [r for r in self.networks if r["title"] == title]
                gains = verdicts.gains(of, name, baseline, metric, method)
                row[title] = verdicts.points(*gains[0], digits=1) if gains else ""
                values += [gain[0] for gain in gains]
            if len(found) > 1:
                row["mean over networks"] = verdicts.points(*over_networks(values), digits=1)
            rows.append(row)
        return pd.DataFrame(rows)

    def finding(self) -> str:
        """On which networks a reading, or the averaged score, is above Energy; in a sentence."""
        found, parts = self.of_networks(), []
        names = {"thinkback": "reading A", "reading_E": "reading E"}
        for method, name in (names | {"thinkback_averaged": "the averaged score"}).items():
            if not any(method in records for records in found.values()):
                continue
            ahead = []
            for title in found:
                of = [r for r in self.networks if r["title"] == title]
                gain = verdicts.gains(of, "mean", "energy", "auroc", method)
                ahead += [title] if gain and gain[0][1] > 0 else []
            on = f" ({', '.join(ahead)})" if ahead else ""
            parts.append(f"{name} on {len(ahead)} of {len(found)} networks{on}")
        if not parts:
            return ""
        return (
            f"Above Energy in mean AUROC, with an interval that leaves out 0: {'; '.join(parts)}."
        )

    def takeaway(self) -> str:
        """AUROC and FPR95 of each score in the mean."""
        parts = [f"{TITLES[m]} {100 * row['auroc']:.1f} % AUROC" for m, row in self.means.items()]
        return f"In the mean over these sets: {', '.join(parts)}. {self.finding()}"


def who(results: str | Path) -> pd.DataFrame:
    """The networks whose scores are kept: what they are, and how many images were used.

    Args:
        results: the folder of results.

    Returns: A row a network: ``accuracy`` in [0, 1] on the test images used, the width of its
        features, images to fit the scores on, test images, images of an OOD set at most, and the
        commit at which it was scored.
    """
    rows = []
    for network in NETWORKS.values():
        path = network.run(results).folder / "readings.json"
        if not path.exists():
            continue
        facts = read_json(path)
        sizes, commit = facts["sizes"], facts["commit"].partition("-")[0][:12]
        row = {"network": network.title, "accuracy": facts["accuracy"], "D": facts["features"]}
        row |= {"to fit": sizes[ID_TRAIN], "ID": sizes[ID_TEST]}
        row["OOD, a set"] = max(n for k, n in sizes.items() if k not in (ID_TRAIN, ID_TEST))
        rows.append(row | {"scored at commit": f"`{commit}`"})
    columns = ["network", "accuracy", "D", "to fit", "ID", "OOD, a set", "scored at commit"]
    return pd.DataFrame(rows, columns=columns)


def mean_aurocs(kept: Mapping[str, Scores], methods: Sequence[str]) -> pd.DataFrame:
    """The mean AUROC over the far sets in percent: a row a score, a column a network.

    Args:
        kept: scores ``[network][set][method]``, as ``networks.scores_of`` reads them.
        methods: the scores.
    """
    columns = {}
    for network, scored in kept.items():
        far = [name for name in scored if name not in (ID_TEST, *NEAR)]
        columns[KNOWN[network].title] = {
            method: 100 * mean_auroc(scored[ID_TEST][method], [scored[n][method] for n in far])[0]
            for method in methods
        }
    return pd.DataFrame(columns)


def to_paper(
    kept: Mapping[str, Scores], paper: Sequence[Record], method: str = "reading_E"
) -> pd.DataFrame:
    """A score's mean row over the far sets less the one that the paper printed for Thinkback.

    The AUPR is that of as many OOD as ID images.

    Args:
        kept: scores ``[network][set][score]``, as ``networks.scores_of`` reads them.
        paper: records of the paper's table.
        method: the score.

    Returns: A row a network, in points; ``largest`` is the largest of the four without its sign.
    """
    printed = next(r for r in paper if (r["set"], r["method"]) == ("mean", "thinkback"))
    rows = {}
    for network, scored in kept.items():
        far = [name for name in scored if name not in (ID_TEST, *NEAR)]
        found = [ood_metrics(scored[ID_TEST][method], scored[n][method], 1 / 2) for n in far]
        means = pd.DataFrame(found).mean()
        rows[KNOWN[network].title] = {
            COLUMNS[metric]: 100 * (means[metric] - printed[metric]) for metric in METRICS
        }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[COLUMNS[m] for m in METRICS])
    return frame.assign(largest=frame.abs().max(axis=1)).rename_axis("network")


def seeds(results: str | Path, network: str) -> pd.DataFrame:
    """The mean AUROC of each score over the far sets by training seed of one network, in percent.

    Args:
        results: the folder of results.
        network: the key in ``networks.NETWORKS`` of its seed 0.

    Returns: A row a score, a column a seed, and ``range``, the largest less the smallest.
    """
    kept = scores_of(results, [name for name in KNOWN if name.startswith(network)])
    columns = [f"seed {KNOWN[name].run(results).seed}" for name in kept]
    frame = mean_aurocs(kept, COMPARED).set_axis(columns, axis="columns").rename_axis("score")
    return frame.assign(range=frame.max(axis=1) - frame.min(axis=1))


def of_seeds(frame: pd.DataFrame) -> str:
    """How far a training seed moves a score, and its distance to Energy, in Markdown.

    Args:
        frame: that of :func:`seeds`.
    """
    if frame.empty:
        return "No seed of this network has been scored."
    values = frame.drop(columns="range")
    ahead = values - values.loc["energy"]
    parts = [
        f"{TITLES[score]} {signed(ahead.loc[score].min())} to {signed(ahead.loc[score].max())}"
        for score in ("thinkback", "reading_E", "thinkback_averaged")
    ]
    widest = frame["range"].idxmax()
    return (
        f"Over {values.shape[1]} seeds the score that moves most is {TITLES[widest]}, by"
        f" {frame.loc[widest, 'range']:.1f} points. Minus Energy of the same seed, in points, from"
        f" the least to the largest: {'; '.join(parts)}."
    )


def coverage(results: str | Path) -> pd.DataFrame:
    """How often simulated intervals held the true value, of ``coverage.json``; shares in [0, 1]."""
    records = read_json(Path(results) / "coverage.json")["records"]
    heads = {
        "truth": "true value",
        "coverage": "intervals that hold it",
        "low": "from",
        "high": "to",
    }
    rows = [
        {"metric": COLUMNS[row["metric"]]} | {head: row[key] for key, head in heads.items()}
        for row in records
    ]
    return pd.DataFrame(rows)


def pair_intervals(
    scored: Scores, pair: tuple[str, str], methods: Sequence[str], resamples: int = 200
) -> pd.DataFrame:
    """The mean AUROC over two sets of the same photos: what it costs to call them independent.

    Args:
        scored: scores ``[set][method]``.
        pair: two sets whose images come from the same photos, in the same order.
        methods: the scores.
        resamples: of the bootstrap.

    Returns: A row a method: the AUROC on each set, and half the width of the 95 % interval of their
        mean, in points, with the photos drawn once for both, and drawn for each set apart.
    """
    rows = []
    for method in methods:
        ids, sides = scored[ID_TEST][method], [scored[name][method] for name in pair]
        once = [resampled(ids, side, resamples=resamples) for side in sides]
        # A seed of its own draws other photos; the in-distribution images must stay shared.
        shuffled = np.random.default_rng(1).permutation(sides[1])
        apart = [once[0], resampled(ids, shuffled, resamples=resamples)]
        row: dict[str, Any] = {"score": TITLES[method]}
        for name, side in zip(pair, sides, strict=True):
            row[set_title(name)] = 100 * mean_auroc(ids, [side])[0]
        for head, values in (("photos drawn once", once), ("drawn for each set", apart)):
            low, high = interval95(np.mean(values, axis=0))["auroc"]
            row[f"± {head}"] = 100 * (high - low) / 2
        rows.append(row)
    return pd.DataFrame(rows)


def of_pieces(pieces: Mapping[str, Mapping[str, ArrayLike]], far: Sequence[str]) -> str:
    """What each piece of reading A does to the mean AUROC, as a list in Markdown.

    Args:
        pieces: scores ``{piece: {set: (N,)}}`` under the names of chapter 10.
        far: the sets of the mean.
    """

    def auroc(name: str, names: Sequence[str]) -> float:
        scores = pieces[name]
        return 100 * mean_auroc(scores[ID_TEST], [scores[n] for n in names])[0]

    mean = {name: auroc(name, far) for name in pieces}
    wrong = [name for name in far if auroc("‖h‖²", [name]) < 50]
    alone, product_, full = mean["‖r‖²"], mean["‖r‖² ‖h‖² (Eq. 5)"], mean["Eq. 6, predicted"]
    labels = [mean[f"Eq. 6, {label}"] for label in ("predicted", "true", "model")]
    lines = [
        f"**The length alone has the wrong sign on {len(wrong)} of {len(far)} far sets**: it has"
        f" {mean['‖h‖²']:.1f} % mean AUROC, with the sign turned {mean['−‖h‖²']:.1f} %.",
        f"**As a factor it {'costs' if product_ < alone else 'adds'} {abs(product_ - alone):.1f}"
        f" points**: the residual alone has {alone:.1f} %, times the squared length"
        f" {product_:.1f} %, divided by it {mean['‖r‖² / ‖h‖²']:.1f} %.",
        f"**Training data {'adds' if full > product_ else 'costs'} {abs(full - product_):.1f}"
        f" points** to Eq. 5, which makes {full:.1f} %; with an $E$ of rank one"
        f" {mean['Eq. 6, rank one']:.1f} %.",
        f"**The label in $E$**: predicted, true and drawn from $p$ give {labels[0]:.1f},"
        f" {labels[1]:.1f} and {labels[2]:.1f} %.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def reading_sizes(record: Record, bundle: Bundle, readings: Sequence[str]) -> pd.DataFrame:
    """What each reading takes the gradient of, how many numbers that is, and how many never moved.

    Args:
        record: of ``ablations.json``, for D, E and all.
        bundle: of the same run, for A, B and C.
        readings: keys of ``gradients.READINGS``.
    """
    config, train = record["config"], bundle.sets[ID_TRAIN]
    rows = []
    for reading in readings:
        if reading in ("A", "B"):
            fisher = DiagonalFisher(config["temperature"], bias=reading == "B")
            E = fisher.update(train.features, train.logits).compute()
            facts = {"numbers": E.numel(), "zeros": int(E.eq(0).sum())}
        else:
            facts = record["readings"][reading]
        row = {"reading": reading, "gradient of": READINGS[reading], "numbers": facts["numbers"]}
        row["memory of $E$ (kB)"] = 8 * facts["numbers"] / 1e3  # as float64
        rows.append(row | {"of them $E = 0$": facts["zeros"]})
    return pd.DataFrame(rows)


def reading_costs(record: Record, readings: Sequence[str]) -> pd.DataFrame:
    """What ``ablations.json`` timed: each reading in forward passes, and the range over rounds."""
    cost, rows = record["cost"], []
    for reading in readings:
        if reading not in cost["forward_passes"]:
            continue  # B was not timed apart from A: one more column
        low, high = cost["range"][reading]
        row = {"reading": reading, "forward passes": cost["forward_passes"][reading]}
        rows.append(row | {"least": low, "most": high})
    return pd.DataFrame(rows)


def epochs(results: str | Path, network: str = "wrn16-2-cifar10", seed: int = 0) -> list[Record]:
    """The records of ``experiments.epochs`` of one run; none where it has not run."""
    path = Run.at(results, network, seed).folder / "epochs.json"
    return list(read_json(path)["records"]) if path.exists() else []


def of_epochs(records: Sequence[Record]) -> str:
    """How far scores are from Energy at the first kept epoch and at the last, in Markdown."""
    if not records:
        return "No training of this folder has kept its epochs (`--keep-epochs`)."
    first, last = records[0], records[-1]
    lines = [
        f"{TITLES[score]} from {_from_energy(first, score)} to {_from_energy(last, score)}"
        for score in ("thinkback", "reading_E", "thinkback_averaged")
    ]
    return (
        f"From epoch {first['epoch']} to epoch {last['epoch']} the test accuracy grows from"
        f" {100 * first['accuracy']:.1f}\N{NO-BREAK SPACE}% to {100 * last['accuracy']:.1f}"
        "\N{NO-BREAK SPACE}%. Meanwhile the mean AUROC minus that of Energy goes, in points: "
        f"{'; '.join(lines)}."
    )


def _from_energy(record: Record, score: str) -> str:
    return signed(100 * (record["auroc"][score] - record["auroc"]["energy"]))


def signed(points: float) -> str:
    """Points with a sign and one digit.

    >>> signed(-1.25), signed(0.84)
    ('−1.2', '+0.8')
    """
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
