"""Published detectors as wrapped here, against their papers' formulas; then one run."""

import sys
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import tiny
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from scipy.stats import entropy, weibull_min
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from torch import nn

from experiments import evaluation, peers
from experiments.peers import PEERS
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json
from thinkback_utils.methods import METHODS
from thinkback_utils.models import WideResNet

N, D, K = 2000, 16, 5
OF_FEATURES = [name for name, peer in PEERS.items() if peer.reads != "images"]


def made_up(layer, n, seed, far=False):
    """Activations as behind a ReLU around one direction per class; ``far``: short, along none."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    centers = 0.1 if far else 1 + 4 * torch.eye(D)[3 * y] + torch.eye(D)[3 * y + 1]
    h = (centers + 0.5 * torch.randn(n, D, generator=generator)).relu()
    return Features(h, layer(h), y)


@pytest.fixture(scope="module")
def world():
    """A last layer that reads these directions; training (some labels wrong), test and outliers."""
    layer = nn.Linear(D, K).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.eye(D)[::3][:K] + 0.1 * torch.randn(K, D, generator=generator))
    layer.bias.copy_(0.1 * torch.randn(K, generator=generator))
    train = made_up(layer, N, 1)
    train.labels[:40] = (train.labels[:40] + 1) % K
    return layer, train, made_up(layer, 300, 2), made_up(layer, 300, 3, far=True)


def scored(name, world, item=2):
    layer, train = world[:2]
    return PEERS[name](PEERS[name].fit(layer, train), world[item]).double().numpy()


def numpy_of(item):
    return item.features.double().numpy(), item.logits.double().numpy(), item.labels.numpy()


def of_classes(name, world):
    """Training and test features as the detector reads them, training labels, class means."""
    (h, _, y), (x, _, _) = numpy_of(world[1]), numpy_of(world[2])
    if name.endswith("_pp"):
        h, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (h, x))
    return h, x, y, np.stack([h[y == k].mean(0) for k in range(K)])


@pytest.mark.parametrize("name", OF_FEATURES)
def test_higher_is_more_ood(name, world):
    ids, oods = scored(name, world), scored(name, world, item=3)
    assert ids.shape == oods.shape == (300,)
    assert roc_auc_score([0] * 300 + [1] * 300, np.concatenate([ids, oods])) > 0.7


@pytest.mark.parametrize("name", ["msp", "max_logit", "energy", "gradnorm"])
def test_theirs_and_ours_agree(name, world):
    """GradNorm too, as it is: both take the mean over the uniform label's classes, and negate."""
    item = world[2]
    ours = METHODS[name](item.features, item.logits, ()).numpy()
    np.testing.assert_allclose(scored(name, world), ours, rtol=1e-5)


@pytest.mark.parametrize("name", ["mahalanobis", "mahalanobis_pp"])
def test_mahalanobis_is_the_distance_to_the_nearest_mean(name, world):
    h, x, y, means = of_classes(name, world)
    precision = EmpiricalCovariance(assume_centered=True).fit(h - means[y]).precision_
    squared = cdist(x, means, "mahalanobis", VI=precision).min(1) ** 2
    # The package does not divide by N.
    np.testing.assert_allclose(scored(name, world), squared / 2 / N, rtol=2e-3)


def test_mahalanobis_pp_does_not_see_the_length(world):
    layer, train, item, _ = world
    detector = PEERS["mahalanobis_pp"].fit(layer, train)
    longer = Features(item.features * torch.linspace(0.1, 10, 300)[:, None], item.logits)
    both = [PEERS["mahalanobis_pp"](detector, x) for x in (item, longer)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=0)


def test_knn_is_the_distance_to_the_fiftieth_neighbour(world):
    train, test = numpy_of(world[1])[0], numpy_of(world[2])[0]
    h, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, test))
    np.testing.assert_allclose(scored("knn", world), np.sort(cdist(x, h), 1)[:, 49], rtol=1e-4)


