"""Augmented images and bfloat16 on a tiny network, the entry point, and the committed file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments import evaluation, variants
from experiments.run import Run
from thinkback_utils import data
from thinkback_utils.features import extract
from thinkback_utils.files import read_json
from thinkback_utils.models import WideResNet

RUN = Run.at(Path(__file__).parents[1] / "results")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return WideResNet(10, 1, dropout=0.5).eval()


@pytest.fixture(scope="module")
def digits():
    every = data.load("digits")
    return data.ImageSet(every.images[:40], every.labels[:40], every.classes, "digits")


def test_augmented_images_are_moved_and_mirrored_images(digits):
    batches = list(variants.augment(digits, seed=1, batch_size=16))
    assert [len(x) for x, _ in batches] == [16, 16, 8]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    padded = torch.nn.functional.pad(digits.images.float() / 255, [4] * 4)
    crops = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # all there are
    windows = crops.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    same = torch.cat([windows, windows.flip(-1)]).flatten(1)
    used = [int((same == image.flatten()).all(1).nonzero()[0]) for image in x]
    assert sorted(i % 40 for i in used) == list(range(40))  # each image once
    assert len({i // 40 for i in used}) > 20  # by many crops, mirrored or not
    assert torch.equal(y, digits.labels[[i % 40 for i in used]])


def test_augmentation_follows_its_seed_and_needs_labels(digits):
    first, again, other = (next(iter(variants.augment(digits, seed)))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="'digits' has no labels"):
        variants.augment(dataclasses.replace(digits, labels=None))


def test_bfloat16_features_are_rounded_and_close(network, digits):
    exact, rounded = extract(network, digits), extract(network, digits, precision="bfloat16")
    assert rounded.features.dtype == rounded.logits.dtype == torch.float32
    assert torch.equal(rounded.features, rounded.features.bfloat16().float())
    assert not torch.equal(rounded.features, exact.features)
    torch.testing.assert_close(rounded.features, exact.features, atol=0.05, rtol=0.05)
    head = network.get_classifier()
    torch.testing.assert_close(rounded.logits, rounded.features @ head.weight.T + head.bias)


def test_variants_take_rows_that_the_bundle_has_too(network, digits):
    unlabelled = dataclasses.replace(digits, labels=None)
    made = variants.variants(network, digits, {"a": digits, "b": unlabelled}, 24, 10)
    sizes = {variants.AUGMENTED: 24, "a@bfloat16": 10, "b@bfloat16": 10}
    assert {name: len(item) for name, item in made.items()} == sizes
    rows = evaluation.evenly(40, 10)
    assert torch.equal(made["a@bfloat16"].labels, digits.labels[rows])
    assert made["b@bfloat16"].labels is None
    exact = extract(network, digits).features[rows]
    torch.testing.assert_close(made["b@bfloat16"].features, exact, atol=0.05, rtol=0.05)
    labels = digits.labels[evaluation.evenly(40, 24)].sort().values
    assert torch.equal(made[variants.AUGMENTED].labels.sort().values, labels)


def test_one_command_writes_file_and_provenance(network, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *arguments: digits)
    here = Run.at(tmp_path, "tiny")
    network.save(here.weights)
    names = ("cifar10-train", "cifar10-test", "digits", "cifar100")
    sets = dict.fromkeys(names, extract(network, digits))
    here.save_bundle(sets, network, images_sha256=dict.fromkeys(sets, digits.sha256()))
    command = ["--results", str(tmp_path), "--network", "tiny", "--device", "cpu"]
    command += ["--augmented", "16", "--bfloat16", "8"]
    variants.main(command)
    first = (here.folder / "variants.npz").read_bytes()
    variants.main(command)
    assert (here.folder / "variants.npz").read_bytes() == first
    record = read_json(here.folder / "variants.json")
    sizes = {variants.AUGMENTED: 16, "cifar10-test@bfloat16": 8, "digits@bfloat16": 8}
    assert record["sizes"] == sizes
    assert {"command", "commit", "device", "seconds", "seed", "started", "versions"} <= set(record)
    assert "variants.npz" in capsys.readouterr().out


def test_committed_file_is_of_the_committed_network():
    made, bundle = RUN.bundle("variants.npz"), RUN.bundle()
    assert torch.equal(made.weight, bundle.weight)  # head of another network: run the command again
    for name, item in made.sets.items():
        if name != variants.AUGMENTED:
            plain = bundle.sets[name.removesuffix("@bfloat16")]
            rows = evaluation.evenly(len(plain), len(item))
            assert (item.features - plain.features[rows]).abs().median() < 0.05


def test_scores_of_both_precisions_are_of_the_same_images():
    exact, low = variants.bfloat16_scores(RUN.folder, ["energy", "thinkback_averaged"])
    assert exact.keys() == low.keys()
    for name, row in exact.items():
        for method, scores in row.items():
            assert spearmanr(scores, low[name][method]).statistic > 0.99
            assert not np.array_equal(scores, low[name][method])
