"""The notebooks are clean and alike, and the book's parts agree with each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from bookmaking import profiles, sources

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
REPOSITORY = CONFIG["repository"]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def source(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def prose() -> str:
    return "\n\n".join(source(ROOT / page) for page in sources.pages(ROOT))


def bootstrap(path: Path) -> str:
    cells = sources.read(path).cells
    return str(next(cell.source for cell in cells if sources.tagged(cell, "bootstrap")))


@every_notebook
def test_code_starts_with_parameters_and_bootstrap(path: Path) -> None:
    first, second = [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ][:2]
    assert "parameters" in first.metadata.get("tags", [])
    assert {"bootstrap", "hide-input"} <= set(second.metadata.get("tags", []))
    assert second.source == bootstrap(NOTEBOOKS[0])


@every_notebook
def test_every_parameter_is_typed_and_explained(path: Path) -> None:
    declared = profiles.declared(path)
    shown = papermill.inspect_notebook(str(path))  # what `papermill --help-notebook` prints
    assert list(shown) == list(declared), (
        "papermill cannot read a line: one name a line, no '=' in its comment"
    )
    assert [name for name in shown if not shown[name]["help"]] == [], (
        "a trailing comment is missing"
    )


@every_notebook
def test_profiles_fit(path: Path) -> None:
    for profile in (ROOT / "profiles").glob("*.yml"):
        common, sections = profiles.load_profile(profile)
        profiles.choose(path, common, sections.get(sources.slug(path), {}), {})


@every_notebook
def test_notebook_is_stripped(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"] >= 5) == (4, True)
    ids = Counter(cell.get("id") for cell in raw["cells"])
    assert None not in ids
    assert max(ids.values()) == 1
    assert [
        i for i in ids if not re.fullmatch(r"[a-z][a-z0-9-]*", i) or re.fullmatch("[0-9a-f]{8}", i)
    ] == []  # words
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert "papermill" not in raw["metadata"]


@every_notebook
def test_notebook_opens_on_a_colab_gpu(path: Path) -> None:
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"]["name"] == "python"
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["gpuType"] == "T4"


@every_notebook
def test_no_path_of_one_machine(path: Path) -> None:
    text = source(path)
    assert (
        re.findall(r"""["'`](?:/[\w.~-]+){2,}|["'`][A-Za-z]:\\|/(?:home|Users)/\w+""", text) == []
    )


@every_notebook
def test_cells_are_short(path: Path) -> None:
    """Of cells a chapter may have as many as its thought has steps."""
    cells = nbformat.read(path, as_version=4).cells
    assert [c.id for c in cells if c.cell_type == "code" and len(c.source.splitlines()) > 25] == []


@every_notebook
def test_figures_have_caption_alt_and_reference(path: Path) -> None:
    text = prose()
    for cell in nbformat.read(path, as_version=4).cells:
        options = cell.metadata.get("mystnb", {})
        if "figure" not in options and "image" not in options:
            continue
        figure = options["figure"]
        assert figure["caption"].strip()
        assert re.fullmatch(r"fig-[a-z0-9-]+", figure["name"])
        assert len(options["image"]["alt"]) > 20, f"{figure['name']}: say what the figure shows"
        assert f"(#{figure['name']})" in text, f"{figure['name']} is never referred to"


def test_labels_are_unique() -> None:
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    names += re.findall(r"\$\$ *\((eq-[\w-]+)\)", prose())
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_contents_lists_every_page() -> None:
    pages = {page.as_posix() for page in sources.pages(ROOT)}
    written = {
        path.relative_to(ROOT).as_posix() for path in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]
    }
    assert written == pages


def test_book_reads_offline() -> None:
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    katex = ROOT / "book" / "vendor" / "katex"
    source = (katex / "SOURCE.txt").read_text(encoding="utf-8")
    assert CONFIG["sphinx"]["config"]["mathjax_path"] == "../katex/katex.min.js"
    for name in ("katex.min.js", "katex.min.css"):
        digest = hashlib.sha256((katex / name).read_bytes()).hexdigest()
        assert re.search(rf"{name}\s+SHA-256 {digest}", source)
    named = set(re.findall(r"fonts/[\w-]+\.woff2", (katex / "katex.min.css").read_text("utf-8")))
    assert named == {font.relative_to(katex).as_posix() for font in katex.rglob("*.woff2")}
    assert (katex / "LICENSE").is_file()


def test_conda_users_get_the_same_list_of_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][1:] == [
        "pip",
        {"pip": ["-c constraints.txt", "-e .[book]"]},
    ]