def test_vim_adds_the_residual_to_the_energy(world):
    layer, train, item, _ = world
    (h, z, _), (x, logits, _) = numpy_of(train), numpy_of(item)
    origin = -np.linalg.pinv(layer.weight.double().numpy()) @ layer.bias.double().numpy()
    minor = np.linalg.svd(h - origin, full_matrices=False)[2][D // 2 :].T
    alpha = z.max(1).mean() / np.linalg.norm((h - origin) @ minor, axis=1).mean()
    expected = alpha * np.linalg.norm((x - origin) @ minor, axis=1) - logsumexp(logits, 1)
    np.testing.assert_allclose(scored("vim", world), expected, atol=1e-3)


def shaped(name, h, train):
    """What ReAct, ASH-S and SCALE do to the activations, a sample at a time."""
    if name == "react":
        return np.minimum(h, np.percentile(train, 90))
    out, keep = [], D - round(D * {"ash": 0.9, "scale": 0.85}[name])
    for row in h:
        largest = np.sort(row)[-keep:]
        pruned = np.where(row >= largest[0], row, 0) if name == "ash" else row
        out.append(pruned * np.exp(row.sum() / largest.sum()))
    return np.stack(out)


@pytest.mark.parametrize("name", ["react", "ash", "scale"])
def test_shaped_activations_go_through_the_last_layer_to_the_energy(name, world):
    layer, train, item, _ = world
    W, b = layer.weight.double().numpy(), layer.bias.double().numpy()
    expected = -logsumexp(shaped(name, numpy_of(item)[0], numpy_of(train)[0]) @ W.T + b, 1)
    np.testing.assert_allclose(scored(name, world), expected, rtol=1e-5)


def test_dice_keeps_the_tenth_of_the_weights_that_contributes_most(world):
    layer, train, item, _ = world
    W, b = layer.weight.double().numpy(), layer.bias.double().numpy()
    contribution = W * numpy_of(train)[0].mean(0)
    kept = W * (contribution > np.quantile(contribution, 0.9))
    assert (kept != 0).sum() == K * D // 10
    expected = -logsumexp(numpy_of(item)[0] @ kept.T + b, 1)
    np.testing.assert_allclose(scored("dice", world), expected, rtol=1e-5)


def test_she_is_the_product_with_the_mean_of_what_was_classified_right(world):
    (h, z, y), (x, logits, _) = numpy_of(world[1]), numpy_of(world[2])
    means = np.stack([h[(y == k) & (z.argmax(1) == k)].mean(0) for k in range(K)])
    expected = -(x * means[logits.argmax(1)]).sum(1)
    np.testing.assert_allclose(scored("she", world), expected, rtol=1e-5)


def test_gen_and_kl_matching_are_their_formulas(world):
    (_, z, _), (_, logits, _) = numpy_of(world[1]), numpy_of(world[2])
    p, q = softmax(logits, 1).clip(1e-7, 1 - 1e-7), softmax(z, 1)
    expected = (p * (1 - p)) ** 0.1 @ np.full(K, 1 / K)
    np.testing.assert_allclose(scored("gen", world), expected, rtol=1e-3)
    typical = [q[q.argmax(1) == k].mean(0) for k in range(K)]
    expected = np.min([entropy(softmax(logits, 1), d, axis=1) for d in typical], axis=0)
    np.testing.assert_allclose(scored("kl_matching", world), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["rmds", "rmds_pp"])
def test_rmds_subtracts_the_distance_to_the_mean_of_all(name, world):
    h, x, y, means = of_classes(name, world)
    own = np.linalg.inv(np.cov((h - means[y]).T, bias=True))
    every = np.linalg.inv(np.cov(h.T, bias=True))
    squared = cdist(x, means, "mahalanobis", VI=own).min(1) ** 2
    squared -= cdist(x, h.mean(0)[None], "mahalanobis", VI=every)[:, 0] ** 2
    # The package does not divide by N.
    np.testing.assert_allclose(scored(name, world) * N, squared, rtol=2e-3, atol=2e-2)


def test_pnml_is_the_regret_of_directions(world):
    layer, (h, _, _), (x, _, _) = world[0], numpy_of(world[1]), numpy_of(world[2])
    h, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (h, x))
    p = softmax(x @ layer.weight.double().numpy().T + layer.bias.double().numpy(), 1)
    leverage = np.einsum("nd,de,ne->n", x, np.linalg.inv(h.T @ h), x)
    kappa = (leverage / (1 + leverage))[:, None]
    regret = np.log((p / (p + (1 - p) * p**kappa)).sum(1)) / np.log(K)
    np.testing.assert_allclose(scored("pnml", world), regret, rtol=1e-3, atol=1e-6)


