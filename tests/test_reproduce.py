"""The chain from images to the table on a toy, and the committed results, recomputed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score

from bookmaking import chapters
from experiments import evaluation, reproduce, verdicts
from experiments.benchmark import Benchmark
from experiments.run import Run
from experiments.training import RECIPES
from thinkback_utils import data
from thinkback_utils.features import Bundle, Features, extract, save_arrays
from thinkback_utils.files import read_json, write_json
from thinkback_utils.metrics import METRICS

ROOT = Path(__file__).parents[1]
RUN = Run.at(ROOT / "results")
KEPT = ("weights.safetensors", "bundle.npz", "scores.npz")
SMOKE = ["--recipe", "smoke", "--epochs", "1", "--device", "cpu", "--results"]
SETS = ("svhn", "cifar100")  # of the toy
THREE = ("msp", "energy", "thinkback")  # the methods of Table 1


@pytest.fixture(scope="module")
def bundle():
    return RUN.bundle()


@pytest.fixture(scope="module")
def scored(bundle):
    return evaluation.score_sets(bundle.sets)


@pytest.fixture(scope="module")
def provenance():
    return RUN.record


SIZES = {"cifar10-train": 64, "cifar10-test": 40, "svhn": 30, "cifar100-test": 30, "textures10": 20}


@pytest.fixture
def toy_root(tmp_path, monkeypatch):
    """A data root with sets of a few images, in the layout of the real ones."""
    tiny.make_images(tmp_path, SIZES)
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The results of one command, made from images such as those of ``toy_root``."""
    root = tmp_path_factory.mktemp("once")
    tiny.make_images(root, SIZES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("THINKBACK_DATA", str(root))
        reproduce.main([*SMOKE, str(root / "results"), "--sets", *SETS, "--seeds", "0", "1"])
    return root / "results"


@pytest.fixture
def results(once, toy_root):
    """A copy of them, to go on with."""
    return shutil.copytree(once, toy_root / "results")


@pytest.fixture
def here(results):
    """A run on ``SETS`` that has finished."""
    return Run.at(results, "wrn10-1-cifar10")


def test_one_command_makes_everything_and_repeats_itself(results, here, capsys):
    other = Run.at(results, "wrn10-1-cifar10", 1)
    first = {name: (here.folder / name).read_bytes() for name in KEPT}
    command = [*SMOKE, str(results), "--sets", *SETS, "--seeds", "0", "1"]
    reproduce.main(command)  # the weights are there: nothing is trained again
    assert {name: (here.folder / name).read_bytes() for name in first} == first
    records = read_json(results / "table1.json")
    assert sorted((r["seed"], r["set"], r["method"]) for r in records) == sorted(
        (seed, name, method)
        for seed in (0, 1)
        for name in (*SETS, "mean")
        for method in evaluation.COMPARED
    )
    assert other.digest() != here.digest()
    assert here.record["recipe"] == "custom"  # one epoch is not the recipe's
    assert set(here.record["images_sha256"]) == {"cifar10-train", "cifar10-test", *SETS}
    assert "test accuracy" in capsys.readouterr().out


def test_processes_share_the_seeds(toy_root, tmp_path, monkeypatch):
    command = [*SMOKE, str(tmp_path / "results"), "--sets", "cifar100", "--seeds", "5", "6", "7"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in ((1, {6}), (0, {5, 6, 7})):  # as torchrun would, one after the other
        monkeypatch.setenv("RANK", str(rank))
        reproduce.main(command)
        records = read_json(tmp_path / "results" / "table1.json")
        assert {record["seed"] for record in records} == made
    assert len(list(tmp_path.glob("results/wrn10-1-cifar10/seed*/weights.safetensors"))) == 3


def test_sets_are_added_to_a_finished_run_without_training_it_again(results, here):
    """Without --recipe the folder's own stands, so the committed network can get more sets."""
    weights, first = here.digest(), ["cifar10-train", "cifar10-test", *SETS]
    command = ["--depth", "10", "--width", "1", "--results", str(results), "--device", "cpu"]
    reproduce.main([*command, "--sets", "textures10"])
    assert here.digest() == weights
    assert set(here.bundle().sets) == {*first, "textures10"}
    assert here.record["sets"] == first  # the first run keeps its own record
    assert [addition["sets"] for addition in here.record["additions"]] == [["textures10"]]
    with pytest.raises(ValueError, match=r"belongs to another recipe \(dropout"):
        reproduce.main([*command, "--recipe", "reference", "--sets", "svhn"])


def test_a_set_whose_images_were_replaced_is_run_again_and_the_others_are_kept(
    toy_root, results, here
):
    before, hashes = here.bundle().sets, here.record["images_sha256"]
    old = read_json(here.folder / "ablations.json")
    tiny.make_images(toy_root, {"svhn": 25})
    reproduce.main([*SMOKE, str(results), "--sets", "cifar100"])  # also where it is not named
    after, record = here.bundle().sets, here.record
    assert len(after["svhn"]) == 25
    assert record["images_sha256"]["svhn"] == data.load("svhn").sha256() != hashes["svhn"]
    assert record["images_sha256"] | {"svhn": ""} == hashes | {"svhn": ""}
    assert [addition["sets"] for addition in record["additions"]] == [["svhn"]]
    for name in ("cifar10-train", "cifar10-test", "cifar100"):
        assert torch.equal(after[name].features, before[name].features)
    new = read_json(here.folder / "ablations.json")
    assert [facts["readings"]["E"]["images"]["svhn"] for facts in (old, new)] == [30, 25]
    assert new["images_sha256"] == record["images_sha256"]
    assert read_json(here.folder / "variants.json")["sizes"]["svhn@bfloat16"] == 25


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
import torch._dynamo  # an optimizer imports it, which takes seconds: once here, not in each child
from experiments import reproduce
from experiments.training import RECIPES

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
    """A run, and an addition of a set, each killed by SIGKILL at each write and started again."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "results")]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    folders = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    # A bundle is two writes: the features, then the file with what it says of itself.
    for job, count, additions in (("run", 9, []), ("addition", 4, [["cifar100"]])):
        peace, *killed = sorted(
            (path for path in folders if path.name.startswith(f"{job}-")), reverse=True
        )
        assert peace.name == f"{job}-peace"
        assert len(killed) == count
        truth = {name: (peace / name).read_bytes() for name in KEPT}
        assert lasting(peace)["additions"] == additions
        for folder in killed:
            assert {file: (folder / file).read_bytes() for file in truth} == truth, folder
            assert lasting(folder) == lasting(peace), folder


def lasting(folder):
    """What a record says but for times and the last command, which may have found nothing to do."""
    facts = Run(folder).record
    assert facts["images_sha256"] == Run(folder).stated()["images_sha256"]
    kept = ("sets", "commit", "recipe", "seed", "accuracy", "float16_metric_error", "images_sha256")
    return {key: facts[key] for key in kept} | {
        "additions": [addition["sets"] for addition in facts.get("additions", [])],
        "loss": facts["training"]["history"]["loss"],
    }


def go_on(here, *sets):
    return reproduce.run(RECIPES["smoke"].override(epochs=1), here.folder, sets, "cpu")


def killed(*arguments):
    raise KeyboardInterrupt


def test_features_that_a_kill_left_without_a_record_are_not_computed_again(here, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_record", killed)
        with pytest.raises(KeyboardInterrupt):
            go_on(here, "textures10")
    assert "textures10" not in here.record["images_sha256"]
    monkeypatch.setattr("experiments.benchmark.extract", killed)
    go_on(here, "textures10")
    assert here.record["images_sha256"] == here.stated()["images_sha256"]
    assert here.record["additions"][0]["sets"] == ["textures10"]


def test_images_put_back_after_a_kill_are_not_taken_for_those_of_the_new_bundle(
    here, toy_root, monkeypatch
):
    """Killed with a bundle of new images and the record of the old, which then come back."""
    record, old = here.record, (toy_root / "svhn.npz").read_bytes()
    features = here.bundle().sets["svhn"].features
    tiny.make_images(toy_root, {"svhn": 25})
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            go_on(here, "svhn")
    assert len(here.bundle().sets["svhn"]) == 25
    (toy_root / "svhn.npz").write_bytes(old)
    with pytest.raises(ValueError, match="is not the set that the bundle was made from"):
        here.images(["svhn"])  # nor by a reader
    go_on(here, "svhn")
    assert torch.equal(here.bundle().sets["svhn"].features, features)
    assert here.record["images_sha256"] == record["images_sha256"]


def test_a_checkout_without_its_bundle_makes_it_again(here):
    """The record of the first run stays; all its sets come back, though one alone is asked for."""
    before, content = here.record, (here.folder / "bundle.npz").read_bytes()
    (here.folder / "bundle.npz").unlink()
    go_on(here, "svhn")
    after = here.record
    assert (here.folder / "bundle.npz").read_bytes() == content
    for key in ("started", "sets", "images_sha256"):
        assert after[key] == before[key]
    assert set(after["additions"][0]["sets"]) == set(after["images_sha256"])


def test_a_run_whose_bundle_says_nothing_goes_on(here):
    """As those in the repository: what it was made from stands in the record alone."""
    bundle, content = here.bundle(), (here.folder / "bundle.npz").read_bytes()
    bundle.save(here.folder / "bundle.npz")
    assert not zipfile.ZipFile(here.folder / "bundle.npz").comment
    go_on(here, "svhn")
    assert (here.folder / "bundle.npz").read_bytes() == content
    assert "additions" not in here.record or here.record["additions"] == []


def test_a_record_that_is_none_is_named(toy_root, tmp_path):
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "provenance.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"thinkback: .*provenance\.json is no record of a run"):
        go_on(Run(tmp_path), "svhn")


def test_no_far_set_is_a_run_too(toy_root, tmp_path):
    here = Run(tmp_path / "run")
    assert set(go_on(here)) == {evaluation.ID_TEST}
    assert here.record["float16_metric_error"] == 0


def test_a_set_that_cannot_be_had_fails_before_the_training(toy_root, tmp_path):
    results = tmp_path / "results"
    with pytest.raises(FileNotFoundError, match="'places9_crop'"):
        reproduce.main(["--recipe", "smoke", "--results", str(results), "--sets", "places9_crop"])
    assert not list(results.rglob("*.safetensors"))


def test_results_are_of_the_promised_size_and_without_pickle(bundle):
    assert RUN.weights.stat().st_size <= 5e6
    sizes = {name: len(item) for name, item in bundle.sets.items()}
    promised = {"cifar10-train": 50_000, "cifar10-test": 10_000, "svhn": 5_000, "cifar100": 5_000}
    promised |= dict.fromkeys(("places9_crop", "places9_resize", "sun_resize"), 2_500)
    promised["textures10"] = 1_200
    assert promised.items() <= sizes.items()
    share = sum(sizes.values()) / sum(promised.values())
    assert (RUN.folder / "bundle.npz").stat().st_size <= 20e6 * share


def test_logits_are_the_head_of_the_features(bundle):
    for item in bundle.sets.values():
        z = item.features[:500] @ bundle.weight.T + bundle.bias
        torch.testing.assert_close(z, item.logits[:500], atol=2e-2, rtol=2e-3)  # float16 features


def test_provenance_reports_what_the_bundle_says(bundle, provenance):
    test = bundle.sets["cifar10-test"]
    accuracy = float((test.logits.argmax(1) == test.labels).double().mean())
    assert provenance["accuracy"]["cifar10-test"] == pytest.approx(accuracy, abs=1e-6)
    for key in ("recipe", "command", "commit", "seed", "device", "versions", "seconds", "training"):
        assert provenance[key] is not None
    assert RUN.stated()["images_sha256"] == provenance["images_sha256"]
    assert set(provenance["images_sha256"]) == set(bundle.sets)


def test_float16_features_keep_the_metrics(provenance):
    assert provenance["float16_metric_error"] <= 1e-3 + 1e-9  # a tenth of a point, and rounding


def test_scores_and_table_follow_from_the_bundle(scored):
    kept = RUN.scores()
    assert {n: row.keys() for n, row in kept.items()} == {
        n: row.keys() for n, row in scored.items()
    }
    for name, row in scored.items():
        for method, values in row.items():
            np.testing.assert_allclose(kept[name][method], values, rtol=1e-6)
    table = evaluation.table(scored)
    printed = read_json(ROOT / "results" / "table1.json")
    for record in [*table, *evaluation.means(table)]:
        same = evaluation.find(printed, set=record["set"], method=record["method"])
        for metric in METRICS:
            assert same[metric] == pytest.approx(record[metric], abs=1e-9)


def test_independent_recomputation_agrees(bundle, scored):
    """Eq. 6 by autograd with nothing of the package, and the metrics from scikit-learn."""
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
    # 1,200 images: one draw, all of them.
    record = evaluation.find(evaluation.table(scored), set="textures10", method="thinkback")
    assert record["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-6)
    assert record["aupr"] == pytest.approx(
        average_precision_score(labels, values, sample_weight=weight), abs=1e-6
    )


def test_scores_do_not_read_labels(bundle, scored):
    def relabelled(item):
        return Features(item.features, item.logits, torch.randint(10, (len(item),)))

    sets = {name: relabelled(item) for name, item in bundle.sets.items()}
    again = evaluation.score_sets(sets, names=["svhn"])
    for method, values in again["svhn"].items():
        assert np.array_equal(values, scored["svhn"][method])


def test_in_distribution_against_itself_is_a_coin(scored):
    half = {m: values[::2] for m, values in scored["cifar10-test"].items()}
    other = {m: values[1::2] for m, values in scored["cifar10-test"].items()}
    parts = {"cifar10-test": half, "cifar10 again": other}
    rows = evaluation.table(parts, n_ood=10_000)
    for record in evaluation.with_intervals(rows, parts, resamples=60):
        low, high = record["interval95"]["auroc"]
        assert low < 0.5 < high


@pytest.fixture(scope="module")
def three_seeds(bundle, tmp_path_factory):
    """Three training seeds: a thinned copy of the committed run, and two that noise sets apart."""
    results, records = tmp_path_factory.mktemp("results"), []
    rules = Benchmark(methods=THREE, n_ood=500, draws=3, resamples=20)
    sizes = {"cifar10-train": 4000, "cifar10-test": 1500}
    sizes |= {"svhn": 600, "textures10": 600, "cifar100": 300}
    sets = {}
    for name, size in sizes.items():
        item, index = bundle.sets[name], evaluation.evenly(len(bundle.sets[name]), size)
        sets[name] = Features(item.features[index], item.logits[index], item.labels[index])
    scored = evaluation.score_sets(sets, THREE)
    for seed in range(3):
        here, noise = Run.at(results, RUN.network, seed), np.random.default_rng(seed)
        own = {
            n: {
                m: (s + seed / 10 * s.std() * noise.normal(size=len(s))).astype(np.float32)
                for m, s in row.items()
            }
            for n, row in scored.items()
        }
        here.save_scores(own)
        here.save_record(RUN.record | {"seed": seed})
        records += [here.label | record for record in rules.records(own)]
    write_json(results / "table1.json", records)
    first = Run.at(results)
    Bundle(sets, bundle.weight, bundle.bias).save(first.folder / "bundle.npz")
    first.weights.symlink_to(RUN.weights)
    (results / "coverage.json").symlink_to(RUN.results / "coverage.json")
    arrays = {f"{n}.E_eq6": row["energy"] for n, row in scored.items()}
    save_arrays(first.folder / "ablations.npz", arrays)
    readings = {"E": {"images": {n: sizes[n] for n in scored}}}
    old = read_json(RUN.folder / "ablations.json")
    write_json(first.folder / "ablations.json", old | {"readings": readings})
    return results


def test_spread_over_training_seeds_on_the_page(three_seeds, tmp_path):
    """Chapter 08, run on three seeds, shows numpy's means and deviations, and the verdicts."""
    verdicts.main(["--results", str(three_seeds)])
    chapters.use_own_kernel()
    options = {"results_dir": str(three_seeds), "n_ood": 500, "draws": 3, "resamples": 20}
    chapters.run(ROOT / "notebooks" / "08_five_datasets.ipynb", tmp_path / "08.ipynb", options)
    cells = nbformat.read(tmp_path / "08.ipynb", 4).cells
    outputs = [out.get("data", {}) for cell in cells for out in cell.get("outputs", [])]
    shown = "\n".join(out.get("text/markdown", "") for out in outputs)
    html = "\n".join(out.get("text/html", "") for out in outputs)
    assert "training seed 0, one of 3" in shown

    def numbers(text):
        return [float(number) for number in re.findall(r"\d+\.\d+", text)]

    records, compared = read_json(three_seeds / "table1.json"), 0
    for metric, name in product(METRICS, ("svhn", "textures10", "cifar100", "mean")):
        table = re.search(rf'<table data-metric="{metric}">(.*?)</table>', html, re.DOTALL)[1]
        assert re.findall(r'<th scope="col" data-method="(\w+)">', table) == list(THREE)
        row = re.search(rf'<tr data-set="{name}">(.*?)</tr>', table, re.DOTALL)[1]
        found = re.findall(r"<td[^>]*>(.*?)(?:<br>|</td>)", row)
        for method, cell in zip(THREE, found, strict=True):
            rows = [r for r in records if (r["set"], r["method"]) == (name, method)]
            values = [r[metric] for r in rows]
            expected = [np.mean(values), np.std(values, ddof=1)]
            if rows[0].get("draws", 1) > 1:
                expected.append(np.mean([r[f"{metric}_std"] for r in rows]))
            case = (metric, name, method)
            assert numbers(cell) == pytest.approx(100 * np.array(expected), abs=0.0051), case
            compared += len(expected)
    assert compared == 4 * 3 * (3 + 3 + 2 + 2)
    line = re.search(r"Over 3 training seeds the mean AUROC is (.*) %\.", shown)[1]
    means = [r for r in records if r["set"] == "mean"]
    values = [[r["auroc"] for r in means if r["method"] == m] for m in THREE]
    expected = [[100 * np.mean(v), 100 * np.std(v, ddof=1)] for v in values]
    assert numbers(line) == pytest.approx(np.ravel(expected), abs=0.0051)
    text = (three_seeds / "verdicts.md").read_text(encoding="utf-8")
    assert text.partition("\n\n")[2].strip() in shown


def test_weights_make_the_features_of_the_bundle(bundle):
    if not (data.data_root() / "textures10.npz").exists():
        pytest.skip("textures10.npz is not in the data root (set THINKBACK_DATA)")
    images = data.load("textures10").images[:64]
    out = extract(RUN.model("cpu"), images)
    torch.testing.assert_close(
        out.logits, bundle.sets["textures10"].logits[:64], atol=1e-3, rtol=1e-3
    )


def test_readme_examples_run_as_shown(capsys):
    data.import_torchvision()  # which the second example imports plainly
    for page in ("README.md", "book/how_to_run.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(code.strip().splitlines()) <= 10
        exec(code, {})
    assert "auroc" in capsys.readouterr().out
