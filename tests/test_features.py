"""Extraction from any classifier, and the bundle."""

import re

import numpy as np
import pytest
import torch
from refusals import refused
from tiny import head_of
from torch import nn

from thinkback_utils.data import ImageSet
from thinkback_utils.features import Bundle, Features, extract
from thinkback_utils.models import WideResNet

IMAGES = torch.randint(256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


class Net(nn.Module):
    """A trunk and two heads; ``returns`` decides what forward gives."""

    def __init__(self, returns="first"):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Dropout(0.5))
        self.first, self.second, self.returns = nn.Linear(6, 4), nn.Linear(6, 2), returns

    def forward(self, x):
        h = self.trunk(x)
        first, second = self.first(h), self.second(h)
        return {
            "first": first,
            "tuple": (first, h),
            "dict": {"logits": first},
            "both": (first, second),
            "log": first.log_softmax(1),
            "tanh": first.tanh(),
        }[self.returns]


def expected(net):
    net.eval()
    with torch.inference_mode():
        h = net.trunk(IMAGES.float() / 255)
        return h, net.first(h)


@pytest.mark.parametrize("returns", ["first", "tuple", "dict", "log"])
def test_head_is_found_by_what_the_model_returns(returns):
    net = Net(returns)
    out = extract(net, IMAGES, batch_size=4)
    h, z = expected(net)
    torch.testing.assert_close(out.features, h)
    torch.testing.assert_close(out.logits, z)


def test_ambiguous_head_lists_candidates_and_a_name_settles_it():
    net = Net("both")
    with refused(r"'first' \(6 -> 4\), 'second' \(6 -> 2\)"):
        extract(net, IMAGES)
    assert extract(net, IMAGES, head="second").logits.shape == (10, 2)
    with refused(r"no layer named 'third' .*'first'"):
        extract(net, IMAGES, head="third")


def test_a_named_head_that_the_model_does_not_return_is_refused():
    with refused(r"does not return what its head 'second' computes; .*'first' \(6 -> 4\)"):
        extract(Net(), IMAGES, head="second")


@pytest.mark.parametrize("returns", ["first", "tuple", "dict"])
def test_the_search_leaves_the_model_as_it_was(returns):
    net = Net(returns).bfloat16().train()
    low = IMAGES[:2] / torch.tensor(255).bfloat16()
    assert head_of(net, IMAGES[:1]) == head_of(net, low) == "first"
    assert head_of(nn.Linear(192, 4), IMAGES.flatten(1)) == ""  # the model is its own head
    assert net.training
    assert net.trunk[3].training
    with pytest.raises(RuntimeError):
        head_of(net, IMAGES[:, :1])
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    with refused(r"no layer's output is returned by the model; .*'first' \(6 -> 4\), 'second'"):
        head_of(Net("tanh"), IMAGES)
    with refused(r"the only one returned by the model; .*among 'first' \(6 -> 4\), 'second'"):
        head_of(Net("both"), IMAGES)


def test_model_is_given_back_in_training_mode_without_hooks():
    net = Net().train()
    first, second = extract(net, IMAGES), extract(net, IMAGES)
    assert torch.equal(first.logits, second.logits)  # dropout was off
    assert net.training
    net.trunk.eval()  # as a frozen part would be
    extract(net, IMAGES)
    assert net.training
    assert not net.trunk.training
    with refused(r"no layer named"):
        extract(net, IMAGES, head="third")
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_unusable_models_and_images_are_named():
    with refused(r"none: the model has no linear layer"):
        extract(nn.Flatten(), IMAGES)
    with refused("images is empty"):
        extract(Net(), [])
    with refused(re.escape("expected one row for each of 10 images")):
        extract(nn.Sequential(nn.Flatten(0, 1), nn.Flatten(), nn.Linear(64, 2)), IMAGES)


def test_half_precision_model_gives_float32():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).bfloat16()
    assert extract(net, (IMAGES.float() / 255).bfloat16()).features.dtype == torch.float32
    assert extract(net, IMAGES).features.dtype == torch.float32


def test_wide_resnet_split_is_its_forward_pass():
    net = WideResNet(10, 1).eval()
    out = extract(net, torch.randint(256, (4, 3, 32, 32)).byte())
    assert out.features.shape == (4, 64)
    torch.testing.assert_close(net.forward_head(out.features), out.logits)


def test_bundle_round_trip_is_exact_but_for_float16(tmp_path):
    net = Net()
    sets = {"a": extract(net, ImageSet(IMAGES, torch.arange(10))), "b": extract(net, IMAGES)}
    bundle = Bundle(sets, net.first.weight.detach(), net.first.bias.detach())
    bundle.save(tmp_path / "bundle.npz")
    again = Bundle.load(tmp_path / "bundle.npz")
    assert list(again.sets) == ["a", "b"]
    assert torch.equal(again.weight, bundle.weight)
    for name, item in bundle.sets.items():
        assert torch.equal(again.sets[name].logits, item.logits)
        assert torch.equal(again.sets[name].features, item.half().features)
    assert torch.equal(again.sets["a"].labels, torch.arange(10))
    assert again.sets["b"].labels is None
    with np.load(tmp_path / "bundle.npz", allow_pickle=False) as arrays:
        assert arrays["a.features"].dtype == np.float16
    first = (tmp_path / "bundle.npz").read_bytes()
    bundle.save(tmp_path / "bundle.npz")
    assert (tmp_path / "bundle.npz").read_bytes() == first


def test_missing_bundle_says_how_to_make_one(tmp_path):
    with refused(r"no feature bundle at .*python -m experiments.reproduce", FileNotFoundError):
        Bundle.load(tmp_path / "bundle.npz")


def test_length():
    assert len(Features(torch.zeros(3, 2), torch.zeros(3, 2))) == 3


def test_a_damaged_bundle_is_named(tmp_path):
    path = tmp_path / "bundle.npz"
    for content in (b"junk", b""):
        path.write_bytes(content)
        with refused(r"bundle\.npz cannot be read .*reproduce"):
            Bundle.load(path)
    np.savez(path, a=np.zeros(3))
    with refused(r"bundle\.npz is no feature bundle, it lacks head\.bias, head\.weight"):
        Bundle.load(path)
    head = {"head.weight": np.zeros((2, 3)), "head.bias": np.zeros(2)}
    np.savez(path, **head | {"svhn.logits": np.zeros((4, 2))})
    with refused(r"lacks svhn\.features"):
        Bundle.load(path)
