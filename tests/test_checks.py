"""What looks wrong in fit data is said, and what looks right is not."""

import copy
import warnings

import pytest
import torch
from refusals import refused
from tiny import eye
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thinkback_utils.checks import FitData
from thinkback_utils.detector import OODDetector

GENERATOR = torch.Generator().manual_seed(0)


def remarks(z, labels=None, features=None):
    seen = FitData()
    for part in (slice(0, 300), slice(300, None)):  # in batches
        y = None if labels is None else labels[part]
        seen.update(torch.ones(len(z), 2)[part] if features is None else features[part], z[part], y)
    return " ".join(seen.remarks())


def trained_logits(n=2000, classes=5):
    """As of a trained network: sure and mostly right, 3 % of doubt."""
    y = torch.arange(n) % classes
    z = torch.randn(n, classes, generator=GENERATOR)
    z[torch.arange(n), y] += torch.where(torch.rand(n, generator=GENERATOR) < 0.03, 0.5, 9.0)
    return z, y


def test_a_trained_network_on_its_own_data_gets_no_remark():
    z, y = trained_logits()
    assert remarks(z) == remarks(z, y) == ""
    assert remarks(z + 20, y) == ""  # a softmax knows no common offset
    assert remarks(*trained_logits(classes=2)) == ""


def test_independent_sigmoids_are_seen_and_a_softmax_is_not_taken_for_them():
    y = (torch.rand(2000, 5, generator=GENERATOR) < 0.5).float()
    z = 8 * (2 * y - 1) + torch.randn(2000, 5, generator=GENERATOR)
    assert "independent sigmoids: in 79 %" in remarks(z)
    assert 'method="joint_energy"' in remarks(z)
    one = torch.eye(5)[torch.arange(2000) % 5]
    assert "sigmoids" not in remarks(16 * one - 8)  # one yes each: a softmax is as sure


def test_joint_energy_is_low_for_every_sure_answer_that_names_a_class():
    y = (torch.rand(2000, 5, generator=GENERATOR) < 0.5).float()
    z = 8 * (2 * y - 1) + torch.randn(2000, 5, generator=GENERATOR)
    net = eye(5)
    score, count = OODDetector(net, method="joint_energy").score(z), y.sum(1)
    doubt = OODDetector(net, method="joint_energy").score(torch.zeros(1, 5))
    assert (score[count > 0] < doubt).all()
    medians = [float(score[count == k].median()) for k in (1, 2, 3)]
    assert medians == sorted(medians, reverse=True)


def test_wrong_or_unsure_answers_are_named():
    z, y = trained_logits()
    assert "% of the labelled fit images" in remarks(z, (y + 1) % 5)
    assert "mean and std" in remarks(z, (y + 1) % 5)
    assert "right for" not in remarks(z, torch.full_like(y, -100))  # which is no class
    assert "hardly sure of any fit image: its mean confidence is 0.2" in remarks(0.02 * z)


def test_a_rare_class_is_named():
    y = torch.cat([torch.arange(8000) % 9, torch.full((5,), 9)])
    z = 9 * torch.eye(10)[y]
    assert "classes predicted for fewer than 20 of 8,005 fit images: 9" in remarks(z)
    assert "never predicted on the fit data: 9" in remarks(z[:8000])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    """A network whose BatchNorm has seen normalised images."""
    torch.manual_seed(0)
    net, pixels = Normed(), torch.rand(300, 3, 8, 8, generator=GENERATOR).mul(255).byte()
    with torch.no_grad():
        for part in pixels.split(20):
            net((part.float() / 255 - 0.5) / 0.25)
    return net.eval(), pixels


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return " ".join(str(item.message) for item in found)


def test_images_prepared_otherwise_than_in_training_are_seen_by_batchnorm(trained):
    net, pixels = trained
    told = "the first BatchNorm of the model sees other inputs than in its training"
    for wrong in (pixels, pixels.float(), DataLoader(TensorDataset(pixels / 255.0), 32)):
        assert told in caught(lambda wrong=wrong: OODDetector(net).fit(wrong))
    ways = {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert told not in caught(lambda: OODDetector(net, **ways).fit(pixels))
    assert told not in caught(lambda: OODDetector(net).fit((pixels / 255.0 - 0.5) / 0.25))
    fresh = Normed().eval()  # an untrained BatchNorm remembers nothing
    assert told not in caught(lambda: OODDetector(fresh).fit(pixels))
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_calibration_names_a_class_that_it_rejects_whole():
    torch.manual_seed(0)
    net = eye(4)
    y = torch.cat([torch.arange(3000) % 3, torch.full((5,), 3)])
    sure = torch.where(y == 3, 1.0, 9.0)[:, None]
    x = torch.rand(3005, 4, generator=GENERATOR) + sure * torch.eye(4)[y]
    detector = OODDetector(net, method="energy")
    words = r"takes for class 3 \(5 of 5\) are rejected; by=\"predicted\""
    with pytest.warns(UserWarning, match=words) as found:
        detector.calibrate(x, alpha=0.05)
    assert found[0].filename == __file__
    with refused(r"takes at least 19 calibration scores in each group; too few are in 3 \(5\)"):
        detector.calibrate(x, alpha=0.05, by="predicted")
    more = torch.cat([x, torch.rand(40, 4, generator=GENERATOR) + torch.eye(4)[3]])
    detector.calibrate(more, alpha=0.05, by="predicted")
    new = torch.rand(400, 4, generator=GENERATOR) + torch.eye(4)[3]
    own = new[net(new).argmax(1) == 3]
    assert 0 < detector.predict(own).double().mean() < 0.3  # one calibration set of 45
    assert copy.copy(detector).by_class


def test_a_network_that_is_certain_of_everything_is_named():
    net = eye(4)
    with refused(r"the network is certain of all of them, .*raise the temperature"):
        OODDetector(net).fit(1e6 * torch.eye(4).repeat(30, 1))
