"""Calibration: promises by simulation within five standard errors, numbers by counting.

Where a promise holds, five errors of a mean are exceeded three times in ten million.
"""

import json
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from scipy import stats
from scipy.integrate import quad

from thinkback_utils.calibration import (
    CHUNK,
    Calibration,
    DriftAlarm,
    GroupedCalibration,
    _bets,
    benjamini_hochberg,
    conformal_threshold,
    counted_p_value,
    from_tensors,
    minimum_scores,
    mostly_rejected,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def error(values):
    """Five standard errors of the mean."""
    return 5 * np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values))


# Thresholds and p-values


@pytest.mark.parametrize("n", [19, 100, 999])
def test_threshold_is_the_order_statistic_of_exact_fractions_and_beta_tails(n, generator):
    scores = generator.permutation(n) + 1.0
    for alpha in ("0.05", "0.1", "0.29"):
        for delta in (None, 0.1, 0.4):
            within = [m for m in range(1, n + 1) if Fraction(m, n + 1) <= Fraction(alpha)]
            if delta is not None:
                within = [m for m in within if stats.beta.sf(float(alpha), m, n + 1 - m) <= delta]
            if not within:
                with refused(f"takes at least {minimum_scores(float(alpha), delta)} cal"):
                    conformal_threshold(scores, float(alpha), delta)
                continue
            tensor = torch.tensor(scores, requires_grad=True)
            for given in (scores, scores.tolist(), scores.astype(int), tensor):
                threshold = conformal_threshold(given, float(alpha), delta)
                assert threshold == math.nextafter(n + 1 - max(within), math.inf)
                assert type(threshold) is float


@pytest.mark.parametrize("n", [19, 99, 100])
def test_rejected_is_p_at_most_alpha_to_the_last_bit(n, generator):
    """Alphas at which (n + 1) alpha is whole, where rounding could part the two; with ties too."""
    scores, new = generator.random(n), generator.random(200)
    for known in (scores, np.round(5 * scores) / 7):
        near = np.nextafter(known, 9), np.nextafter(known, -9)
        both = np.concatenate([known, *near, new, np.round(5 * new) / 7])
        calibration = Calibration.by_hand(0.0, known)
        p = calibration.p_value(both)
        np.testing.assert_array_equal(p, (1 + (known >= both[:, None]).sum(1)) / (n + 1))
        for alpha in [i / (n + 1) for i in range(1, n + 1, 7)] + [0.07, 0.29, 0.58]:
            if alpha * (n + 1) < 1:
                continue
            at = calibration.at(alpha)
            np.testing.assert_array_equal(at.rejects(both), p <= alpha)
            np.testing.assert_array_equal(both >= conformal_threshold(known, alpha), p <= alpha)
            assert not (at.rejects(known).mean() > alpha)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_a_tie_is_no_alarm_in_any_precision(dtype, as_numpy, generator):
    """The score that sets the threshold, compared in its own dtype and in float64."""
    scores = torch.from_numpy(generator.normal(size=60)).to(dtype)
    given = scores.numpy() if as_numpy else scores
    alarms = int(0.1 * 61) - 1
    threshold = conformal_threshold(given, 0.1)
    assert int((given >= threshold).sum()) == int((scores.double() >= threshold).sum()) == alarms
    calibration = Calibration.of(given, 0.1)
    assert int(calibration.rejects(given).sum()) == alarms
    assert int((calibration.p_value(given) <= 0.1).sum()) == alarms
    above = float(torch.nextafter(scores, scores + 1).sort().values[60 - 1 - alarms])
    assert above >= threshold  # the next score there can be is one


def test_bfloat16_scores_are_read_exactly():
    scores = torch.arange(1, 41).bfloat16()
    assert Calibration.of(scores, 0.1).scores.tolist() == list(range(1, 41))
    assert Calibration.of(scores, 0.1).rejects(scores).sum() == 3


def test_results_are_of_the_kind_and_shape_that_was_given(generator):
    calibration = Calibration.of(generator.normal(size=50), 0.1)
    grid = generator.normal(size=(3, 4, 5))
    for method, dtype in ((calibration.p_value, np.float64), (calibration.rejects, np.bool_)):
        flat = method(grid.ravel())
        np.testing.assert_array_equal(method(grid), flat.reshape(grid.shape))
        np.testing.assert_array_equal(method(torch.from_numpy(grid)), flat.reshape(grid.shape))
        assert method(grid).dtype == dtype
        assert isinstance(method(torch.from_numpy(grid)), torch.Tensor)
        assert method(float(grid[0, 0, 0])) == flat[0]
        assert method(pd.Series(grid.ravel())).shape == (60,)
        assert method(grid.ravel()[::-2]).shape == (30,)
        assert len(method(np.empty(0))) == 0


