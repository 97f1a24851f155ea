"""A file knows its model by every weight, in half precision and under other names, and no other."""

import json

import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from thinkback_utils.calibration import Calibration
from thinkback_utils.detector import OODDetector
from thinkback_utils.features import Features
from thinkback_utils.identity import difference, identity
from thinkback_utils.models import WideResNet

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(200, 6, generator=GENERATOR)
pytestmark = pytest.mark.filterwarnings(
    "ignore:thinkback. (classes|the model is hardly|alpha=0.2 takes|the promise)"
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.fixture
def path(tmp_path):
    OODDetector(net()).fit(X).calibrate(X, alpha=0.1).save(tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


class Module(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


WRAPPERS = {
    "itself": lambda n: n,
    "compiled": lambda n: torch.compile(n, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda n: nn.DataParallel(torch.compile(n, backend="eager")),
    "inside another": Module,
}


@pytest.mark.parametrize("fitted", WRAPPERS)
def test_wrappers_do_not_matter(fitted, tmp_path):
    said = OODDetector(WRAPPERS[fitted](net())).fit(X).calibrate(X, alpha=0.1)
    said.save(tmp_path / "d")
    for wrapper in WRAPPERS.values():
        again = OODDetector.load(tmp_path / "d", wrapper(net()))
        assert torch.equal(again.score(X), said.score(X))
        assert torch.equal(again.predict(X), said.predict(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_does_not_matter_whichever_came_first(dtype, path, tmp_path):
    OODDetector.load(path, net().to(dtype))
    there_and_back = net().to(dtype).float()
    OODDetector.load(path, there_and_back)
    OODDetector(there_and_back).fit(X).save(tmp_path / "low")
    OODDetector.load(tmp_path / "low", net())
    OODDetector.load(tmp_path / "low", net().to(dtype))


def test_weights_that_went_through_a_file_are_known(tmp_path):
    torch.manual_seed(0)
    trained, images = WideResNet(10, 1).eval(), torch.randint(256, (40, 3, 16, 16)).byte()
    OODDetector(trained).fit(images).save(tmp_path / "d")
    trained.save(tmp_path / "w")  # as float16
    OODDetector.load(tmp_path / "d", WideResNet.load(tmp_path / "w"))


@pytest.mark.parametrize(
    "name", ["0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var", "3.bias"]
)
def test_any_other_weight_is_refused(name, path):
    other = net()
    with torch.no_grad():
        other.state_dict()[name].view(-1)[0].add_(0.01)
    with refused(rf"d.safetensors: the model is not the one .*: '{name}' has other values"):
        OODDetector.load(path, other)


def test_a_trunk_trained_on_under_a_frozen_head_is_refused(path):
    other = net().train()
    for parameter in other[3].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD((p for p in other.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(X), torch.arange(200) % 4).backward()
        optimizer.step()
    assert torch.equal(other[3].weight, net()[3].weight)
    with refused(r"the model is not the one it was fitted on: '0\.weight' has other values"):
        OODDetector.load(path, other.eval())


def test_what_evaluation_does_not_read_does_not_matter(path):
    other = net()
    other[1].num_batches_tracked.add_(5)
    assert difference(identity(net()), other) is None
    OODDetector.load(path, other)


def parts(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        return tensors, json.loads(file.metadata()["thinkback_detector"])


def lost(name):
    """A fact or a tensor of that name is no longer there."""
    return lambda t, f: [{k: v for k, v in part.items() if k != name} for part in (t, f)]


def facts(**change):
    """Facts have other values."""
    return lambda t, f: (t, f | change)


def tensor(name, change):
    """A tensor has other values."""
    return lambda t, f: (t | {name: change(t[name])}, f)


def text(content):
    """In the place of all facts is that text, or none."""
    return lambda t, f: (t, content)


DAMAGE = {  # what happened to tensors and facts, and what is said
    "threshold lost": (lost("threshold"), "lacks 'threshold'"),
    "threshold NaN": (facts(threshold=float("nan")), "threshold"),
    "threshold moved": (facts(threshold=1e6), "does not follow from"),
    "threshold text": (facts(threshold="high"), "threshold"),
    "alpha lost": (lost("alpha"), "lacks 'alpha'"),
    "scores unsorted": (tensor("calibration", lambda x: x.flip(0)), "not ascending"),
    "scores NaN": (tensor("calibration", lambda x: x * torch.nan), "not finite"),
    "scores lost": (lost("calibration"), "lacks 'calibration'"),
    "state lost": (lost("state.B"), "state.B"),
    "state NaN": (tensor("state.B", lambda x: x * torch.nan), "state.B is no finite matrix"),
    "state a vector": (tensor("state.B", lambda x: x[0]), "state.B is no finite matrix"),
    "more tensors": (lambda t, f: (t | {"strange": torch.ones(1)}, f), "strange"),
    "head lost": (lost("head"), "'head'"),
    "head of the wrong kind": (facts(head=3), "damaged"),
    "head elsewhere": (facts(head="7"), "7"),
    "method lost": (lost("method"), "'method'"),
    "method unknown": (facts(method="magic"), "method must be one of"),
    "method of another state": (facts(method="thinkback"), "state.inverse"),
    "options a list": (facts(options=[1]), "damaged"),
    "options wrong": (facts(options={"temperature": -1}), "temperature must be"),
    "model lost": (lost("model"), "fitted on arrays"),
    "model no mapping": (facts(model=[1]), "damaged"),
    "model cut": (facts(model={"0.weight": ["[8, 6]"]}), "of its tensors are not in both"),
    "no JSON": (text("{x"), "no JSON"),
    "null": (text("null"), "format unknown"),
    "a list": (text("[3]"), "format unknown"),
    "deep JSON": (text("[" * 200_000), "no JSON"),
    "no facts": (text(None), "something else"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_error_that_names_it(damage, path):
    change, message = DAMAGE[damage]
    tensors, facts = change(*parts(path))
    said = facts if isinstance(facts, str | None) else json.dumps(facts)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, None if said is None else {"thinkback_detector": said})
    with refused(r"d\.safetensors") as error:
        OODDetector.load(path, net()).score(X)
    assert message in str(error.value)


def test_a_file_cut_short_is_named(path):
    path.write_bytes(path.read_bytes()[:200])
    with refused(r"d\.safetensors is cut short or no safetensors file"):
        OODDetector.load(path, net())


def test_everything_else_survives_a_file(tmp_path):
    way = {"mean": [0.5] * 3, "std": [0.25] * 3}
    images = torch.randint(256, (60, 3, 16, 16), generator=GENERATOR).byte()
    model = WideResNet(10, 1).eval()
    groups = ["a", "b"] * 30
    for by in (None, "predicted", groups):  # groups of which few are predicted raise no alarm
        said = OODDetector(model, method="energy", **way)
        said.calibrate(images, 0.2, by=by, few="accept")
        said.save(tmp_path / "d")
        again = OODDetector.load(tmp_path / "d", model)
        asked = groups if by is groups else None
        assert torch.equal(again.predict(images, asked), said.predict(images, asked))
        assert torch.equal(again.p_value(images, asked), said.p_value(images, asked))
        assert again.pixels == said.pixels
    with refused("calibrated by group; pass the groups of these images"):
        again.predict(images)
    with refused(r"not calibrated by group; calibrate\(images, by=groups\) does"):
        OODDetector(model, method="energy").calibrate(images, 0.2).predict(images, groups)


def test_arrays_without_a_model(tmp_path):
    model = net()
    h, z = model[:3](X).detach(), model(X).detach()
    said = OODDetector(model).fit(X).calibrate(X, alpha=0.1)
    plain = OODDetector().fit((h, z)).calibrate([(h[:50], z[:50]), (h[50:], z[50:])], alpha=0.1)
    for pair in ((h, z), (h.numpy(), z.numpy()), Features(h, z), [(h, z)]):
        torch.testing.assert_close(plain.score(pair), said.score(X))
        assert torch.equal(plain.predict(pair), said.predict(X))
    plain.save(tmp_path / "d")
    assert torch.equal(OODDetector.load(tmp_path / "d").score((h, z)), plain.score((h, z)))
    with refused("fitted on arrays, without a model"):
        OODDetector.load(tmp_path / "d", model)
    with refused(r"without a model, give a pair \(features, logits\), got Tensor"):
        plain.score(h)
    with refused(r"features \(200, 8\) and logits \(100, 4\) disagree on N"):
        plain.score((h, z[:100]))
    with refused("a graph holds the model"):
        plain.exported(X)


def test_thresholds_of_ones_own_and_other_promises(tmp_path):
    detector = OODDetector(net(), method="energy")
    detector.threshold = -3.0
    assert torch.equal(detector.predict(X), detector.score(X) >= -3)
    with refused("set by hand and there are no calibration scores"):
        detector.p_value(X)
    assert detector.assess(X).p_value is None
    detector.save(tmp_path / "d")
    assert OODDetector.load(tmp_path / "d", net()).threshold == -3.0
    detector.calibrate(X, alpha=0.1)
    at_ten, scores = detector.threshold, detector.score(X)
    assert detector.recalibrate(0.05).threshold == Calibration.of(scores, 0.05).threshold > at_ten
    p = detector.p_value(X)
    detector.threshold = 0.0
    assert torch.equal(detector.p_value(X), p)  # the scores are still known
    verdicts = detector.assess(X)
    assert torch.equal(verdicts.score, scores)
    assert torch.equal(verdicts.predicted, net()(X).argmax(1))
    assert torch.equal(verdicts.rejected, scores >= 0)


@pytest.mark.parametrize("alpha", [torch.zeros(3), [0.1], "0.1", None])
def test_labels_in_the_place_of_alpha_are_named(alpha):
    with refused(r"alpha is a rate of false alarms, got .* by=labels calibrates by group"):
        OODDetector(net(), method="msp").calibrate(X, alpha)
