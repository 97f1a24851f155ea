"""What a page says of the network behind its numbers follows from the record of the run."""

import ast
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup

import thinkback_utils
from bookmaking.profiles import declared, parse
from experiments import provenance
from experiments.provenance import label
from thinkback_utils.files import read_json, write_json

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / "results" / "wrn40-2-cifar10"
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))


def row(name, **parameters):
    """What the box says in that row, as HTML; None where it has no such row."""
    box = BeautifulSoup(provenance.Box(**parameters)._repr_html_(), "html.parser")
    heads = [head for head in box("th") if head.get_text() == name]
    return heads[0].find_next("td") if heads else None


def keep(folder, seed, accuracy, recipe="reference", device="a GPU"):
    config, history = {"depth": 40, "width": 2}, {"loss": [2.0, 1.0, 0.5]}
    training = {"config": config, "history": history, "device": device}
    facts = {"seed": seed, "recipe": recipe, "training": training}
    facts["accuracy"] = {"cifar10-test": accuracy}
    write_json(folder / f"seed{seed}" / "provenance.json", facts)


def test_label_of_the_committed_network():
    """training.json is the record of the training, provenance.json of all that came after."""
    run, training = (read_json(NETWORK / "seed0" / f"{n}.json") for n in ("provenance", "training"))
    text, epochs = label(NETWORK / "seed0"), len(training["history"]["accuracy"])
    assert f"`{run['recipe']}` recipe ({epochs} epochs on {training['device']})" in text
    assert text.endswith(f", {100 * run['accuracy']['cifar10-test']:.1f} % test accuracy")


def test_label_counts_seeds(tmp_path):
    keep(tmp_path / "net", 0, 0.948)
    made = "WRN-40-2, `reference` recipe (3 epochs on a GPU), {} % test accuracy"
    alone = made.format("1 training seed, 94.8")
    assert label(tmp_path / "net" / "seed0") == label(tmp_path / "net") == alone
    keep(tmp_path / "net", 1, 0.9512)
    keep(tmp_path / "net", 2, 0.9395)
    assert label(tmp_path / "net") == made.format("3 training seeds, 94.0 to 95.1")
    assert label(tmp_path / "net" / "seed2") == made.format("training seed 2, one of 3, 94.0")


def test_label_names_every_recipe(tmp_path):
    kinds = ("cpu", "two cores"), ("reference", "a GPU")
    for seed, kind in enumerate(kinds):
        keep(tmp_path / "net", seed, 0.9, *kind)
    made = [f"WRN-40-2, `{recipe}` recipe (3 epochs on {device})" for recipe, device in kinds]
    assert label(tmp_path / "net").startswith(f"{made[0]}; {made[1]}, 2 training seeds")


def test_a_run_that_is_not_there_is_an_error(tmp_path):
    message = r"thinkback: no provenance.json in .*has the run finished"
    with pytest.raises(ValueError, match=message):
        label(tmp_path)


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.check_output(command, text=True, env=environment).strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, and the module as if its file lay in there."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    source = tmp_path / "lib" / "site-packages" / "thinkback_utils" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("", encoding="utf-8")
    (tmp_path / "paper.tex").write_text("of somebody else", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "paper.tex")
    git(tmp_path, "commit", "-q", "-m", "a paper")
    monkeypatch.setattr(provenance, "__file__", str(source))
    provenance._commit.cache_clear()
    yield tmp_path
    provenance._commit.cache_clear()


def test_commit_of_a_repository_that_merely_contains_the_package_is_not_ours(repository):
    unknown = f"unknown, thinkback_utils {thinkback_utils.__version__}"
    assert provenance.describe()["commit"] == unknown
    assert row("Commit").decode_contents() == unknown


