"""Training: the schedule, the augmentation, and a run that is killed."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from experiments import training
from experiments.training import RECIPES, TrainConfig, fit
from thinkback_utils.data import ImageSet, load
from thinkback_utils.files import read_json
from thinkback_utils.models import WideResNet

TINY = RECIPES["smoke"].override(
    epochs=3, dropout=0.1, resolutions=((0, 16), (1, 0)), flip="alternating", batch_size=64
)
trained = partial(fit, progress=False, device="cpu")


def images(n=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    noise = torch.randint(60, (n, 3, 32, 32), generator=generator)
    return ImageSet((noise + 60 * labels[:, None, None, None]).byte(), labels)


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
    config = RECIPES["cpu"].override(epochs=15, resolutions=((0, 0),))
    rates = [config.lr(step, 1000) for step in range(1000)]
    assert np.argmax(rates) == 199
    assert max(rates) == pytest.approx(config.peak_lr)
    np.testing.assert_allclose(np.diff(rates[200:]), -config.peak_lr / 800)


def test_augmentation_only_shifts_and_mirrors():
    """Every image comes once, as a window of the zero-padded original or of its mirror image."""
    data = images(50)
    config = TrainConfig(batch_size=20)
    padded = torch.nn.functional.pad(data.images, [4] * 4)
    places = [(i, j) for i in range(9) for j in range(9)]
    windows = [
        {
            part.numpy().tobytes()
            for i, j in places
            for part in (
                source[:, i : i + 32, j : j + 32],
                source[:, i : i + 32, j : j + 32].flip(2),
            )
        }
        for source in padded
    ]
    seen = []
    for x, y in training.augmented_batches(data.images, data.labels, config, epoch=0):
        for image, label in zip((x * 255).round().byte(), y, strict=True):
            matches = [i for i, known in enumerate(windows) if image.numpy().tobytes() in known]
            assert len(matches) == 1
            assert data.labels[matches[0]] == label
            seen.append(matches[0])
    assert sorted(seen) == list(range(50))


def test_training_learns_and_repeats_exactly_unless_the_seed_differs():
    first, second, other = network(), network(), network()
    history = trained(first, images(100), TINY)
    trained(second, images(100), TINY)
    trained(other, images(100), TINY.override(seed=1))
    assert history.loss[-1] < history.loss[0]
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_run_killed_by_sigkill_ends_in_the_same_weights(tmp_path, capsys):
    """A process is killed as soon as its first checkpoint is there; it goes on in this one."""
    words = "--dataset digits --recipe smoke --epochs 2 --batch-size 256 --dropout 0.2 --device cpu"
    killed, peace = tmp_path / "killed", tmp_path / "peace"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.training", *words.split(), "--out", str(killed)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "weights.safetensors").exists()
    for folder in (killed, peace):
        training.main([*words.split(), "--out", str(folder)])
        assert "test accuracy" in capsys.readouterr().out
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (killed, peace))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoint_of_another_recipe_is_refused(checkpoint):
    path, data = checkpoint
    with refused(r"belongs to another recipe \(peak_lr 0.1 != 0.3\)"):
        trained(network(), data, TINY.override(peak_lr=0.3), path)


def test_divergence_stops_with_the_place():
    with refused("training loss is (nan|inf) in epoch", FloatingPointError):
        trained(network(), images(), TINY.override(peak_lr=1e12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"peak_lr": -0.1}, "peak_lr must be positive"),
        ({"warmup": 1.0}, "warmup is a fraction"),
        ({"resolutions": ((1, 16),)}, "must start at epoch 0"),
        ({"epochs": 3, "resolutions": ((0, 16), (3, 0))}, "end before epoch 3"),
        ({"anneal": "lineer"}, "anneal is one of"),
        ({"amp": "false"}, "amp is one of"),
        ({"epochs": 2.0}, r"epochs is a whole number \(int\), got 2.0"),
        ({"epochs": True}, r"epochs is a whole number \(int\), got True"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"peak_lr": math.nan}, "peak_lr must be positive and finite, got nan"),
        ({"peak_lr": math.inf}, "peak_lr must be positive and finite, got inf"),
        ({"peak_lr": "0.1"}, r"peak_lr is a number \(float\), got '0.1'"),
        ({"warmup": math.nan}, "warmup is a fraction .*got nan"),
        ({"dropout": 2}, r"dropout is a probability in \[0, 1\), got 2"),
        ({"dropout": math.nan}, "dropout .*got nan"),
        ({"momentum": 1.0}, r"momentum is a fraction in \[0, 1\), got 1.0"),
        ({"momentum": math.nan}, "momentum .*got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be finite and not negative, got -0.0001"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and not negative, got inf"),
        ({"depth": 12}, r"depth must be 6n \+ 4 .*got 12"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*46\), got -1"),
        ({"seed": 2**60}, r"seed must be in \[0, 2\*\*46\)"),
        ({"compile": 1}, "compile is True or False, got 1"),
        ({"resolutions": ((0, -16),)}, "resolutions is a tuple of pairs .*got"),
        ({"resolutions": ((0, 16.0),)}, "resolutions is a tuple of pairs .*got"),
        ({"resolutions": (0, 16)}, "resolutions is a tuple of pairs .*got"),
    ],
)
def test_impossible_recipes_are_named(change, message):
    with refused(f"^thinkback: TrainConfig.*{message}"):
        TrainConfig(**change)
    with refused(f"^thinkback: TrainConfig.*{message}"):
        RECIPES["reference"].override(**change)


def test_every_field_has_a_range():
    checked = {*training.RANGES, *training.CHOICES, "compile", "resolutions"}
    assert checked == {field.name for field in fields(TrainConfig)}


def test_a_compiled_network_learns_the_same(monkeypatch):
    monkeypatch.setattr(training, "has_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = network(), network()
    trained(plain, images(), TINY)
    trained(compiled, images(), TINY.override(compile=True))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[name]), name


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with refused("^thinkback: TrainConfig.compile is True.*--no-compile"):
        trained(network(), images(), TINY.override(compile=True))


def test_other_epochs_stretch_the_stages_of_small_images():
    double = RECIPES["cpu"].override(epochs=46)
    assert double.resolutions == ((0, 16), (12, 24), (22, 0))
    short = RECIPES["cpu"].override(epochs=1)
    assert short.side(0, 32) == 32  # the last stage, at full size, is never lost
    assert training.recipe_name(RECIPES["cpu"].override(seed=3, compile=True)) == "cpu"
    assert training.recipe_name(short) == "custom"


def test_folder_of_another_set_or_without_a_record_is_refused(tmp_path):
    tiny, few = RECIPES["smoke"].override(epochs=1), replace(images(40), name="few")
    training.train_network(tiny, few, tmp_path, "cpu", progress=False)
    with refused("holds a network of 'few', not of 'cifar10'"):
        training.train_network(tiny, "cifar10", tmp_path, "cpu", progress=False)
    (tmp_path / "training.json").unlink()
    with refused(r"has no training\.json beside it"):
        training.train_network(tiny, few, tmp_path, "cpu", progress=False)


def test_the_record_holds_the_accuracy_on_the_test_split(tmp_path, capsys):
    asked = ["--recipe", "smoke", "--epochs", "1", "--dataset", "digits", "--device", "cpu"]
    training.main([*asked, "--out", str(tmp_path)])
    record, digits = read_json(tmp_path / "training.json"), load("digits", "test")
    model = WideResNet.load(tmp_path / "weights.safetensors")
    with torch.no_grad():
        right = model(digits.images.float() / 255).argmax(1) == digits.labels
    assert record["accuracy"] == {"digits-test": pytest.approx(right.double().mean().item())}
    assert record["recipe"] == "custom"
    assert f"test accuracy {record['accuracy']['digits-test']:.4f} after" in capsys.readouterr().out


def test_unlabelled_set_is_refused():
    with refused("'moon' has none"):
        trained(network(), ImageSet(images().images, name="moon"), TINY)


def moon(pixels=(20, 3, 32, 32), labels=20, kind=torch.uint8, label_kind=torch.int64):
    labels = labels if isinstance(labels, torch.Tensor) else torch.zeros(labels, dtype=label_kind)
    return ImageSet(torch.zeros(pixels, dtype=kind), labels, name="moon")


ONE_FOR_EACH = (
    r"labels of the set 'moon' .* shape \(20,\), one for each image, got torch.int64 \(8,\)"
)
ZEROS = np.zeros((20, 3, 32, 32), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (moon(labels=8), ONE_FOR_EACH),
        (moon(labels=torch.zeros(20, 4)), r"integers of shape \(20,\).*torch.float32 \(20, 4\)"),
        (moon(label_kind=torch.float32), r"must be integers .*got torch.float32 \(20,\)"),
        (moon(labels=torch.full((20,), -100)), "must not be negative, got -100"),
        (
            moon(labels=torch.arange(20)),
            "label 19, and the model has logits for labels 0 to 3 only",
        ),
        (moon((0, 3, 32, 32), 0), r"'moon' has no image to train on, .* is \(0, 3, 32, 32\)"),
        (moon((20, 3, 0, 0)), "has no image to train on"),
        (moon(kind=torch.float32), r"uint8 \(N, C, H, H\), and .* torch.float32 \(20, 3, 32, 32\)"),
        (moon(kind=torch.int64), "has torch.int64"),
        (moon((20, 3, 32, 24)), r"square images.* has torch.uint8 \(20, 3, 32, 24\)"),
        (moon((20, 3, 32)), r"has torch.uint8 \(20, 3, 32\)"),
        (ImageSet(ZEROS, torch.zeros(20)), "images .* must be a torch tensor, got ndarray"),
        (ImageSet(moon().images, [0] * 20), "labels .* must be a torch tensor, got list"),
    ],
)
def test_what_cannot_be_trained_on_is_named(data, message, tmp_path):
    with refused(f"{message}"):
        trained(network(), data, TINY, tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())
    if "the model has" not in message:
        with refused(f"{message}"):
            training.train_network(TINY, data, tmp_path, "cpu", progress=False)
        assert not list(tmp_path.iterdir()), "the folder must stay free for another recipe"


def test_labels_of_any_kind_of_integer_train_alike():
    first, second = network(), network()
    data, config = images(40), TINY.override(epochs=1)
    trained(first, data, config)
    trained(second, replace(data, labels=data.labels.to(torch.uint8)), config)
    assert torch.equal(first.fc.weight, second.fc.weight)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint after one of three epochs, and what it was trained on."""
    path, data = tmp_path_factory.mktemp("checkpoint") / "c.safetensors", images(40)
    trained(network(), data, TINY, path, stop_after=1)
    return path, data


