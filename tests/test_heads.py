"""Heads of every kind are found by what the model returns; others are refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from tiny import head_of
from torch import nn

from thinkback_utils.detector import OODDetector
from thinkback_utils.features import extract
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.scores import thinkback

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(40, 6, generator=GENERATOR)
MAPS = torch.rand(12, 3, 5, 6, generator=GENERATOR)
IDS = torch.randint(1, 50, (10, 7), generator=GENERATOR)
pytestmark = pytest.mark.filterwarnings(
    "ignore:thinkback. (the model is hardly|classes|scores of places)"
)


class Net(nn.Module):
    """A trunk and layers; ``ends`` makes of them what the model returns."""

    def __init__(self, ends, **layers):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.ends = nn.Linear(6, 8), ends
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.ends(self, torch.relu(self.body(x)))


class Cosine(nn.Module):
    """A head that is no nn.Linear: cosines to the rows of a matrix, times ``scale``."""

    def __init__(self, scale=16.0):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(4, 8, generator=GENERATOR)), scale

    def forward(self, h):
        return self.scale * F.linear(F.normalize(h), F.normalize(self.weight))


def fc(classes=4):
    return nn.Linear(8, classes)


def h_of(net):
    return torch.relu(net.body(X)).detach()


def twice(net, h):
    z = net.fc(h)
    net.fc(torch.zeros_like(h))
    return z


def in_place(net, h):
    z = net.fc(h)
    return {"logits": z, "aux": net.aux(h)}  # begins with a ReLU that overwrites h


def same(h):
    return h


LAYERS = {  # more layers than one named fc
    "in place after the head": {"aux": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3))},
    "two heads, averaged": {"b": fc()},
    "cosine": {"head": Cosine()},
    "in a mapping": {"b": fc()},
}
# what the model returns, the names of its head, its features by h, and whether z = h W^T + b
ENDS = {
    "plain": (lambda n, h: n.fc(h), "fc", same, True),
    "twice, the first": (twice, "fc", same, True),
    "twice, the last": (lambda n, h: (n.fc(0 * h), n.fc(h))[1], "fc", same, True),
    "mean of two runs": (lambda n, h: (n.fc(h) + n.fc(3 * h)) / 2, "fc", lambda h: 2 * h, True),
    "in place after the head": (in_place, "fc", same, True),
    "log softmax": (lambda n, h: n.fc(h).log_softmax(1), "fc", same, True),
    "softmax": (lambda n, h: n.fc(h).softmax(1), "fc", same, True),
    "two heads, averaged": (
        lambda n, h: (n.fc(h) + n.b(h**2)) / 2,
        ("fc", "b"),
        lambda h: torch.cat([h, h**2], 1) / 2,
        False,
    ),
    "scaled": (lambda n, h: 10 * n.fc(F.normalize(h)), "fc", F.normalize, False),
    "scaled in place": (lambda n, h: n.fc(h).mul_(10), "fc", same, False),
    "cosine": (lambda n, h: n.head(h), "head", same, False),
    "called by keyword": (lambda n, h: n.fc(input=h), "fc", same, True),
    "in a mapping": (
        lambda n, h: {"hidden": h, "logits": n.fc(h), "other": n.b(h)},
        "fc",
        same,
        True,
    ),
}


def ended(ends):
    return Net(ENDS[ends][0], fc=fc(), **LAYERS.get(ends, {}))


@pytest.mark.parametrize("ends", ENDS)
def test_head_is_found_and_what_it_reads_and_the_model_returns_is_kept(ends):
    net, (_, name, features, linear) = ended(ends), ENDS[ends]
    assert head_of(net, X) == name
    found, named = extract(net, X), extract(net, X, head=name)
    torch.testing.assert_close(found.features, features(h_of(net)))
    assert torch.equal(found.features, named.features)
    assert torch.equal(found.logits, named.logits)
    returned = net(X.clone())
    returned = returned["logits"] if isinstance(returned, dict) else returned
    if "softmax" in ends:
        p = returned.exp() if "log" in ends else returned
        torch.testing.assert_close(found.logits.softmax(1), p)
    else:
        assert torch.equal(found.logits, returned)
    if linear:
        layer = net.get_submodule(name)
        torch.testing.assert_close(F.linear(found.features, layer.weight, layer.bias), found.logits)


@pytest.mark.parametrize("ends", [name for name in ENDS if name != "in place after the head"])
def test_graphs_have_the_same_head(ends):
    said = OODDetector(ended(ends)).fit(X)
    out = said.exported(X[:1]).module()(X)
    np.testing.assert_allclose(out["score"], said.score(X), rtol=1e-4)


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_logit_counts_as_two_classes(squeezed, sigmoid):
    def ends(net, h):
        z = net.fc(h).sigmoid() if sigmoid else net.fc(h)
        return z[:, 0] if squeezed and not sigmoid else z

    net = Net(ends, fc=fc(1))
    out, h = extract(net, X), h_of(net)
    z = net.fc(h).detach()
    torch.testing.assert_close(out.logits, torch.cat([torch.zeros_like(z), z], 1))
    fisher = DiagonalFisher().update(h, out.logits).compute()
    score = OODDetector(net, method="thinkback").fit(X).score(X)
    np.testing.assert_allclose(score, thinkback(h, out.logits, fisher), rtol=1e-9)


def convolutional(*end):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *end).eval()


@pytest.mark.parametrize(
    ("end", "name"),
    [
        # pooled after the layer, or before: it is linear
        ((nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "2"),
        ((nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()), "3"),
    ],
)
def test_a_convolution_as_head(end, name):
    net = convolutional(*end)
    out = extract(net, MAPS)
    assert head_of(net, MAPS) == name
    torch.testing.assert_close(out.features, net[1](net[0](MAPS)).mean((2, 3)).detach())
    torch.testing.assert_close(out.logits, net(MAPS).detach())
    said = OODDetector(net).fit(MAPS)
    graph = said.exported(MAPS[:1]).module()
    np.testing.assert_allclose(graph(MAPS)["score"], said.score(MAPS), rtol=1e-4)


def test_a_class_for_each_pixel():
    net = convolutional(nn.Conv2d(8, 5, 1))
    out = extract(net, MAPS, batch_size=5)
    assert out.features.shape == (12, 3, 4, 8)
    torch.testing.assert_close(out.logits, net(MAPS).movedim(1, -1).detach())
    flat = out.features.flatten(0, 2), out.logits.flatten(0, 2)
    expected = thinkback(*flat, DiagonalFisher().update(*flat).compute()).view(12, 3, 4)
    detector = OODDetector(net, method="thinkback").fit(MAPS)
    torch.testing.assert_close(detector.score(MAPS), expected)
    with pytest.warns(UserWarning, match="places in one image are alike"):
        detector.calibrate(MAPS, alpha=0.1)
    assert detector.predict(MAPS).shape == (12, 3, 4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_class_for_each_pixel_of_a_resized_map(align_corners):
    """As segmentation networks end: a linear layer, resized after it or before it."""

    class Net(nn.Sequential):
        def forward(self, x):
            return {"out": grown(super().forward(x)), "aux": x}

    def grown(maps):
        return F.interpolate(maps, size=(10, 12), mode="bilinear", align_corners=align_corners)

    torch.manual_seed(0)
    net = Net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    seen = extract(net, MAPS)
    with torch.no_grad():
        h, z = grown(net[1](net[0](MAPS))), net(MAPS)["out"]
    torch.testing.assert_close(seen.features, h.movedim(1, -1))
    torch.testing.assert_close(seen.logits, z.movedim(1, -1))
    torch.testing.assert_close(F.conv2d(h, net[2].weight, net[2].bias), z)
    assert OODDetector(net).fit(MAPS).score(MAPS).shape == (12, 10, 12)
    assert head_of(net, MAPS) == "2"


def test_a_class_for_each_token():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 5))
    detector = OODDetector(net).fit(IDS)
    assert detector.score(IDS).shape == (10, 7)
    alone = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(0, 1), nn.Linear(8, 5))
    alone[0], alone[2] = net[0], net[1]
    h = net[0](IDS).flatten(0, 1)
    expected = OODDetector(net[1]).fit(h).score(h)
    torch.testing.assert_close(detector.score(IDS).flatten(), expected)


def test_the_token_that_is_classified():
    class Last(nn.Module):
        """As GPT-2 classifies: the logits of the last token that is no padding (0) count."""

        def __init__(self):
            super().__init__()
            self.embed, self.score = nn.Embedding(50, 8), nn.Linear(8, 5, bias=False)

        def forward(self, ids):
            last = (ids != 0).sum(1) - 1
            return self.score(self.embed(ids))[torch.arange(len(ids)), last]

    torch.manual_seed(0)
    net, ids = Last(), IDS.clone()
    ids[::2, 4:] = 0
    last = torch.tensor([3, 6] * 5)
    out = extract(net, ids)
    assert torch.equal(out.features, net.embed(ids)[torch.arange(10), last].detach())
    assert torch.equal(out.logits, net(ids).detach())


NO_LAYER = "no layer's output is returned"


@pytest.mark.parametrize(
    ("ends", "head", "message"),
    [
        (lambda n, h: n.fc(h).tanh(), None, rf"{NO_LAYER} .* among 'body' \(6 -> 8\), 'fc'"),
        (lambda n, h: -n.fc(h), "fc", "the model does not return what its head 'fc' computes"),
        (lambda n, h: n.fc(h) + 2 * n.b(h), "fc", "not return what its head 'fc' computes"),
        (lambda n, h: (n.fc(h), n.b(h)), None, r"the only one .* 'fc' \(8 -> 4\), 'b' \(8 -> 3\)"),
        (lambda n, h: h, "fc", "the model did not run its layer 'fc'"),
        (lambda n, h: n.fc(h) * torch.nan, None, "what the model returned holds nan at"),
        (lambda n, h: {}, None, NO_LAYER),
        (lambda n, h: (torch.zeros(len(h), 4), n.fc(h).tanh()), None, NO_LAYER),
    ],
)
def test_heads_that_are_none_are_refused(ends, head, message):
    b = fc(4 if head else 3)
    with refused(message):
        extract(Net(ends, fc=fc(), b=b), X, head=head)


def test_a_head_that_changes_from_batch_to_batch_is_refused():
    net = Net(lambda n, h: n.a(h) if len(h) > 4 else n.b(h), a=fc(), b=fc())
    with refused(r"does not return what its head '[ab]' computes"):
        extract(net, [X[:2], X])


def test_nan_in_images_is_named():
    bad = X.clone()
    bad[3, 2] = torch.nan
    with refused(r"images holds nan at \(3, 2\) of a batch"):
        extract(Net(lambda n, h: n.fc(h), fc=fc()), bad)
    with refused(r"images holds inf at \(0, 0\)"):
        extract(Net(lambda n, h: n.fc(h), fc=fc()), X * torch.inf)


def test_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        net = Net(lambda n, h: n.fc(h).float().log_softmax(1), fc=fc()).to(dtype)
        assert head_of(net, X) == "fc"
        assert extract(net, X).logits.dtype == torch.float32
