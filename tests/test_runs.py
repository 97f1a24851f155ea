"""The table of trained networks, of one seed and of several."""

import json

import pytest

from bookmaking import runs


def keep(results, network, seed, depth=40, recipe="cpu", accuracy=0.93, **record):
    folder = results / network / f"seed{seed}"
    folder.mkdir(parents=True)
    history = {"loss": [2.0, 1.0], "accuracy": [0.3, 0.7], "seconds": [1800, 1800]}
    record |= {"config": {"depth": depth, "width": 2, "seed": seed}, "history": history}
    record |= {"device": "CPU", "recipe": recipe, "accuracy": {"cifar10-test": accuracy}}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")


def test_all_seeds_of_all_networks(tmp_path):
    keep(tmp_path, "wrn16-2-cifar10", 0, depth=16, recipe="cpu-wrn16")
    keep(tmp_path, "wrn40-2-cifar10", 1, accuracy=0.94)
    keep(tmp_path, "wrn40-2-cifar10", 0)
    found = runs.trained(tmp_path)
    assert list(found.network) == ["WRN-40-2", "WRN-40-2", "WRN-16-2"]
    assert list(found.seed) == [0, 1, 0]
    assert list(found.accuracy) == [0.93, 0.94, 0.93]
    assert found.hours[0] == 1
    assert found.fitted[0] == 0.7


def test_nothing_trained_is_said(tmp_path):
    (tmp_path / "other" / "seed0").mkdir(parents=True)
    (tmp_path / "other" / "seed0" / "training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no finished training in"):
        runs.trained(tmp_path)