def test_checkpoint_of_other_images_or_labels_is_refused(checkpoint, tmp_path):
    path, data = checkpoint
    pixels, labels = data.images.clone(), data.labels.clone()
    pixels[3, 0, 0, 0] += 1
    labels[3] = (labels[3] + 1) % 4
    fewer = {"images": data.images[:36], "labels": data.labels[:36]}
    for other in ({"images": pixels}, {"labels": labels}, fewer):
        with refused(r"c\.safetensors was trained on other images or labels; .*delete it"):
            trained(network(), replace(data, **other), TINY, path)
    copy = tmp_path / "c.safetensors"
    copy.write_bytes(path.read_bytes())
    again = replace(data, labels=data.labels.to(torch.int32), name="renamed")  # the same, though
    assert len(trained(network(), again, TINY, copy, stop_after=2).loss) == 2


def facts(**change):
    """A function that writes a checkpoint anew with other metadata; None leaves one out."""

    def write(path, where):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() | change
        save_file(load_file(path), where, {k: v for k, v in metadata.items() if v is not None})

    return write


def short_bias(name):
    """A function that writes a checkpoint anew with a tensor of another shape."""

    def write(path, where):
        with safe_open(path, "pt") as file:
            save_file(load_file(path) | {name: torch.zeros(9)}, where, file.metadata())

    return write


