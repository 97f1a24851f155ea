"""The detector: its promise by simulation, its numbers against the scores, its file, errors."""

import gc
import json
import math
import re
import weakref

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from tiny import eye
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thinkback_utils import scores
from thinkback_utils.data import ImageSet, import_torchvision
from thinkback_utils.detector import OODDetector, conformal_threshold
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher
from thinkback_utils.methods import METHODS

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(400, 6, generator=GENERATOR)
FIT, HELD, NEW = X[:200], X[200:300], X[300:]


class Net(nn.Module):
    """Features are the input, logits its first four entries: every class occurs."""

    def __init__(self, classes=4, width=6):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        self.fc = nn.Linear(width, classes, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, x):
        h = self.trunk(x)
        return {"logits": self.fc(h), "features": h}


def calibrated(method="thinkback", **options):
    return OODDetector(Net(), method=method, **options).fit(FIT).calibrate(HELD)


@pytest.mark.parametrize("method", ["thinkback", "energy"])
def test_the_promise_holds_through_the_whole_detector(method):
    population, rates = torch.rand(4000, 6, generator=GENERATOR), []
    detector = OODDetector(Net(), method=method, batch_size=1000).fit(FIT)
    for draw in range(40):
        order = torch.randperm(4000, generator=torch.Generator().manual_seed(draw))
        detector.calibrate(population[order[:99]], alpha=0.1)
        rates.append(float(detector.predict(population[order[99:2000]]).double().mean()))
    error = 5 * np.std(rates) / math.sqrt(len(rates))
    assert 0.09 - error < np.mean(rates) < 0.1 + error


def oracle(method, x):
    """The same score, from the whole fit set at once and the functions by hand."""
    with torch.no_grad():
        (h, z), (g, y) = ((v.float(), v[:, :4].float()) for v in (x, FIT))

    def u(v):
        return v.double() / v.double().norm(dim=1, keepdim=True)

    A, B = KroneckerFisher(3.0, bias=True).update(u(g), y).inverse_root(0.1)
    labels = scores.label_distances(A), B
    full, kronecker = (F(5.0).update(g, y).inverse_root() for F in (FullFisher, KroneckerFisher))
    return {
        "thinkback": lambda: scores.thinkback(h, z, DiagonalFisher(5.0).update(g, y).compute()),
        "thinkback_full": lambda: scores.thinkback_full(h, z, full),
        "thinkback_kronecker": lambda: scores.thinkback_kronecker(h, z, kronecker),
        "thinkback_averaged": lambda: scores.thinkback_averaged(u(h), z, labels, 3.0),
        "thinkback_eq5": lambda: scores.thinkback(h, z),
        "gradnorm": lambda: scores.gradnorm(h, z),
        "energy": lambda: scores.energy(z),
        "msp": lambda: scores.msp(z),
        "joint_energy": lambda: scores.joint_energy(z),
        "max_logit": lambda: scores.max_logit(z),
    }[method]()


@pytest.mark.parametrize("method", METHODS)
def test_fit_in_batches_is_the_plain_functions_on_all_data(method, tmp_path):
    detector = OODDetector(Net(), method=method, batch_size=7).fit(FIT).calibrate(HELD)
    ours = detector.score(NEW)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours, oracle(method, NEW), rtol=1e-8)
    detector.save(tmp_path / "detector")
    again = OODDetector.load(tmp_path / "detector", Net())
    again.batch_size = 7
    assert torch.equal(again.score(NEW), ours)


def test_options_reach_the_score():
    def fitted(method, **options):
        detector = OODDetector(Net(), method=method, temperature=2.0, damping=0.1, **options)
        return detector.fit(FIT).score(NEW)

    fisher = DiagonalFisher(2.0).update(FIT, FIT[:, :4]).compute()
    expected = scores.thinkback(NEW, NEW[:, :4], fisher, 2.0, 1e-3, 0.1)
    np.testing.assert_allclose(fitted("thinkback", eps=1e-3), expected, rtol=1e-9)
    root = FullFisher(2.0).update(FIT, FIT[:, :4]).inverse_root(0.1)
    expected = scores.thinkback_full(NEW, NEW[:, :4], root, 2.0)
    np.testing.assert_allclose(fitted("thinkback_full"), expected, rtol=1e-9)
    assert OODDetector(Net(), temperature=None).options == OODDetector(Net()).options


