"""The precision of a pass: bfloat16 before the last layer, float32 in it, kept by a detector."""

import pytest
import torch
from refusals import refused
from torch import nn

from thinkback_utils import devices, passes
from thinkback_utils.batches import Batch
from thinkback_utils.detector import OODDetector
from thinkback_utils.features import extract
from thinkback_utils.models import WideResNet
from thinkback_utils.passes import Reader, settled

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hardware(monkeypatch):
    """A function that says whether this CPU is fast in bfloat16; "auto" asks it."""
    monkeypatch.delenv("THINKBACK_PRECISION")
    return lambda there: monkeypatch.setattr(passes, "has_fast_bfloat16", lambda: there)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return WideResNet(10, 1, 3).eval()


class Pooled(nn.Sequential):
    """A 1x1 convolution on maps, whose mean is returned."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        return super().forward(x).mean((2, 3))


@pytest.mark.parametrize(
    ("known", "fast"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Apple M2"}, False),
    ],
)
def test_an_intel_cpu_needs_amx_to_be_fast_in_bfloat16(monkeypatch, known, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert devices.has_fast_bfloat16() is fast


def test_torch_that_cannot_say_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not devices.has_fast_bfloat16()


def test_auto_is_bfloat16_for_float32_models_where_the_cpu_has_it(hardware, net):
    hardware(False)
    assert settled("auto", net) == "float32"
    hardware(True)
    assert settled("auto", net) == "bfloat16"
    for word in ("auto", "bfloat16"):
        assert settled(word, WideResNet(10, 1, 3).half()) == "float32"
    assert settled("auto", net.to("meta")) == "float32"
    with refused(r"^thinkback: precision is one of .*, got 'float16'$"):
        settled("float16", net)


def test_the_environment_settles_auto_for_a_process(hardware, net, monkeypatch):
    hardware(True)
    monkeypatch.setenv("THINKBACK_PRECISION", "float32")
    assert settled("auto", net) == "float32"
    assert settled("bfloat16", net) == "bfloat16"
    monkeypatch.setenv("THINKBACK_PRECISION", "half")
    with refused(r"^thinkback: the environment variable THINKBACK_PRECISION is .*, got 'half'$"):
        extract(net, X)


def test_auto_is_the_default(hardware, net):
    hardware(True)
    low = extract(net, X, precision="bfloat16").features
    assert torch.equal(extract(net, X).features, low)
    assert not torch.equal(extract(net, X, precision="float32").features, low)
    assert OODDetector(net).precision == "bfloat16"


@pytest.mark.parametrize("make", [lambda: WideResNet(10, 1, 3), Pooled])
def test_the_last_layer_stays_in_float32(hardware, make):
    torch.manual_seed(0)
    model = make().eval()
    exact = extract(model, X, precision="float32")
    hardware(False)
    assert torch.equal(extract(model, X, precision="auto").features, exact.features)
    hardware(True)
    low = extract(model, X, precision="auto")
    assert not torch.equal(low.features, exact.features)
    torch.testing.assert_close(low.features, exact.features, rtol=0.05, atol=0.02)
    head = list(model.modules())[-1]
    by_hand = nn.functional.linear(low.features, head.weight.flatten(1), head.bias)
    torch.testing.assert_close(low.logits, by_hand)


def test_a_failing_pass_leaves_neither_autocast_nor_a_changed_layer(net):
    reader = Reader(net, precision="bfloat16")
    reader(Batch((X,), size=12))
    with pytest.raises(RuntimeError, match="thinkback: the model fails on a batch"):
        reader(Batch((X[:, :2],), size=12))
    assert not torch.is_autocast_enabled("cpu")
    assert "forward" not in vars(net.get_classifier())
    net.fc.forward = forward = net.fc.forward  # as wrappers of other libraries set it
    reader(Batch((X,), size=12))
    assert net.fc.forward is forward


@pytest.mark.filterwarnings("ignore:thinkback")
def test_a_detector_keeps_the_precision_of_its_fit(hardware, net, tmp_path):
    hardware(True)
    detector = OODDetector(net, precision="auto").fit(X).calibrate(X, alpha=0.2)
    hardware(False)  # as on another machine, where products are emulated
    exact = OODDetector(net, precision="auto").fit(X).calibrate(X, alpha=0.2)
    assert (detector.precision, exact.precision) == ("bfloat16", "float32")
    assert not torch.equal(detector.score(X), exact.score(X))
    for one in (detector, exact):
        one.save(tmp_path / "d")
        again = OODDetector.load(tmp_path / "d", net)
        assert again.precision == one.precision
        assert torch.equal(again.score(X), one.score(X))
        assert int(again.predict(X).sum()) <= 0.2 * 13


@pytest.mark.filterwarnings("ignore:thinkback")
def test_a_graph_of_bfloat16_is_refused(net, tmp_path):
    detector = OODDetector(net, precision="bfloat16").fit(X)
    for write in (detector.exported, lambda x: detector.export(tmp_path / "g.onnx", x)):
        with refused(r" in bfloat16, and a graph .* float32"):
            write(X)
    assert not list(tmp_path.iterdir())
