"""The book in one file gives the numbers of the package: network, training, scores, metrics."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import thinkback_utils as tb
from experiments import evaluation, training

ROOT = Path(__file__).parents[1]
FILE = ROOT / "notebooks" / "thinkback_in_one_file.py"
RUN = ROOT / "results" / "wrn40-2-cifar10" / "seed0"
PAIRS = {
    "Softmax": "msp",
    "Energy": "energy",
    "Thinkback": "thinkback",
    "Averaged": "thinkback_averaged",
}
sys.path.insert(0, str(FILE.parent))
import thinkback_in_one_file as one  # noqa: E402


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(one, "DEVICE", "cpu")


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_it_needs_torch_and_numpy_alone():
    nodes = ast.walk(ast.parse(FILE.read_text(encoding="utf-8")))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    nodes = ast.walk(ast.parse(FILE.read_text(encoding="utf-8")))
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert foreign == {"torch", "numpy"}


def test_the_committed_weights_make_the_same_features():
    model = one.WideResNet()
    model.load_state_dict(one.read_safetensors(RUN / "weights.safetensors"))
    features, logits = one.extract(model, images(5))
    expected = tb.features.extract(
        tb.models.WideResNet.load(RUN / "weights.safetensors"), images(5)
    )
    torch.testing.assert_close(features.float(), expected.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.float(), expected.logits, rtol=1e-4, atol=1e-4)


def test_training_ends_in_the_same_weights():
    x, y = images(48), torch.arange(48) % 10
    config = replace(
        training.RECIPES["reference"], depth=10, width=1, epochs=2, batch_size=32, amp="off"
    )
    torch.manual_seed(3)
    theirs = tb.models.WideResNet(10, 1)
    torch.manual_seed(3)
    ours = one.WideResNet(10, 1)
    one.train(ours, x, y, epochs=2, batch_size=32)
    training.fit(theirs, tb.data.ImageSet(x, y), config, device="cpu", progress=False)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_the_table_is_that_of_the_package(monkeypatch, tmp_path):
    """On the bundle's features and logits, in place of a pass through the network."""
    bundle = tb.features.Bundle.load(RUN / "bundle.npz")
    for name in ("cifar10-train", "cifar10-test", "svhn", "cifar100"):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((1, 32, 32, 3), np.uint8))
    monkeypatch.setattr(one, "load", lambda path: (path.stem, None))

    def extract(model, name):
        return bundle.sets[name].features.double(), bundle.sets[name].logits.double()

    monkeypatch.setattr(one, "extract", extract)
    table = one.evaluate(None, tmp_path)
    assert len(table) == 2 * len(PAIRS)
    kept = evaluation.score_sets(bundle.sets, PAIRS.values(), ["cifar10-test", "svhn", "cifar100"])
    for (name, score), row in table.items():
        method = PAIRS[score]
        expected = tb.metrics.ood_metrics(kept["cifar10-test"][method], kept[name][method])
        assert row == pytest.approx(expected, abs=1e-9), (name, score)


def test_equal_scores_share_a_point():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(5, size=40), generator.integers(1, 6, size=30)
    assert one.metrics(inside, outside) == pytest.approx(tb.metrics.ood_metrics(inside, outside))


def test_images_and_labels_come_from_a_file(tmp_path):
    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[1, 2])
    x, y = one.load(tmp_path / "a.npz")
    assert x.shape == (2, 3, 32, 32)
    assert x[1, 2, 3, 4] == pixels[1, 3, 4, 2]
    assert y.tolist() == [1, 2]