def thresholds(draws, alpha, delta=None):
    """Of many calibration sets (sets, n): the order statistic that the threshold is for every n."""
    place = int(conformal_threshold(np.arange(draws.shape[1]), alpha, delta))
    ascending = np.sort(draws)
    assert Calibration.of(draws[0], alpha, delta).threshold == np.nextafter(ascending[0, place], 9)
    return ascending[:, place]


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (50, 0.1), (200, 0.05)])
def test_average_rate_is_at_most_alpha_and_not_much_less(n, alpha, generator):
    """Uniform scores, so that the rate of one calibration set is exact: 1 - threshold."""
    rates = 1 - thresholds(generator.random((5000, n)), alpha)
    assert alpha - 1 / (n + 1) - error(rates) < np.mean(rates) < alpha + error(rates)


@pytest.mark.parametrize(
    ("n", "alpha", "delta"), [(200, 0.1, 0.1), (300, 0.05, 0.05), (60, 0.2, 0.3)]
)
def test_with_delta_few_calibration_sets_break_alpha(n, alpha, delta, generator):
    draws = generator.random((5000, n))
    broken = 1 - thresholds(draws, alpha, delta) > alpha
    assert 0 < broken.mean() < delta + error(broken)
    assert np.mean(1 - thresholds(draws, alpha) > alpha) > 0.35  # what delta is for


def test_both_promises_hold_with_ties(generator):
    """Scores 0 to 4, each of probability 1/5: the rate of a threshold is exact again."""
    draws = np.floor(5 * generator.random((5000, 50)))
    rates, strict = ((4 - thresholds(draws, 0.3, delta)) / 5 for delta in (None, 0.1))
    assert Calibration.of(draws[0], 0.3).rejects(np.arange(5.0)).mean() == rates[0]
    assert (strict <= rates).all()
    assert np.mean(rates) <= 0.3 + error(rates)
    broken = strict > 0.3
    assert broken.mean() <= 0.1 + error(broken)
    assert Calibration.of(np.zeros(50), 0.3).threshold > 0


def test_p_values_are_super_uniform_with_ties_and_in_float32(generator):
    n, below = 30, []
    for _ in range(400):
        draw = generator.integers(8, size=n + 50).astype(np.float32) / 7
        p = Calibration.of(draw[:n], 0.1).p_value(draw[n:])
        below.append([(p <= j / (n + 1)).mean() for j in range(1, n + 2)])
    rates = np.mean(below, 0)
    assert (rates <= np.arange(1, n + 2) / (n + 1) + 5 * np.std(below, 0) / 20).all()


def test_another_promise_needs_no_new_scores(generator):
    scores = torch.from_numpy(generator.normal(size=300))
    first = Calibration.of(scores, 0.05)
    for alpha, delta in ((0.01, None), (0.2, 0.1)):
        again, afresh = first.at(alpha, delta), Calibration.of(scores, alpha, delta)
        assert (again.threshold, again.alpha, again.delta) == (afresh.threshold, alpha, delta)
        assert torch.equal(again.scores, scores.sort().values)
    with refused("alpha=0.001 takes at least 999 calibration scores, got 300"):
        first.at(0.001)


def test_a_threshold_by_hand():
    alone = Calibration.by_hand(-3.0)
    assert alone.rejects(torch.tensor([-3.1, -3.0])).tolist() == [False, True]
    for ask in (lambda: alone.p_value(torch.zeros(2)), lambda: alone.at(0.1)):
        with refused(r"set by hand and there are no calibration scores .*calibrate on held-out"):
            ask()
    for value in (torch.tensor(2.5), np.float32(2.5), np.float64(2.5)):
        facts = {"threshold": 2.5, "alpha": None, "delta": None}
        assert Calibration.by_hand(value).to_tensors()[1] == facts
    for value in (math.nan, math.inf, "3", None, torch.zeros(2), 1j):
        with refused(r"threshold must be (a number|finite)"):
            Calibration.by_hand(value)
    known = Calibration.by_hand(17.5, np.arange(19.0))
    assert known.rejects(np.array([17.0, 18.0])).tolist() == [False, True]
    assert known.p_value(np.array([17.0, 19.0])).tolist() == [0.15, 0.05]
    assert known.alpha is None
    assert known.at(0.05).threshold == math.nextafter(18, math.inf)


