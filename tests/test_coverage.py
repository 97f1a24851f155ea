"""The simulation of the bootstrap's coverage: its truth is exact, and a wrong interval is seen."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from experiments import coverage
from experiments.coverage import Setup
from thinkback_utils import metrics
from thinkback_utils.files import read_json

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_the_truth_is_that_of_many_scores(distance):
    random = np.random.default_rng(0)
    inside, outside = random.normal(size=400_000), random.normal(distance, size=400_000)
    expected = metrics.ood_metrics(inside, outside)
    assert coverage.truth(distance) == pytest.approx(expected, abs=0.004)


def test_intervals_hold_the_truth_and_narrow_ones_do_not(monkeypatch):
    setup = Setup(n_id=200, n_ood=100, resamples=100, trials=60)
    # So few images give intervals that hold the truth in about 9 of 10 sets, not in 19 of 20
    assert coverage.coverage(setup)["coverage"].min() > 0.65

    def narrow(*arguments, **named):
        drawn = metrics.resampled(*arguments, **named)
        return drawn.mean(0) + 0.2 * (drawn - drawn.mean(0))

    monkeypatch.setattr(coverage, "resampled", narrow)
    assert coverage.coverage(setup)["coverage"].max() < 0.6


def test_the_committed_shares_belong_to_their_setup():
    kept = read_json(RESULTS / "coverage.json")
    trials = kept["provenance"]["setup"]["trials"]
    assert trials >= 1000
    for row in kept["records"]:
        assert row["truth"] == pytest.approx(coverage.truth(2.0)[row["metric"]])
        count = round(row["coverage"] * trials)
        share = binomtest(count, trials).proportion_ci(method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((share.low, share.high))
