"""A graph says what the detector says: in torch, in a file of torch.export, and in onnxruntime."""

import json
import sys
from functools import cache

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

from thinkback_utils.detector import OODDetector
from thinkback_utils.export import OPSET, OUTPUTS
from thinkback_utils.features import extract
from thinkback_utils.methods import METHODS

onnx = pytest.importorskip("onnx", reason="no onnx: pip install -e .[test]")
onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install -e .[test]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(500, 3, 2, 2, generator=GENERATOR)
FIT, HELD = X[:300], X[300:]


def net():
    """Confident, so that residuals span magnitudes; with dropout, off in evaluation."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.Softplus(), nn.Dropout(0.5), nn.Linear(6, 4)
    )
    generator = torch.Generator().manual_seed(0)
    for layer in (model[1], model[4]):
        nn.init.normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        model[4].weight.mul_(20)
        model[4].bias.sub_(model.eval()(FIT).mean(0))  # every class occurs
    return model.train()


def detector(method="thinkback", **options):
    return OODDetector(net(), method=method, **options).fit(FIT).calibrate(HELD, alpha=0.1)


def answers(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(None, {"images": np.asarray(images)}), strict=False))


def agree(out, said, images, tolerance=1e-4):
    """What a graph gave is what the detector says, up to calibration scores that near."""
    out = {name: np.asarray(value) for name, value in out.items()}
    score, logits = said.score(images).numpy(), extract(said.model, images).logits
    np.testing.assert_allclose(out["logits"], logits, tolerance, tolerance)
    # A score that crosses 0 (Energy) is as exact as the logits that it is made of, not as itself.
    slack = 1e-6 * np.abs(score).max() if score.min() < 0 < score.max() else 0
    np.testing.assert_allclose(out["score"], score, tolerance, slack)
    assert out["score"].dtype == np.float64
    distance = np.abs(said.calibration.scores.numpy() - score[:, None])
    near = (distance <= tolerance * np.abs(score[:, None]) + slack).sum(1) / (len(HELD) + 1)
    assert (np.abs(out["p_value"] - said.p_value(images).numpy()) <= near + 1e-12).all()
    clear = np.abs(score - said.threshold) > tolerance * abs(said.threshold) + slack
    assert (out["rejected"] == said.predict(images).numpy())[clear].all()
    assert 0 < out["rejected"].sum() < len(images) or len(images) < 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that exports a detector of a method, once: the detector and its file."""

    @cache
    def made(method):
        options = {"damping": 1e-3} if method == "thinkback" else {}
        said, path = detector(method, **options), tmp_path_factory.mktemp(method) / "model.onnx"
        said.export(path, X[:1])
        return said, path

    return made


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_onnxruntime_at_any_batch_size(method, exported):
    said, path = exported(method)
    assert said.model.training
    for size in (1, 7, 1100):
        images = 2 * torch.rand(size, 3, 2, 2, generator=GENERATOR)
        agree(answers(path, images), said, images)


def test_metadata_say_what_the_file_is(exported):
    said, path = exported("thinkback")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (facts,) = (p.value for p in model.metadata_props if p.key == "thinkback_detector")
    facts = json.loads(facts)
    assert facts == {
        "format": 3,
        "head": "4",
        "method": "thinkback",
        "options": {"temperature": 5.0, "eps": 1e-16, "damping": 1e-3},
        "precision": "float32",
        "mean": None,
        "std": None,
        "threshold": said.threshold,
        "alpha": 0.1,
        "delta": None,
        "by_class": False,
        "opset": OPSET,
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    (images,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["N", 3, 2, 2]
    assert [output.name for output in model.graph.output] == list(OUTPUTS)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_without_calibration_there_is_no_verdict(tmp_path):
    said = OODDetector(net(), method="energy")
    assert list(said.exported(X).module()(X)) == ["logits", "score"]
    said.export(tmp_path / "model.onnx", X)
    assert list(answers(tmp_path / "model.onnx", X)) == ["logits", "score"]


def test_torch_reads_the_graph_without_this_package(tmp_path):
    said = detector()
    torch.export.save(said.exported(X[:1]), tmp_path / "model.pt2")
    run = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 7, 1100):
        images = torch.rand(size, 3, 2, 2, generator=GENERATOR)
        agree(run(images), said, images, 1e-6)


def test_graph_is_of_the_detector_as_it_was():
    said = detector()
    program, before = said.exported(X), said.score(X)
    with torch.no_grad():
        said.model[4].weight.zero_()
    torch.testing.assert_close(program.module()(X)["score"], before)
    assert not any(module._forward_hooks for module in said.model.modules())


def test_wrong_use_is_named(monkeypatch, tmp_path):
    with refused("a fitted detector; call fit"):
        OODDetector(net()).exported(X)
    with refused(r"float images; got torch\.uint8"):
        detector().exported((255 * X).byte())
    pixels = OODDetector(nn.Conv2d(3, 4, 1), method="energy")
    with refused(r"a graph scores whole images, .* tokens or pixels"):
        pixels.exported(X)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with refused(r"pip install 'thinkback-utils\[export\]'", ImportError):
        detector().export(tmp_path / "model.onnx", X)