def test_the_caller_keeps_his_array(generator):
    scores = torch.from_numpy(generator.normal(size=40))
    ascending = scores.sort().values
    kept = ascending.clone()
    calibration, built = Calibration.of(scores, 0.1), Calibration(ascending, 0.0)
    scores.mul_(1000)
    ascending.mul_(1000)
    assert torch.equal(calibration.scores, kept)
    assert torch.equal(built.scores, kept)
    watched = DriftAlarm(calibration.scores).update(generator.normal(size=5))
    assert len(calibration.scores) == 40
    assert watched.seen == 5


def test_the_form_for_graphs_is_the_same(generator):
    calibration = Calibration.of(np.round(generator.normal(size=80), 1), 0.1)
    new = torch.from_numpy(np.round(generator.normal(size=100), 1))
    assert torch.equal(counted_p_value(calibration.scores, new), calibration.p_value(new))


# What is no calibration


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.0, -0.1, 5, math.nan, math.inf, "0.1", [0.1], True])
def test_fractions_are_fractions(value):
    scores, group = np.arange(50.0), np.zeros(50, int)
    calls = {
        "alpha": [
            lambda: conformal_threshold(scores, value),
            lambda: minimum_scores(value),
            lambda: Calibration.of(scores, value),
            lambda: Calibration.of(scores).at(value),
            lambda: GroupedCalibration.of(scores, group, value),
            lambda: Calibration(torch.from_numpy(scores), 48.0, value),
        ],
        "delta": [
            lambda: conformal_threshold(scores, 0.1, value),
            lambda: Calibration.of(scores, 0.1, value),
        ],
        "q": [lambda: benjamini_hochberg(scores / 50, value)],
        "rate": [lambda: DriftAlarm(scores, value)],
        "level": [lambda: mostly_rejected(scores, group, 1.0, value)],
    }
    for name, asked in calls.items():
        for call in asked:
            with refused(f"^thinkback: {name} must lie between 0 and 1, got "):
                call()


def test_missing_alpha_is_named():
    with refused("alpha must lie between 0 and 1, got None"):
        Calibration.of(np.arange(50.0), None)


@pytest.mark.parametrize("alpha", [1e-320, 5e-324, 1e-300, 1e-13])
def test_an_alpha_that_no_set_can_promise_is_named(alpha):
    scores = torch.rand(9)
    for call in (lambda: conformal_threshold(scores, alpha), lambda: minimum_scores(alpha, 0.1)):
        with refused(rf"alpha={alpha} takes over 10\*\*12 calibration scores"):
            call()
    assert minimum_scores(0.5, 5e-324) == 1074  # 0.5**1074 is 5e-324
    assert conformal_threshold(scores, np.float32(0.5)) < 1


@pytest.mark.parametrize("delta", [None, 0.037])
@pytest.mark.parametrize("alpha", [0.003, 0.0371, 0.05, 0.1, 1 / 3, 0.49, 1 / 49, 0.07, 0.29])
def test_the_fewest_scores_are_enough_and_one_less_is_not(alpha, delta):
    fewest = minimum_scores(alpha, delta)
    Calibration.of(np.zeros(fewest), alpha, delta)
    with refused(f"takes at least {fewest} calibration scores, got {fewest - 1}"):
        Calibration.of(np.zeros(fewest - 1), alpha, delta)


