"""Every score has as many settings; shared computations give what one setting alone gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import make_features

from experiments import development, networks, peers, tuning
from experiments.evaluation import ID_TEST
from experiments.peers import PEERS
from experiments.run import Run
from experiments.tuning import CHOICE, PUBLISHED, TUNED
from thinkback_utils import metrics
from thinkback_utils.features import Bundle
from thinkback_utils.methods import METHODS

RESULTS = Path(__file__).parents[1] / "results"
N = 1500


@pytest.fixture(scope="module")
def world():
    """A last layer, training features that it classifies well, and others."""
    layer, made = make_features()
    return layer, made(N, 4.0), {"a": made(50, 2.0), "b": made(40, 0.5)}


def test_every_score_has_as_many_settings_or_none():
    counts = {name: len(tuned.settings) for name, tuned in TUNED.items()}
    assert set(counts.values()) == {1, tuning.COUNT}
    noted = {"fitted on", "layers"}  # what there was to choose, and no number
    free = {name for name, p in PEERS.items() if set(p.settings) - noted and p.reads != "images"}
    without = {name for name, count in counts.items() if count == 1}
    assert without.isdisjoint(free)
    assert set(PEERS) - set(TUNED) == {"odin", "openmax"}
    for tuned in TUNED.values():
        assert len({tuple(s.items()) for s in tuned.settings}) == len(tuned.settings)


@pytest.mark.parametrize("name", TUNED)
def test_settings_together_are_settings_alone(name, world):
    layer, fit, sets = world
    settings = TUNED[name].settings
    together = TUNED[name].score(layer, fit, sets, settings)
    assert {n: tuple(v.shape) for n, v in together.items()} == {
        n: (len(x), len(settings)) for n, x in sets.items()
    }
    last = TUNED[name].score(layer, fit, sets, settings[-1:])
    for n, value in together.items():
        torch.testing.assert_close(value[:, -1:], last[n], rtol=1e-5, atol=1e-6)
    if len(settings) > 1:  # and they do differ
        assert not torch.equal(together["a"][:, 0], together["a"][:, -1])


@pytest.mark.parametrize("name", [n for n in TUNED if n in PEERS])
def test_the_published_setting_is_that_of_the_peer(name, world):
    layer, fit, sets = world
    value = TUNED[name].score(layer, fit, sets, [PUBLISHED.get(name, {})])["a"][:, 0].double()
    expected = PEERS[name](PEERS[name].fit(layer, fit), sets["a"]).double()
    if name in ("mahalanobis", "mahalanobis_pp", "rmds", "rmds_pp"):
        # the package does not divide by N, and halves one
        expected = expected * N * (2 if "mahalanobis" in name else 1)
    torch.testing.assert_close(value, expected, rtol=5e-3, atol=2e-3)


def test_our_forms_are_the_family_and_the_default(world):
    layer, fit, sets = world
    setting = {"temperature": 3.0, "damping": 0.1}
    value = TUNED["averaged"].score(layer, fit, sets, [setting])["a"][:, 0]
    method = METHODS["thinkback_averaged"]
    state = method.fit([(fit.features, fit.logits)], **setting)
    expected = method(sets["a"].features, sets["a"].logits, state, **setting)
    torch.testing.assert_close(value / 9, expected, rtol=1e-6, atol=0)


def test_the_best_figure_of_each_score_wins():
    records = [
        {"network": "n", "score": "msp", "setting": i, "far": far, "near": near}
        for i, (far, near) in enumerate([(0.8, 0.6), (0.7, 0.75), (0.75, 0.7)])
    ]
    found = tuning.choices([*records, *({**r, "score": "pnml"} for r in records[:1])])
    assert found["msp"]["index"] == 1  # the first of equals
    assert found["msp"]["setting"] == {"t": 1.5}
    assert found["pnml"]["setting"] == {}


@pytest.fixture(scope="module")
def scored():
    random = np.random.default_rng(0)

    def sets(shift):
        return {
            ID_TEST: random.normal(size=400),
            "svhn": random.normal(shift, size=300),
            "textures10": random.normal(shift / 2, size=100),
            "cifar100": random.normal(0.3, size=200),
        }

    a, b = sets(2.0), sets(1.0)
    return {n: {CHOICE: a[n] + b[n], "other": b[n]} for n in a}


def test_compare_is_auroc_and_its_paired_difference(scored):
    found = {record["score"]: record for record in tuning.compare(scored)}
    ids = scored[ID_TEST]["other"]
    expected = [
        roc_auc_score([0] * 400 + [1] * len(v["other"]), np.concatenate([ids, v["other"]]))
        for n, v in scored.items()
        if n in ("svhn", "textures10")
    ]
    assert found["other"]["far"] == pytest.approx(np.mean(expected))
    value, low, high = found["other"]["ahead_far"]
    assert value == pytest.approx(found[CHOICE]["far"] - found["other"]["far"])
    assert low < value < high
    assert found[CHOICE]["ahead_near"] == (0.0, 0.0, 0.0)


def test_the_interval_of_a_difference_is_that_of_the_bootstrap(scored):
    drawn = []
    for name in (CHOICE, "other"):
        per_set = [
            metrics.resampled(scored[ID_TEST][name], scored[n][name], 1 / 6, 1000, seed=1)
            for n in ("svhn", "textures10")
        ]
        drawn.append(np.mean(per_set, axis=0))
    low, high = metrics.interval95(drawn[0] - drawn[1])["auroc"]
    found = tuning.difference(scored, CHOICE, "other", ["svhn", "textures10"])
    assert found[1:] == pytest.approx((low, high), abs=0.15 * (high - low))


def test_two_draws_of_the_same_photos_count_as_one_source(scored, monkeypatch):
    apart = tuning.difference(scored, CHOICE, "other", ["svhn", "textures10"])
    monkeypatch.setattr(tuning, "SAME_PHOTOS", {"svhn": "x", "textures10": "x"})
    together = tuning.difference(scored, CHOICE, "other", ["svhn", "textures10"])
    assert together[0] == apart[0]
    assert together[2] - together[1] > apart[2] - apart[1]


def test_one_command_scores_the_suite_with_what_was_tuned(world, tmp_path, monkeypatch):
    layer, fit, sets = world
    few = {name: TUNED[name] for name in ("msp", "pnml", "averaged")}
    monkeypatch.setattr(tuning, "TUNED", few)
    dev = {development.FITTED: fit, "held_out": sets["a"], "hidden": sets["b"]}
    dev |= {kind: sets["b"] for kinds in development.GROUPS.values() for kind in kinds}
    here = Run(tmp_path / "development" / "one")
    here.folder.mkdir(parents=True)
    Bundle(dev, layer.weight, layer.bias).save(here.folder / "bundle.npz")
    tuning.run(tmp_path, ["one"])
    suite = {"cifar10-train": fit, ID_TEST: sets["a"], "svhn": sets["b"], "cifar100": sets["b"]}
    network = networks.Network("net", "Net", "net/seed0")
    monkeypatch.setattr(networks, "NETWORKS", {"net": network})
    net = network.run(tmp_path)
    net.folder.mkdir(parents=True)
    net.weights.write_bytes(b"weights")
    Bundle(suite, layer.weight, layer.bias).save(net.folder / "bundle.npz")
    tuning.main(["--results", str(tmp_path), "--suite", "net"])
    record = peers.read_json(net.folder / "tuned.json")
    assert {r["score"] for r in record["tuned"]} == {*few, CHOICE}
    assert {r["score"] for r in record["published"]} == {"msp", "pnml", CHOICE}
    kept = net.scores("tuned.npz")
    made = tuning._ours("", "averaged").score(
        layer, fit, {"svhn": sets["b"]}, [{"temperature": 3.0, "damping": 0.1}]
    )
    np.testing.assert_allclose(kept["svhn"][f"{CHOICE}-tuned"], made["svhn"][:, 0], rtol=5e-3)


@pytest.mark.skipif(
    not (RESULTS / "development" / "tuned.json").exists(), reason="nothing has been tuned"
)
def test_the_choices_on_file_are_the_rules():
    kept = tuning.read(RESULTS)
    again = tuning.choices(kept["records"])
    assert {n: c["index"] for n, c in kept["choice"].items()} == {
        n: c["index"] for n, c in again.items()
    }
