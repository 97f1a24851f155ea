"""Each network takes one way over the images, in pieces, and is told by its scores."""

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from experiments import networks, published
from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.networks import NETWORKS, Network, Normalized, Pass, Rules
from experiments.run import Run
from thinkback_utils.features import Bundle, extract
from thinkback_utils.files import read_json, write_json
from thinkback_utils.gradients import gradients
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 24, "cifar10-test": 16, "svhn": 10, "places9_crop": 10}
pytestmark = pytest.mark.filterwarnings("ignore:thinkback. the AUROC is")  # of a few images
COUNTS = ["--n-fit", "12", "--n-id", "8", "--n-ood", "5", "--device", "cpu"]
SETS = ["--sets", "svhn", "places9_crop"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data root, the weights of a tiny network, and a DenseNet that nobody trained."""
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    torch.manual_seed(0)
    WideResNet(depth=10, width=1).save(tmp_path / "results/small/seed0/weights.safetensors")
    tensors = {k: v for k, v in published.DenseNet().state_dict().items() if v.ndim}
    save_file(tensors, tmp_path / f"{published.DENSENET}.safetensors")
    small = Network("small", "Small", "small/seed0")
    foreign = NETWORKS[published.DENSENET]
    for table in ("NETWORKS", "KNOWN"):
        monkeypatch.setattr(networks, table, {"small": small, foreign.name: foreign})
    return tmp_path


def run(place, *names):
    where = ["--results", str(place / "results"), "--work", str(place / "work")]
    networks.main([*where, "--published", str(place), *COUNTS, *SETS, "--only", *names])


def test_one_command_scores_every_network_on_the_same_images(place, capsys):
    run(place, "small", published.DENSENET)
    scored = networks.scores_of(place / "results")
    assert list(scored) == ["small", published.DENSENET]
    for own in scored.values():
        assert {name: len(row["energy"]) for name, row in own.items()} == {
            ID_TEST: 8,
            "svhn": 5,
            "places9_crop": 5,
        }
        assert {*networks.METHODS, "reading_C", "reading_D", "reading_E"} <= own[ID_TEST].keys()
        assert all(np.isfinite(v).all() for row in own.values() for v in row.values())
    folder = place / "results" / published.DENSENET / "seed0"
    facts = read_json(folder / "readings.json")
    assert facts["layers"] == {
        "C": "network.fc",
        "D": "network.bn1",
        "E": "network.block3.layer.15.conv2",
    }
    assert (facts["features"], facts["rules"]["n_fit"]) == (342, 12)
    assert "committed" in facts["sealed"]
    for key in ("command", "commit", "started", "device", "weights_sha256", "images_sha256"):
        assert facts[key]
    assert not list((place / "results").rglob("*.safetensors"))[1:]  # no weights of others
    bundle = Bundle.load(place / "work" / f"{published.DENSENET}.npz")
    assert bundle.weight.shape == (10, 342)
    records = networks.load(place / "results")
    assert {(r["network"], r["title"]) for r in records} == {
        ("small", "Small"),
        (published.DENSENET, "DenseNet"),
    }
    assert "Small: energy" in capsys.readouterr().out


def test_features_and_gradients_are_those_of_two_separate_passes(place):
    run(place, "small")
    seen = networks.from_pieces(place / "work" / "small")
    model = networks.NETWORKS["small"].model(place / "results", torch.device("cpu"))
    images = {n: networks.image_set(n).images for n in (ID_TRAIN, "svhn")}
    train = images[ID_TRAIN][::2]  # twelve of 24
    torch.testing.assert_close(seen.features[ID_TRAIN].features, extract(model, train).features)
    for reading in networks.LAYERS:
        fit, new = (
            gradients(model.double(), x.double() / 255, [reading])[reading].square()
            for x in (train, images["svhn"][::2])
        )
        expected = (new / (1e-16 + fit.mean(0))).sum(1)
        np.testing.assert_allclose(seen.readings[f"svhn.{reading}_eq6"], expected, rtol=2e-3)


def test_a_killed_pass_goes_on_and_other_rules_start_again(place, monkeypatch):
    run(place, "small")
    first = networks.scores_of(place / "results")["small"]
    work = place / "work" / "small"
    (work / "svhn.00.npz").unlink()  # as a kill would leave it
    done, original = [], Pass.stream
    monkeypatch.setattr(
        Pass, "stream", lambda self, x, title: (done.append(title), original(self, x, title))[1]
    )
    run(place, "small")
    assert done == ["svhn.00"]
    again = networks.scores_of(place / "results")["small"]
    for name, row in first.items():
        for method, values in row.items():
            np.testing.assert_allclose(again[name][method], values, rtol=1e-5)
    model = networks.NETWORKS["small"].model(place / "results", torch.device("cpu"))
    Pass(model, work, Rules(n_fit=11), {})
    assert not list(work.glob("*.npz"))


def test_a_finished_run_lends_its_features_and_readings():
    """Of this book's network: no image is read again, and both come from the same images."""
    here = NETWORKS["wrn40-2"].run("results")
    if not (here.folder / "readings.npz").exists():
        pytest.skip("run in the repository's root")
    seen, kept = networks.from_run(here), here.scores("readings.npz")
    rows = networks.evenly(10_000, 5_000)
    for method in ("energy", "msp"):  # neither fits anything
        np.testing.assert_allclose(
            kept[ID_TEST][method], here.scores()[ID_TEST][method][rows], rtol=1e-5
        )
    np.testing.assert_array_equal(kept["svhn"]["reading_E"], seen.readings["svhn.E_eq6"])


def test_pixels_are_normalised_before_the_network():
    model = Normalized(torch.nn.Flatten(), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    found = model(torch.full((1, 3, 1, 1), 0.5))
    assert found.tolist() == [[0.0, 1.0, 0.5]]


def test_features_come_from_the_finished_run_or_from_the_work_folder(place):
    network = networks.NETWORKS["small"]
    with pytest.raises(FileNotFoundError, match=r"thinkback: no features of Small .*--only small"):
        network.bundle(place / "results", place / "work")
    run(place, "small")
    found = network.bundle(place / "results", place / "work")
    assert len(found.sets["svhn"]) == 5
    run_folder = network.run(place / "results").folder
    (place / "work" / "small.npz").rename(run_folder / "bundle.npz")
    again = network.bundle(place / "results", place / "work")
    torch.testing.assert_close(again.sets["svhn"].logits, found.sets["svhn"].logits)


def test_the_interval_over_networks_is_students():
    values = [0.9, 0.92, 0.97, 0.93]
    mean, low, high = networks.over_networks(values)
    half = 3.182446 * np.std(values, ddof=1) / 2
    assert (mean, low, high) == pytest.approx((0.93, 0.93 - half, 0.93 + half))
    assert np.isnan(networks.over_networks([0.9])[1:]).all()


def test_records_have_the_aupr_at_both_mixes():
    noise = np.random.default_rng(0)
    scored = {
        name: {m: noise.normal(far, 1, 200) for m in ("msp", "energy", "reading_E")}
        for name, far in ((ID_TEST, 0), ("svhn", 1))
    }
    for row in networks.records_of(scored, resamples=20):
        assert row["aupr_even"] > row["aupr"]
        assert (
            row["interval95"]["aupr_even"][0] < row["aupr_even"] < row["interval95"]["aupr_even"][1]
        )
    assert {"minus_msp", "minus_energy"} <= row.keys()


def test_the_others_are_all_but_the_run(tmp_path):
    rows = [
        {"network": name, "title": network.title, "set": "mean"}
        for name, network in NETWORKS.items()
    ]
    write_json(tmp_path / "networks.json", {"records": rows})
    assert list(networks.others(Run.at(tmp_path))) == ["WRN-16-2", "DenseNet"]
    assert networks.others(Run.at(tmp_path / "elsewhere")) == {}