BAD = {
    "nan": (np.array([0.0, math.nan, math.inf]), "2 of 3 .* are not finite"),
    "complex": (torch.zeros(30) * 1j, "must be real numbers, got dtype complex64"),
    "bool": (np.zeros(30, bool), "must be real numbers, got dtype bool"),
    "text": (["high", "low"], "must be real numbers, got dtype <U4"),
    "none": (None, "must be real numbers, got dtype object"),
    "ragged": ([[1.0], [1.0, 2.0]], "must be an array: "),
    "matrix": (torch.zeros(30, 1), r"must be a vector \(n,\), got shape \(30, 1\)"),
    "number": (3.0, r"must be a vector \(n,\), got shape \(\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_are_no_scores_is_named(kind):
    values, message = BAD[kind]
    group = np.zeros(30, int)
    calls = [conformal_threshold, Calibration.of, DriftAlarm, lambda v: Calibration(v, 0.0)]
    calls += [lambda v: GroupedCalibration.of(v, group), lambda v: mostly_rejected(v, group, 0.0)]
    if kind not in ("matrix", "number"):  # which are as good as others, there
        plain = Calibration.of(np.arange(30.0))
        grouped = GroupedCalibration.of(np.arange(30.0), group)
        calls += [plain.rejects, plain.p_value, lambda v: grouped.rejects(v, group)]
        calls += [DriftAlarm([1.0]).update]
    for call in calls:
        with refused(f"{message}"):
            call(values)


def test_no_scores_at_all():
    for empty in ([], np.empty(0), torch.empty(0)):
        with refused("takes at least 19 calibration scores, got 0"):
            conformal_threshold(empty)
        with refused("takes at least 19 calibration scores in each group, got none"):
            GroupedCalibration.of(empty, empty)
        assert mostly_rejected(empty, empty, 0.0) == {}


# Files


def through_a_file(kept, path):
    tensors, facts = kept.to_tensors()
    save_file(tensors, path)
    return from_tensors(load_file(path), json.loads(json.dumps(facts, allow_nan=False)))


NORMAL = np.random.default_rng(0).normal(size=100)


@pytest.mark.parametrize(
    "kept",
    [
        Calibration.of(NORMAL, 0.1, 0.2),
        Calibration.of(NORMAL.astype(np.float32), np.float32(0.1)),
        Calibration.by_hand(-3.0),
        Calibration.by_hand(2, np.arange(5.0)),
        GroupedCalibration.of(NORMAL, np.arange(100) % 2, 0.1),
        GroupedCalibration.of(NORMAL, ["é", "b"] * 50, 0.1, 0.3),
    ],
)
def test_a_file_gives_back_the_same(kept, tmp_path):
    again = through_a_file(kept, tmp_path / "calibration")
    assert type(again) is type(kept)
    assert again.to_tensors()[1] == kept.to_tensors()[1]
    assert torch.equal(again.to_tensors()[0]["calibration"], kept.to_tensors()[0]["calibration"])


def test_a_file_keeps_groups_that_raise_no_alarm(tmp_path):
    with pytest.warns(UserWarning, match="which raise no alarm"):
        kept = GroupedCalibration.of(np.arange(23.0), [0] * 20 + [7] * 3, few="accept")
    again = through_a_file(kept, tmp_path / "calibration")
    assert again.rejects(np.array([1e9, 1e9]), [0, 7]).tolist() == [True, False]


ASCENDING = torch.arange(40.0).double()


def damaged(facts=None, scores=None, grouped=False, drop=()):
    """Tensors and facts of a file of forty scores, with others in their place, or without some."""
    groups = ["a"] * 20 + ["b"] * 20
    made = GroupedCalibration.of(ASCENDING, groups) if grouped else Calibration.of(ASCENDING)
    tensors, kept = made.to_tensors()
    kept |= facts or {}
    tensors = tensors if scores is None else {"calibration": scores}
    return [{k: v for k, v in part.items() if k not in drop} for part in (tensors, kept)]


DAMAGE = {
    "no threshold": damaged(drop=["threshold"]),
    "no alpha": damaged(drop=["alpha"]),
    "no delta": damaged(drop=["delta"]),
    "no scores": damaged(drop=["calibration"]),
    "threshold nan": damaged({"threshold": math.nan}),
    "threshold infinite": damaged({"threshold": math.inf}),
    "threshold null": damaged({"threshold": None}),
    "threshold text": damaged({"threshold": "38"}),
    "threshold of others": damaged({"threshold": 12.0}),
    "alpha of others": damaged({"alpha": 0.3}),
    "alpha null": damaged({"alpha": None, "delta": 0.1}),
    "alpha text": damaged({"alpha": "0.05"}),
    "delta out of range": damaged({"delta": 3}),
    "promise beyond the scores": damaged({"alpha": 0.001}),
    "unsorted": damaged(scores=ASCENDING.flip(0)),
    "nan": damaged(scores=torch.where(ASCENDING == 9, math.nan, ASCENDING)),
    "threshold huge": damaged({"threshold": 10**400}),
    "few scores, no alarm ever": damaged({"threshold": math.inf}, scores=ASCENDING[:5]),
    "some lost": damaged(scores=ASCENDING[:-3]),
    "all lost": damaged(scores=ASCENDING[:0]),
    "matrix": damaged(scores=ASCENDING.reshape(8, 5)),
    "facts are a list": (damaged()[0], [1]),
    "facts are null": (damaged()[0], None),
    "facts are text": (damaged()[0], "alpha"),
    "groups lost": damaged({"groups": ["a"]}, grouped=True),
    "groups twice": damaged({"groups": ["a", "a"]}, grouped=True),
    "groups are a number": damaged({"groups": 2}, grouped=True),
    "groups are lists": damaged({"groups": [["a"], ["b"]]}, grouped=True),
    "no sizes": damaged(drop=["sizes"], grouped=True),
    "no thresholds": damaged(drop=["thresholds"], grouped=True),
    "sizes of others": damaged({"sizes": [30, 30]}, grouped=True),
    "sizes moved": damaged({"sizes": [21, 19]}, grouped=True),
    "sizes negative": damaged({"sizes": [-5, 45]}, grouped=True),
    "sizes are text": damaged({"sizes": ["20", "20"]}, grouped=True),
    "sizes are fractions": damaged({"sizes": [20.5, 19.5]}, grouped=True),
    "sizes empty": damaged({"sizes": []}, grouped=True),
    "one threshold lost": damaged({"thresholds": [18.000000000000004]}, grouped=True),
    "threshold lost": damaged({"thresholds": [None, 38.00000000000001]}, grouped=True),
    "group unsorted": damaged(scores=ASCENDING.flip(0), grouped=True),
    "group scores lost": damaged(scores=ASCENDING[:-1], grouped=True),
    "group alpha null": damaged({"alpha": None}, grouped=True),
    "empty": damaged({"groups": [], "sizes": [], "thresholds": []}, grouped=True),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_an_error(kind):
    with refused(r"^thinkback: "):
        from_tensors(*DAMAGE[kind])


def test_scores_out_of_order_are_no_calibration():
    """Also where the threshold is that of the ordered scores; p-values would be wrong."""
    swapped, threshold = ASCENDING[[1, 0, *range(2, 40)]], Calibration.of(ASCENDING).threshold
    tensors, facts = damaged(scores=swapped, grouped=True)
    for make in (
        lambda: Calibration(swapped, threshold, 0.05),
        lambda: Calibration(swapped, 0.0),
        lambda: from_tensors(*damaged(scores=swapped)),
        lambda: from_tensors(tensors, facts),
    ):
        with refused("not ascending"):
            make()


def test_groups_take_one_promise():
    one, other = Calibration.of(np.arange(40.0), 0.1), Calibration.of(np.arange(40.0), 0.2)
    for parts in ({}, {0: one, 1: other}, {0: Calibration.by_hand(1.0)}):
        with refused("all at one alpha and delta"):
            GroupedCalibration(parts)


# Groups


def grouped_draw(generator, n, rare=0.05):
    """Scores of two groups, of which the rarer lies far out: a class with few training images."""
    group = (generator.random(n) < rare).astype(int)
    return generator.normal(size=n) + 6 * group, group


def test_the_promise_holds_in_every_group_where_one_threshold_rejects_a_group_whole(generator):
    rates = []
    for _ in range(100):
        scores, group = grouped_draw(generator, 800)
        new, of = grouped_draw(generator, 2000)
        by_group, plain = GroupedCalibration.of(scores, group, 0.1), Calibration.of(scores, 0.1)
        verdicts = by_group.rejects(new, of), plain.rejects(new)
        rates.append([[verdict[of == g].mean() for g in (0, 1)] for verdict in verdicts])
    rates = np.array(rates)  # (draws, by group or not, group)
    for group, n in ((0, 700), (1, 20)):
        own = rates[:, 0, group]
        assert 0.1 - 1 / n - error(own) < own.mean() < 0.1 + error(own)
    assert rates[:, 1, 1].min() > 0.8
    assert rates[:, 1, 0].mean() < 0.08


def test_with_delta_few_sets_break_alpha_in_any_group(generator):
    broken = []
    for draw in generator.random((400, 120)):
        by_group = GroupedCalibration.of(draw, np.repeat([0, 1], [50, 70]), 0.2, delta=0.1)
        broken.append([1 - by_group.parts[g].threshold > 0.2 for g in (0, 1)])
    assert (np.mean(broken, 0) < 0.1 + 5 * np.std(broken, 0) / math.sqrt(400)).all()


@pytest.mark.parametrize("kind", ["text", "integers", "tensor", "series", "list"])
def test_each_group_is_its_own_calibration(kind, generator):
    scores, which = generator.normal(size=300), generator.integers(3, size=300)
    labels = np.array(["cat", "dog", "élan"])[which] if kind in ("text", "series") else which - 1
    made = {"tensor": torch.from_numpy, "series": pd.Series, "list": np.ndarray.tolist}.get(
        kind, np.asarray
    )
    by_group = GroupedCalibration.of(scores, made(labels), 0.1)
    new, of = generator.normal(size=50), generator.integers(3, size=50)
    new_labels = np.array(["cat", "dog", "élan"])[of] if kind in ("text", "series") else of - 1
    for i in range(3):
        own = Calibration.of(scores[which == i], 0.1)
        for method in ("p_value", "rejects"):
            got = getattr(by_group, method)(torch.from_numpy(new), made(new_labels))
            np.testing.assert_array_equal(got[of == i], getattr(own, method)(new[of == i]))
            assert got.dtype == (torch.float64 if method == "p_value" else torch.bool)
    np.testing.assert_array_equal(
        by_group.at(0.3).rejects(new, made(new_labels)),
        by_group.p_value(new, made(new_labels)) <= 0.3,
    )
    assert by_group.rejects(new.reshape(5, 10), new_labels.reshape(5, 10)).shape == (5, 10)


def test_groups_with_too_few_scores_are_named(generator):
    scores, group = generator.normal(size=63), np.repeat(["ant", "bee", "cat"], [40, 18, 5])
    with refused(r"at least 19 .* in each group; too few are in 'bee' \(18\), 'cat' \(5\)\. Add"):
        GroupedCalibration.of(scores, group)
    words = r"'bee' \(18\), 'cat' \(5\), which raise no alarm"
    with pytest.warns(UserWarning, match=words) as caught:
        by_group = GroupedCalibration.of(scores, group, few="accept")
    assert caught[0].filename == __file__
    far = by_group.p_value(np.full(3, 1e9), ["ant", "bee", "cat"])
    np.testing.assert_array_equal(far, [1 / 41, 1 / 19, 1 / 6])
    verdicts = by_group.rejects(np.full(3, 1e9), ["ant", "bee", "cat"])
    np.testing.assert_array_equal(verdicts, far <= 0.05)
    with pytest.warns(UserWarning, match=r"at least 9 .* in 'cat' \(5\), which raise no alarm"):
        again = by_group.at(0.1, few="accept")
    assert again.rejects(np.full(2, 1e9), ["bee", "cat"]).tolist() == [True, False]
    with refused(r"in 0 \(1\), 1 \(1\), 2 \(1\), 3 \(1\), 4 \(1\) and 5 more"):
        GroupedCalibration.of(np.zeros(10), np.arange(10))


def test_groups_that_are_none_are_named(generator):
    scores = generator.normal(size=40)
    by_group = GroupedCalibration.of(scores, ["a"] * 20 + ["b"] * 20)
    for method in (by_group.p_value, by_group.rejects):
        with refused(r"has no group 'c', 'd'; it has groups 'a', 'b'"):
            method(scores[:3], ["c", "a", "d"])
        with refused(r"has no group 1; it has groups 'a', 'b'"):
            method(scores[:1], [1])
        with refused(r"groups \(2,\) and scores \(3,\) differ in shape"):
            method(scores[:3], ["a", "b"])
    with refused("groups must be integers or strings, got dtype float64"):
        GroupedCalibration.of(scores, scores)
    with refused("groups must be integers or strings, got dtype object"):
        GroupedCalibration.of(scores, [None] * 40)
    with refused("groups must be an array: "):
        GroupedCalibration.of(scores, [[1], [1, 2]])
    with refused("few must be 'error' or 'accept', got 'pool'"):
        GroupedCalibration.of(scores, [0] * 40, few="pool")


# Rare classes


def test_a_rare_class_that_is_rejected_whole_is_named(generator):
    scores, classes = generator.normal(size=8005), generator.integers(10, size=8005)
    scores[-5:], classes[-5:] = 8, 10
    threshold = Calibration.of(scores).threshold
    for given in (classes, torch.from_numpy(classes)):
        assert mostly_rejected(torch.from_numpy(scores).float(), given, threshold) == {10: (5, 5)}
    names = np.array(["common"] * 10 + ["rare"])[classes]
    assert mostly_rejected(scores, names, threshold) == {"rare": (5, 5)}
    assert mostly_rejected(scores[:-5], classes[:-5], threshold) == {}
    scores[-2:] = 0
    assert mostly_rejected(scores, classes, threshold) == {10: (3, 5)}
    scores[-3:] = 0  # less than half
    assert mostly_rejected(scores, classes, threshold) == {}


def test_naming_is_fishers_exact_test(generator):
    """A group is named once the level is the probability times the number of groups."""
    scores, group = generator.normal(size=400), np.r_[np.zeros(390, int), np.ones(10, int)]
    scores[-6:] = 5
    threshold = Calibration.of(scores).threshold
    far = scores >= threshold
    table = [[(far & (group == g)).sum(), (~far & (group == g)).sum()] for g in (1, 0)]
    chance = 2 * stats.fisher_exact(table, "greater").pvalue
    assert mostly_rejected(scores, group, threshold, level=chance * 1.001) == {1: (6, 10)}
    assert mostly_rejected(scores, group, threshold, level=chance * 0.999) == {}


@pytest.mark.parametrize("ties", [False, True])
def test_classes_that_do_not_differ_are_rarely_named(ties, generator):
    """Classes of very different size, at a high level, so that there is something to count."""
    share = 0.7 ** np.arange(30)
    named = []
    for _ in range(400):
        scores = generator.normal(size=300)
        scores = scores.round(1) if ties else scores
        classes = generator.choice(30, 300, p=share / share.sum())
        threshold = Calibration.of(scores).threshold
        named.append(bool(mostly_rejected(scores, classes, threshold, level=0.5)))
    assert np.mean(named) <= 0.5 + error(named)


# Lists of discoveries


def exact_list(counts, n, q):
    """The rule in fractions: p-values are (1 + count) / (n + 1)."""
    p = [Fraction(1 + int(count), n + 1) for count in counts]
    ordered = sorted(p)
    limits = [value for i, value in enumerate(ordered, 1) if value <= Fraction(str(q)) * i / len(p)]
    return [bool(limits) and value <= max(limits) for value in p]


def test_the_list_is_that_of_exact_fractions(generator):
    for _ in range(200):
        n, size = int(generator.choice([99, 199, 999])), int(generator.integers(1, 60))
        q = generator.choice([0.05, 0.1])
        counts = generator.integers(0, n // 4, size)
        ours = benjamini_hochberg((1 + counts) / (n + 1), float(q))
        assert ours.tolist() == exact_list(counts, n, q)
    assert isinstance(benjamini_hochberg(torch.tensor([0.01, 0.9])), torch.Tensor)
    assert benjamini_hochberg(np.empty(0)).shape == (0,)


@pytest.mark.parametrize("q", [0.05, 0.1, 0.3])
def test_a_p_value_that_is_at_the_limit_but_for_rounding_is_called(q):
    """i p-values of exactly q i / N, the others 1, wherever (1 + count) / 1000 can be that."""
    for size in range(1, 31):
        for i in range(1, size + 1):
            limit = 1000 * Fraction(str(q)) * i / size
            if limit.denominator == 1:
                p = np.r_[np.full(i, float(limit) / 1000), np.ones(size - i)]
                assert benjamini_hochberg(p, q).sum() == i
                p[:i] += 1 / 1000
                assert benjamini_hochberg(p, q).sum() == 0


@pytest.mark.parametrize("kind", ["no outliers", "outliers", "ties", "groups"])
def test_false_discoveries_are_at_most_q_times_the_share_of_inliers(kind, generator):
    n, size, q = 599, 60, 0.2
    outliers = 0 if kind == "no outliers" else 15
    shares, power = [], []
    for _ in range(300):
        known, new = generator.normal(size=n), generator.normal(size=size)
        new[:outliers] += 4
        if kind == "ties":
            known, new = known.round(), new.round()
        if kind == "groups":
            of, new_of = np.arange(n) % 2, np.arange(size) % 2
            p = GroupedCalibration.of(known + 3 * of, of, 0.1).p_value(new + 3 * new_of, new_of)
        else:
            p = Calibration.of(known, 0.1).p_value(new)
        called = benjamini_hochberg(p, q)
        shares.append(called[outliers:].sum() / max(called.sum(), 1))
        power.append(called[:outliers].mean() if outliers else 1.0)
    bound = q * (size - outliers) / size
    assert np.mean(shares) <= bound + error(shares)
    if kind != "ties":
        assert np.mean(shares) > bound / 2  # it does not hold for want of calls
    assert np.mean(power) > 0.5


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_p_values_outside_0_1_are_named(value):
    with refused(r"p_values (must lie in \[0, 1\], got|are not finite)|of 2 p_values are not"):
        benjamini_hochberg(np.array([0.5, value]))
    with refused(r"p_values must be a vector \(n,\), got shape \(1, 2\)"):
        benjamini_hochberg(np.zeros((1, 2)))


# Drift


def ranks(alarm, stream):
    parts = np.split(stream, range(CHUNK, len(stream), CHUNK))
    return np.concatenate([alarm._p_values(part) for part in parts])


def test_ranks_are_counted_among_all_that_came_before(generator):
    known, stream = (generator.integers(9, size=n).astype(float) for n in (40, 600))
    places = 1 - np.random.default_rng(7).random(600)
    expected = []
    for t, score in enumerate(stream):
        past = np.r_[known, stream[:t]]
        above, equal = (past > score).sum(), (past == score).sum() + 1
        expected.append((above + places[t] * equal) / (len(past) + 1))
    np.testing.assert_allclose(ranks(DriftAlarm(known, seed=7), stream), expected, rtol=1e-15)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_independent_and_uniform_unlike_p_values_of_a_fixed_set(ties, generator):
    """The mean of 50 p-values varies as that of 50 independent ones: 1 / (12 * 50).

    Each bound is exceeded by chance less than once in a million runs; of 1225 correlations, too.
    """
    own, fixed = [], []
    for seed in range(800):
        draw = generator.normal(size=70)
        draw = draw.round() if ties else draw
        own.append(ranks(DriftAlarm(draw[:20], seed=seed), draw[20:]))
        fixed.append(Calibration.by_hand(0.0, draw[:20]).p_value(draw[20:]).mean())
    assert stats.kstest(np.ravel(own), "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(np.transpose(own))[np.triu_indices(50, 1)]).max() < 6.2 / math.sqrt(800)
    assert np.var(np.mean(own, 1)) * 12 * 50 == pytest.approx(1, abs=5 * math.sqrt(2 / 800))
    assert np.var(fixed) * 12 * 50 > 2


def test_bets_are_densities():
    for i in range(5):
        whole, _ = quad(lambda p, i=i: _bets(np.array([p]))[0, i], 0, 1, limit=200)
        assert whole == pytest.approx(1, abs=1e-5)
    assert np.isfinite(_bets(np.array([0.0, 1.0]))).all()


def test_exchangeable_streams_rarely_alarm_within_1000_scores(generator):
    """Many and few calibration scores, with and without ties."""
    rate, alarms = 0.1, []
    for seed in range(240):
        n = (20, 300)[seed % 2]
        draw = generator.gamma(2, size=n + 1000)
        draw = draw.round(1) if seed % 4 > 1 else draw
        alarms.append(DriftAlarm(draw[:n], rate, seed).update(draw[n:]).alarm)
    assert 0.01 < np.mean(alarms) <= rate + error(alarms)


SHIFTS = {  # of standard normal scores: (stream, median delay at most)
    "far out": (lambda g, n: g.normal(3, size=n), 10),
    "higher": (lambda g, n: g.normal(1, size=n), 50),
    "lower": (lambda g, n: g.normal(-1, size=n), 50),
    "a little higher": (lambda g, n: g.normal(0.5, size=n), 250),
    "one in five far out": (lambda g, n: g.normal(size=n) + 4 * (g.random(n) < 0.2), 100),
}


@pytest.mark.parametrize("quiet", [0, 2000])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shifted_stream_alarms_soon(shift, quiet, generator):
    draw, limit = SHIFTS[shift]
    delays = []
    for seed in range(9):
        alarm = DriftAlarm(generator.normal(size=1000), rate=0.01, seed=seed)
        alarm.update(generator.normal(size=quiet))
        if alarm.alarm:
            continue  # one in a hundred may
        for part in np.split(draw(generator, 600), 60):
            if alarm.update(part).alarm:
                break
        delays.append(alarm.seen - quiet if alarm.alarm else math.inf)
    assert len(delays) > 6
    assert np.median(delays) <= limit


def test_one_call_or_many_are_the_same(generator):
    known = generator.normal(size=50)
    stream = generator.normal(0.3, size=2 * CHUNK + 9).round(1).astype(np.float32)
    whole, single, torched = (DriftAlarm(known, seed=3) for _ in range(3))
    whole.update(stream)
    for score in stream:
        single.update(score)
    torched.update(torch.from_numpy(stream)).update([])
    assert whole.seen == single.seen == torched.seen == len(stream)
    assert whole.log_martingale == pytest.approx(single.log_martingale, rel=1e-12)
    assert whole.log_martingale == torched.log_martingale
    assert whole.alarm == single.alarm
    assert DriftAlarm(known, seed=4).update(stream).log_martingale != whole.log_martingale
    np.testing.assert_array_equal(whole._reference, np.sort(np.r_[known, stream.astype(float)]))


def test_an_alarm_stays_and_nothing_overflows(generator):
    alarm = DriftAlarm(generator.normal(size=20_000)).update(np.arange(4000.0) + 10)
    assert alarm.alarm
    assert math.isfinite(alarm.log_martingale)
    assert alarm.martingale == math.inf  # beyond float64
    few = DriftAlarm(np.arange(100.0), rate=0.5).update([200.0, 300.0])
    assert few.alarm
    before = few.log_martingale
    few.update(generator.random(60) * 100)
    assert few.log_martingale < math.log(2) < before
    assert few.alarm
    assert few.martingale == math.exp(few.log_martingale)
    assert DriftAlarm([1.0]).martingale == 1
