"""Per-sample gradients of every reading against one backward pass a sample, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import network_gradients
from refusals import refused
from torch import nn

from thinkback_utils import scores
from thinkback_utils.features import extract
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.gradients import (
    MeanSquare,
    activation_gradients,
    find_layers,
    gradients,
    score,
    squared_gradients,
)
from thinkback_utils.models import WideResNet


def trained(net):
    """That network with running statistics, scales and shifts that are no longer 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return net.double().eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trained(WideResNet(depth=10, width=1))


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_close(ours, oracle, rtol=1e-9):
    error = (ours.double() - oracle).abs().amax(1) / oracle.abs().amax(1)
    assert error.max() <= rtol


@pytest.mark.parametrize("conv", ["stem", "stages.0.conv2", "stages.1.conv1", "stages.2.shortcut"])
def test_any_named_convolution_equals_autograd(network, images, conv):
    """Kernels of 3 and 1, strides of 1 and 2, first and last layers."""
    ours = gradients(network, images, ("E",), {"E": conv})["E"]
    weight = network.get_submodule(conv).weight
    assert_close(ours, network_gradients(network, images, [weight], 5.0))


@pytest.mark.parametrize("temperature", [0.5, 5.0, 100.0])
def test_every_reading_equals_autograd_sample_by_sample(network, images, temperature):
    ours = gradients(network, images, ("C", "D", "E", "all"), {}, temperature)
    last = network.get_submodule(find_layers(network, images[:2])["E"])
    for reading, parameters in (
        ("D", [network.bn.weight, network.bn.bias]),
        ("E", [last.weight]),
        ("all", list(network.parameters())),
    ):
        oracle = network_gradients(network, images, parameters, temperature)
        assert_close(ours[reading], oracle)
    h = network.forward_features(images).detach()
    rows = [
        network_gradients(network.fc, row[None], [row], temperature) for row in h.requires_grad_()
    ]
    assert_close(ours["C"], torch.cat(rows))


def test_closed_form_of_the_activations(network, images):
    ours = activation_gradients(network(images).detach(), network.fc.weight.detach())
    assert_close(ours, gradients(network, images, ["C"])["C"], 1e-14)


def test_last_layers_are_found_in_the_order_of_the_forward_pass(network, images):
    assert find_layers(network, images) == {"C": "fc", "D": "bn", "E": "stages.2.shortcut"}
    assert find_layers(WideResNet(16, 1), torch.rand(2, 3, 16, 16))["E"] == "stages.5.conv2"

    class Backward(nn.Module):
        """Layers that are defined in another order than they run in."""

        def __init__(self):
            super().__init__()
            self.head, self.late = nn.Linear(4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.norm, self.early = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x):
            x = F.relu_(self.norm(F.relu_(self.early(x))))
            return self.head(F.relu_(self.late(x)).mean((2, 3)))

    net, x = trained(Backward()), images
    assert find_layers(net, x) == {"C": "head", "D": "norm", "E": "late"}
    ours = gradients(net, x, ("D", "E", "all"))  # activations that work in place
    assert_close(ours["D"], network_gradients(net, x, [net.norm.weight, net.norm.bias], 5.0))
    assert_close(ours["E"], network_gradients(net, x, [net.late.weight], 5.0))
    assert_close(ours["all"], network_gradients(net, x, list(net.parameters()), 5.0))


@pytest.mark.parametrize(
    "options", [{"dilation": 2}, {"stride": (2, 1), "padding": (0, 2)}, {"bias": False}]
)
def test_any_plain_convolution(images, options):
    torch.manual_seed(0)
    conv, ends = nn.Conv2d(3, 5, (3, 2), **options), (nn.Flatten(), nn.LazyLinear(4))
    net = trained(nn.Sequential(conv, nn.ReLU(inplace=True), *ends))
    net(images)
    oracle = network_gradients(net, images, [conv.weight], 5.0)
    assert_close(gradients(net, images, ["E"])["E"], oracle)


