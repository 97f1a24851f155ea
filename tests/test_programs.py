"""Fit, calibrate and score from the command line: what they write, and one line for what goes
wrong.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

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


def given(job, source="a.npz"):
    return [
        str(job / source),
        "--model",
        str(job / "w.safetensors"),
        "--device",
        "cpu",
        "--batch-size",
        "16",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_fitted_calibrated_and_scored(method, job, tmp_path, capsys):
    fit.main([*given(job), "--method", method, "--out", str(tmp_path / "d")])
    calibrate.main(
        [
            *given(job),
            "--detector",
            str(tmp_path / "d"),
            "--alpha",
            "0.1",
            "--out",
            str(tmp_path / "c"),
        ]
    )
    score.main(
        [
            *given(job),
            "--detector",
            str(tmp_path / "c"),
            "--block",
            "25",
            "--out",
            str(tmp_path / "s"),
        ]
    )
    kept = shards.read_blocks(tmp_path / "s")
    assert list(kept) == ["score", "predicted", "p_value", "rejected"]
    images = torch.from_numpy(np.load(job / "a.npz")["images"]).permute(0, 3, 1, 2)
    said = OODDetector.load(tmp_path / "c", WideResNet.load(job / "w.safetensors"))
    torch.testing.assert_close(kept["score"], said.score(images), rtol=1e-4, atol=0)
    assert torch.equal(kept["rejected"], kept["score"] >= said.threshold)
    assert said.threshold == Calibration.of(said.calibration.scores, 0.1).threshold
    assert f"{int(kept['rejected'].sum())} of them called OOD" in capsys.readouterr().out


def test_normalisation_of_the_fit_is_that_of_all_that_follows(job, tmp_path):
    way = ["--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2"]
    fit.main([*given(job), *way, "--out", str(tmp_path / "d")])
    score.main([*given(job), "--detector", str(tmp_path / "d"), "--out", str(tmp_path / "s")])
    images = torch.from_numpy(np.load(job / "a.npz")["images"]).permute(0, 3, 1, 2)
    said = OODDetector(WideResNet.load(job / "w.safetensors"), mean=[0.5] * 3, std=[0.2] * 3).fit(
        images
    )
    torch.testing.assert_close(
        shards.read_blocks(tmp_path / "s")["score"], said.score(images), rtol=1e-4, atol=0
    )


def test_broken_images_are_counted_and_named(job, tmp_path, capsys):
    skip = [*given(job, "files"), "--skip-broken"]
    fit.main([*skip, "--out", str(tmp_path / "d")])
    calibrate.main(
        [*skip, "--detector", str(tmp_path / "d"), "--alpha", "0.2", "--out", str(tmp_path / "c")]
    )
    score.main(
        [*skip, "--detector", str(tmp_path / "c"), "--block", "1", "--out", str(tmp_path / "s")]
    )
    told = capsys.readouterr().out
    assert told.count("left out 1 that cannot be read: 05.png in") == 3
    assert "alpha 0.2 from 19 images" in told
    kept = shards.read_blocks(tmp_path / "s")
    assert kept["score"].isnan().nonzero().flatten().tolist() == [5]
    assert (kept["predicted"][5], kept["rejected"][5]) == (-1, False)
    with pytest.raises(ValueError, match=r"broken image, 05\.png.*--skip-broken"):
        fit.main([*given(job, "files"), "--out", str(tmp_path / "d")])


def test_a_replaced_source_is_not_mixed_with_the_old(job, tmp_path):
    source = tmp_path / "a.npz"
    source.write_bytes((job / "a.npz").read_bytes())
    again = [str(source), *given(job)[1:]]
    fit.main([*again, "--method", "energy", "--out", str(tmp_path / "d")])
    scoring = [
        *again,
        "--detector",
        str(tmp_path / "d"),
        "--block",
        "20",
        "--out",
        str(tmp_path / "s"),
    ]
    score.main(scoring)
    (tmp_path / "s" / "block-000002.npz").unlink()
    np.savez(source, images=255 - np.load(source)["images"])
    with pytest.raises(ValueError, match=r"the source .*a\.npz changed"):
        score.main(scoring)


def torchrun(count, arguments):
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--standalone",
        "-m",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    return subprocess.run(
        [*run, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_a_process_without_data_adds_nothing(job, tmp_path):
    np.savez(tmp_path / "few.npz", images=np.load(job / "a.npz")["images"][:5])
    few = [str(tmp_path / "few.npz"), *given(job)[1:], "--out"]
    done = torchrun(2, ["thinkback_utils.fit", *few, str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-2000:]
    fit.main([*few, str(tmp_path / "one")])
    model, images = WideResNet.load(job / "w.safetensors"), torch.randint(256, (9, 3, 8, 8)).byte()
    scores = [OODDetector.load(tmp_path / name, model).score(images) for name in ("one", "two")]
    torch.testing.assert_close(*scores, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("program", "change", "line"),
    [
        (
            "fit",
            {"--model": "mymod:nosuch"},
            "thinkback: model 'mymod:nosuch' cannot be made, .*no attribute 'nosuch'",
        ),
        (
            "fit",
            {"--model": "nomod:x"},
            "thinkback: model 'nomod:x' cannot be made, ModuleNotFoundError",
        ),
        (
            "fit",
            {"--model": "mymod:net"},
            r"thinkback: the model fails on a batch of shape \(2, 3, 8, 8\)",
        ),
        ("fit", {"--model": "absent.safetensors"}, "thinkback: no weights at absent.safetensors"),
        ("fit", {"--batch-size": "0"}, "thinkback: a block must have at least 1 sample, got 0"),
        ("fit", {"--side": "-1"}, "thinkback: side must be at least 1 pixel, got -1"),
        ("fit", {"--method": "magic"}, "thinkback: argument --method: invalid choice"),
        ("fit", {"--eps": "nan", "--method": "thinkback"}, "thinkback: eps must be finite"),
        ("fit", {"--mean": "0.5"}, "thinkback: mean and std go together"),
        ("fit", {"--out": "/proc/none/d"}, "thinkback: .*/proc/none"),
        ("fit", {"": "absent.npz"}, "thinkback: no source absent.npz"),
        ("calibrate", {"--alpha": "5"}, "thinkback: alpha must lie between 0 and 1, got 5"),
        (
            "calibrate",
            {"--alpha": "1e-3"},
            "thinkback: alpha=0.001 takes at least 999 calibration scores, got 60",
        ),
        ("score", {"--block": "0"}, "thinkback: a block must have at least 1 sample, got 0"),
        ("score", {"--block": "-1"}, "thinkback: a block must have at least 1 sample, got -1"),
        ("score", {"--detector": "absent"}, "thinkback: no detector at absent"),
    ],
)
def test_what_goes_wrong_is_one_line(program, change, line, job, tmp_path, monkeypatch, capsys):
    (tmp_path / "mymod.py").write_text(
        "from torch import nn\nnet = nn.Linear(3, 2)\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = {
        "": str(job / "a.npz"),
        "--model": str(job / "w.safetensors"),
        "--device": "cpu",
        "--out": "out",
    }
    if program != "fit":
        fit.main([*given(job), "--method", "energy", "--out", "d"])
        options["--detector"] = "d"
    words = [word for pair in (options | change).items() for word in pair if word]
    capsys.readouterr()
    main = {"fit": fit, "calibrate": calibrate, "score": score}[program].main
    try:
        status = run_main(lambda: main(words))
    except SystemExit as error:  # of the parser
        status = error.code
    told = capsys.readouterr().err.replace("\r", "\n").splitlines()
    told = [
        text for text in told if text and "it/s" not in text and "?it" not in text
    ]  # no progress bars
    assert status == 1
    assert len(told) == 1, told
    assert re.match(line, told[0]), told


def test_a_program_leaves_with_that_status(job):
    command = [
        sys.executable,
        "-m",
        "thinkback_utils.score",
        *given(job),
        "--detector",
        "absent",
        "--out",
        "s",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("thinkback: no detector at absent")
