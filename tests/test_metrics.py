"""Metrics against scikit-learn, SciPy and counting pairs."""

import warnings

import numpy as np
import pytest
import torch
from refusals import refused
from scipy.stats import mannwhitneyu
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from thinkback_utils import data, metrics

GENERATOR = np.random.default_rng(0)
CASES = {
    "continuous": (GENERATOR.normal(0, 1, 1000), GENERATOR.normal(1, 1, 200)),
    "ties": (1.0 * GENERATOR.integers(0, 6, 500), 1.0 * GENERATOR.integers(2, 8, 200)),
    "constant": (np.ones(300), np.ones(200)),
    "perfect": (np.arange(100.0), np.arange(200.0) + 100),
    "reversed": (np.arange(100.0) + 200, np.arange(200.0)),
}


def counted(ids, oods):
    """The four definitions, straight from the words: every threshold, every pair."""
    points = [
        ((ids >= t).mean(), (oods >= t).mean())
        for t in np.r_[np.inf, np.unique(np.r_[ids, oods])[::-1]]
    ]
    pairs = (oods[:, None] > ids).mean() + (oods[:, None] == ids).mean() / 2
    return (
        max(tpr for fpr, tpr in points if fpr <= 0.10),
        next(fpr for fpr, tpr in points if tpr >= 0.95),
        pairs,
    )


@pytest.mark.filterwarnings("ignore:thinkback. the AUROC is far below")
@pytest.mark.parametrize("case", CASES)
def test_against_counting_and_scikit_learn(case):
    ids, oods = CASES[case]
    labels, values = np.r_[np.zeros(len(ids)), np.ones(len(oods))], np.r_[ids, oods]
    sizes = len(ids), len(oods)
    for prevalence in (1 / 6, 0.5):
        ours = metrics.ood_metrics(ids, oods, prevalence)
        found = [ours["tpr10"], ours["fpr95"], ours["auroc"]]
        np.testing.assert_allclose(found, counted(ids, oods), atol=1e-12)
        np.testing.assert_allclose(ours["auroc"], roc_auc_score(labels, values), atol=1e-12)
        weight = np.repeat([(1 - prevalence) / len(ids), prevalence / len(oods)], sizes)
        oracle = average_precision_score(labels, values, sample_weight=weight)
        np.testing.assert_allclose(ours["aupr"], oracle, atol=1e-12)
    pairs = mannwhitneyu(oods, ids).statistic / len(ids) / len(oods)
    np.testing.assert_allclose(ours["auroc"], pairs, atol=1e-12)


def test_rates_are_exact_at_200_ood():
    """190 of 200 is exactly 95 %: the threshold that finds 190 must be the one that counts."""
    oods, ids = np.arange(200.0), np.array([9.5, 10.5])
    assert metrics.ood_metrics(ids, oods)["fpr95"] == 0.5
    assert metrics.ood_metrics(np.arange(10.0), np.array([8.5]))["tpr10"] == 1


def test_nearest_rule_may_stop_below_95():
    ids, oods = np.array([0.5, 1.5, 1.6]), np.r_[0.0, 1.0, np.full(18, 2.0)]
    # true-positive rate 0.9 at false-positive rates 0, 1/3 and 2/3; 0.95 at 2/3; 1
    curve = metrics.roc(ids, oods)
    assert metrics.fpr_at_tpr(curve) == metrics.fpr_at_tpr(curve, 0.92) == 2 / 3
    assert metrics.fpr_at_tpr(curve, 0.9) == 0
    assert metrics.fpr_at_tpr(curve, 0.9, rule="nearest") == 2 / 3
    assert metrics.fpr_at_tpr(metrics.roc([0.5, 2.5], oods), 0.92, rule="nearest") == 0.5
    assert metrics.fpr_at_tpr(metrics.roc([0.5, 2.5], oods), 0.92) == 0.5


