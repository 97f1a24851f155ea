"""The chapter's sentences and tables say what the records hold, whatever was measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import evaluation, summary, verdicts
from experiments.benchmark import Benchmark
from experiments.run import Run
from experiments.summary import Summary
from thinkback_utils.features import Features
from thinkback_utils.files import read_json
from thinkback_utils.metrics import METRICS

PAPER = evaluation.paper_table()
THREE = ("msp", "energy", "thinkback")
SUITE = Benchmark(methods=THREE, resamples=20)
RUN = Run.at(Path(__file__).parents[1] / "results")


def measured(sets=("svhn", "textures10", "cifar100"), seeds=(0,), methods=THREE):
    """Records in which the later of the methods separates better."""
    every = []
    for seed in seeds:
        noise, scored = np.random.default_rng(seed), {}
        for name in ("cifar10-test", *sets):
            far = 0.5 * (name != "cifar10-test")
            base = noise.normal(0, 1, 200)
            scored[name] = {m: base + far * (2 + THREE.index(m)) for m in methods}
        every += [{"seed": seed} | record for record in SUITE.records(scored)]
    return Summary(every, seeds[0], methods, PAPER)


def test_the_best_is_the_highest_but_the_lowest_fpr95():
    found = measured()
    said = found.best()
    for metric, title in summary.COLUMNS.items():
        share = 100 * found.means["thinkback"][metric]
        assert f"{title}: **Thinkback** with {share:.1f} %" in said
    assert found.means["thinkback"]["fpr95"] < found.means["msp"]["fpr95"]
    assert found.far_sets == ["svhn", "textures10"]


@pytest.mark.parametrize(
    ("gain", "side"),
    [((0.1, 0.2), "above"), ((-0.2, -0.1), "**below**"), ((-0.1, 0.1), "within chance of")],
)
def test_the_side_follows_the_interval(gain, side):
    own = {"seed": 0, "set": "mean", "method": "thinkback", "auroc": 0.8}
    rows = [own | {"minus_msp": {"auroc": gain}}, own | {"method": "msp", "auroc": 0.7}]
    said = Summary(rows, 0, THREE, PAPER).against("msp")
    ends = " to ".join(f"{100 * end:+.1f}" for end in gain)
    assert f"10.0 points {side} Softmax's (paired 95 % interval of the gain: {ends})" in said


def test_the_spread_is_over_training_seeds():
    assert "One network was trained" in measured().spread()
    found = measured(seeds=(0, 1, 2))
    said = found.spread()
    assert said.startswith("Over 3 training seeds the mean AUROC is Softmax ")
    rows = [r for r in found.every if (r["set"], r["method"]) == ("mean", "energy")]
    values = [100 * row["auroc"] for row in rows]
    assert f"Energy {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} %" in said
    assert "seed 0; the tables" in said
    assert "over 3 training seeds, in brackets over draws" in found.note()
    assert {record["seed"] for record in found.own} == {0}


def test_gains_are_the_mean_over_seeds_and_hold_all_intervals():
    found = measured(seeds=(0, 1))
    frame = found.gains("msp").set_index("set")
    titles = [summary.set_title(name) for name in ("svhn", "textures10", "cifar100", "mean")]
    assert [*frame.index] == [titles[0], "*paper, SVHN*", *titles[1:]]
    for metric in METRICS:
        both = verdicts.gains(found.every, "mean", "msp", metric)
        values, low, high = map(np.array, zip(*both, strict=True))
        expected = verdicts.points(values.mean(), low.min(), high.max(), digits=1)
        assert frame.loc[titles[-1], summary.COLUMNS[metric]] == expected
    assert frame.loc["*paper, SVHN*", "AUROC"] == "*+2.2*"


def test_every_printed_difference_has_the_sign_of_its_verdict():
    frame = measured().printed().set_index(["set", "against"])
    assert len(frame) == 12
    assert frame.loc[("SVHN", "Softmax"), "AUROC"] == "+2.23 ✓"
    assert frame.loc[("LSUN‑Crop", "Energy"), "AUPR"] == "−1.69 ?"
    assert frame.loc[("Mean of the five", "Energy"), "FPR95"] == "+13.97 ?"


@pytest.mark.parametrize("found", [measured(("cifar100",)), measured(methods=("energy", "msp"))])
def test_without_a_far_set_or_a_score_of_the_paper_nothing_is_claimed(found):
    assert not found.testable
    assert found.claims(RUN).empty
    assert found.gains("msp").empty
    assert "points" not in found.answer()
    assert set(found.printed().iloc[0, 2:].str[-1]) == {"?"}
    if not found.far_sets:
        assert "no far set is among them" in found.best()


def test_sets_and_lengths_are_of_the_features():
    def item(length, count):
        return Features(torch.full((count, 4), length), torch.zeros(count, 3))

    features = {"cifar10-train": item(1.0, 9), "cifar10-test": item(1.0, 5)}
    features |= {"svhn": item(2.0, 1234), "textures10": item(0.5, 7)}
    frame = summary.sets(features)
    assert frame["images"].tolist() == ["1,234", "7"]
    assert "SVHN 4.00, Textures-10 0.25. Below 1" in measured().lengths(features)


def test_the_takeaway_is_the_mean():
    found = measured()
    share = 100 * found.means["energy"]["auroc"]
    assert f"Energy {share:.2f} % AUROC and " in found.takeaway()


def test_the_committed_claims_are_those_on_file():
    records = read_json(RUN.results / "table1.json")
    frame = Summary(records, 0, THREE, PAPER).claims(RUN)
    text = (RUN.results / "verdicts.md").read_text(encoding="utf-8")
    for row in frame.itertuples(index=False):
        assert f"| {' | '.join(row)} |" in text
