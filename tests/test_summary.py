"""The chapter's sentences and tables say what the records hold, whatever was measured."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments import evaluation, networks, summary, verdicts
from experiments.benchmark import Benchmark
from experiments.run import Run
from experiments.summary import Summary
from thinkback_utils import data, metrics
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
        assert f"{title}: **Thinkback, reading A** with {share:.1f} %" in said
    assert found.means["thinkback"]["fpr95"] < found.means["msp"]["fpr95"]
    assert found.far_sets == ["svhn", "textures10"]


@pytest.mark.parametrize(
    ("gain", "side"),
    [
        ((0.1, 0.2), "above"),
        ((-0.2, -0.1), "**below**"),
        ((-0.1, 0.1), "away from, and so level with,"),
    ],
)
def test_the_side_follows_the_interval(gain, side):
    own = {"seed": 0, "set": "mean", "method": "thinkback", "auroc": 0.8}
    rows = [own | {"minus_msp": {"auroc": gain}}, own | {"method": "msp", "auroc": 0.7}]
    said = Summary(rows, 0, THREE, PAPER).against("msp")
    ends = " to ".join(f"{100 * end:+.1f}" for end in gain).replace("-", "−")
    assert f"10.0 points {side} Softmax (paired 95 % interval of the gain: {ends})" in said


def test_the_spread_is_over_training_seeds():
    assert "there is one training seed" in measured().spread()
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
    found = measured()
    frame = found.printed().set_index(["set", "against"])
    assert len(frame) == 12
    row = evaluation.find(
        verdicts.deltas(found.every, PAPER), set="svhn", baseline="msp", metric="auroc"
    )
    sign = summary.SIGNS[row["verdict"]]
    assert frame.loc[("SVHN", "Softmax"), "AUROC"] == f"+2.23 {sign}"
    assert any("✓" in cell for cell in frame.loc["SVHN"].to_numpy().ravel())
    assert frame.loc[("LSUN‑Crop", "Energy"), "AUPR"] == "−1.69 ?"
    assert frame.loc[("Mean of the five", "Energy"), "FPR95"] == "+13.97 ?"


@pytest.mark.parametrize("found", [measured(("cifar100",)), measured(methods=("energy", "msp"))])
def test_without_a_far_set_or_a_score_of_the_paper_nothing_is_claimed(found):
    assert not found.testable
    assert found.claims(RUN).empty
    assert found.gains("msp").empty
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
    assert f"Energy {share:.1f} % AUROC" in found.takeaway()


def test_the_committed_claims_are_those_on_file():
    records = read_json(RUN.results / "table1.json")
    frame = Summary(records, 0, THREE, PAPER).claims(RUN)
    text = (RUN.results / "verdicts.md").read_text(encoding="utf-8")
    for row in frame.itertuples(index=False):
        assert f"| {' | '.join(row)} |" in text


NETWORKS = {"WRN-40-2": 0.0, "DenseNet": -2.0}  # by how much reading E is apart from the others


@pytest.fixture(scope="module")
def several():
    """Records of two networks: reading E wins on one and loses on the other."""
    records = []
    for seed, (title, shift) in enumerate(NETWORKS.items()):
        noise, scored = np.random.default_rng(seed), {}
        for name in ("cifar10-test", "svhn", "textures10"):
            far = float(name != "cifar10-test")
            base = noise.normal(0, 1, 300)
            scored[name] = {"msp": base + far, "energy": base + 2 * far, "thinkback": base}
            scored[name]["reading_E"] = base + far * (3 + shift)
        records += [{"title": title} | row for row in networks.records_of(scored, resamples=30)]
    return Summary([], 0, THREE, PAPER, records)


def test_readings_of_every_network_stand_under_the_papers_rows(several):
    frame = several.readings()
    assert len(frame) == 3 + 2 * 4
    assert frame["network"].tolist()[3::4] == list(NETWORKS)
    assert frame.loc[2, "AUPR at 1/6"] == pytest.approx(92.42)
    assert np.isnan(frame.loc[2, "AUPR at 1/2"])  # the paper names no second mix
    assert (frame["AUPR at 1/2"] > frame["AUPR at 1/6"])[3:].all()


def test_the_interval_over_networks_is_apart_from_those_over_images(several):
    frame = several.across("auroc").set_index("score")
    assert "Energy" not in frame.index
    row = frame.loc["Thinkback, reading E"]
    assert row["WRN-40-2"].startswith("+")
    assert row["DenseNet"].startswith("−")
    low, high = (
        float(end.replace("−", "-")) for end in row.iloc[-1][:-1].split("[")[1].split(", ")
    )
    assert low < -50  # with two networks Student's t is wide
    assert high > 50
    assert "reading A on 0 of 2 networks; reading E on 1 of 2 networks (WRN-40-2)" in (
        several.finding()
    )


def test_without_other_networks_nothing_is_said_of_them():
    found = measured()
    assert found.finding() == ""
    assert found.across().empty
    assert len(found.readings()) == 3
    assert summary.mean_aurocs({}, THREE).empty


def test_mean_aurocs_are_over_the_far_sets():
    kept = networks.scores_of(RUN.results, ["wrn40-2"])
    frame = summary.mean_aurocs(kept, THREE)
    row = next(
        r
        for r in networks.load(RUN.results)
        if (r["network"], r["set"], r["method"]) == ("wrn40-2", "mean", "energy")
    )
    assert frame.loc["energy", "WRN-40-2"] == pytest.approx(100 * row["auroc"])


def test_two_sets_of_the_same_photos_are_one_source():
    """Where both sets hold the same scores, the mean has the spread of one, not less."""
    noise = np.random.default_rng(0)
    ids, photos = noise.normal(0, 1, 3000), noise.normal(1, 1, 300)
    scored = {"cifar10-test": {"msp": ids}, "places9_crop": {"msp": photos}}
    scored["places9_resize"] = {"msp": photos}
    frame = summary.pair_intervals(scored, ("places9_crop", "places9_resize"), ["msp"])
    once, apart = frame["± photos drawn once"][0], frame["± drawn for each set"][0]
    low, high = metrics.interval95(metrics.resampled(ids, photos, resamples=200))["auroc"]
    assert once == pytest.approx(50 * (high - low))
    assert apart < 0.85 * once


def test_the_places_sets_hold_the_same_photos_in_the_same_order():
    """What the joint resampling rests on: a crop has the mean colour of its own photo."""
    try:
        crop, small = (evaluation.image_set(f"places9_{k}") for k in ("crop", "resize"))
    except data.UnavailableError:
        pytest.skip("the Places9 sets are not in the data root (set THINKBACK_DATA)")
    assert torch.equal(crop.labels, small.labels)
    a, b = (x.images.double().mean((1, 2, 3)) for x in (crop, small))
    assert np.corrcoef(a, b)[0, 1] > 0.5
    assert abs(np.corrcoef(a.roll(1), b)[0, 1]) < 0.3


def test_coverage_is_the_simulation_on_file():
    frame = summary.coverage(RUN.results)
    assert frame["metric"].tolist() == list(summary.COLUMNS.values())
    assert (frame["from"] <= frame["intervals that hold it"]).all()


def test_sizes_and_costs_of_the_readings():
    record, readings = RUN.made("ablations"), ["A", "B", "C", "E", "all"]
    sizes = summary.reading_sizes(record, RUN.bundle(), readings).set_index("reading")
    assert sizes.loc["A", "numbers"] == 10 * 128
    assert sizes.loc["B", "numbers"] == 10 * 129
    assert sizes.loc["E", "numbers"] == 128 * 128 * 9
    costs = summary.reading_costs(record, readings)
    assert costs["reading"].tolist() == ["A", "C", "E", "all"]
    assert (costs["least"] <= costs["forward passes"]).all()


def test_pieces_are_told_by_their_means():
    noise = np.random.default_rng(0)
    names = ("‖r‖²", "‖h‖²", "−‖h‖²", "‖r‖² / ‖h‖²", "‖r‖² ‖h‖² (Eq. 5)")
    names += tuple(f"Eq. 6, {k}" for k in ("predicted", "true", "model", "rank one"))
    ids = noise.normal(size=500)
    shifts = {"‖r‖²": 3, "‖h‖²": -1, "‖r‖² ‖h‖² (Eq. 5)": 1}
    pieces = {n: {"cifar10-test": ids, "svhn": ids + shifts.get(n, 2)} for n in names}
    said = summary.of_pieces(pieces, ["svhn"])
    assert "wrong sign on 1 of 1 far sets" in said
    assert "**As a factor it costs" in said
    assert "**Training data adds" in said


def test_every_network_says_how_many_images_it_was_scored_on():
    frame = summary.who(RUN.results).set_index("network")
    kept = networks.scores_of(RUN.results)
    assert list(frame.index) == [networks.NETWORKS[name].title for name in kept]
    for name, scored in kept.items():
        row = frame.loc[networks.NETWORKS[name].title]
        assert row["ID"] == len(scored["cifar10-test"]["energy"])
        assert row["OOD, a set"] == max(
            len(own["energy"]) for key, own in scored.items() if key != "cifar10-test"
        )
        assert 0.85 < row["accuracy"] < 1


def test_epochs_are_told_by_their_distance_to_energy():
    auroc = {"energy": 0.9, "thinkback": 0.8, "reading_E": 0.7, "thinkback_averaged": 0.95}
    first = {"epoch": 1, "accuracy": 0.5, "auroc": auroc}
    last = {"epoch": 3, "accuracy": 0.9, "auroc": auroc | {"thinkback": 0.92}}
    said = summary.of_epochs([first, {}, last])
    assert "From epoch 1 to epoch 3" in said
    assert "reading A from \N{MINUS SIGN}10.0 to +2.0" in said
    assert "averaged from +5.0 to +5.0" in said
    assert "--keep-epochs" in summary.of_epochs([])


def test_the_distance_to_the_paper_is_that_of_independent_metrics():
    kept, paper = networks.scores_of(RUN.results, ["wrn16-2"]), evaluation.paper_table()
    frame = summary.to_paper(kept, paper)
    (scored,) = kept.values()
    far = [n for n in scored if n not in (evaluation.ID_TEST, *evaluation.NEAR)]
    ids, auprs = scored[evaluation.ID_TEST]["reading_E"], []
    for name in far:
        oods = scored[name]["reading_E"]
        weights = np.repeat([1 / len(ids), 1 / len(oods)], [len(ids), len(oods)])
        truth = np.repeat([0, 1], [len(ids), len(oods)])
        both = np.concatenate([ids, oods])
        auprs.append(average_precision_score(truth, both, sample_weight=weights))
    (row,) = (r for r in paper if (r["set"], r["method"]) == ("mean", "thinkback"))
    expected = 100 * (np.mean(auprs) - row["aupr"])
    assert frame.loc["WRN-16-2", "AUPR"] == pytest.approx(expected, abs=1e-9)
    assert frame.loc["WRN-16-2", "largest"] == frame.iloc[0, :4].abs().max()


def test_seeds_are_told_by_their_range_and_distance_to_energy(tmp_path):
    assert "No seed" in summary.of_seeds(summary.seeds(tmp_path, "wrn40-2"))
    frames = {name: summary.seeds(RUN.results, name) for name in ("wrn40-2", "wrn16-2")}
    for frame in frames.values():
        assert list(frame.columns) == ["seed 0", "seed 1", "seed 2", "range"]
    kept = networks.scores_of(RUN.results, list(networks.OTHER_SEEDS))
    for name, scored in kept.items():
        far = [n for n in scored if n not in (evaluation.ID_TEST, *evaluation.NEAR)]
        ids = scored[evaluation.ID_TEST]["reading_E"]
        labels = [0] * len(ids)
        expected = [
            roc_auc_score(labels + [1] * len(row), np.concatenate([ids, row]))
            for row in (scored[n]["reading_E"] for n in far)
        ]
        network, _, seed = name.partition("-seed")
        found = frames[network].loc["reading_E", f"seed {seed}"]
        assert found == pytest.approx(100 * np.mean(expected), abs=1e-9)
    made = pd.DataFrame(
        {"seed 0": 90.0, "seed 1": 91.0, "range": 1.0},
        index=["energy", "thinkback", "reading_E", "thinkback_averaged"],
    )
    made.loc["thinkback"] = [80.0, 86.0, 6.0]
    said = summary.of_seeds(made)
    assert "reading A, by 6.0 points" in said
    assert "reading A \N{MINUS SIGN}10.0 to \N{MINUS SIGN}5.0" in said