def test_commit_of_the_repository_that_holds_the_package_is(
    repository, monkeypatch, tmp_path_factory
):
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "with the package")
    head = git(repository, "rev-parse", "HEAD")
    assert provenance.describe()["commit"] == head
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    assert row("Commit").a["href"] == f"{address}/commit/{head}"
    assert row("Commit").get_text() == head[:12]
    (repository / "paper.tex").write_text("changed", encoding="utf-8")
    assert provenance.describe()["commit"] == head  # the command's own results are no change
    provenance._commit.cache_clear()
    assert provenance.describe()["commit"] == f"{head}-dirty"
    assert row("Commit").a is None
    assert row("Commit").get_text() == f"{head[:12]}, with changes that are not committed"
    other = tmp_path_factory.mktemp("other")  # as within a hook of another repository
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    provenance._commit.cache_clear()
    assert provenance.describe()["commit"] == f"{head}-dirty"


def test_without_git_the_version_is_known(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    unknown = f"unknown, thinkback_utils {thinkback_utils.__version__}"
    assert provenance.describe()["commit"] == unknown


def code(path):
    """Sources of a chapter's code cells, and its parameters as they are by default."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    [given] = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    lines = ast.parse("".join(given["source"])).body
    names = {line.target.id: ast.literal_eval(line.value) for line in lines}
    return ["".join(cell["source"]) for cell in code], names


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_box_gives_the_commands_of_its_chapter(path, monkeypatch):
    """Those parameters alone that the reader changed, each reads as what it was."""
    cells, names = code(path)
    monkeypatch.setattr(provenance, "_session", lambda: (names, cells[:4]))
    head = [".venv/bin/python", "-m", "bookmaking", "run", f"notebooks/{path.name}"]
    alone = ["cd", "notebooks", "&&", "../.venv/bin/papermill", path.name, "../out.ipynb"]

    def given():
        page = BeautifulSoup(box._repr_html_(), "html.parser")
        assert f"/notebooks/{path.name}" in page.select_one("a.button")["href"]
        return [shlex.split(command.get_text().strip("()")) for command in page("pre")]

    box = provenance.Box(seed=names["seed"])
    assert given() == [[*head, "-o", "out.ipynb"], [*alone, "-k", "python3"]]
    names |= {"seed": 1234, "data_dir": "it's here"}
    box = provenance.Box(seed=names["seed"])
    changed = {name: names[name] for name in code(path)[1] if name in ("seed", "data_dir")}
    names["profile"] = "of another meaning further down"
    strict, plain = given()
    hints, words = declared(path), dict(zip(strict[8::3], strict[9::3], strict=True))
    assert {name: parse(text, hints[name]) for name, text in words.items()} == changed
    assert yaml.safe_load(plain[-1]) == changed


def test_written_values_are_read_as_they_were():
    values = {"a": [1e-16, 0.5], "b": {"x y": True}, "c": "", "d": 1e-300, "e": "it's", "f": "true"}
    strict, plain = provenance.commands("x.ipynb", values)
    words = shlex.split(strict)
    texts = dict(zip(words[8::3], words[9::3], strict=True))
    assert yaml.safe_load(texts["a"]) == values["a"]
    assert yaml.safe_load(texts["b"]) == values["b"]
    assert float(texts["d"]) == values["d"]
    assert [texts[name] for name in "cef"] == ["", "it's", "true"]
    assert yaml.safe_load(shlex.split(plain.strip("()"))[-1]) == values


def test_code_of_no_chapter_gets_no_command(monkeypatch):
    own, other = code(CHAPTERS[0])[0], code(CHAPTERS[1])[0]
    shared = [cell for cell in own if cell in other]  # the bootstrap cell: of every chapter
    assert shared
    monkeypatch.setattr(provenance, "_session", lambda: ({}, [*shared, "1 + 1"]))
    assert row("From a clone", seed=0) is None
    assert row("Parameters", seed=0).get_text() == "seed = 0"


def test_a_command_names_no_folder_of_this_machine(monkeypatch, tmp_path):
    typed = ["/usr/bin/python3", "-m", "experiments.x", "--out", str(tmp_path / "seed0"), "a/b"]
    monkeypatch.setattr("sys.orig_argv", typed)
    assert provenance.describe()["command"] == "python3 -m experiments.x --out seed0 a/b"


def test_every_committed_record_is_of_a_commit_as_it_was():
    for path in (ROOT / "results").rglob("*.json"):
        assert '-dirty"' not in path.read_text("utf-8"), path