def test_fdbd_is_the_mean_distance_to_the_decision_boundaries(world):
    layer, (h, _, _), (x, z, _) = world[0], numpy_of(world[1]), numpy_of(world[2])
    W, expected = layer.weight.double().numpy(), []
    for row, logits in zip(x, z, strict=True):
        top = logits.argmax()
        ways = [
            (logits[top] - logits[k]) / np.linalg.norm(W[top] - W[k]) for k in range(K) if k != top
        ]
        expected.append(-np.mean(ways) / np.linalg.norm(row - h.mean(0)))
    np.testing.assert_allclose(scored("fdbd", world), expected, rtol=1e-4)


def test_nnguide_is_energy_guided_by_ten_neighbours(world):
    (h, z, _), (x, logits, _) = numpy_of(world[1]), numpy_of(world[2])
    h, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (h, x))
    guided = np.sort(x @ (h * logsumexp(z, 1)[:, None]).T, 1)[:, -10:].mean(1)
    np.testing.assert_allclose(scored("nnguide", world), -guided * logsumexp(logits, 1), rtol=1e-4)


def test_nci_is_the_angle_to_the_weight_of_the_decision(world):
    layer, (h, _, _), (x, z, _) = world[0], numpy_of(world[1]), numpy_of(world[2])
    centered, w = x - h.mean(0), layer.weight.double().numpy()[z.argmax(1)]
    expected = -(centered * w).sum(1) / np.linalg.norm(centered, axis=1)
    np.testing.assert_allclose(scored("nci", world), expected, rtol=1e-3, atol=1e-5)
    with_length = PEERS["nci"].fit(*world[:2], alpha=0.1)
    found = PEERS["nci"](with_length, world[2]).numpy()
    np.testing.assert_allclose(found, expected - 0.1 * np.abs(x).sum(1), rtol=1e-3, atol=1e-4)


def test_vra_drops_small_activations_and_cuts_large_ones(world):
    layer, (h, _, _), (x, _, _) = world[0], numpy_of(world[1]), numpy_of(world[2])
    low, high = np.quantile(h, [0.5, 0.95])
    shaped = np.where(x < low, 0, np.minimum(x, high))
    W, b = layer.weight.double().numpy(), layer.bias.double().numpy()
    np.testing.assert_allclose(scored("vra", world), -logsumexp(shaped @ W.T + b, 1), rtol=1e-3)


def test_the_sum_adds_standardised_scores(world):
    layer, train, item, _ = world
    parts = []
    for name in ("energy", "mahalanobis_pp"):
        detector = PEERS[name].fit(layer, train)
        a, b = (PEERS[name](detector, x).double().numpy() for x in (train, item))
        parts.append((b - a.mean()) / a.std(ddof=1))
    np.testing.assert_allclose(
        scored("energy_mahalanobis_pp", world), parts[0] + parts[1], rtol=1e-2, atol=1e-2
    )


def test_gini_is_the_chance_that_two_labels_differ(world):
    p = softmax(numpy_of(world[2])[1], 1)
    np.testing.assert_allclose(scored("gini", world), 1 - (p**2).sum(1), rtol=1e-3, atol=1e-6)


def test_openmax_fits_the_tail_of_what_was_classified_right(world):
    """Activations are lowered by the Weibull probability of their distance, the best one most."""
    (_, z, y), (_, logits, _) = numpy_of(world[1]), numpy_of(world[2])
    outside = []
    for k in range(K):
        own = z[(y == k) & (z.argmax(1) == k)]
        tail = np.sort(np.linalg.norm(own - own.mean(0), axis=1))[-20:]
        shape, _, scale = weibull_min.fit(tail - tail[0] + 1e4, floc=0)
        away = np.linalg.norm(logits - own.mean(0), axis=1) - tail[0] + 1e4
        outside.append(weibull_min.cdf(away, shape, 0, scale))
    rank = (-logits).argsort(1).argsort(1)
    lowered = logits * np.stack(outside, 1) * (1 - rank / K)
    revised = np.column_stack([lowered.sum(1), logits - lowered])
    np.testing.assert_allclose(scored("openmax", world), softmax(revised, 1)[:, 0], atol=2e-3)


