"""Accuracy and AUROC of every kept epoch of a run."""

import shutil

import pytest
import tiny
import torch

from experiments import epochs
from thinkback_utils.files import read_json
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 24, "cifar10-test": 16, "svhn": 10, "cifar100": 6}
SMALL = ["--n-fit", "12", "--n-id", "8", "--n-ood", "4", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    run = tiny.make_run(tmp_path / "results", SIZES)
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        WideResNet(depth=10, width=1).save(run.folder / f"checkpoint-epoch{epoch:02d}.safetensors")
    return run


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
    third = here.folder / "checkpoint-epoch03.safetensors"
    shutil.copy(here.folder / "checkpoint-epoch01.safetensors", third)
    torch.manual_seed(3)
    WideResNet(depth=10, width=1).save(third)
    assert [row["epoch"] for row in run(here)["records"]] == [1, 2, 3]
    assert len(done) == 1


def test_a_run_without_kept_epochs_says_how_to_keep_them(here):
    for path in here.folder.glob("checkpoint-epoch*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"thinkback: no checkpoint-.* --keep-epochs"):
        run(here)
