"""Accuracy and AUROC of every kept epoch of a run."""

import shutil

import pytest
import tiny
import torch

from experiments import epochs
from experiments.training import RECIPES, fit, kept_network
from thinkback_utils import data
from thinkback_utils.files import read_json
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 24, "cifar10-test": 16, "svhn": 10, "cifar100": 6}
SMALL = ["--n-fit", "12", "--n-id", "8", "--n-ood", "4", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    run = tiny.make_run(tmp_path / "results", SIZES)
    train(run, 2)
    return run


def train(here, epochs):
    """As a training of so many epochs leaves them, of three."""
    torch.manual_seed(0)
    model, config = WideResNet(depth=10, width=1), RECIPES["smoke"].override(epochs=3)
    path = here.folder / "checkpoint.safetensors"
    rest = {"device": "cpu", "progress": False, "stop_after": epochs, "keep_epochs": True}
    fit(model, data.load("cifar10", "train"), config, path, **rest)
    return model


def run(here):
    where = ["--results", str(here.results), "--network", here.network, "--seed", "0"]
    epochs.main([*where, *SMALL, "--sets", "svhn", "cifar100"])
    return read_json(here.folder / "epochs.json")


def test_every_kept_epoch_is_measured_once(here, monkeypatch, capsys):
    kept = run(here)
    assert [row["epoch"] for row in kept["records"]] == [1, 2]
    for row in kept["records"]:
        assert row["accuracy"] * 8 == pytest.approx(round(row["accuracy"] * 8))
        readings = {f"reading_{r}" for r in "CDE"}
        assert set(row["auroc"]) == {*epochs.SCORES, *readings}
        assert all(0 <= value <= 1 for value in row["auroc"].values())
    assert kept["records"][0]["auroc"] != kept["records"][1]["auroc"]
    assert kept["sizes"] == {"cifar10-train": 12, "cifar10-test": 8, "svhn": 4, "cifar100": 4}
    assert "epoch 2: accuracy" in capsys.readouterr().out
    done, original = [], epochs.measure
    monkeypatch.setattr(epochs, "measure", lambda *a: (done.append(1), original(*a))[1])
    model = train(here, 3)
    assert [row["epoch"] for row in run(here)["records"]] == [1, 2, 3]
    assert len(done) == 1
    last = kept_network(here.folder / "checkpoint-epoch03.safetensors")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(last(x), model.eval()(x))


def test_a_file_that_is_no_checkpoint_is_named(here):
    shutil.copy(here.weights, here.folder / "checkpoint-epoch02.safetensors")
    with pytest.raises(ValueError, match=r"thinkback: .*epoch02.* holds no WideResNet in training"):
        run(here)


def test_a_run_without_kept_epochs_says_how_to_keep_them(here):
    for path in here.folder.glob("checkpoint-epoch*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"thinkback: no checkpoint-.* --keep-epochs"):
        run(here)
