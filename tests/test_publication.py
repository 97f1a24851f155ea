"""What is published: one address, a citation, workflows and commands, the cell for Colab."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import thinkback_utils
from bookmaking import profiles

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGE = (ROOT / "book" / "how_to_run.md").read_text(encoding="utf-8")
SWEEP = (ROOT / "profiles" / "sweep.sh").read_text(encoding="utf-8")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_one_repository_names_the_site_and_the_citation() -> None:
    config, citation = load("_config.yml"), load("CITATION.cff")
    owner, name = config["repository"]["url"].removeprefix("https://github.com/").split("/")
    assert config["html"]["baseurl"] == f"https://{owner}.github.io/{name}/"
    assert config["sphinx"]["config"]["ogp_site_url"] == config["html"]["baseurl"]
    assert citation["repository-code"] == config["repository"]["url"]
    assert citation["url"] == config["html"]["baseurl"]


def tracked() -> dict[str, str]:
    """The text files under version control, by name, without what others wrote."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no clone, or there is no git")
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    own = [name for name in listed if not name.startswith("book/vendor/")]
    contents = {name: (ROOT / name).read_bytes() for name in own if (ROOT / name).is_file()}
    return {name: part.decode() for name, part in contents.items() if b"\0" not in part[:8000]}


def test_no_other_address_of_the_book_is_named() -> None:
    config = load("_config.yml")
    right = {config["repository"]["url"], config["html"]["baseurl"].rstrip("/")}
    named = r"https://(?:github\.com/[\w-]+|[\w-]+\.github\.io)/thinkback[\w-]*"
    texts = tracked()
    found = {address: name for name in texts for address in re.findall(named, texts[name])}
    assert set(found) <= right, found
    assert found.keys() & right


def test_nothing_names_a_folder_of_one_machine() -> None:
    machine = r"(?<![\w.~*/-])/(?:root|work|home|Users|tmp|mnt)/[\w.-]"
    assert {name for name, text in tracked().items() if re.search(machine, text)} == set()


def test_citation_names_this_version_and_the_paper() -> None:
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == thinkback_utils.__version__
    [paper] = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Yang", "Rossi"]
    references = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert "arXiv:2107.06668" in references or paper["url"] in references


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_workflow_names_what_exists(path: Path) -> None:
    jobs = load(str(path.relative_to(ROOT)))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(job["timeout-minutes"] for job in jobs.values())
    assert {need for job in jobs.values() for need in job.get("needs", [])} <= set(jobs)
    script = "\n".join(step.get("run", "") for step in steps)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", script)) <= targets
    for module in re.findall(r"python3? -m ([\w.]+)", script):
        assert find_spec(module), module
    installed_there = set(re.findall(r"pip install -q ([\w-]+)$", script, re.MULTILINE))
    for program in set(re.findall(r"\.venv/bin/([\w-]+)", script)) - installed_there:
        assert shutil.which(program, path=os.path.dirname(sys.executable)), program
    for file in re.findall(r"(?<![\w/])\.ci/\w+", script):
        assert os.access(ROOT / file, os.X_OK), file


def test_actions_are_pinned_by_commit() -> None:
    """A tag can be moved, a commit cannot; comments say which version it is, and all agree."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    lines = [line.strip(" -") for line in text.splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.fullmatch(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    pins = {line.split("@")[0]: line for line in lines}
    assert set(pins.values()) == set(lines)


TOKEN = r"github\.token|secrets\b|GITHUB_TOKEN|GH_TOKEN"
# runs what was installed
FOREIGN = r"\bmake\b|\bpip\b|\.ci/|\.venv|playwright|pytest|jupyter|\bnpm\b|\bapt|\bpython"


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_token_reaches_only_the_step_that_needs_it(path: Path) -> None:
    workflow = load(str(path.relative_to(ROOT)))
    assert workflow["permissions"] == {}
    assert not re.search(TOKEN, json.dumps(workflow.get("env", {})))
    for name, job in workflow["jobs"].items():
        writes = {what for what, level in job["permissions"].items() if level != "read"}
        rest = {key: job[key] for key in job if key != "steps"}
        assert not re.search(TOKEN, json.dumps(rest)), name
        for step in job["steps"]:
            checkout = step.get("uses", "").startswith("actions/checkout@")
            foreign = re.search(FOREIGN, step.get("run", ""))
            if checkout:
                assert step["with"]["persist-credentials"] is False, name
            if writes:
                assert not foreign, name
                assert not checkout, name
            if re.search(TOKEN, json.dumps(step)):
                assert writes, name
                assert list(step) == ["env", "run"], name


def test_issue_forms_ask_something() -> None:
    paths = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    for path in (path for path in paths if path.stem != "config"):
        form = load(str(path.relative_to(ROOT)))
        assert {"name", "description", "body"} <= set(form)
        assert all(field["attributes"]["label"] for field in form["body"])


def commands(program: str) -> list[list[str]]:
    """The command lines of the page on running, and of the sweep, that begin so."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    blocks += [SWEEP.replace("\\\n", " ").replace(".venv/bin/", "")]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith(program)]


@pytest.mark.parametrize(
    "words", [*commands("python -m bookmaking run"), *commands("papermill ")], ids=" ".join
)
def test_printed_commands_name_parameters_that_exist(words: list[str]) -> None:
    notebook = next(word for word in words if word.endswith(".ipynb"))
    names = {words[i + 1] for i, word in enumerate(words) if word == "-p"}
    assert names
    assert names <= set(profiles.declared(ROOT / "notebooks" / Path(notebook).name))
