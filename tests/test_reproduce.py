"""The chain from images to the table on a toy, and the committed results, recomputed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score

from bookmaking import chapters
from experiments import reproduce, verdicts
from thinkback_utils import data, evaluation
from thinkback_utils.features import Bundle, Features, extract, save_arrays
from thinkback_utils.files import read_json, write_json
from thinkback_utils.metrics import METRICS
from thinkback_utils.models import WideResNet
from thinkback_utils.train import RECIPES

ROOT = Path(__file__).parents[1]
RUN = ROOT / "results" / "wrn40-2-cifar10" / "seed0"
THREE = ("msp", "energy", "thinkback")  # the methods of Table 1


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
    for name, size in (
        ("cifar10-train", 64),
        ("cifar10-test", 40),
        ("svhn", 30),
        ("cifar100-test", 30),
    ):
        images = generator.integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(size) % 10)
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    return tmp_path


def test_one_command_makes_everything_and_repeats_itself(toy_root, tmp_path, capsys):
    command = [
        "--recipe",
        "smoke",
        "--epochs",
        "1",
        "--results",
        str(tmp_path / "results"),
        "--device",
        "cpu",
    ]
    command += ["--sets", "svhn", "cifar100", "--seeds", "0", "1"]
    reproduce.main(command)
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed0"
    first = {
        name: (folder / name).read_bytes()
        for name in ("weights.safetensors", "bundle.npz", "scores.npz")
    }
    reproduce.main(command)  # the weights are there: nothing is trained again
    assert {name: (folder / name).read_bytes() for name in first} == first
    records = json.loads((tmp_path / "results" / "table1.json").read_text())
    assert sorted((r["seed"], r["set"], r["method"]) for r in records) == sorted(
        (seed, name, method)
        for seed in (0, 1)
        for name in ("svhn", "cifar100", "mean")
        for method in evaluation.COMPARED
    )
    assert (folder.with_name("seed1") / "weights.safetensors").read_bytes() != first[
        "weights.safetensors"
    ]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["recipe"] == "custom"  # one epoch is not the recipe's
    assert set(provenance["images_sha256"]) == {"cifar10-train", "cifar10-test", "svhn", "cifar100"}
    assert "test accuracy" in capsys.readouterr().out


def test_processes_share_the_seeds(toy_root, tmp_path, monkeypatch):
    command = [
        "--recipe",
        "smoke",
        "--epochs",
        "1",
        "--results",
        str(tmp_path / "results"),
        "--device",
        "cpu",
    ]
    command += ["--sets", "cifar100", "--seeds", "5", "6", "7"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in ((1, {6}), (0, {5, 6, 7})):  # as torchrun would, one after the other
        monkeypatch.setenv("RANK", str(rank))
        reproduce.main(command)
        records = json.loads((tmp_path / "results" / "table1.json").read_text())
        assert {record["seed"] for record in records} == made
    assert len(list(tmp_path.glob("results/wrn10-1-cifar10/seed*/weights.safetensors"))) == 3


def test_sets_are_added_to_a_finished_run_without_training_it_again(toy_root, tmp_path):
    """Without --recipe the folder's own recipe stands, so the committed network can be asked about
    more sets.
    """
    results = ["--results", str(tmp_path / "results"), "--device", "cpu", "--sets"]
    reproduce.main(["--depth", "10", "--width", "1", "--epochs", "1", *results, "svhn"])
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed0"
    weights = (folder / "weights.safetensors").read_bytes()
    reproduce.main(["--depth", "10", "--width", "1", *results, "cifar100"])
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert set(Bundle.load(folder / "bundle.npz").sets) == {
        "cifar10-train",
        "cifar10-test",
        "svhn",
        "cifar100",
    }
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["sets"] == [
        "cifar10-train",
        "cifar10-test",
        "svhn",
    ]  # the first run keeps its own record
    assert [addition["sets"] for addition in provenance["additions"]] == [["cifar100"]]
    with pytest.raises(ValueError, match=r"belongs to another recipe \(dropout"):
        reproduce.main(["--recipe", "smoke", *results, "svhn"])


def test_a_set_whose_images_were_replaced_is_run_again_and_the_others_are_kept(toy_root, tmp_path):
    command = [
        "--recipe",
        "smoke",
        "--epochs",
        "1",
        "--results",
        str(tmp_path / "results"),
        "--device",
        "cpu",
    ]
    reproduce.main([*command, "--sets", "svhn", "cifar100"])
    folder = tmp_path / "results" / "wrn10-1-cifar10" / "seed0"
    before, hashes = (
        Bundle.load(folder / "bundle.npz").sets,
        read_json(folder / "provenance.json")["images_sha256"],
    )
    old = read_json(folder / "ablations.json")
    images = np.random.default_rng(9).integers(256, size=(25, 32, 32, 3), dtype=np.uint8)
    np.savez(toy_root / "svhn.npz", images=images)
    reproduce.main([*command, "--sets", "cifar100"])  # also where the set is not named
    after, provenance = (
        Bundle.load(folder / "bundle.npz").sets,
        read_json(folder / "provenance.json"),
    )
    assert len(after["svhn"]) == 25
    assert provenance["images_sha256"]["svhn"] == data.load("svhn").sha256() != hashes["svhn"]
    assert provenance["images_sha256"] | {"svhn": ""} == hashes | {"svhn": ""}
    assert [addition["sets"] for addition in provenance["additions"]] == [["svhn"]]
    for name in ("cifar10-train", "cifar10-test", "cifar100"):
        assert torch.equal(after[name].features, before[name].features)
    new = read_json(folder / "ablations.json")
    assert (old["readings"]["E"]["images"]["svhn"], new["readings"]["E"]["images"]["svhn"]) == (
        30,
        25,
    )
    assert new["images_sha256"] == provenance["images_sha256"]
    assert read_json(folder / "variants.json")["sizes"]["svhn@bfloat16"] == 25


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from experiments import reproduce
from thinkback_utils.train import RECIPES

torch.set_num_threads(1)
config, results, replace = RECIPES["smoke"].override(epochs=1), Path(sys.argv[1]), os.replace


def run(folder, sets, dies_at=None):
    # In a process of its own, which kills itself instead of that write; what it wrote, in order.
    def write(source, target):
        with open(results / "writes", "a") as log:
            log.write(Path(target).name + " ")
        if len((results / "writes").read_text().split()) - 1 == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    (results / "writes").write_text("")
    if (child := os.fork()) == 0:
        os.replace = write
        reproduce.run(config, folder, sets, "cpu")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) if dies_at is not None else status == 0, status
    return (results / "writes").read_text().split()


peace = results / "nothing"
for job, sets in (("run", ["svhn"]), ("addition", ["svhn", "cifar100"])):
    start, peace = peace, results / f"{job}-peace"
    if start.exists():
        shutil.copytree(start, peace)
    for number, name in enumerate(run(peace, sets)):
        folder = results / f"{job}-{number}-{name}"
        if start.exists():
            shutil.copytree(start, folder)
        run(folder, sets, number)
        run(folder, sets)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_write_ends_as_one_in_peace(toy_root, tmp_path):
    """A run and an addition of a set, killed by SIGKILL at each file they write, and started again."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "results")]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    folders = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    for job, count, additions in (("run", 7, []), ("addition", 4, [["cifar100"]])):
        peace, *killed = sorted(
            (path for path in folders if path.name.startswith(f"{job}-")), reverse=True
        )
        assert peace.name == f"{job}-peace"
        assert len(killed) == count
        truth = {
            name: (peace / name).read_bytes()
            for name in ("weights.safetensors", "bundle.npz", "scores.npz")
        }
        assert lasting(peace)["additions"] == additions
        for folder in killed:
            assert {file: (folder / file).read_bytes() for file in truth} == truth, folder
            assert lasting(folder) == lasting(peace), folder


