"""The Wide ResNet against the published size, and its weights file."""

import pytest
import torch
from safetensors.torch import save_file

from thinkback_utils.models import WideResNet


def test_parameter_count_is_the_published_one():
    """Zagoruyko & Komodakis (2016), Table 4: 2.2 M parameters; 2,243,546 in public implementations."""
    assert sum(p.numel() for p in WideResNet(40, 2).parameters()) == 2_243_546


def test_depth_counts_convolutions():
    net = WideResNet(16, 2)
    threes = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(threes) == 16 - 3  # the stem and two for each of six blocks; depth also counts 3 projections


@pytest.mark.parametrize("depth", [4, 12, 41])
def test_impossible_depth_is_named(depth):
    with pytest.raises(ValueError, match=f"got {depth}"):
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
    with pytest.raises(FileNotFoundError, match="no weights at"):
        WideResNet.load(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not name its network"):
        WideResNet.load(tmp_path / "other.safetensors")