def test_draws_are_seeded_subsets():
    scores = np.arange(100.0)
    first, again = (list(metrics.draws(scores, 30, 4, seed=1)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(len(set(draw)) == 30 for draw in first)
    assert not np.array_equal(np.sort(first[0]), np.sort(first[1]))
    assert len(next(metrics.draws(scores, 2000))) == 100


def test_bootstrap_interval_covers_the_truth():
    """AUROC of two unit normals one apart is Phi(1 / sqrt 2) = 0.7602, in its interval."""
    covered = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        ids, oods = generator.normal(0, 1, 300), generator.normal(1, 1, 300)
        resampled = metrics.resampled(ids, oods, resamples=100, seed=seed)
        low, high = metrics.interval95(resampled)["auroc"]
        assert 0.02 < high - low < 0.15
        covered += low <= 0.7602 <= high
    assert covered >= 16


def test_resamples_are_those_of_copied_images():
    """Draw the images themselves, with ties, and let scikit-learn judge each draw."""
    generator = np.random.default_rng(5)
    ids, oods = generator.normal(0, 1, 150).round(1), generator.normal(1, 1, 90).round(1)
    draws = [np.random.default_rng([7, side]) for side in (0, 1)]

    def drawn(scores, side):
        times = draws[side].multinomial(len(scores), np.full(len(scores), 1 / len(scores)))
        return np.repeat(scores, times)

    for row in metrics.resampled(ids, oods, 0.3, resamples=20, seed=7):
        a, b = drawn(ids, 0), drawn(oods, 1)
        np.testing.assert_allclose(row, list(metrics.ood_metrics(a, b, 0.3).values()), rtol=1e-12)
        labels = np.repeat([0, 1], [len(a), len(b)])
        assert row[2] == pytest.approx(roc_auc_score(labels, np.concatenate([a, b])), abs=1e-12)


def test_differences_of_resamples_are_paired():
    """Two nearly equal scores of the same images: their difference is known far better."""
    generator = np.random.default_rng(0)
    ids, oods = generator.normal(0, 1, 400), generator.normal(1, 1, 300)
    first = metrics.resampled(ids, oods, resamples=50)
    second = metrics.resampled(ids + generator.normal(0, 0.05, 400), oods, resamples=50)
    assert np.std(first - second, axis=0)[2] < 0.2 * np.std(first, axis=0)[2]
    assert np.array_equal(first, metrics.resampled(ids, oods, resamples=50))
    # two OOD sets share the in-distribution images
    other_set = metrics.resampled(ids, generator.normal(1, 1, 200), resamples=50)
    assert np.corrcoef(first[:, 2], other_set[:, 2])[0, 1] > 0.2


def test_mean_auroc_and_its_interval():
    generator = np.random.default_rng(0)
    ids, first = generator.normal(0, 1, 400).round(1), generator.normal(1, 1, 300).round(1)
    second = generator.normal(2, 1, 90)
    one, half = metrics.mean_auroc(ids, [first])
    assert one == pytest.approx(metrics.ood_metrics(ids, first)["auroc"], abs=1e-12)
    both = metrics.mean_auroc(ids, [first, second])
    aurocs = [metrics.ood_metrics(ids, ood)["auroc"] for ood in (first, second)]
    assert both[0] == pytest.approx(np.mean(aurocs), abs=1e-12)
    resampled = []
    for _ in range(400):
        a, b, c = (generator.choice(side, len(side)) for side in (ids, first, second))
        resampled.append([metrics.mean_auroc(a, [b])[0], metrics.mean_auroc(a, [b, c])[0]])
    np.testing.assert_allclose(1.96 * np.std(resampled, axis=0), [half, both[1]], rtol=0.15)


def test_tensors_of_any_precision_are_scores():
    ids, oods = torch.arange(8.0, requires_grad=True), torch.arange(4, 12).bfloat16()
    plain = metrics.ood_metrics(np.arange(8.0), np.arange(4.0, 12.0))
    assert metrics.ood_metrics(ids, oods) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [1.0]), r"id_scores must be a non-empty vector, got shape \(0,\)"),
        (([1.0], [[1.0]]), r"ood_scores must be a non-empty vector, got shape \(1, 1\)"),
        (([1.0, np.nan], [1.0]), r"id_scores holds nan at position 1"),
        (([1.0], [1.0], 1.0), r"prevalence is a fraction between 0 and 1, got 1.0"),
        (([1.0], [1.0], np.nan), r"prevalence is a fraction between 0 and 1, got nan"),
        (([1.0], [1.0], "half"), r"prevalence is a fraction between 0 and 1, got 'half'"),
        ((["0.1"], [1.0]), r"id_scores must be a vector of numbers; its type is <U3"),
        (([0.1], [1j]), r"ood_scores must be a vector of numbers; its type is complex128"),
        (([0.1], torch.tensor([1j])), "ood_scores must be a vector .*; its type is complex64"),
        (([0.1], [{}]), r"ood_scores must be a vector of numbers"),
        (([0.1], [None]), r"ood_scores holds nan at position 0"),
        (([0.1], [[1.0], [1.0, 2.0]]), r"ood_scores must be a vector of numbers"),
    ],
)
def test_bad_scores_are_named(arguments, message):
    with refused(f"^thinkback: {message}"):
        metrics.ood_metrics(*arguments)