def lasting(folder):
    """What a provenance says but for times and the last command, which may have found nothing left
    to do.
    """
    facts = read_json(folder / "provenance.json")
    kept = ("sets", "commit", "recipe", "seed", "accuracy", "float16_metric_error", "images_sha256")
    return {key: facts[key] for key in kept} | {
        "additions": [addition["sets"] for addition in facts.get("additions", [])],
        "loss": facts["training"]["history"]["loss"],
    }


def test_images_put_back_after_a_kill_are_not_taken_for_those_of_the_new_bundle(
    toy_root, tmp_path, monkeypatch
):
    """Killed with a bundle of new images and the record of the old ones; then the old images come
    back.
    """
    config, folder = RECIPES["smoke"].override(epochs=1), tmp_path / "run"
    reproduce.run(config, folder, ["svhn"], "cpu")
    record, old = read_json(folder / "provenance.json"), (toy_root / "svhn.npz").read_bytes()
    features = Bundle.load(folder / "bundle.npz").sets["svhn"].features
    np.savez(toy_root / "svhn.npz", images=np.zeros((25, 32, 32, 3), np.uint8))

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reproduce, "score_sets", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce.run(config, folder, ["svhn"], "cpu")
    assert len(Bundle.load(folder / "bundle.npz").sets["svhn"]) == 25
    (toy_root / "svhn.npz").write_bytes(old)
    reproduce.run(config, folder, ["svhn"], "cpu")
    assert torch.equal(Bundle.load(folder / "bundle.npz").sets["svhn"].features, features)
    assert read_json(folder / "provenance.json")["images_sha256"] == record["images_sha256"]


