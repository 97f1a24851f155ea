"""The Wide ResNet against the published size, and its weights file."""

import json
import math

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from thinkback_utils.models import WideResNet


def test_parameter_count_is_the_published_one():
    """Zagoruyko & Komodakis (2016), Table 4: 2.2 M; 2,243,546 in public implementations."""
    assert sum(p.numel() for p in WideResNet(40, 2).parameters()) == 2_243_546


def test_depth_counts_convolutions():
    net = WideResNet(16, 2)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    threes = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert len(threes) == 16 - 3  # the stem, two in each of six blocks; depth counts 3 projections


@pytest.mark.parametrize("depth", [4, 12, 41])
def test_impossible_depth_is_named(depth):
    with refused(f"got {depth}"):
        WideResNet(depth)


def test_weights_round_trip(tmp_path):
    net = WideResNet(10, 1, num_classes=7).eval()
    net.save(tmp_path / "weights.safetensors")
    again = WideResNet.load(tmp_path / "weights.safetensors")
    assert again.config == net.config
    assert not again.training
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(x), net(x), atol=2e-2, rtol=2e-2)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    assert all(torch.equal(v, state[k].to(v)) for k, v in again.state_dict().items())


def test_bad_weights_files_are_named(tmp_path):
    with refused("no weights at", FileNotFoundError):
        WideResNet.load(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with refused("does not name its network"):
        WideResNet.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10.5}, r"depth must be 6n \+ 4 .*got 10.5"),
        ({"depth": math.nan}, r"depth must be 6n \+ 4 .*got nan"),
        ({"width": 0}, "width must be an integer from 1 on, got 0"),
        ({"width": 1.5}, "width must be an integer from 1 on, got 1.5"),
        ({"num_classes": -1}, "num_classes must be an integer from 1 on, got -1"),
        ({"dropout": 2}, r"dropout must be in \[0, 1\), got 2"),
        ({"dropout": math.nan}, r"dropout must be in \[0, 1\), got nan"),
        ({"mean": (0.5,)}, r"mean must be three finite numbers, one a channel, got \(0.5,\)"),
        ({"std": (0.2, 0.2, 0.0)}, "std must be three finite numbers above 0"),
        ({"std": (0.2, math.nan, 0.2)}, "std must be three finite numbers above 0"),
    ],
)
def test_impossible_networks_are_named(change, message):
    with refused(f"^thinkback: WideResNet {message}"):
        WideResNet(**{"depth": 10, "width": 1} | change)


CONFIG = {"depth": 10, "width": 1, "num_classes": 3, "dropout": 0.3}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    WideResNet(**CONFIG).save(path)
    return load_file(path)


@pytest.mark.parametrize(
    "metadata",
    [
        *("no JSON", "null", "[10, 1]", "{}", '{"depth": "10"}'),
        json.dumps(CONFIG | {"extra": 1}),
        json.dumps(CONFIG | {"width": 2}),
        json.dumps(CONFIG | {"num_classes": 0}),
    ],
)
def test_weights_of_an_impossible_network_are_named(tensors, metadata, tmp_path):
    save_file(tensors, tmp_path / "w", {"config": metadata})
    with refused(r"/w holds no weights of the network.*train the network again"):
        WideResNet.load(tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"fc.bias": None}, "Missing key"),
        ({"fc.bias": torch.zeros(7)}, "size mismatch for fc.bias"),
        ({"other": torch.zeros(7)}, "Unexpected key"),
        ({"fc.bias": torch.full((3,), math.nan)}, "fc.bias holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(tensors, change, cause, tmp_path):
    kept = {name: value for name, value in (tensors | change).items() if value is not None}
    save_file(kept, tmp_path / "w", {"config": json.dumps(CONFIG)})
    with refused(rf"/w holds no weights .*{cause}") as error:
        WideResNet.load(tmp_path / "w")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_weights_cut_short_are_named(tensors, tmp_path):
    save_file(tensors, tmp_path / "whole", {"config": json.dumps(CONFIG)})
    content = (tmp_path / "whole").read_bytes()
    for size in (0, 5, 8, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "w").write_bytes(content[:size])
        with refused(r"/w is cut short or no safetensors file .*fetch it anew"):
            WideResNet.load(tmp_path / "w")
    with refused(r" is cut short or no safetensors file"):
        WideResNet.load(tmp_path)  # a folder


def test_weights_beyond_float16_are_not_written(tmp_path):
    net = WideResNet(**CONFIG)
    with torch.no_grad():
        net.fc.bias[1] = 1e6
    with refused(r"^thinkback: fc.bias holds values that float16 cannot; .*/w is not written"):
        net.save(tmp_path / "w")
    assert not list(tmp_path.iterdir())
