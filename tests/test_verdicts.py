"""Verdicts follow the stated rule, and the committed ones follow from the committed results."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import evaluation, verdicts
from experiments.benchmark import Benchmark
from thinkback_utils import data
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import write_json

ROOT = Path(__file__).parents[1]
PAPER = evaluation.paper_table()


def measured(shift_of_thinkback, sets=("svhn",), seed=0):
    """A table in which Thinkback separates by ``shift`` and both baselines by 1."""
    generator, scored = np.random.default_rng(seed), {}
    for name in (evaluation.ID_TEST, *sets):
        far = float(name != evaluation.ID_TEST)
        noise = generator.normal(0, 1, 400)
        scored[name] = {"msp": noise + far, "energy": noise + far}
        scored[name]["thinkback"] = noise + far * shift_of_thinkback
    return Benchmark(resamples=60).records(scored)


def made_up(generator):
    h, z = torch.rand(500, 8, generator=generator), torch.randn(500, 5, generator=generator)
    return Features(h, 4 * z)


@pytest.fixture(scope="module")
def bundle():
    train = made_up(torch.Generator().manual_seed(0))
    return Bundle({evaluation.ID_TRAIN: train}, torch.zeros(5, 8), torch.zeros(5))


@pytest.mark.parametrize(
    ("shift", "verdict"), [(2.0, verdicts.YES), (0.5, verdicts.NO), (1.0, verdicts.OPEN)]
)
def test_a_difference_is_reproduced_by_its_sign_and_interval(shift, verdict):
    rows = verdicts.deltas(measured(shift), PAPER)
    assert {row["verdict"] for row in rows if row["set"] == "svhn"} == {verdict}
    assert {row["verdict"] for row in rows if row["set"] != "svhn"} == {verdicts.UNTESTED}
    for row in rows:
        if row["set"] == "svhn":
            assert row["interval"][0] <= row["measured"] <= row["interval"][1]


def test_a_p_value_is_that_of_a_normal_law_with_the_width_of_the_interval():
    assert verdicts.p_value(1.0, 0.0, 2.0) == pytest.approx(0.05)  # 0 is on the edge
    assert verdicts.p_value(-1.0, -2.0, 0.0) == pytest.approx(0.05)
    assert verdicts.p_value(0.1, -0.9, 1.1) > 0.8
    assert verdicts.p_value(0.1, 0.1, 0.1) == 0  # no spread at all


def test_holm_keeps_the_error_of_a_family():
    """Of 20 differences of nothing, a family has a false one in about 5 of 100 repetitions."""
    random = np.random.default_rng(0)
    z = random.normal(size=(2000, 20))
    rows = [[verdicts.p_value(v, v - 1.96, v + 1.96) for v in row] for row in z]
    false = np.mean([min(verdicts.holm(row)) < verdicts.LEVEL for row in rows])
    assert 0.03 < false < 0.07
    assert np.mean([min(row) < verdicts.LEVEL for row in rows]) > 0.5  # without it
    assert verdicts.holm([0.04, 0.03]) == [0.06, 0.06]  # never in another order than the p-values


def test_a_family_makes_a_difference_that_holds_alone_inconclusive():
    edge = (1.0, 0.1, 1.9)  # p = 0.03
    assert verdicts.judged({1: [edge]})[1]["verdict"] == verdicts.YES
    many = verdicts.judged({i: [edge] for i in range(10)})
    assert {row["verdict"] for row in many.values()} == {verdicts.OPEN}


def test_networks_that_disagree_and_printed_differences_too_small_to_see():
    sure, none, loss = (1.0, 0.9, 1.1), (0.01, -0.2, 0.2), (-1.0, -1.1, -0.9)
    cases = {"both": [sure, sure], "one": [sure, none], "against": [sure, loss], "absent": []}
    found = {k: row["verdict"] for k, row in verdicts.judged(cases).items()}
    expected = {"both": verdicts.YES, "one": verdicts.OPEN, "against": verdicts.NO}
    assert found == expected | {"absent": verdicts.UNTESTED}
    small = verdicts.judged({"small": [loss], "large": [loss]}, {"small": 0.05, "large": 0.2})
    assert small["small"]["verdict"] == verdicts.OPEN  # less than half of the interval
    assert small["large"]["verdict"] == verdicts.NO
    turned = verdicts.judged({"loss": [loss]}, {"loss": -0.2})
    assert turned["loss"]["verdict"] == verdicts.YES  # the paper's own loss


def test_printed_differences_are_the_papers():
    """FPR95 falls from 36.62 to 22.65 in the mean: by 13.97 points, whatever the text says."""
    rows = verdicts.deltas(measured(1.0), PAPER)
    gap = evaluation.find(rows, set="mean", baseline="energy", metric="fpr95")
    assert gap["printed"] == pytest.approx(0.1397)
    crop = evaluation.find(rows, set="lsun_crop", baseline="energy", metric="auroc")
    assert crop["printed"] < 0  # the paper's own loss; to reproduce it is to lose too


def test_every_seed_must_agree():
    both = [{**r, "seed": 0} for r in measured(2.0)]
    both += [{**r, "seed": 1} for r in measured(0.5, seed=1)]
    on_svhn = {r["verdict"] for r in verdicts.deltas(both, PAPER) if r["set"] == "svhn"}
    assert on_svhn == {verdicts.NO}
    assert len(verdicts.gains(both, "svhn", "msp", "auroc")) == 2


def test_the_mean_is_tested_once_all_five_sets_are():
    rows = verdicts.deltas(measured(2.0, data.PAPER_SETS), PAPER)
    assert all(row["verdict"] != verdicts.UNTESTED for row in rows)
    assert {row["verdict"] for row in rows if row["set"] == "mean"} == {verdicts.YES}


def test_raw_scores_let_the_rule_pick_the_largest_temperature():
    """Gradients shrink as 1/T^2, so the smallest spread is at the end of whatever is searched."""
    generator = torch.Generator().manual_seed(0)
    train, held_out = made_up(generator), made_up(generator)
    for temperatures in ([1.0, 2.0, 5.0], [1.0, 10.0, 1000.0]):
        chosen, spread = verdicts.rule_temperature(train, held_out, temperatures, fisher=False)
        assert chosen == temperatures[-1]
        assert spread == sorted(spread, reverse=True)


def first_words(records, bundle):
    """Verdicts by the first word of their claim."""
    rows = verdicts.text_claims(records, PAPER, bundle)
    return {row["claim"].split()[0]: row["verdict"] for row in rows}


def test_text_claims_hold_when_thinkback_wins_everywhere(bundle):
    won, lost = (first_words(measured(shift), bundle) for shift in (4.0, 0.5))
    assert won["Consistent"] == won["Significantly"] == verdicts.YES
    assert lost["Consistent"] == lost["Significantly"] == lost["AUPR"] == verdicts.NO


@pytest.mark.parametrize(
    ("shifts", "verdict"), [((4.0, 3.5, 4.5), verdicts.YES), ((4.0, 3.5, 0.5), verdicts.NO)]
)
def test_one_of_three_seeds_is_enough_to_refute(shifts, verdict, bundle):
    """Every claim of the table is put to each seed; numbers are means, intervals hold all."""
    tables = [measured(shift, data.PAPER_SETS, k) for k, shift in enumerate(shifts)]
    runs = [[row | {"seed": k} for row in rows] for k, rows in enumerate(tables)]
    records = [record for run in runs for record in run]
    said = first_words(records, bundle)
    assert said["Consistent"] == said["Significantly"] == said["AUPR"] == verdict
    rows = verdicts.deltas(records, PAPER)
    delta = evaluation.find(rows, set="mean", baseline="msp", metric="fpr95")
    pair = ("thinkback", "msp")
    own, other = ([evaluation.find(run, set="mean", method=m) for run in runs] for m in pair)
    assert delta["verdict"] == verdict
    values = [b["fpr95"] - a["fpr95"] for a, b in zip(own, other, strict=True)]  # falling is better
    assert delta["measured"] == pytest.approx(np.mean(values))
    ends = -np.array([record["minus_msp"]["fpr95"] for record in own])
    assert delta["interval"] == pytest.approx([ends.min(), ends.max()])


def test_a_claim_must_hold_on_other_networks_too(bundle):
    won, lost = measured(4.0), measured(0.5)
    claims = verdicts.text_claims(won, PAPER, bundle, {"Other": lost})
    assert [row["verdict"] for row in claims[:3]] == [verdicts.NO] * 3
    assert all("Other: " in row["measured"] for row in claims[:3])
    claims = verdicts.text_claims(won, PAPER, bundle, {"Other": measured(4.0, seed=1)})
    assert [row["verdict"] for row in claims[:2]] == [verdicts.YES] * 2


def as_reading(records, reading="E"):
    return [
        row | {"method": f"reading_{reading}"} if row["method"] == "thinkback" else row
        for row in records
    ]


def test_a_reading_must_win_on_every_network(monkeypatch):
    """On this book's network alone E does: elsewhere it decides between three verdicts."""
    monkeypatch.setattr(verdicts.networks, "LAYERS", ("E",))
    own = {"E": verdicts._all_gains(measured(4.0), ["mean"])}
    monkeypatch.setattr(verdicts, "_gains_of_readings", lambda here: own)
    won, lost = as_reading(measured(4.0, seed=1)), as_reading(measured(0.5, seed=1))
    assert verdicts.reading_claim(None, {"Other": won})["verdict"] == verdicts.YES
    mixed = verdicts.reading_claim(None, {"Other": lost})
    assert mixed["verdict"] == verdicts.OPEN
    assert "Other: none; E is better in 0 and worse in 8 of 8" in mixed["measured"]
    own["E"] = verdicts._all_gains(measured(0.5), ["mean"])
    assert verdicts.reading_claim(None, {"Other": lost})["verdict"] == verdicts.NO