def test_a_checkout_without_its_bundle_makes_it_again(toy_root, tmp_path):
    """The record of the first run stays; all its sets come back, though one alone is asked for."""
    config, folder = RECIPES["smoke"].override(epochs=1), tmp_path / "run"
    reproduce.run(config, folder, ["svhn", "cifar100"], "cpu")
    before, content = read_json(folder / "provenance.json"), (folder / "bundle.npz").read_bytes()
    (folder / "bundle.npz").unlink()
    reproduce.run(config, folder, ["svhn"], "cpu")
    after = read_json(folder / "provenance.json")
    assert (folder / "bundle.npz").read_bytes() == content
    assert {key: after[key] for key in ("started", "sets", "images_sha256")} == {
        key: before[key] for key in ("started", "sets", "images_sha256")
    }
    assert sorted(after["additions"][0]["sets"]) == [
        "cifar10-test",
        "cifar10-train",
        "cifar100",
        "svhn",
    ]


def test_a_record_that_is_none_is_named(toy_root, tmp_path):
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(ValueError, match=r"thinkback: .*provenance\.json is no record of a run"):
        reproduce.run(RECIPES["smoke"], tmp_path, ["svhn"], "cpu")


def test_no_far_set_is_a_run_too(toy_root, tmp_path):
    scored = reproduce.run(RECIPES["smoke"].override(epochs=1), tmp_path / "run", [], "cpu")
    assert set(scored) == {evaluation.ID_TEST}
    assert read_json(tmp_path / "run" / "provenance.json")["float16_metric_error"] == 0


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
    assert (RUN / "bundle.npz").stat().st_size <= 20e6 * sum(sizes.values()) / sum(
        promised.values()
    )


def test_logits_are_the_head_of_the_features(bundle):
    for item in bundle.sets.values():
        z = item.features[:500] @ bundle.weight.T + bundle.bias
        torch.testing.assert_close(
            z, item.logits[:500], atol=2e-2, rtol=2e-3
        )  # features are float16


def test_provenance_reports_what_the_bundle_says(bundle, provenance):
    test = bundle.sets["cifar10-test"]
    accuracy = float((test.logits.argmax(1) == test.labels).double().mean())
    assert provenance["accuracy"]["cifar10-test"] == pytest.approx(accuracy, abs=1e-6)
    for key in (
        "recipe",
        "command",
        "commit",
        "seed",
        "device",
        "versions",
        "seconds",
        "images_sha256",
        "training",
    ):
        assert provenance[key] is not None
    assert set(provenance["images_sha256"]) == set(bundle.sets)


