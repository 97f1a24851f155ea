"""The readings of a tiny network, from its run to the two files that the chapter reads."""

from itertools import product

import numpy as np
import pytest
import tiny

from experiments import ablations
from thinkback_utils import data, scores
from thinkback_utils.files import write_json
from thinkback_utils.gradients import gradients
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 24, "cifar10-test": 16, "svhn": 10}
NAMES = (*SIZES, "letters")
SMALL = ["--n-fit", "12", "--n-id", "8", "--n-ood", "4", "--n-fit-all", "6", "--n-all", "3"]
SMALL += ["--batch-size", "5", "--batch-size-all", "2", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The run of a network, and the images that it names."""
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    return tiny.make_run(tmp_path / "results", NAMES, seed=3)


def run(here, *more):
    which = ["--results", str(here.results), "--network", here.network, "--seed", str(here.seed)]
    ablations.main([*which, *SMALL, *more])
    return ablations.load(here.folder)


def test_one_command_scores_every_reading(here, capsys, monkeypatch):
    called, original = [], scores.thinkback
    monkeypatch.setattr(scores, "thinkback", lambda *a: (called.append(1), original(*a))[1])
    arrays, record = run(here)
    assert len(called) == 2  # the closed form's cost: a round that warms up, and one that counts
    forms = ("eq5", "eq6", "eq6damped")
    keys = product(NAMES[1:], ("C", "D", "E", "all"), forms)
    assert set(arrays) == {f"{name}.{reading}_{form}" for name, reading, form in keys}
    assert {(a.dtype.name, a.ndim) for a in arrays.values()} == {("float32", 1)}
    assert [len(arrays[f"{name}.E_eq6"]) for name in NAMES[1:]] == [8, 4, 4]
    assert [len(arrays[f"{name}.all_eq6"]) for name in NAMES[1:]] == [3, 3, 3]
    layers = {r: facts["layer"] for r, facts in record["readings"].items()}
    assert layers == {"C": "fc", "D": "bn", "E": "stages.2.shortcut", "all": None}
    assert [facts["numbers"] for facts in record["readings"].values()] == [64, 128, 2048, 77_850]
    assert [facts["n_fit"] for facts in record["readings"].values()] == [12, 12, 12, 6]
    assert set(record["cost"]["forward_passes"]) == {"A", "C", "D", "E", "all"}
    assert record["config"]["n_fit"] == 12
    for key in ("command", "commit", "started", "device", "versions", "weights_sha256"):
        assert record[key]
    assert "cost in forward passes" in capsys.readouterr().out


def test_scores_are_those_of_the_gradients(here):
    arrays, _ = run(here)
    net = here.model("cpu").double()
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


def test_a_killed_run_goes_on_and_other_weights_start_again(here, monkeypatch):
    whole, record = run(here)
    del record["readings"]["all"]
    del record["readings"]["D"]
    del record["cost"]  # as a kill would leave it, or nearly
    write_json(here.folder / "ablations.json", record)
    done, original = [], ablations.score_readings

    def noted(model, images, readings, config):
        done.append(list(readings))
        return original(model, images, readings, config)

    monkeypatch.setattr(ablations, "score_readings", noted)
    again, record = run(here)
    assert done == [["D"], ["all"]]
    assert set(record["readings"]) == {"C", "D", "E", "all"}
    assert record["cost"]
    for name, values in whole.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-6)
    run(here)
    assert len(done) == 2  # nothing was left to do
    WideResNet(depth=10, width=1).save(here.weights)
    run(here)
    assert done[2:] == [["C", "D", "E"], ["all"]]
    run(here, "--temperature", "1")
    assert done[4:] == [["C", "D", "E"], ["all"]]


def test_images_that_are_not_the_bundle_s_are_refused(here):
    tiny.make_images(here.results.parent, {"svhn": 12})
    with pytest.raises(ValueError, match=r"thinkback: 'svhn' in the data root .* is not the set"):
        run(here)


def test_weights_that_are_absent_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*weights.safetensors"):
        ablations.main(["--results", str(tmp_path)])


def test_parameters_are_checked():
    with pytest.raises(
        ValueError, match=r"thinkback: AblationConfig.rounds must be positive, got 0"
    ):
        ablations.AblationConfig(rounds=0)