def test_committed_verdicts_follow_from_the_committed_results(tmp_path):
    results = ROOT / "results"
    for name in ("table1.json", "networks.json", "wrn40-2-cifar10"):
        (tmp_path / name).symlink_to(results / name)
    verdicts.main(["--results", str(tmp_path)])
    for name in ("verdicts.json", "verdicts.md"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes()


def test_the_sentence_on_the_chosen_score_takes_the_mean_over_seeds():
    values = {"thinkback_averaged": (0.9, 0.8), "msp": (0.5, 0.6)}
    values |= {"energy": (0.7, 0.7), "thinkback": (0.1, 0.2)}
    records = [{"set": "mean", "method": m, "auroc": v} for m, pair in values.items() for v in pair]
    said = "**Thinkback, averaged 85.0 %**, Softmax 55.0 %, Energy 70.0 %, Thinkback (reading A) "
    assert f"{said}15.0 %." in verdicts.of_the_chosen_score(records)
    others = [r for r in records if r["method"] != "thinkback_averaged"]
    assert verdicts.of_the_chosen_score(others) == ""
    near = [record | {"set": "cifar100"} for record in records]
    assert "it is ahead of Energy: 85.0 % and 70.0 %." in verdicts.of_the_chosen_score(
        [*records, *near]
    )


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        (None, FileNotFoundError, r"no table at .*table1\.json; .*experiments\.reproduce"),
        ([], ValueError, "has no far OOD set of network 'wrn40-2-cifar10'"),
        ([{"network": "another", "set": "mean"}], ValueError, "has no far OOD set"),
        ([{"network": "wrn40-2-cifar10", "set": "cifar100"}], ValueError, "has no far OOD set"),
    ],
)
def test_results_without_a_far_set_are_named(records, error, message, tmp_path):
    if records is not None:
        write_json(tmp_path / "table1.json", records)
    with pytest.raises(error, match=f"thinkback: .*{message}"):
        verdicts.main(["--results", str(tmp_path)])
