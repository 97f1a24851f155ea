"""A benchmark gives each network the same sets and rules, and keeps one network's rows apart."""

import numpy as np
import pytest
import tiny

from experiments import evaluation
from experiments.benchmark import Benchmark, keep
from experiments.run import Run
from thinkback_utils.files import read_json

SIZES = {"cifar10-train": 20, "cifar10-test": 10, "svhn": 8}
RULES = {"draws": 1, "resamples": 20}


def scored(seed, sets=("cifar10-test", "svhn", "isun")):
    noise = np.random.default_rng(seed)
    return {
        name: {m: noise.normal(i, 1, 50).astype(np.float32) for m in ("msp", "energy")}
        for i, name in enumerate(sets)
    }


def test_a_network_runs_once_over_the_sets_that_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    model = tiny.make_run(tmp_path / "results", SIZES).model("cpu")
    suite = Benchmark(["svhn", "svhn", "cifar10-test"], ["energy", "thinkback"], **RULES)
    found = suite.features(model)
    assert {name: len(item) for name, item in found.items()} == SIZES
    (tmp_path / "cifar10-train.npz").unlink()
    again = suite.features(model, {"cifar10-train": found["cifar10-train"]})
    assert again["cifar10-train"] is found["cifar10-train"]
    kept = suite.scores(again)
    both = {"energy", "thinkback"}
    assert {name: set(row) for name, row in kept.items()} == {"cifar10-test": both, "svhn": both}
    assert Benchmark(methods=["energy"]).scores(found).keys() == kept.keys()


def test_records_are_rows_and_means_with_intervals():
    rows = evaluation.table(scored(0), draws=1)
    rows += evaluation.means(rows)
    expected = evaluation.with_intervals(rows, scored(0), resamples=20)
    assert Benchmark(**RULES).records(scored(0)) == expected
    assert {row["set"] for row in expected} == {"svhn", "isun", "mean"}


def test_several_networks_are_compared_on_the_sets_and_scores_that_are_asked_for(tmp_path):
    runs = [Run.at(tmp_path, "net", seed) for seed in range(3)]
    for run in runs[:2]:
        run.save_scores(scored(run.seed))
    runs[2].save_scores(scored(2, ("cifar10-test", "svhn")))  # lacks a set
    suite = Benchmark(methods=["energy"], **RULES)
    records = suite.over(runs, like=scored(0))
    assert {(row["seed"], row["method"]) for row in records} == {(0, "energy"), (1, "energy")}
    alone = [row for row in records if row["seed"] == 1]
    assert alone == [runs[1].label | row for row in suite.records(only_energy(scored(1)))]


def only_energy(kept):
    return {name: {"energy": row["energy"]} for name, row in kept.items()}


def test_rows_of_a_run_replace_those_it_had(tmp_path):
    path, runs = tmp_path / "table.json", [Run.at(tmp_path, "net", seed) for seed in (0, 1)]
    for run in runs:
        keep(path, run, [{"set": "a"}, {"set": "b"}])
    keep(path, runs[0], [{"set": "c"}])
    assert [(row["seed"], row["set"]) for row in read_json(path)] == [(1, "a"), (1, "b"), (0, "c")]


def test_scores_that_are_not_kept_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"thinkback: no scores at .*scores\.npz"):
        Benchmark().over([Run.at(tmp_path)], like={})
