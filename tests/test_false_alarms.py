"""Rates of false alarms from random halves, beside the package and the theory."""

import numpy as np
import pytest
from scipy import stats

from experiments.false_alarms import Halves, above, allowed
from thinkback_utils.calibration import Calibration, minimum_scores


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, None), (0.1, 0.2), (0.01, None)])
def test_allowed_ranks_are_those_of_the_package(alpha, delta):
    fewest = minimum_scores(alpha, delta)
    assert allowed(fewest - 1, alpha, delta) == 0
    for n in (fewest, fewest + 7, 1000):
        scores = np.random.default_rng(n).normal(size=n)
        alarms = Calibration.of(scores, alpha, delta).rejects(scores).sum()
        assert allowed(n, alpha, delta) == alarms + 1


def test_rates_are_those_of_a_calibration_on_each_half():
    scores = np.random.default_rng(0).integers(0, 50, 301) + 0.0  # with ties
    halves = Halves(301, [0.05, 0.2], splits=3, seed=1)
    assert (halves.n, halves.N) == (150, 151)
    for split, order in enumerate(halves.order):
        assert sorted(order) == list(range(301))
        for k, alpha in enumerate(halves.alphas):
            one = Calibration.of(scores[order[:150]], float(alpha))
            expected = one.rejects(scores[order[150:]]).mean()
            assert halves.rates(scores)[split, k] == pytest.approx(expected)


def test_bands_hold_as_many_splits_as_they_say():
    """Fresh scores for each split, since halves of one pool are theory only for random halves."""
    halves = Halves(400, [0.05, 0.2], splits=4000, seed=2)
    rates = halves.rates(np.random.default_rng(3).normal(size=400))
    low, high = halves.predicted()
    inside = ((rates >= low - 1e-12) & (rates <= high + 1e-12)).mean(0)
    assert (inside > 0.93).all()
    assert (inside < 0.99).all()
    assert rates.mean(0) == pytest.approx(halves.m / (halves.n + 1), abs=0.003)
    inner, outer = halves.luck()
    assert (low < inner).all()
    assert (outer < high).all()
    assert stats.beta(halves.m, halves.n + 1 - halves.m).cdf(outer) == pytest.approx([0.975] * 2)


def test_too_few_scores_for_a_promise_are_named():
    with pytest.raises(ValueError, match=r"50 calibration scores are too few for alpha below 0.1"):
        Halves(100, [0.001, 0.1], splits=1, seed=0)


def test_share_above_a_limit_leaves_ties_out():
    assert above([1, 2, 2, 3], 2) == 0.25