NONE = "is no checkpoint of a training"
LENGTHS = '{"loss": [1], "accuracy": [], "seconds": []}'


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path, to: to.write_bytes(b"cut"),
            "is cut short or no safetensors file .*delete it to start again",
        ),
        (lambda path, to: to.write_bytes(path.read_bytes()[:-9]), "is cut short or no safetensors"),
        (lambda path, to: network().save(to), f"{NONE} .*delete it"),  # a weights file
        (lambda path, to: save_file({"a": torch.zeros(1)}, to), NONE),
        (facts(history="{"), NONE),
        (facts(history='{"loss": [1]}'), NONE),
        (facts(history=LENGTHS), f"{NONE} .*different lengths"),
        (facts(config="[]"), NONE),
        (
            facts(data_sha256=None),
            "does not say what it was trained on; .*delete it to start again",
        ),
        (
            short_bias("model.fc.bias"),
            "is of another network .*size mismatch for fc.bias.*delete it",
        ),
        (short_bias("momentum.fc.bias"), "is of another network"),
    ],
)
def test_a_checkpoint_that_is_none_is_named_with_its_remedy(checkpoint, write, message, tmp_path):
    path, data = checkpoint
    write(path, tmp_path / "other.safetensors")
    with refused(rf"other\.safetensors {message}"):
        trained(network(), data, TINY, tmp_path / "other.safetensors")


def test_training_without_momentum_resumes_too(tmp_path):
    data, config = images(40), TINY.override(momentum=0.0)
    whole, parts = network(), network()
    trained(whole, data, config)
    for epoch in (1, 3):
        trained(parts, data, config, tmp_path / "c.safetensors", stop_after=epoch)
    assert torch.equal(whole.fc.weight, parts.fc.weight)


def test_no_epoch_is_not_all_of_them():
    with refused("stop_after is a number of epochs from 1 on, got 0"):
        trained(network(), images(40), TINY, stop_after=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no record of a training"),
        ('{"dataset": "digits", "config": 3}', "is no record of a training"),
        ('{"dataset": "digits", "config": {"width": 1}}', "holds no recipe of this version"),
    ],
)
def test_a_record_that_is_none_is_named(text, message, tmp_path):
    (tmp_path / "training.json").write_text(text, encoding="utf-8")
    with refused(rf"training\.json {message}"):
        training.main(["--dataset", "digits", "--out", str(tmp_path), "--device", "cpu"])


def test_smoke_recipe_learns_digits():
    """The set that ships with scikit-learn, through the whole of training, on real images."""
    digits = load("digits", "train")
    torch.manual_seed(0)
    net = WideResNet(10, 1)
    trained(net, digits, RECIPES["smoke"])
    assert training.accuracy(net, load("digits", "test")) > 0.9


def test_each_epoch_can_be_kept(tmp_path):
    path, config = tmp_path / "checkpoint.safetensors", TINY.override(epochs=2)
    trained(network(), images(40), config, path, keep_epochs=True)
    first, last = (load_file(training.epoch_file(path, epoch)) for epoch in (1, 2))
    assert all(torch.equal(value, last[name]) for name, value in load_file(path).items())
    assert any(not torch.equal(value, last[name]) for name, value in first.items())
    assert len(list(tmp_path.iterdir())) == 3
