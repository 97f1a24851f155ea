"""The table's arithmetic on made-up scores: means, intervals, paired differences, kept scores."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments import evaluation
from thinkback_utils import data, metrics
from thinkback_utils.data import ImageSet
from thinkback_utils.detector import conformal_threshold
from thinkback_utils.features import extract
from thinkback_utils.files import read_json
from thinkback_utils.models import WideResNet


def made_up(sets, methods=("msp", "energy", "thinkback"), shift=1.0, n=300):
    """Scores of two sides one ``shift`` apart; methods differ by a little noise of their own."""
    generator, out = np.random.default_rng(0), {}
    for name, offset in [(evaluation.ID_TEST, 0.0), *((name, shift) for name in sets)]:
        base = generator.normal(offset, 1, n)
        out[name] = {method: base + generator.normal(0, 0.1, n) for method in methods}
    return out


def test_means_leave_out_near_sets():
    records = evaluation.table(made_up(["svhn", "textures10", "cifar100"]))
    mean = evaluation.find(evaluation.means(records), method="energy")
    assert mean["sets"] == ["svhn", "textures10"]
    rows = [evaluation.find(records, set=name, method="energy")["auroc"] for name in mean["sets"]]
    assert mean["auroc"] == pytest.approx(np.mean(rows))


def test_means_are_over_the_papers_sets_once_they_are_all_there():
    """Or a set and its stand-in would count twice."""
    records = evaluation.table(made_up([*data.PAPER_SETS, *data.STAND_INS]))
    assert {tuple(r["sets"]) for r in evaluation.means(records)} == {data.PAPER_SETS}


def test_a_record_is_what_scikit_learn_says():
    scored = made_up(["svhn"])
    record = evaluation.find(evaluation.table(scored), set="svhn", method="msp")
    ids, oods = scored[evaluation.ID_TEST]["msp"], scored["svhn"]["msp"]
    expected = roc_auc_score([0] * 300 + [1] * 300, np.concatenate([ids, oods]))
    assert record["auroc"] == pytest.approx(expected)
    assert (record["draws"], record["auroc_std"]) == (1, 0.0)  # the set is smaller than a draw


def test_spread_over_draws_shrinks_with_their_size():
    scored = made_up(["svhn"], n=2000)
    small, large = (evaluation.table(scored, n_ood=n)[0] for n in (100, 1500))
    assert small["draws"] == large["draws"] == 10
    assert small["auroc_std"] > 2 * large["auroc_std"] > 0


def test_intervals_hold_the_value_and_differences_are_tighter():
    scored = made_up(["svhn", "textures10"])
    records = evaluation.table(scored)
    records += evaluation.means(records)
    records = evaluation.with_intervals(records, scored, resamples=100)
    for record in records:
        low, high = record["interval95"]["auroc"]
        assert low < record["auroc"] < high
        if record["method"] == "thinkback":
            a, b = record["minus_energy"]["auroc"]
            assert b - a < 0.5 * (high - low)
        assert ("minus_msp" in record) == (record["method"] != "msp")
    softmax = [r for r in records if r["method"] == "msp"]
    width = {r["set"]: np.ptp(r["interval95"]["auroc"]) for r in softmax}
    assert width["mean"] < width["svhn"]


def test_kept_scores_come_back(tmp_path):
    scored = made_up(["svhn"])
    evaluation.save_scores(tmp_path / "scores.npz", scored)
    kept = evaluation.load_scores(tmp_path)
    assert kept["svhn"]["energy"].dtype == np.float64
    assert np.array_equal(kept["svhn"]["energy"], scored["svhn"]["energy"].astype(np.float32))
    metric = metrics.ood_metrics(kept[evaluation.ID_TEST]["energy"], kept["svhn"]["energy"])
    record = evaluation.find(evaluation.table(scored), method="energy")
    assert metric["auroc"] == pytest.approx(record["auroc"], abs=1e-4)


def test_subsets_are_spread_over_a_sorted_set():
    assert evaluation.evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    index = evaluation.evenly(1200, 250)
    assert len(index) == len(index.unique()) == 250
    assert np.bincount(index // 120).tolist() == [25] * 10


@pytest.mark.parametrize(("total", "count"), [(7, 7), (7, 20), (50_000, 10_000), (1, 1)])
def test_spread_is_even_and_without_repeats(total, count):
    rows = evaluation.evenly(total, count)
    assert len(rows) == len(set(rows.tolist())) == min(total, count)
    assert rows.min() == 0
    assert rows.max() < total
    assert total <= count or rows.diff().max() - rows.diff().min() <= 1


def test_a_threshold_of_kept_scores_lies_above_the_score_it_comes_from(tmp_path):
    """It is one float64 step above; in float32 they would be equal, and the image an alarm."""
    scored = {"a": {"energy": np.random.default_rng(0).normal(size=19)}}
    evaluation.save_scores(tmp_path / "scores.npz", scored)
    kept = evaluation.load_scores(tmp_path)["a"]["energy"]
    threshold = conformal_threshold(torch.as_tensor(kept), alpha=0.05)
    assert not (kept >= threshold).any()
    assert (kept.astype(np.float32) >= np.float32(threshold)).any(), "a float32 score would be"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(
            path.read_bytes()[:200] + b"?" * 40 + path.read_bytes()[240:]
        ),
        lambda path: np.savez(path, scores=np.zeros(3)),
        lambda path: np.savez(path, **{"a.b": np.array(["x"])}),
        lambda path: np.savez(path, **{"a.b": np.array([{}], dtype=object)}),
        lambda path: np.save(path.open("wb"), np.zeros(3)),
    ],
)
def test_damaged_scores_are_named(write, tmp_path):
    evaluation.save_scores(tmp_path / "scores.npz", made_up(["svhn"]))
    write(tmp_path / "scores.npz")
    message = r"thinkback: .*scores\.npz (cannot be read as an .npz file|holds .*no scores)"
    with pytest.raises(ValueError, match=message):
        evaluation.load_scores(tmp_path)


def test_absent_scores_name_the_command():
    message = r"thinkback: no scores at nowhere/scores\.npz; .*reproduce"
    with pytest.raises(FileNotFoundError, match=message):
        evaluation.load_scores("nowhere")


def test_own_data_of_any_name_and_size_reach_the_table():
    """A network, images of 24 pixels and sets of one's own, from end to end."""
    torch.manual_seed(0)
    net, generator = WideResNet(10, 1, 3).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.fc.bias -= net(torch.rand(50, 3, 24, 24)).mean(0)
    sets = {}
    for name, top in (("mine-train", 256), ("mine-test", 256), ("dark", 90), ("darker", 40)):
        images = torch.randint(top, (40, 3, 24, 24), generator=generator).byte()
        sets[name] = extract(net, ImageSet(images, torch.arange(40) % 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network that learnt nothing
        scored = evaluation.score_sets(sets)
        records = evaluation.table(scored)
        assert evaluation.table(scored, id_name="mine-test") == records
    records += evaluation.means(records)
    records = evaluation.with_intervals(records, scored, resamples=20)
    assert {(r["set"], r["method"]) for r in records} == {
        (name, method) for name in ("dark", "darker", "mean") for method in evaluation.COMPARED
    }
    energy = np.r_[scored["mine-test"]["energy"], scored["dark"]["energy"]]
    record = evaluation.find(records, set="dark", method="energy")
    assert record["auroc"] == pytest.approx(roc_auc_score(np.repeat([0, 1], 40), energy))


def test_any_set_can_be_the_in_distribution_one():
    scored = made_up(["svhn"])
    named = {"flowers": scored[evaluation.ID_TEST], "weeds": scored["svhn"]}
    records = evaluation.table(named, id_name="flowers")
    ours = evaluation.table(scored)
    assert [row | {"set": "svhn"} for row in records] == ours
    with_ends = evaluation.with_intervals(records, named, resamples=20, id_name="flowers")
    expected = evaluation.with_intervals(ours, scored, resamples=20)
    assert [row | {"set": "svhn"} for row in with_ends] == expected
    assert evaluation.means(records, near=("weeds",)) == []


ROW = {"energy": np.arange(9.0)}
TWO = {"a-test": ROW, "b": ROW}


@pytest.mark.parametrize(
    ("scored", "options", "message"),
    [
        ({"a": ROW, "b": ROW}, {}, "cannot tell which .*in-distribution one; give id_name=, one"),
        ({"a-test": ROW, "b-test": ROW}, {}, "cannot tell which set .*'a-test', 'b-test'"),
        (TWO, {"id_name": "c"}, "no set 'c'; give id_name=, one of 'a-test'"),
        ({}, {}, "cannot tell which set"),
        ({"a-test": {}, "b": ROW}, {}, "'b' has scores of 'energy', and 'a-test' has none"),
        ({"a-test": ROW, "mean": ROW}, {}, "cannot be called 'mean'"),
        (TWO, {"draws": 0}, "count is a whole number from 1 on, got 0"),
        (TWO, {"n_ood": 0}, "size is a whole number from 1 on, got 0"),
        (TWO, {"prevalence": float("nan")}, "prevalence .* got nan"),
    ],
)
def test_what_cannot_be_tabled_is_named(scored, options, message):
    with pytest.raises(ValueError, match=f"thinkback: .*{message}"):
        evaluation.table(scored, **options)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({"a-test": None}, {}, "cannot tell which .*training one; give train_name="),
        ({"a-train": None}, {"methods": ["enrgy"]}, "no method 'enrgy'; there are msp, energy"),
        ({"a-train": None}, {"names": ["b"]}, "no set 'b'; there are a-train"),
    ],
)
def test_what_cannot_be_scored_is_named(sets, options, message):
    with pytest.raises(ValueError, match=f"thinkback: .*{message}"):
        evaluation.score_sets(sets, **options)


