"""Fit, calibrate and score from the command line: what they write, and what is said on error."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from thinkback_utils import calibrate, fit, score, shards
from thinkback_utils.calibration import Calibration
from thinkback_utils.commands import run_main
from thinkback_utils.detector import OODDetector
from thinkback_utils.methods import METHODS
from thinkback_utils.models import WideResNet

pytestmark = pytest.mark.filterwarnings(
    "ignore:thinkback. (the model is hardly|classes|the promise)"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A network, 60 images in an array, and a folder of which one image is broken."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    WideResNet(10, 1, 3).eval().save(folder / "w.safetensors")
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "a.npz", images=images)
    (folder / "files").mkdir()
    for i in range(20):
        Image.fromarray(images[i]).save(folder / "files" / f"{i:02d}.png")
    (folder / "files" / "05.png").write_bytes(b"cut")
    return folder


@pytest.fixture(scope="module")
def images(job):
    return torch.from_numpy(np.load(job / "a.npz")["images"]).permute(0, 3, 1, 2)


@pytest.fixture
def command(job, tmp_path):
    """A function that makes the arguments of a program from words; {} is the folder of the test."""

    def arguments(words, source=job / "a.npz"):
        common = [str(source), "--model", str(job / "w.safetensors"), "--device", "cpu"]
        return common + [word.format(tmp_path) for word in f"--batch-size 16 {words}".split()]

    return arguments


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_fitted_calibrated_and_scored(
    method, job, images, command, tmp_path, capsys
):
    fit.main(command(f"--method {method} --out {{}}/d"))
    calibrate.main(command("--detector {0}/d --alpha 0.1 --out {0}/c"))
    score.main(command("--detector {0}/c --block 25 --out {0}/s"))
    kept = shards.read_blocks(tmp_path / "s")
    assert list(kept) == ["score", "predicted", "p_value", "rejected"]
    said = OODDetector.load(tmp_path / "c", WideResNet.load(job / "w.safetensors"))
    torch.testing.assert_close(kept["score"], said.score(images), rtol=1e-4, atol=0)
    assert torch.equal(kept["rejected"], kept["score"] >= said.threshold)
    assert said.threshold == Calibration.of(said.calibration.scores, 0.1).threshold
    assert f"{int(kept['rejected'].sum())} of them called OOD" in capsys.readouterr().out


def test_normalisation_of_the_fit_is_that_of_all_that_follows(job, images, command, tmp_path):
    fit.main(command("--mean 0.5 0.5 0.5 --std 0.2 0.2 0.2 --out {}/d"))
    score.main(command("--detector {0}/d --out {0}/s"))
    model = WideResNet.load(job / "w.safetensors")
    said = OODDetector(model, mean=[0.5] * 3, std=[0.2] * 3).fit(images).score(images)
    found = shards.read_blocks(tmp_path / "s")["score"]
    torch.testing.assert_close(found, said, rtol=1e-4, atol=0)


def test_broken_images_are_counted_and_named(job, command, tmp_path, capsys):
    files = job / "files"
    fit.main(command("--skip-broken --out {}/d", files))
    calibrate.main(command("--skip-broken --detector {0}/d --alpha 0.2 --out {0}/c", files))
    score.main(command("--skip-broken --detector {0}/c --block 1 --out {0}/s", files))
    told = capsys.readouterr().out
    assert told.count("left out 1 that cannot be read: 05.png in") == 3
    assert "alpha 0.2 from 19 images" in told
    kept = shards.read_blocks(tmp_path / "s")
    assert kept["score"].isnan().nonzero().flatten().tolist() == [5]
    assert (kept["predicted"][5], kept["rejected"][5]) == (-1, False)
    with refused(r"broken image, 05\.png.*--skip-broken"):
        fit.main(command("--out {}/d", files))


def test_a_replaced_source_is_not_mixed_with_the_old(images, command, tmp_path):
    source = tmp_path / "a.npz"
    np.savez(source, images=images.permute(0, 2, 3, 1))
    fit.main(command("--method energy --out {}/d", source))
    scoring = command("--detector {0}/d --block 20 --out {0}/s", source)
    score.main(scoring)
    (tmp_path / "s" / "block-000002.npz").unlink()
    np.savez(source, images=255 - images.permute(0, 2, 3, 1))
    with refused(r"the source .*a\.npz changed"):
        score.main(scoring)


@pytest.mark.parametrize(
    ("program", "change", "line"),
    [
        (
            fit,
            "--model mymod:nosuch",
            "model 'mymod:nosuch' cannot be made, .*no attribute 'nosuch",
        ),
        (fit, "--model nomod:x", "model 'nomod:x' cannot be made, ModuleNotFoundError"),
        (fit, "--model mymod:net", r"the model fails on a batch of shape \(2, 3, 8, 8\)"),
        (fit, "--model absent.safetensors", "no weights at absent.safetensors"),
        (fit, "--batch-size 0", "a block must have at least 1 sample, got 0"),
        (fit, "--side -1", "side must be at least 1 pixel, got -1"),
        (fit, "--method magic", "argument --method: invalid choice"),
        (fit, "--eps nan --method thinkback", "eps must be finite"),
        (fit, "--mean 0.5", "mean and std go together"),
        (fit, "--out /proc/none/d", ".*/proc/none"),
        (fit, "absent.npz", "no source absent.npz"),
        (calibrate, "--alpha 5", "alpha must lie between 0 and 1, got 5"),
        (calibrate, "--alpha 1e-3", "alpha=0.001 takes at least 999 calibration scores, got 60"),
        (score, "--block 0", "a block must have at least 1 sample, got 0"),
        (score, "--block -1", "a block must have at least 1 sample, got -1"),
        (score, "--detector absent", "no detector at absent"),
    ],
)
def test_what_goes_wrong_is_one_line(program, change, line, command, tmp_path, monkeypatch, capsys):
    module = "from torch import nn\nnet = nn.Linear(3, 2)\n"
    (tmp_path / "mymod.py").write_text(module, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if program is not fit:
        fit.main(command("--method energy --out d"))
    words = command("--out out" if program is fit else "--detector d --out out") + change.split()
    if not change.startswith("--"):
        words = words[1:]  # another source
    capsys.readouterr()
    try:
        status = run_main(lambda: program.main(words))
    except SystemExit as error:  # of the parser
        status = error.code
    told = capsys.readouterr().err.replace("\r", "\n").splitlines()
    told = [text for text in told if text and "it/s" not in text and "?it" not in text]  # progress
    assert status == 1
    assert len(told) == 1, told
    assert re.match(f"thinkback: {line}", told[0]), told


def test_a_program_leaves_with_that_status(command):
    words = command("--detector absent --out s")
    run = [sys.executable, "-m", "thinkback_utils.score", *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("thinkback: no detector at absent")