@pytest.mark.parametrize("name", PEERS)
def test_the_table_says_what_a_peer_is_and_needs(name, world):
    """Its source is the package's own; it works without the data that it says it does not need."""
    peer = PEERS[name]
    net = WideResNet(depth=10, width=1).eval()
    detector = peer.fit(*(world[:2] if peer.reads != "images" else (net, None)))
    if not hasattr(detector, "info"):  # of this book
        assert type(detector).__module__ == "experiments.detectors"
        return
    if not name.endswith("_pp"):
        assert peer.source.endswith(f", {detector.info.paper.venue} {detector.info.paper.year}")
    assert set(peer.needs) <= set(peers.NEEDS)
    assert ("images" in peer.needs) == (peer.reads == "images")
    assert detector.requires_fit == ("training data" in peer.needs)
    if detector.requires_fit:
        title = peer.title[1:].replace("+", ".")
        with pytest.raises(ValueError, match=f"^thinkback: .{title} is fitted on training"):
            peer.fit(world[0])
    for setting, (value, why) in peer.settings.items():
        assert why
        if hasattr(detector, setting) and name != "vim":
            assert getattr(detector, setting) == value


def test_odin_takes_one_signed_step_towards_its_own_decision():
    torch.manual_seed(0)
    net = WideResNet(depth=10, width=1).eval()
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    net.fc.weight.data *= 1000  # the temperature takes it back; steps are then far above rounding
    odin = PEERS["odin"]
    found = odin(odin.fit(net), images)
    x = (images.double() / 255).requires_grad_()
    net.double()
    p = (net(x) / 1000).log_softmax(1)
    p.amax(1).sum().backward()
    with torch.no_grad():
        expected = -(net(x + 0.0014 * x.grad.sign()) / 1000).softmax(1).amax(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert np.abs(found.numpy() + p.exp().amax(1).detach().numpy()).min() > 1e-4  # it did move


def test_bytes_are_what_a_detector_keeps_beside_the_network(world):
    layer, train = world[:2]
    kept = {
        name: peers.kept_bytes(PEERS[name].fit(layer, train), list(layer.parameters()))
        for name in ("energy", "gradnorm", "react", "dice", "mahalanobis", "knn")
    }
    floats = {"energy": 0, "gradnorm": 0, "react": 0, "dice": D + K * D}
    floats |= {"mahalanobis": K * D + 2 * D * D, "knn": N * D}
    assert kept == {name: 4 * count for name, count in floats.items()}
    two_views = [train.features, train.features.numpy()]
    assert peers.kept_bytes(two_views) == 4 * N * D  # of one array


def test_a_missing_package_is_named(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_ood.detector", None)
    command = r"`pip install 'thinkback-utils\[peers\]'`"
    with pytest.raises(ModuleNotFoundError, match=f"thinkback: .* {command}"):
        PEERS["energy"].fit(world[0])


SIZES = {"cifar10-train": 120, "cifar10-test": 60, "svhn": 30, "cifar100": 24}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few images and few resamples, so that a run takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "IMAGES_ID", 20)
        patch.setattr(peers, "IMAGES_OOD", 10)
        patch.setattr(peers, "table", partial(peers.table, resamples=20))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny network, and the images it names; the command has run on it."""
    root, sets = tmp_path_factory.mktemp("peers"), {}
    for name, size in SIZES.items():
        h = torch.randn(size, 64, generator=torch.Generator().manual_seed(size)).relu()
        h[:, :10] += 3 * torch.eye(10)[torch.arange(size) % 10]
        sets[name] = Features(h, h[:, :10] - 1, torch.arange(size) % 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINKBACK_DATA", str(root))
        tiny.make_images(root, SIZES)
        here = tiny.make_run(root / "results", SIZES, seed=3)
        Bundle(sets, torch.eye(10, 64), -torch.ones(10)).save(here.folder / "bundle.npz")
        which = ["--network", here.network, "--seed", "3"]
        peers.main(["--results", str(here.results), *which])
    return here.folder


def test_one_command_scores_every_peer_on_every_set(folder):
    kept, record = peers.load(folder)
    assert set(kept) == set(SIZES) - {"cifar10-train"}
    for name, row in kept.items():
        assert set(row) == set(PEERS)
        expected = dict.fromkeys(OF_FEATURES, SIZES[name])
        expected["odin"] = 20 if name == "cifar10-test" else 10
        assert {peer: len(values) for peer, values in row.items()} == expected
        assert {values.dtype.name for values in row.values()} == {"float64"}
    bundle = Bundle.load(folder / "bundle.npz")
    detector = PEERS["knn"].fit(peers.last_layer(bundle), bundle.sets["cifar10-train"])
    expected = PEERS["knn"](detector, bundle.sets["svhn"])
    np.testing.assert_allclose(kept["svhn"]["knn"], expected, rtol=1e-5)
    assert record["images"]["count"] == {"cifar10-test": 20, "svhn": 10, "cifar100": 10}


def test_the_record_sets_our_costs_beside_theirs(folder):
    record = peers.load(folder)[1]
    for key in ("command", "commit", "started", "device", "versions", "weights_sha256", "absent"):
        assert record[key]
    assert record["pytorch_ood"] == version("pytorch-ood")
    assert set(record["peers"]) == set(PEERS)
    assert set(record["ours"]) == set(evaluation.COMPARED)
    for facts in [*record["peers"].values(), *record["ours"].values()]:
        assert facts["fit_seconds"] >= 0
        assert facts["score_seconds_per_1000"] > 0
    assert record["ours"]["thinkback"]["bytes"] == 8 * 10 * 64
    assert record["peers"]["knn"]["bytes"] == 4 * 120 * 64
    assert record["peers"]["odin"]["bytes"] == 0
    needs = {need: need == "training data" for need in peers.NEEDS}
    assert record["peers"]["knn"]["needs"] == needs
    assert record["peers"]["knn"]["settings"]["k"]["value"] == 50


def test_the_table_has_every_peer_near_and_far_with_intervals(folder):
    records = read_json(folder / "peers_table.json")
    pairs = {(name, peer) for name in ("svhn", "cifar100", "mean") for peer in PEERS}
    assert {(r["set"], r["method"]) for r in records} == pairs
    assert {r["set"] for r in records if r["near"]} == {"cifar100"}
    kept = peers.load(folder)[0]
    record = evaluation.find(records, set="svhn", method="odin")
    assert (record["n_id"], record["n_ood"]) == (20, 10)
    ids, oods = kept["cifar10-test"]["odin"], kept["svhn"]["odin"]
    expected = roc_auc_score([0] * 20 + [1] * 10, np.concatenate([ids, oods]))
    assert record["auroc"] == pytest.approx(expected)
    for record in records:
        low, high = record["interval95"]["auroc"]
        assert low <= record["auroc"] <= high
        assert ("minus_msp" in record) == (record["method"] != "msp")


def test_odin_is_paired_with_softmax_of_its_own_images(folder, monkeypatch):
    """Were its scores those of Softmax on these images, all differences would be nothing."""
    kept, record = peers.load(folder)
    for row in kept.values():
        row["odin"] = row["msp"][evaluation.evenly(len(row["msp"]), len(row["odin"])).numpy()]
    monkeypatch.setattr(peers, "load", lambda _: (kept, record))
    found = evaluation.find(peers.table(folder), set="svhn", method="odin")
    assert found["minus_msp"]["auroc"] == (0, 0)
    assert found["minus_energy"]["auroc"] != (0, 0)


def test_only_the_sets_that_are_asked_for_and_no_images(folder, tmp_path):
    for name in ("bundle.npz", "weights.safetensors", "provenance.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    peers.run(tmp_path, sets=["svhn"], images=False)
    kept, record = peers.load(tmp_path)
    assert set(kept) == {"cifar10-test", "svhn"}
    assert set(kept["svhn"]) == set(OF_FEATURES)
    assert "images" not in record
    message = r"^thinkback: no sets \['lsun'\] in .*, only \['cifar10-train'"
    with pytest.raises(ValueError, match=message):
        peers.run(tmp_path, sets=["lsun"], images=False)