CURVE = metrics.roc([0.1, 0.2, 0.3], [0.15, 0.3])


ENDS = r"runs from \(0, 0\) to \(1, 1\)"


def cut(first=0, last=None):
    return metrics.Roc(*(part[first:last] for part in CURVE))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: metrics.fpr_at_tpr(CURVE, rule="neareast"), r"one of .*, got 'neareast'"),
        (lambda: metrics.fpr_at_tpr(CURVE, 2), r"tpr is a rate in \[0, 1\], got 2"),
        (lambda: metrics.fpr_at_tpr(CURVE, 95, "nearest"), r"tpr is a rate in \[0, 1\], got 95"),
        (lambda: metrics.fpr_at_tpr(CURVE, -0.1), r"tpr is a rate in \[0, 1\], got -0.1"),
        (lambda: metrics.fpr_at_tpr(CURVE, np.nan), r"tpr is a rate in \[0, 1\], got nan"),
        (lambda: metrics.fpr_at_tpr(CURVE, None), r"tpr is a rate in \[0, 1\], got None"),
        (lambda: metrics.tpr_at_fpr(CURVE, 10), r"fpr is a rate in \[0, 1\], got 10"),
        (lambda: metrics.tpr_at_fpr(CURVE, np.nan), r"fpr is a rate in \[0, 1\], got nan"),
        (lambda: metrics.average_precision(CURVE, 0), "a fraction between 0 and 1, got 0"),
        (lambda: metrics.average_precision(CURVE, np.nan), "prevalence .* got nan"),
        (lambda: metrics.summary(CURVE, 1.5), "prevalence .* got 1.5"),
        (lambda: metrics.fpr_at_tpr(cut(last=-1)), ENDS),
        (lambda: metrics.tpr_at_fpr(cut(first=1)), ENDS),
        (lambda: metrics.average_precision(cut(last=0), 0.5), ENDS),
        (lambda: metrics.draws([1.0, 2.0], size=0), "size is a whole number from 1 on, got 0"),
        (lambda: metrics.draws([1.0, 2.0], size=1.5), "size is a whole number from 1 on, got 1.5"),
        (lambda: metrics.draws([1.0, 2.0], count=0), "count is a whole number from 1 on, got 0"),
        (lambda: metrics.draws([1.0, 2.0], seed=-1), "seed is a whole number from 0 on, got -1"),
        (lambda: metrics.draws([]), "ood_scores must be a non-empty vector"),
        (lambda: metrics.resampled([1.0], [2.0], resamples=0), "number from 1 on, got 0"),
        (lambda: metrics.resampled([1.0], [2.0], resamples=True), "number from 1 on, got True"),
        (lambda: metrics.resampled([1.0], [2.0], seed=-3), "seed is .* from 0 on, got -3"),
        (lambda: metrics.resampled([1.0], [2.0], np.nan), "prevalence .* got nan"),
        (lambda: metrics.interval95(np.zeros((0, 4))), r"\(resamples, 4\).*got shape \(0, 4\)"),
        (lambda: metrics.interval95(np.zeros((5, 3))), r"got shape \(5, 3\)"),
        (lambda: metrics.interval95(np.zeros(4)), r"got shape \(4,\)"),
        (lambda: metrics.interval95(np.full((5, 4), np.nan)), "finite"),
        (lambda: metrics.mean_auroc([0.1, 0.2], []), "ood_scores holds no OOD set"),
        (lambda: metrics.mean_auroc([0.1, 0.2], [0.3, 0.4]), "a set of .* a non-empty vector"),
        (lambda: metrics.mean_auroc([0.1], [[0.3, 0.4]]), "two scores a side or more, got 1"),
        (lambda: metrics.mean_auroc([0.1, 0.2], [[0.3, 0.4], [0.5]]), "a side or more, got 1"),
        (lambda: metrics.conventions([0.1], [0.2], prevalence=1), "prevalence .* got 1"),
        (lambda: metrics.conventions([0.1], [0.2], area="steps"), "area is one of .*, got 'steps'"),
        (lambda: metrics.conventions([], [0.2]), "id_scores must be a non-empty vector"),
    ],
)
def test_arguments_out_of_range_are_named(action, message):
    """Each of these gave a number, the best one even, or an error of NumPy's."""
    with refused(f"{message}"):
        action()


