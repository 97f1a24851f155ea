"""The chain from images to the table on a toy, and the committed results, recomputed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score

from thinkback_utils import data, evaluation, reproduce
from thinkback_utils.features import Bundle, Features, extract
from thinkback_utils.metrics import METRICS
from thinkback_utils.models import WideResNet

ROOT = Path(__file__).parents[1]
RUN = ROOT / "results" / "wrn40-2-cifar10" / "seed0"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(RUN / "bundle.npz")


@pytest.fixture(scope="module")
def scored(bundle):
    return evaluation.score_sets(bundle.sets)


@pytest.fixture(scope="module")
def provenance():
    return json.loads((RUN / "provenance.json").read_text())


@pytest.fixture
def toy_root(tmp_path, monkeypatch):
    """A data root with sets of a few images, in the layout of the real ones."""
    generator = np.random.default_rng(0)
    for name, size in (("cifar10-train", 64), ("cifar10-test", 40), ("svhn", 30), ("cifar100-test", 30)):
        images = generator.integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(size) % 10)
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    return tmp_path


def test_one_command_makes_everything_and_repeats_itself(toy_root, tmp_path, capsys):
    command = ["--recipe", "smoke", "--epochs", "1", "--results", str(tmp_path / "results"), "--device", "cpu"]
    command += ["--sets", "svhn", "cifar100"]
    reproduce.main(command)
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed0"
    first = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "bundle.npz", "scores.npz")}
    reproduce.main(command)  # the weights are there: nothing is trained again
    assert {name: (folder / name).read_bytes() for name in first} == first
    records = json.loads((tmp_path / "results" / "table1.json").read_text())
    assert {(r["set"], r["method"]) for r in records} == {
        (name, method) for name in ("svhn", "cifar100", "mean") for method in evaluation.COMPARED
    }
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["recipe"] == "custom"  # one epoch is not the recipe's
    assert set(provenance["images_sha256"]) == {"cifar10-train", "cifar10-test", "svhn", "cifar100"}
    assert "test accuracy" in capsys.readouterr().out


def test_sets_are_added_to_a_finished_run_without_training_it_again(toy_root, tmp_path):
    """Without --recipe the folder's own recipe stands, so the committed network can be asked about more sets."""
    results = ["--results", str(tmp_path / "results"), "--device", "cpu", "--sets"]
    reproduce.main(["--depth", "10", "--width", "1", "--epochs", "1", *results, "svhn"])
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed0"
    weights = (folder / "weights.safetensors").read_bytes()
    reproduce.main(["--depth", "10", "--width", "1", *results, "cifar100"])
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert set(Bundle.load(folder / "bundle.npz").sets) == {"cifar10-train", "cifar10-test", "svhn", "cifar100"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["sets"] == ["cifar10-train", "cifar10-test", "svhn"]  # the first run keeps its own record
    assert [addition["sets"] for addition in provenance["additions"]] == [["cifar100"]]
    with pytest.raises(ValueError, match=r"belongs to another recipe \(dropout"):
        reproduce.main(["--recipe", "smoke", *results, "svhn"])


def test_a_set_that_cannot_be_had_fails_before_the_training(toy_root, tmp_path):
    results = tmp_path / "results"
    with pytest.raises(FileNotFoundError, match="'places9_crop'"):
        reproduce.main(["--recipe", "smoke", "--results", str(results), "--sets", "places9_crop"])
    assert not list(results.rglob("*.safetensors"))


def test_results_are_of_the_promised_size_and_without_pickle(bundle):
    assert (RUN / "weights.safetensors").stat().st_size <= 5e6
    sizes = {name: len(item) for name, item in bundle.sets.items()}
    promised = {
        "cifar10-train": 50_000,
        "cifar10-test": 10_000,
        "svhn": 5_000,
        "textures10": 1_200,
        "places9_crop": 2_500,
        "places9_resize": 2_500,
        "sun_resize": 2_500,
        "cifar100": 5_000,
    }
    assert promised.items() <= sizes.items()
    assert (RUN / "bundle.npz").stat().st_size <= 20e6 * sum(sizes.values()) / sum(promised.values())


def test_logits_are_the_head_of_the_features(bundle):
    for item in bundle.sets.values():
        z = item.features[:500] @ bundle.weight.T + bundle.bias
        torch.testing.assert_close(z, item.logits[:500], atol=2e-2, rtol=2e-3)  # features are float16


def test_provenance_reports_what_the_bundle_says(bundle, provenance):
    test = bundle.sets["cifar10-test"]
    accuracy = float((test.logits.argmax(1) == test.labels).double().mean())
    assert provenance["accuracy"]["cifar10-test"] == pytest.approx(accuracy, abs=1e-6)
    for key in ("recipe", "command", "commit", "seed", "device", "versions", "seconds", "images_sha256", "training"):
        assert provenance[key] is not None
    assert set(provenance["images_sha256"]) == set(bundle.sets)


def test_float16_features_keep_the_metrics(provenance):
    assert provenance["float16_metric_error"] <= 1e-3


def test_scores_and_table_follow_from_the_bundle(scored):
    with np.load(RUN / "scores.npz", allow_pickle=False) as kept:
        assert set(kept.files) == {f"{name}.{method}" for name, row in scored.items() for method in row}
        for name, row in scored.items():
            for method, values in row.items():
                np.testing.assert_allclose(kept[f"{name}.{method}"], values, rtol=1e-6)
    table = evaluation.table(scored)
    printed = json.loads((ROOT / "results" / "table1.json").read_text())
    for record in [*table, *evaluation.means(table)]:
        same = next(r for r in printed if (r["set"], r["method"]) == (record["set"], record["method"]))
        for metric in METRICS:
            assert same[metric] == pytest.approx(record[metric], abs=1e-9)


def test_independent_recomputation_agrees(bundle, scored):
    """Eq. 6 from autograd gradients with nothing of the package, and the metrics from scikit-learn."""
    train, item = bundle.sets["cifar10-train"], bundle.sets["textures10"]
    h, z = train.features.double(), train.logits.double()
    leaf = z.clone().requires_grad_()
    loss = F.cross_entropy(leaf / 5, z.argmax(1), reduction="sum")
    (residuals,) = torch.autograd.grad(loss, leaf)
    expected = residuals.square().T @ h.square() / len(h)

    leaf = item.logits.double().clone().requires_grad_()
    loss = F.cross_entropy(leaf / 5, leaf.argmax(1), reduction="sum")
    (residuals,) = torch.autograd.grad(loss, leaf)
    gradients = residuals[:, :, None] * item.features.double()[:, None, :]  # (N, K, D)
    ours = scored["textures10"]["thinkback"]
    np.testing.assert_allclose(ours, (gradients.square() / (1e-16 + expected)).sum((1, 2)), rtol=1e-6)

    ids = scored["cifar10-test"]["thinkback"]
    labels, values = np.repeat([0, 1], [len(ids), len(ours)]), np.concatenate([ids, ours])
    weight = np.where(labels, (1 / 6) / len(ours), (5 / 6) / len(ids))
    record = next(
        r for r in evaluation.table(scored) if r["set"] == "textures10" and r["method"] == "thinkback"
    )  # 1,200 images: one draw, all of them
    assert record["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-6)
    assert record["aupr"] == pytest.approx(average_precision_score(labels, values, sample_weight=weight), abs=1e-6)


def test_scores_do_not_read_labels(bundle, scored):
    def relabelled(item):
        return Features(item.features, item.logits, torch.randint(10, (len(item),)))

    again = evaluation.score_sets({name: relabelled(item) for name, item in bundle.sets.items()}, names=["svhn"])
    for method, values in again["svhn"].items():
        assert np.array_equal(values, scored["svhn"][method])


def test_in_distribution_against_itself_is_a_coin(scored):
    half = {m: values[::2] for m, values in scored["cifar10-test"].items()}
    other = {m: values[1::2] for m, values in scored["cifar10-test"].items()}
    parts = {"cifar10-test": half, "cifar10 again": other}
    for record in evaluation.with_intervals(evaluation.table(parts, n_ood=10_000), parts, resamples=60):
        low, high = record["interval95"]["auroc"]
        assert low < 0.5 < high


def test_weights_make_the_features_of_the_bundle(bundle):
    if not (data.data_root() / "textures10.npz").exists():
        pytest.skip("textures10.npz is not in the data root (set THINKBACK_DATA)")
    images = data.load("textures10").images[:64]
    out = extract(WideResNet.load(RUN / "weights.safetensors"), images)
    torch.testing.assert_close(out.logits, bundle.sets["textures10"].logits[:64], atol=1e-3, rtol=1e-3)


def test_readme_examples_run_as_shown(capsys):
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for code in (first, second):
        assert len(code.strip().splitlines()) <= 10
        exec(code, {})
    assert "auroc" in capsys.readouterr().out
