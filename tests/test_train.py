"""Training: the schedule, the augmentation, and a run that is killed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thinkback_utils import train
from thinkback_utils.data import ImageSet, load
from thinkback_utils.models import WideResNet
from thinkback_utils.train import RECIPES, TrainConfig, fit

TINY = RECIPES["smoke"].override(
    epochs=3, dropout=0.1, resolutions=((0, 16), (1, 0)), flip="alternating", batch_size=64
)


def images(n=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    pixels = torch.randint(60, (n, 3, 32, 32), generator=generator) + 60 * labels[:, None, None, None]
    return ImageSet(pixels.clamp(0, 255).byte(), labels)


def network(seed=0):
    torch.manual_seed(seed)
    return WideResNet(10, 1, num_classes=4, dropout=0.1)


def test_cosine_schedule_falls_from_peak_to_zero():
    config = TrainConfig()
    rates = [config.lr(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[500] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_one_cycle_climbs_then_falls_linearly():
    config = RECIPES["cpu"].override(epochs=15, resolutions=((0, 0),), restarts=())
    rates = [config.lr(step, 1000) for step in range(1000)]
    assert np.argmax(rates) == 199
    assert max(rates) == pytest.approx(config.peak_lr)
    np.testing.assert_allclose(np.diff(rates[200:]), -config.peak_lr / 800)


def test_augmentation_only_shifts_and_mirrors():
    """Every batch image is a window of the zero-padded original or of its mirror image; each image comes once."""
    data = images(50)
    config = TrainConfig(batch_size=20)
    padded = torch.nn.functional.pad(data.images, [4] * 4)
    windows = [
        {
            (source[:, i : i + 32, j : j + 32].flip(2) if mirror else source[:, i : i + 32, j : j + 32])
            .numpy()
            .tobytes()
            for i in range(9)
            for j in range(9)
            for mirror in (0, 1)
        }
        for source in padded
    ]
    seen = []
    for x, y in train.augmented_batches(data.images, data.labels, config, epoch=0):
        for image, label in zip((x * 255).round().byte(), y, strict=True):
            matches = [i for i, known in enumerate(windows) if image.numpy().tobytes() in known]
            assert len(matches) == 1
            assert data.labels[matches[0]] == label
            seen.append(matches[0])
    assert sorted(seen) == list(range(50))


def test_training_learns_and_repeats_exactly():
    first, second = network(), network()
    history = fit(first, images(), TINY, progress=False, device="cpu")
    fit(second, images(), TINY, progress=False, device="cpu")
    assert history.loss[-1] < history.loss[0]
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_other_seed_gives_other_weights():
    first, second = network(), network()
    fit(first, images(), TINY, progress=False, device="cpu")
    fit(second, images(), dataclasses.replace(TINY, seed=1), progress=False, device="cpu")
    assert not torch.equal(first.fc.weight, second.fc.weight)


def test_run_killed_by_sigkill_ends_in_the_same_weights(tmp_path):
    """Kill the process as soon as its first checkpoint is there, start it again, compare with a run in peace."""
    command = [sys.executable, "-m", "thinkback_utils.train", "--dataset", "digits", "--recipe", "smoke"]
    command += ["--epochs", "3", "--batch-size", "256", "--dropout", "0.2", "--device", "cpu", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed, peace = tmp_path / "killed", tmp_path / "peace"
    process = subprocess.Popen([*command, str(killed)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "weights.safetensors").exists()
    for folder in (killed, peace):
        done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, check=True)
        assert "test accuracy" in done.stdout
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (killed, peace))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    fit(network(), images(), TINY, tmp_path / "c.safetensors", progress=False, device="cpu")
    other = dataclasses.replace(TINY, peak_lr=0.3)
    with pytest.raises(ValueError, match=r"belongs to another recipe \(peak_lr 0.1 != 0.3\)"):
        fit(network(), images(), other, tmp_path / "c.safetensors", progress=False, device="cpu")


def test_divergence_stops_with_the_place():
    with pytest.raises(FloatingPointError, match=r"training loss is (nan|inf) in epoch"):
        fit(network(), images(), dataclasses.replace(TINY, peak_lr=1e12), progress=False, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"peak_lr": -0.1}, "peak_lr must be positive"),
        ({"warmup": 1.0}, "warmup is a fraction"),
        ({"resolutions": ((1, 16),)}, "must start at epoch 0"),
        ({"epochs": 3, "resolutions": ((0, 16), (3, 0))}, "end before epoch 3"),
        ({"epochs": 3, "restarts": ((3, 0.1),)}, "end before epoch 3"),
        ({"restarts": ((20, 0.1), (10, 0.1))}, "must rise"),
        ({"restarts": ((20, 0.0),)}, "positive peaks"),
        ({"anneal": "lineer"}, "anneal is one of"),
        ({"amp": "false"}, "amp is one of"),
    ],
)
def test_impossible_recipes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


def test_a_restart_begins_another_cycle_and_leaves_the_first_as_it_was() -> None:
    config = RECIPES["cpu"]
    alone = config.override(epochs=15, resolutions=((0, 0),), restarts=())
    steps = 391
    first = [config.lr(step, 23 * steps) for step in range(15 * steps)]
    assert first == [alone.lr(step, 15 * steps) for step in range(15 * steps)]
    second = [config.lr(step, 23 * steps) for step in range(15 * steps, 23 * steps)]
    assert max(second) == pytest.approx(0.1, rel=1e-2)
    assert second[0] < 1e-3
    assert second[-1] < 1e-4


def test_other_epochs_stretch_the_stages_of_small_images():
    double = RECIPES["cpu"].override(epochs=46)
    assert double.resolutions == ((0, 16), (12, 24), (22, 0))
    assert double.restarts == ((30, 0.1),)
    short = RECIPES["cpu"].override(epochs=1)
    assert short.side(0, 32) == 32  # the last stage, at full size, is never lost
    assert train.recipe_name(RECIPES["cpu"].override(seed=3)) == "cpu"
    assert train.recipe_name(short) == "custom"


def test_folder_of_another_set_or_without_a_record_is_refused(tmp_path):
    tiny = RECIPES["smoke"].override(epochs=1)
    train.train_network(tiny, "digits", tmp_path, "cpu", progress=False)
    with pytest.raises(ValueError, match="holds a network of 'digits', not of 'cifar10'"):
        train.train_network(tiny, "cifar10", tmp_path, "cpu", progress=False)
    (tmp_path / "training.json").unlink()
    with pytest.raises(ValueError, match=r"has no training\.json beside it"):
        train.train_network(tiny, "digits", tmp_path, "cpu", progress=False)


def test_unlabelled_set_is_refused():
    with pytest.raises(ValueError, match="'moon' has none"):
        fit(network(), ImageSet(images().images, name="moon"), TINY, progress=False)


def test_smoke_recipe_learns_digits():
    """The set that ships with scikit-learn, through the whole of training, on real images."""
    digits = load("digits", "train")
    torch.manual_seed(0)
    net = WideResNet(10, 1)
    fit(net, digits, RECIPES["smoke"], progress=False, device="cpu")
    assert train.accuracy(net, load("digits", "test")) > 0.9
