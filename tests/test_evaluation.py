"""The table's arithmetic on made-up scores: means over the right sets, intervals, paired differences, kept scores."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from thinkback_utils import data, evaluation, metrics
from thinkback_utils.features import save_arrays


def made_up(sets, methods=("msp", "energy", "thinkback"), shift=1.0, n=300):
    """Scores of two sides one ``shift`` apart; the methods are the same score plus a little noise of their own."""
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
    assert record["auroc"] == pytest.approx(roc_auc_score([0] * 300 + [1] * 300, np.concatenate([ids, oods])))
    assert (record["draws"], record["auroc_std"]) == (1, 0.0)  # the set is smaller than a draw


def test_spread_over_draws_shrinks_with_their_size():
    scored = made_up(["svhn"], n=2000)
    small, large = (evaluation.table(scored, n_ood=n)[0] for n in (100, 1500))
    assert small["draws"] == large["draws"] == 10
    assert small["auroc_std"] > 2 * large["auroc_std"] > 0


def test_intervals_hold_the_value_and_differences_are_tighter():
    scored = made_up(["svhn", "textures10"])
    records = evaluation.table(scored)
    records = evaluation.with_intervals([*records, *evaluation.means(records)], scored, resamples=100)
    for record in records:
        low, high = record["interval95"]["auroc"]
        assert low < record["auroc"] < high
        if record["method"] == "thinkback":
            a, b = record["minus_energy"]["auroc"]
            assert b - a < 0.5 * (high - low)
        assert ("minus_msp" in record) == (record["method"] != "msp")
    single, mean = (evaluation.find(records, set=name, method="msp")["interval95"] for name in ("svhn", "mean"))
    assert np.ptp(mean["auroc"]) < np.ptp(single["auroc"])


def test_kept_scores_come_back(tmp_path):
    scored = made_up(["svhn"])
    save_arrays(
        tmp_path / "scores.npz",
        {f"{name}.{m}": s.astype(np.float32) for name, row in scored.items() for m, s in row.items()},
    )
    kept = evaluation.load_scores(tmp_path)
    assert kept["svhn"]["energy"].dtype == np.float32
    np.testing.assert_allclose(kept["svhn"]["energy"], scored["svhn"]["energy"], rtol=1e-6)
    metric = metrics.ood_metrics(kept[evaluation.ID_TEST]["energy"], kept["svhn"]["energy"])
    assert metric["auroc"] == pytest.approx(
        evaluation.find(evaluation.table(scored), method="energy")["auroc"], abs=1e-4
    )


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