def test_intervals_need_the_scores_of_the_records_and_of_the_same_images():
    record = {"set": "c", "method": "energy"}
    with pytest.raises(ValueError, match="a record is of 'energy' on 'c', and there are no such"):
        evaluation.with_intervals([record], TWO)
    uneven = {"a-test": ROW | {"msp": np.arange(5.0)}, "b": ROW}
    with pytest.raises(ValueError, match="methods of set 'a-test' have scores of different number"):
        evaluation.with_intervals([], uneven)


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_cannot_be_spread(count):
    with pytest.raises(ValueError, match=f"cannot spread {count} images over a set of 10"):
        evaluation.evenly(10, count)


def test_a_turned_sign_is_noticed_with_its_method_and_set():
    scored = made_up(["svhn", "textures10"], shift=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation.table(scored)
    for row in scored.values():
        row["energy"] = -row["energy"]
    said = r"0\.\d+ of 'energy' on 'svhn', 0\.\d+ of 'energy' on 'textures10'"
    with pytest.warns(UserWarning, match=said) as seen:
        evaluation.table(scored)
    assert len(seen) == 1
    assert "'msp'" not in str(seen[0].message)
    assert seen[0].filename == __file__


def test_openoods_layout_comes_back_from_csv_and_latex(tmp_path):
    scored = made_up(["cifar100", "svhn", "my_set"], n=60)
    records = evaluation.table(scored)
    table = evaluation.near_far([*records, *evaluation.means(records)])
    assert table.columns.tolist() == [
        (name, metric)
        for name in ("CIFAR-100", "Near-OOD", "SVHN", "my_set", "Far-OOD")
        for metric in ("FPR@95", "AUROC")
    ]
    assert table.index.tolist() == ["Softmax", "Energy", "Thinkback"]
    groups = {"Near-OOD": ["cifar100"], "Far-OOD": ["svhn", "my_set"], "my_set": ["my_set"]}
    for title, names in groups.items():
        values = [evaluation.find(records, set=name, method="energy")["fpr95"] for name in names]
        assert table.loc["Energy", (title, "FPR@95")] == pytest.approx(100 * np.mean(values))
    table.to_csv(tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv", header=[0, 1], index_col=0)
    np.testing.assert_allclose(read.to_numpy(), table.to_numpy())
    text = table.to_latex(float_format="%.2f", escape=True)
    assert r"my\_set" in text
    assert f"Energy & {table.loc['Energy'].iloc[0]:.2f} & " in text
    only_far = evaluation.near_far(records, near=(), columns={"aupr": "AUPR"})
    titles = ("CIFAR-100", "SVHN", "my_set", "Far-OOD")
    assert only_far.columns.tolist() == [(title, "AUPR") for title in titles]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "no record of an OOD set"),
        (lambda rows: rows[1:], r"no record of 'msp' on 'svhn'"),
        (lambda rows: [*rows, rows[0]], "hold a set and method twice"),
        (lambda rows: [{"set": "a", "method": "b"}], "hold no 'fpr95'"),
    ],
)
def test_records_without_a_layout_are_named(change, message):
    records = evaluation.table(made_up(["svhn", "isun"], n=20))
    with pytest.raises(ValueError, match=f"thinkback: .*{message}"):
        evaluation.near_far(change(records))


def test_committed_table_raises_no_alarm():
    records = read_json(Path(__file__).parents[1] / "results" / "table1.json")
    assert not any(
        metrics.looks_reversed(r["auroc"], r["n_id"], r["n_ood"]) for r in records if "n_id" in r
    )
