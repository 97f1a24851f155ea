"""A run's folder: what is kept comes back, and nothing is taken for what it is not."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from experiments import ablations, peers
from experiments.run import NETWORK, Run, program_parser
from thinkback_utils.features import Bundle, extract
from thinkback_utils.models import WideResNet

SIZES = {"cifar10-train": 12, "cifar10-test": 8, "svhn": 6}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    tiny.make_images(tmp_path, SIZES)
    return tiny.make_run(tmp_path / "results", SIZES)


def features(here, model):
    return {name: extract(model, images) for name, images in here.images().items()}


def test_a_run_is_named_by_its_folder():
    run = Run.at("results", seed=3)
    assert run.folder == Path("results") / NETWORK / "seed3"
    assert (run.results, run.label) == (Path("results"), {"network": NETWORK, "seed": 3})


def test_siblings_are_the_other_runs_with_scores_by_seed(tmp_path):
    runs = [Run.at(tmp_path, "net", seed) for seed in (0, 10, 2)]
    for run in runs:
        run.save_scores({"a": {"energy": np.zeros(3)}})
    Run.at(tmp_path, "net", 4).folder.mkdir()
    assert [run.seed for run in runs[0].siblings()] == [2, 10]


def test_the_bundle_says_what_it_was_made_from(here):
    model = here.model("cpu")
    sets = features(here, model)
    here.save_bundle(sets, model, images_sha256={"svhn": "new"}, float16_metric_error=0.5)
    first = (here.folder / "bundle.npz").read_bytes()
    assert here.stated()["images_sha256"] == {"svhn": "new"}  # whatever the record says
    stated, kept = here.kept()
    assert stated["float16_metric_error"] == 0.5
    assert torch.equal(kept["svhn"].logits, sets["svhn"].logits)
    assert set(np.load(here.folder / "bundle.npz").files) >= {"svhn.features", "head.weight"}
    with pytest.raises(ValueError, match=r"thinkback: 'svhn' .* is not the set that the bundle"):
        here.images()
    here.save_bundle(sets, model, images_sha256={"svhn": "new"}, float16_metric_error=0.5)
    assert (here.folder / "bundle.npz").read_bytes() == first


def test_an_older_bundle_is_what_the_record_says(here):
    sets = features(here, here.model("cpu"))
    Bundle(sets, torch.zeros(10, 64), torch.zeros(10)).save(here.folder / "bundle.npz")
    assert here.stated() == {key: here.record[key] for key in here.stated()}
    assert here.kept()[1].keys() == sets.keys()


def test_features_of_other_or_unknown_weights_do_not_count(here):
    model = here.model("cpu")
    here.save_bundle(features(here, model), model, images_sha256={}, float16_metric_error=0.0)
    assert here.kept()[1]
    WideResNet(depth=10, width=1).save(here.weights)
    assert here.kept() == ({"images_sha256": {}, "float16_metric_error": 0.0}, {})
    Bundle({}, torch.zeros(10, 64), torch.zeros(10)).save(here.folder / "bundle.npz")
    (here.folder / "provenance.json").unlink()
    assert here.kept()[1] == {}


@pytest.mark.parametrize("content", [b"junk", b""])
def test_a_damaged_bundle_is_named(here, content):
    (here.folder / "bundle.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"thinkback: .*bundle\.npz is damaged"):
        here.stated()


def test_a_comment_that_is_no_statement_is_named(here):
    with zipfile.ZipFile(here.folder / "bundle.npz", "w") as archive:
        archive.comment = b"{"
    with pytest.raises(ValueError, match=r"thinkback: .*bundle\.npz is damaged"):
        here.stated()


@pytest.mark.parametrize("record", [[], {"images_sha256": {}}])
def test_a_record_that_is_none_is_named(here, record):
    (here.folder / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"thinkback: .*provenance\.json is no record of a run"):
        here.images()


def test_a_record_that_is_absent_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"thinkback: no record .*experiments\.reproduce"):
        Run.at(tmp_path).images()


def test_a_set_that_the_run_lacks_is_named(here):
    assert list(here.images(["svhn"])) == ["svhn"]
    with pytest.raises(ValueError, match=r"thinkback: no sets \['lsun'\] in .*, only \['cifar10"):
        here.images(["svhn", "lsun"])


@pytest.mark.parametrize("program", [ablations, peers])
def test_scores_of_other_weights_are_not_read(here, program):
    name = program.__name__.rpartition(".")[2]
    command = rf"run `python -m experiments\.{name} --results \S+ --network \S+ --seed 0`"
    with pytest.raises(
        FileNotFoundError, match=rf"^thinkback: no scores at .*{name}\.npz; {command}"
    ):
        program.load(here.folder)
    here.save_scores({"svhn": {"energy": np.zeros(3)}}, f"{name}.npz")
    path = here.folder / f"{name}.json"
    path.write_text(json.dumps({"weights_sha256": here.digest()}), encoding="utf-8")
    assert program.load(here.folder)[1] == {"weights_sha256": here.digest()}
    path.write_text(json.dumps({"weights_sha256": "other"}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^thinkback: .* is of other weights .*; {command}"):
        program.load(here.folder)


def test_programs_share_their_options():
    options = program_parser("experiments.any", "", "results", "seed").parse_args(["--seed", "2"])
    assert vars(options) == {"results": Path("results"), "seed": 2}