def test_every_form_of_images_gives_the_same():
    loader = DataLoader(TensorDataset(FIT, torch.zeros(200).long()), batch_size=64)
    expected = OODDetector(Net()).fit(FIT).score(NEW)
    for images in (FIT.numpy(), loader, (x for x in FIT.split(50)), ImageSet(FIT, None)):
        torch.testing.assert_close(OODDetector(Net()).fit(images).score(NEW), expected)


def test_fit_keeps_no_batch():
    """The generator sees its own batches die: memory is flat in N."""
    alive = []

    def batches():
        for _ in range(10):
            x = torch.rand(20, 6, generator=GENERATOR)
            alive.append(weakref.ref(x))
            yield x

    detector = OODDetector(Net(), method="thinkback").fit(batches())
    gc.collect()
    assert not any(ref() is not None for ref in alive)
    assert [tuple(part.shape) for part in detector.state] == [(4, 6)]


def test_head_is_found_once_and_then_hooked_alone():
    last = nn.Linear(5, 3, bias=False)
    net = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 5), last)
    detector = OODDetector(net, method="msp")
    detector.score(NEW)
    assert detector.head == "3"
    assert not any(module._forward_hooks for module in net.modules())
    alone = OODDetector(nn.Linear(6, 3), method="msp")  # the model is its own head
    assert alone.calibrate(HELD).head == ""
    with refused(r"is returned by the model; name the head"):
        OODDetector(nn.Sequential(nn.Linear(6, 3), nn.Tanh()), method="msp").score(NEW)


def test_model_is_given_back_in_training_mode():
    net = Net().train()
    detector = OODDetector(net).fit(FIT).calibrate(HELD)
    assert torch.equal(detector.score(NEW), detector.score(NEW))  # dropout was off
    assert net.training
    assert net.trunk[1].training
    with pytest.raises(RuntimeError):
        detector.score(torch.rand(2, 9))
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_half_precision_model_scores_in_float64(tmp_path):
    images = (255 * X).byte()
    exact = OODDetector(Net()).fit(images[:200]).calibrate(images[200:300])
    half = OODDetector(Net().bfloat16()).fit(images[:200])
    assert half.score(images[300:]).dtype == torch.float64
    np.testing.assert_allclose(half.score(images[300:]), exact.score(images[300:]), rtol=0.05)
    exact.save(tmp_path / "detector")
    again = OODDetector.load(tmp_path / "detector", Net().bfloat16())
    np.testing.assert_allclose(again.score(images), exact.score(images), rtol=0.05)


def test_a_class_never_predicted_is_a_warning_and_its_inputs_score_far_out():
    few = FIT.clone()
    few[:, 3] *= 0.01
    words = "never predicted on the fit data: 3; .*Fit on data of every class"
    with pytest.warns(UserWarning, match=words) as caught:
        detector = OODDetector(Net(), temperature=0.2).fit(few)
    assert caught[0].filename == __file__
    new = X[200:].clone()
    new[:, 3] *= 0.01
    usual, unseen = detector.score(new), detector.score(X[200:][X[200:, :4].argmax(1) == 3])
    # E is not zero there: small probabilities of the class are squared in it
    assert detector.state[0][3].max() < 1e16
    assert unseen.median() > 5 * usual.quantile(0.95)
    detector.calibrate(X[200:300], alpha=0.1)  # calibration data that holds them keeps the promise
    assert detector.predict(NEW).double().mean() < 0.2


def test_a_silent_feature_is_a_warning_that_damping_answers():
    silent = FIT.clone()
    silent[:, 5] = 0
    with pytest.warns(UserWarning, match=r"features that are 0 in all fit data: 5; .*Set damping"):
        detector = OODDetector(Net(), method="thinkback").fit(silent)
    assert detector.score(NEW).median() > 1e6 * detector.score(silent).median()
    damped = OODDetector(Net(), method="thinkback", damping=1e-3).fit(silent)
    assert damped.score(NEW).median() < 1e4
    with pytest.warns(UserWarning, match=r"on the fit data: 1, 2, 3, 4, 5 and 2 more; "):
        OODDetector(eye(8), damping=1e-3).fit(torch.eye(8)[:1] + 0.1)


def test_fitting_again_voids_the_calibration():
    detector = calibrated()
    detector.fit(FIT[:150])
    with refused("not calibrated"):
        detector.predict(NEW)