def test_the_head_read_in_this_way_is_the_closed_form(network, images):
    """Readings A and B from the gradients of all parameters, the last two the head's."""
    out = extract(network, images)
    h, z = network.forward_features(images).detach(), network(images).detach()
    head = gradients(network, images, ["all"])["all"][:, -650:].square()
    for bias, squares in ((False, head[:, :640]), (True, head)):
        expected = DiagonalFisher(bias=bias).update(h, z).compute()
        columns = torch.cat([expected[:, :64].flatten(), expected[:, 64:].flatten()])
        mean = MeanSquare().update(squares).compute()
        np.testing.assert_allclose(mean, columns, rtol=1e-9, atol=1e-300)
        for damping in (0.0, 1e-3):
            oracle = scores.thinkback(h, z, expected, damping=damping)
            np.testing.assert_allclose(score(squares, columns, damping=damping), oracle, rtol=1e-9)
    np.testing.assert_allclose(score(head[:, :640]), scores.thinkback(h, z), rtol=1e-9)
    assert len(out) == len(h)


def test_float32_network_and_streaming(network, images):
    net = WideResNet(depth=10, width=1)
    net.load_state_dict(network.state_dict())
    pixels = (images * 255).byte()
    exact = gradients(network, pixels.double() / 255, ("C", "D", "E", "all"))
    parts = list(squared_gradients(net, pixels, ("C", "D", "E", "all"), batch_size=4))
    assert [len(part["E"]) for part in parts] == [4, 2]
    for reading, g in exact.items():
        squares = torch.cat([part[reading] for part in parts])
        assert squares.dtype == torch.float64
        torch.testing.assert_close(squares.sum(1), g.square().sum(1), rtol=1e-4, atol=0)
        whole, split = MeanSquare().update(squares), MeanSquare()
        for part in parts:
            split.update(part[reading])
        assert split.count == whole.count == 6
        torch.testing.assert_close(split.compute(), whole.compute(), rtol=1e-13, atol=0)


def test_confident_samples_keep_their_gradient(network, images):
    """Logits a thousand times as large: p - 1 would be 0."""
    net = WideResNet(depth=10, width=1).double().eval()
    net.load_state_dict(network.state_dict())
    net.fc.weight.data *= 300
    g = gradients(net, images, ("C", "D", "E"), temperature=1.0)
    assert all((value.square().sum(1) > 0).all() for value in g.values())


def test_the_model_comes_back_as_it_was(network, images):
    net = WideResNet(depth=10, width=1).double().train()
    net.bn.eval().weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        gradients(net, images, ("C", "D", "E", "all"))
    assert net.training
    assert not net.bn.training
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["bn.weight"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.aside, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        y = self.conv(self.conv(x))
        self.aside(x)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("readings", "layers", "message"),
    [
        (["A"], {}, r"readings are some of \['C', 'D', 'E', 'all'\], got \['A'\]"),
        ([], {}, "readings are some of"),
        (["D"], {}, r"BatchNorm2d, but its layer is not in the model; name one in layers=\{'D'"),
        (["E"], {"E": "nowhere"}, "needs an nn.Conv2d, but its layer is 'nowhere'"),
        (["E"], {"E": "fc"}, "needs an nn.Conv2d, but its layer is 'fc'"),
        (["E"], {"E": "conv"}, "the layer of reading E ran 2 times"),
        (["E"], {"E": "aside"}, "the logits do not depend on the layer of reading E"),
    ],
)
def test_errors_name_the_reading_and_the_remedy(readings, layers, message):
    with refused(f"{message}"):
        gradients(Twice(), torch.rand(2, 3, 4, 4), readings, layers)


@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_other_convolutions_are_refused(options):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, **options), nn.Flatten(), nn.LazyLinear(2))
    net(torch.rand(2, 3, 4, 4))
    with refused("needs groups=1 and zero padding"):
        gradients(net, torch.rand(2, 3, 4, 4), ["E"])


def test_errors_of_sums_and_scores():
    with refused("has seen no data"):
        MeanSquare().compute()
    with refused("holds 3 weights, the batch has 4"):
        MeanSquare().update(torch.ones(2, 3)).update(torch.ones(2, 4))
    with refused("disagree on P"):
        score(torch.ones(2, 3), torch.ones(4))
    with refused("set one of them"):
        score(torch.ones(2, 3), torch.zeros(3), eps=0.0)
    plain = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(48, 2))
    with refused("needs a BatchNorm with scale, shift and running statistics"):
        gradients(plain, torch.rand(2, 3, 4, 4), ["D"])
