"""The notebooks are clean and alike, the book's parts agree with each other, and its built pages work in a browser."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import yaml

from thinkback_utils import runner

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
REPOSITORY = CONFIG["repository"]
FOLDER = Path(REPOSITORY["url"]).name
BOOTSTRAP = f"""\
# On Colab: fetch the book (package and results) and work in its folder. Anywhere else this does nothing.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("thinkback_utils") is None:
    subprocess.run(["git", "clone", "-q", "--depth=1", "{REPOSITORY["url"]}"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-e", "{FOLDER}"], check=True)
    sys.path.insert(0, os.path.abspath("{FOLDER}"))
if os.path.isdir("{FOLDER}/notebooks"):
    os.chdir("{FOLDER}/notebooks")"""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
built = pytest.mark.skipif(not (HTML / "index.html").is_file(), reason="the book is not built: make book")


def source(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def prose() -> str:
    return "\n\n".join(source(ROOT / page) for page in runner.pages(ROOT))


@every_notebook
def test_code_starts_with_parameters_and_bootstrap(path: Path) -> None:
    first, second = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][:2]
    assert "parameters" in first.metadata.get("tags", [])
    assert {"bootstrap", "hide-input"} <= set(second.metadata.get("tags", []))
    assert second.source.strip() == BOOTSTRAP


@every_notebook
def test_every_parameter_is_typed_and_explained(path: Path) -> None:
    declared = runner.declared(path)
    shown = papermill.inspect_notebook(str(path))  # what `papermill --help-notebook` prints
    assert list(shown) == list(declared), "papermill cannot read a line: one name a line, no '=' in its comment"
    assert [name for name in shown if not shown[name]["help"]] == [], "a trailing comment is missing"


@every_notebook
def test_profiles_fit(path: Path) -> None:
    for profile in (ROOT / "profiles").glob("*.yml"):
        common, sections = runner.load_profile(profile)
        runner.choose(path, common, sections.get(runner.slug(path), {}), {})


@every_notebook
def test_notebook_is_stripped(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"] >= 5) == (4, True)
    ids = Counter(cell.get("id") for cell in raw["cells"])
    assert None not in ids
    assert max(ids.values()) == 1
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
    assert re.findall(r"""["'`](?:/[\w.~-]+){2,}|["'`][A-Za-z]:\\|/(?:home|Users)/\w+""", text) == []


@every_notebook
def test_chapter_is_short(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= 35
    assert sum(cell.cell_type == "code" for cell in cells) <= 15
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
    pages = {page.as_posix() for page in runner.pages(ROOT)}
    written = {path.relative_to(ROOT).as_posix() for path in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]}
    assert written == pages


def test_book_reads_offline() -> None:
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    assert CONFIG["sphinx"]["config"]["mathjax_path"].startswith("../mathjax/")
    mathjax = ROOT / "book" / "vendor" / "mathjax"
    assert (mathjax / "LICENSE").is_file()
    fonts = {path.stem for path in (mathjax / "output" / "chtml" / "fonts" / "woff-v2").glob("*.woff")}
    named = set(re.findall(r"%%URL%%/(MathJax_[\w-]+)\.woff", (mathjax / "tex-mml-chtml.js").read_text("utf-8")))
    assert named <= fonts


def test_conda_users_get_the_same_list_of_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][1:] == ["pip", {"pip": ["-e .[book]"]}]


@built
def test_built_pages_are_complete() -> None:
    runner.check(ROOT, HTML)


@built
def test_built_pages_load_nothing_from_elsewhere() -> None:
    for page in HTML.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", page.read_text(encoding="utf-8"))
        foreign = [tag for tag in tags if re.search(r'(?:src|href)="(?:https?:)?//', tag)]
        assert foreign == [], page.name


LOOK = """async () => {
    await window.MathJax?.startup?.promise;
    const named = (e) => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.querySelector("title");
    return {
        nameless: [...document.images].filter((i) => !i.hasAttribute("alt")).map((i) => i.src)
            .concat([...document.querySelectorAll("article img")].filter((i) => !i.alt.trim()).map((i) => i.src))
            .concat([...document.querySelectorAll(".cell_output svg:not([aria-hidden])")]
                .filter((s) => !named(s)).map((s) => s.outerHTML.slice(0, 80))),
        empty: [...document.images].filter((i) => !(i.complete && i.naturalWidth > 0)).map((i) => i.src),
        formulas: document.querySelectorAll(".math mjx-merror, .math [data-mjx-error]").length,
        wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
}"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the browser left for the next page
            super().handle()


@built
def test_pages_work_in_a_browser() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    handler = functools.partial(QuietHandler, directory=str(HTML))
    pages = ["index.html", *(page.with_suffix(".html").as_posix() for page in runner.pages(ROOT))]
    faults: list[tuple[Any, ...]] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}/"
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(120_000)  # a busy machine is no fault of the page
        page.on("console", lambda message: message.type == "error" and faults.append((page.url, message.text)))
        page.on("pageerror", lambda error: faults.append((page.url, str(error))))
        page.on("response", lambda reply: reply.status >= 400 and faults.append((page.url, reply.url, reply.status)))
        page.on(
            "request",
            lambda request: request.url.startswith((site, "data:", "blob:")) or faults.append((page.url, request.url)),
        )
        for name in pages:
            page.goto(site + name, wait_until="load")
            faults += [(name, what, value) for what, value in page.evaluate(LOOK).items() if value]
        browser.close()
        server.shutdown()
    assert faults == []