def test_file_round_trip_is_exact(tmp_path):
    path = tmp_path / "deep" / "detector.safetensors"
    detector = calibrated(damping=1e-3)
    detector.save(path)
    again = OODDetector.load(path, Net())
    for name in ("score", "p_value", "predict"):
        assert torch.equal(getattr(again, name)(NEW), getattr(detector, name)(NEW))
    assert (again.threshold, again.options) == (detector.threshold, detector.options)
    assert again.head == "fc"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first
    OODDetector(Net()).fit(FIT).save(path)
    with refused("not calibrated"):
        OODDetector.load(path, Net()).predict(NEW)


def test_files_and_models_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "detector"
    with refused("no detector at", FileNotFoundError):
        OODDetector.load(path, Net())
    path.write_bytes(b"text")
    with refused("is cut short or no safetensors file"):
        OODDetector.load(path, Net())
    save_file({"w": torch.ones(1)}, path)
    with refused("has format of something else, this version reads 3"):
        OODDetector.load(path, Net())
    save_file({"w": torch.ones(1)}, path, {"thinkback_detector": json.dumps({"format": 2})})
    with refused("has format 2, this version reads 3; fit again"):
        OODDetector.load(path, Net())
    calibrated().save(path)
    for other, got in ((Net(classes=5), [5, 6]), (Net(width=7), [4, 7])):
        with refused(re.escape(f"'weight' has shape {got}, not [4, 6]")):
            OODDetector.load(path, other)
    with refused("1 of its tensors are not in both, 'bias' is in the given model"):
        OODDetector.load(path, nn.Linear(6, 4))
    retrained = Net()
    nn.init.normal_(retrained.fc.weight)
    with refused(r"'weight' has other values; load that one, or fit again"):
        OODDetector.load(path, retrained)
    with refused(r"detector: the detector was fitted on a model; load\(path, model\)"):
        OODDetector.load(path)


def test_wrong_use_is_named():
    with refused("not fitted; call fit"):
        OODDetector(Net()).score(NEW)
    with refused("not fitted; call fit"):
        OODDetector(Net()).calibrate(HELD)
    with refused("not calibrated; call calibrate"):
        OODDetector(Net()).fit(FIT).p_value(NEW)
    with refused("not fitted; call fit"):
        OODDetector(Net()).save("nowhere")
    used = iter(FIT.split(100))
    detector = OODDetector(Net()).fit(used)
    for read in (OODDetector(Net()).fit, detector.score, detector.calibrate):
        for empty in (used, [], torch.zeros(0, 6)):
            with refused("images is empty; was a generator read before"):
                read(empty)
    with refused(r"images holds nan at \(0, 0\) of a batch"):
        detector.score(NEW[:1] * math.nan)
    with refused("2 of 30 calibration scores are not finite"):
        conformal_threshold(torch.tensor([0.0] * 28 + [math.nan, math.inf]).double())


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 5, math.nan])
def test_alpha_and_delta_are_fractions(value):
    for fractions in ({"alpha": value}, {"alpha": 0.1, "delta": value}):
        with refused(f"must lie between 0 and 1, got {value}"):
            # before any image is read
            OODDetector(Net(), method="msp").calibrate(iter([]), **fractions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "softmax"}, r"method must be one of \['energy', .*got 'softmax'"),
        ({"method": "energy", "damping": 0.1}, r"options \['temperature'\], not 'damping'"),
        ({"temperature": 0}, "finite and not negative, a temperature positive; got 0"),
        ({"damping": -1.0}, "damping must be finite .* got -1.0"),
        ({"method": "thinkback", "eps": math.nan}, "eps must be finite .* got nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with refused(message):
        OODDetector(Net(), **arguments)


# an untrained network predicts a few classes alone
@pytest.mark.filterwarnings("ignore:thinkback. classes never predicted")
def test_ten_lines_from_nothing(tmp_path):
    images = torch.randint(256, (120, 3, 32, 32), generator=GENERATOR).byte()
    model = import_torchvision().models.resnet18(num_classes=10)
    detector = OODDetector(model, damping=1e-3).fit(images[:60])
    detector.calibrate(images[60:100], alpha=0.1).save(tmp_path / "detector.safetensors")
    served = OODDetector.load(tmp_path / "detector.safetensors", model)
    alarms = served.predict(images[100:])
    assert alarms.shape == (20,)
    assert alarms.dtype == torch.bool
    assert torch.equal(alarms, served.p_value(images[100:]) <= 0.1)