def test_the_ends_of_a_range_are_in_it():
    assert metrics.fpr_at_tpr(CURVE, 0) == 0
    assert metrics.fpr_at_tpr(CURVE, 1) == pytest.approx(2 / 3)
    assert (metrics.tpr_at_fpr(CURVE, 0), metrics.tpr_at_fpr(CURVE, np.float32(1))) == (0, 1)
    assert metrics.mean_auroc(np.array([0.1, 0.2]), iter([[0.3, 0.4]]))[0] == 1


def other_names(ids, oods):
    """By scikit-learn alone, as OpenOOD's and Energy's code take them: either side positive."""
    truth, values = np.r_[np.zeros(len(ids)), np.ones(len(oods))], np.r_[ids, oods]
    found = {}
    for side, labels, confidences in (("out", truth, values), ("in", 1 - truth, -values)):
        fpr, tpr, _ = roc_curve(labels, confidences, drop_intermediate=False)
        precision, recall, _ = precision_recall_curve(labels, confidences)
        found[f"fpr95_{side}"] = fpr[np.argmax(tpr >= 0.95)]
        found[f"step_{side}"] = average_precision_score(labels, confidences)
        found[f"trapezoid_{side}"] = auc(recall, precision)
    errors = [((ids >= t).mean() + (oods < t).mean()) / 2 for t in np.r_[values, np.inf]]
    return found | {"detection_error": min(errors)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("area", ["step", "trapezoid"])
def test_other_conventions_are_those_of_scikit_learn(case, area):
    oracle = other_names(*CASES[case])
    ours = metrics.conventions(*CASES[case], area=area)
    for side in ("out", "in"):
        assert ours[f"fpr95_{side}"] == pytest.approx(oracle[f"fpr95_{side}"], abs=1e-12)
        assert ours[f"aupr_{side}"] == pytest.approx(oracle[f"{area}_{side}"], abs=1e-12)
    assert ours["detection_error"] == pytest.approx(oracle["detection_error"], abs=1e-12)
    assert set(ours) == {"fpr95_out", "fpr95_in", "aupr_out", "aupr_in", "detection_error"}


@pytest.mark.parametrize("case", CASES)
def test_other_conventions_are_those_of_pytorch_ood(case):
    data.import_torchvision()  # which pytorch_ood imports plainly
    pytorch_ood = pytest.importorskip("pytorch_ood.metrics")
    ids, oods = CASES[case]
    scores = torch.from_numpy(np.r_[ids, oods])
    labels = torch.from_numpy(np.repeat([0, -1], [len(ids), len(oods)]))
    theirs = pytorch_ood.OODMetrics().update(scores, labels).compute()
    ours = metrics.conventions(ids, oods, area="trapezoid")
    for name, key in (("fpr95_out", "FPR95TPR"), ("aupr_in", "AUPR-IN"), ("aupr_out", "AUPR-OUT")):
        assert ours[name] == pytest.approx(theirs[key], abs=1e-9)


def test_the_mix_of_other_conventions_is_a_weight():
    ids, oods = CASES["ties"]
    half, sizes = metrics.conventions(ids, oods, 0.5), [len(ids), len(oods)]
    truth, values = np.repeat([0, 1], sizes), np.r_[ids, oods]
    weight = np.repeat([1 / len(ids), 1 / len(oods)], sizes)
    for side, y, score in (("aupr_out", truth, values), ("aupr_in", 1 - truth, -values)):
        oracle = average_precision_score(y, score, sample_weight=weight)
        assert half[side] == pytest.approx(oracle, abs=1e-12)


def test_confidences_given_as_scores_are_noticed():
    ids, oods = GENERATOR.normal(0, 1, 200), GENERATOR.normal(2, 1, 100)
    words = r"AUROC is far below 0\.5; scores must be higher = more OOD: was the sign"
    with pytest.warns(UserWarning, match=words):
        metrics.ood_metrics(-ids, -oods)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.ood_metrics(ids, oods)
        metrics.ood_metrics(ids, ids - 0.3)  # an AUROC of 0.42: hard, not turned
        metrics.ood_metrics([2.0, 3.0], [0.0, 1.0])  # chance, one time in six


def test_few_images_never_look_reversed():
    """Under chance the rule speaks less often than it claims, at any size."""
    generator = np.random.default_rng(0)
    for n_id, n_ood in ((2, 2), (3, 20), (30, 30)):
        oods, ids = generator.normal(size=(n_ood, 2000)), generator.normal(size=(n_id, 2000))
        aurocs = mannwhitneyu(oods, ids).statistic / n_id / n_ood
        assert np.mean([metrics.looks_reversed(a, n_id, n_ood) for a in aurocs]) <= 0.03