def test_float16_features_keep_the_metrics(provenance):
    assert provenance["float16_metric_error"] <= 1e-3


def test_scores_and_table_follow_from_the_bundle(scored):
    with np.load(RUN / "scores.npz", allow_pickle=False) as kept:
        assert set(kept.files) == {
            f"{name}.{method}" for name, row in scored.items() for method in row
        }
        for name, row in scored.items():
            for method, values in row.items():
                np.testing.assert_allclose(kept[f"{name}.{method}"], values, rtol=1e-6)
    table = evaluation.table(scored)
    printed = json.loads((ROOT / "results" / "table1.json").read_text())
    for record in [*table, *evaluation.means(table)]:
        same = next(
            r for r in printed if (r["set"], r["method"]) == (record["set"], record["method"])
        )
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
    np.testing.assert_allclose(
        ours, (gradients.square() / (1e-16 + expected)).sum((1, 2)), rtol=1e-6
    )

    ids = scored["cifar10-test"]["thinkback"]
    labels, values = np.repeat([0, 1], [len(ids), len(ours)]), np.concatenate([ids, ours])
    weight = np.where(labels, (1 / 6) / len(ours), (5 / 6) / len(ids))
    record = next(
        r
        for r in evaluation.table(scored)
        if r["set"] == "textures10" and r["method"] == "thinkback"
    )  # 1,200 images: one draw, all of them
    assert record["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-6)
    assert record["aupr"] == pytest.approx(
        average_precision_score(labels, values, sample_weight=weight), abs=1e-6
    )


def test_scores_do_not_read_labels(bundle, scored):
    def relabelled(item):
        return Features(item.features, item.logits, torch.randint(10, (len(item),)))

    again = evaluation.score_sets(
        {name: relabelled(item) for name, item in bundle.sets.items()}, names=["svhn"]
    )
    for method, values in again["svhn"].items():
        assert np.array_equal(values, scored["svhn"][method])


def test_in_distribution_against_itself_is_a_coin(scored):
    half = {m: values[::2] for m, values in scored["cifar10-test"].items()}
    other = {m: values[1::2] for m, values in scored["cifar10-test"].items()}
    parts = {"cifar10-test": half, "cifar10 again": other}
    for record in evaluation.with_intervals(
        evaluation.table(parts, n_ood=10_000), parts, resamples=60
    ):
        low, high = record["interval95"]["auroc"]
        assert low < 0.5 < high


@pytest.fixture(scope="module")
def three_seeds(bundle, tmp_path_factory):
    """A results folder of three training seeds: a thinned copy of the committed run, and two that
    noise sets apart.
    """
    results, records = tmp_path_factory.mktemp("results"), []
    sizes = {
        "cifar10-train": 4000,
        "cifar10-test": 1500,
        "svhn": 600,
        "textures10": 600,
        "cifar100": 300,
    }
    sets = {}
    for name, size in sizes.items():
        item, index = bundle.sets[name], evaluation.evenly(len(bundle.sets[name]), size)
        sets[name] = Features(item.features[index], item.logits[index], item.labels[index])
    scored = evaluation.score_sets(sets, THREE)
    for seed in range(3):
        folder, noise = results / RUN.parent.name / f"seed{seed}", np.random.default_rng(seed)
        own = {
            n: {
                m: (s + seed / 10 * s.std() * noise.normal(size=len(s))).astype(np.float32)
                for m, s in row.items()
            }
            for n, row in scored.items()
        }
        save_arrays(
            folder / "scores.npz", {f"{n}.{m}": s for n, row in own.items() for m, s in row.items()}
        )
        write_json(folder / "provenance.json", read_json(RUN / "provenance.json") | {"seed": seed})
        table = evaluation.table(own, n_ood=500, draws=3)
        table = evaluation.with_intervals([*table, *evaluation.means(table)], own, resamples=20)
        records += [{"network": RUN.parent.name, "seed": seed} | record for record in table]
    write_json(results / "table1.json", records)
    first = results / RUN.parent.name / "seed0"
    Bundle(sets, bundle.weight, bundle.bias).save(first / "bundle.npz")
    (first / "weights.safetensors").symlink_to(RUN / "weights.safetensors")
    save_arrays(first / "ablations.npz", {f"{n}.E_eq6": row["energy"] for n, row in scored.items()})
    readings = {"E": {"images": {n: sizes[n] for n in scored}}}
    write_json(first / "ablations.json", read_json(RUN / "ablations.json") | {"readings": readings})
    return results


def test_spread_over_training_seeds_on_the_page(three_seeds, tmp_path):
    """Chapter 08, run on three seeds, shows numpy's means and deviations of the table's records,
    and its verdicts.
    """
    verdicts.main(["--results", str(three_seeds)])
    chapters.use_own_kernel()
    options = {"results_dir": str(three_seeds), "n_ood": 500, "draws": 3, "resamples": 20}
    chapters.run(ROOT / "notebooks" / "08_five_datasets.ipynb", tmp_path / "08.ipynb", options)
    cells = nbformat.read(tmp_path / "08.ipynb", 4).cells
    outputs = [out.get("data", {}) for cell in cells for out in cell.get("outputs", [])]
    shown, html = (
        "\n".join(out[kind] for out in outputs if kind in out)
        for kind in ("text/markdown", "text/html")
    )
    assert "training seed 0, one of 3" in shown

    def numbers(text):
        return [float(number) for number in re.findall(r"\d+\.\d+", text)]

    records, compared = read_json(three_seeds / "table1.json"), 0
    for metric in METRICS:
        table = re.search(rf'<table data-metric="{metric}">(.*?)</table>', html, re.DOTALL)[1]
        assert re.findall(r'<th scope="col" data-method="(\w+)">', table) == list(THREE)
        for name in ("svhn", "textures10", "cifar100", "mean"):
            row = re.search(rf'<tr data-set="{name}">(.*?)</tr>', table, re.DOTALL)[1]
            for method, cell in zip(
                THREE, re.findall(r"<td[^>]*>(.*?)(?:<br>|</td>)", row), strict=True
            ):
                rows = [r for r in records if (r["set"], r["method"]) == (name, method)]
                over_draws = (
                    [r[f"{metric}_std"] for r in rows] if rows[0].get("draws", 1) > 1 else []
                )
                values = [r[metric] for r in rows]
                expected = [
                    np.mean(values),
                    np.std(values, ddof=1),
                    *([np.mean(over_draws)] if over_draws else []),
                ]
                assert numbers(cell) == pytest.approx(100 * np.array(expected), abs=0.0051), (
                    metric,
                    name,
                    method,
                )
                compared += len(expected)
    assert compared == 4 * 3 * (3 + 3 + 2 + 2)
    line = re.search(r"Over 3 training seeds the mean AUROC is (.*) %\.", shown)[1]
    values = [
        [r["auroc"] for r in records if (r["set"], r["method"]) == ("mean", m)] for m in THREE
    ]
    expected = [[100 * np.mean(v), 100 * np.std(v, ddof=1)] for v in values]
    assert numbers(line) == pytest.approx(np.ravel(expected), abs=0.0051)
    assert (three_seeds / "verdicts.md").read_text().partition("\n\n")[2].strip() in shown


def test_weights_make_the_features_of_the_bundle(bundle):
    if not (data.data_root() / "textures10.npz").exists():
        pytest.skip("textures10.npz is not in the data root (set THINKBACK_DATA)")
    images = data.load("textures10").images[:64]
    out = extract(WideResNet.load(RUN / "weights.safetensors"), images)
    torch.testing.assert_close(
        out.logits, bundle.sets["textures10"].logits[:64], atol=1e-3, rtol=1e-3
    )


def test_readme_examples_run_as_shown(capsys):
    data.import_torchvision()  # which the second example imports plainly
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for code in (first, second):
        assert len(code.strip().splitlines()) <= 10
        exec(code, {})
    assert "auroc" in capsys.readouterr().out
