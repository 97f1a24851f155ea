"""The readings of a tiny network, from its results folder to the two files that the chapter reads."""

import hashlib
import json

import numpy as np
import pytest
import torch

from experiments import ablations
from thinkback_utils import data, scores
from thinkback_utils.gradients import gradients
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 24, "cifar10-test": 16, "svhn": 10, "letters": 9}
SMALL = ["--n-fit", "12", "--n-id", "8", "--n-ood", "4", "--n-fit-all", "6", "--n-all", "3"]
SMALL += ["--batch-size", "5", "--batch-size-all", "2", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder with the weights and the provenance of a network, and the images that it
    names.
    """
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    digests, generator = {}, np.random.default_rng(0)
    for name, size in SIZES.items():
        if name not in data.EMBEDDED_SETS:
            pixels = generator.integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
            np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(size) % 10)
        base, _, split = name.partition("-")
        digests[name] = hashlib.sha256(
            data.load(base, split or "test").images.numpy().tobytes()
        ).hexdigest()
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed3"
    torch.manual_seed(0)
    WideResNet(depth=10, width=1).save(folder / "weights.safetensors")
    (folder / "provenance.json").write_text(
        json.dumps({"images_sha256": digests}), encoding="utf-8"
    )
    return tmp_path / "results"


def run(results, *more):
    ablations.main(
        ["--results", str(results), "--network", "wrn10-1-cifar10", "--seed", "3", *SMALL, *more]
    )
    folder = results / "wrn10-1-cifar10" / "seed3"
    with np.load(folder / "ablations.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, json.loads(
            (folder / "ablations.json").read_text(encoding="utf-8")
        )


def test_one_command_scores_every_reading(results, capsys):
    arrays, record = run(results)
    forms = [
        f"{reading}_{form}"
        for reading in ("C", "D", "E", "all")
        for form in ("eq5", "eq6", "eq6damped")
    ]
    assert set(arrays) == {
        f"{name}.{form}" for name in SIZES if name != "cifar10-train" for form in forms
    }
    assert {(a.dtype.name, a.ndim) for a in arrays.values()} == {("float32", 1)}
    assert [len(arrays[f"{name}.E_eq6"]) for name in ("cifar10-test", "svhn", "letters")] == [
        8,
        4,
        4,
    ]
    assert [len(arrays[f"{name}.all_eq6"]) for name in ("cifar10-test", "svhn", "letters")] == [
        3,
        3,
        3,
    ]
    assert {r: facts["layer"] for r, facts in record["readings"].items()} == {
        "C": "fc",
        "D": "bn",
        "E": "stages.2.shortcut",
        "all": None,
    }
    assert [facts["numbers"] for facts in record["readings"].values()] == [64, 128, 2048, 77_850]
    assert [facts["n_fit"] for facts in record["readings"].values()] == [12, 12, 12, 6]
    assert set(record["cost"]["forward_passes"]) == {"A", "C", "D", "E", "all"}
    assert record["config"]["n_fit"] == 12
    loaded, same = ablations.load(results / "wrn10-1-cifar10" / "seed3")
    assert same == record
    assert {key: values.tobytes() for key, values in loaded.items()} == {
        k: v.tobytes() for k, v in arrays.items()
    }
    for key in ("command", "commit", "started", "device", "versions", "weights_sha256"):
        assert record[key]
    assert "cost in forward passes" in capsys.readouterr().out


def test_scores_are_those_of_the_gradients(results):
    arrays, _ = run(results)
    net = WideResNet.load(results / "wrn10-1-cifar10" / "seed3" / "weights.safetensors").double()
    train = data.load("cifar10", "train").images[::2].double() / 255
    test = data.load("cifar10").images[::2].double() / 255
    for reading in ("C", "D", "E"):
        fit, new = (gradients(net, x, [reading])[reading].square() for x in (train, test))
        expected = fit.mean(0)
        oracle = {
            "eq5": new.sum(1),
            "eq6": (new / (1e-16 + expected)).sum(1),
            "eq6damped": (new / (1e-16 + 1e-3 * expected.mean() + expected)).sum(1),
        }
        for form, values in oracle.items():
            np.testing.assert_allclose(arrays[f"cifar10-test.{reading}_{form}"], values, rtol=2e-3)


def test_a_killed_run_goes_on_and_other_weights_start_again(results, monkeypatch):
    whole, _ = run(results)
    folder = results / "wrn10-1-cifar10" / "seed3"
    record = json.loads((folder / "ablations.json").read_text(encoding="utf-8"))
    del (
        record["readings"]["all"],
        record["readings"]["D"],
        record["cost"],
    )  # as a kill would leave it, or nearly
    (folder / "ablations.json").write_text(json.dumps(record), encoding="utf-8")
    done, original = [], ablations.score_readings
    monkeypatch.setattr(
        ablations, "score_readings", lambda *a: (done.append(list(a[2])), original(*a))[1]
    )
    again, record = run(results)
    assert done == [["D"], ["all"]]
    assert set(record["readings"]) == {"C", "D", "E", "all"}
    assert record["cost"]
    for name, values in whole.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-6)
    run(results)
    assert len(done) == 2  # nothing was left to do
    WideResNet(depth=10, width=1).save(folder / "weights.safetensors")
    run(results)
    assert done[2:] == [["C", "D", "E"], ["all"]]
    run(results, "--temperature", "1")
    assert done[4:] == [["C", "D", "E"], ["all"]]


def test_images_that_are_not_the_bundle_s_are_refused(results):
    path = results.parent / "svhn.npz"
    np.savez(path, images=np.zeros((10, 32, 32, 3), np.uint8), labels=np.zeros(10, int))
    with pytest.raises(ValueError, match=r"thinkback: 'svhn' in the data root .* is not the set"):
        run(results)


def test_weights_that_are_absent_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*weights.safetensors"):
        ablations.main(["--results", str(tmp_path)])


def test_scores_of_other_weights_are_not_read(results):
    folder = results / "wrn10-1-cifar10" / "seed3"
    command = (
        r"run `python -m experiments.ablations --results \S+results --network wrn10-1-cifar10"
        r" --seed 3`"
    )
    with pytest.raises(
        FileNotFoundError, match=f"no scores of the readings at .*ablations.npz; {command}"
    ):
        ablations.load(folder)
    run(results)
    WideResNet(depth=10, width=1).save(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=f"are of other weights than those in .*; {command}"):
        ablations.load(folder)


def test_parameters_are_checked():
    with pytest.raises(
        ValueError, match=r"thinkback: AblationConfig.rounds must be positive, got 0"
    ):
        ablations.AblationConfig(rounds=0)


def test_the_cost_of_the_closed_form_uses_the_score(results, monkeypatch):
    called, original = [], scores.thinkback
    monkeypatch.setattr(scores, "thinkback", lambda *a: (called.append(1), original(*a))[1])
    run(results)
    assert len(called) == 2  # a round that warms up, and one that counts
