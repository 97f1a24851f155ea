"""The cell of chapter 5 that readers change in the page: what it is made of, and in a browser."""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import json
import os
import re
import shutil
from pathlib import Path

import browsing
import nbformat
import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT

from bookmaking import run_here

ROOT = Path(__file__).parents[1]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "05_closed_form.ipynb", as_version=4)
[CODE] = [cell.source for cell in NOTEBOOK.cells if cell.id == "run-cell"]
pytestmark = pytest.mark.xdist_group("run here")  # one browser, whose Python starts once
GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "H": GENERATOR.gamma(1.0, 1.0, (200, 128)).astype(np.float16),
    "Z": GENERATOR.normal(size=(200, 10)) * 4,
    "ood": np.arange(200) >= 100,
}


def here(code: str) -> float:
    """What the last line of the code comes to in this Python."""
    program = ast.parse(code)
    last = ast.Expression(program.body.pop().value)  # type: ignore[attr-defined]
    names = {"np": np, **ARRAYS, "H": ARRAYS["H"].astype(float)}
    exec(compile(program, "cell", "exec"), names)
    return float(eval(compile(last, "cell", "eval"), names))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The cell and its button as on the built page, with what they load."""
    folder = tmp_path_factory.mktemp("html")
    shutil.copytree(ROOT / "book" / "extra" / "run", folder / "run")
    shutil.copytree(run_here.PYTHON, folder / "pyodide" / run_here.PYTHON.name)
    (folder / "_static").mkdir()
    shutil.copyfile(ROOT / "book" / "_static" / "dom.js", folder / "_static" / "dom.js")
    button = run_here.run_here(ARRAYS, ["known", "unknown"]).data
    cells = (
        f'<div class="cell"><div class="cell_input"><pre>{html.escape(CODE)}\n</pre></div></div>',
        f'<div class="cell"><div class="cell_output">{button}</div></div>',
    )
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width"><title>Cell</title><link rel="icon" href="data:,">'
        '<script src="../_static/dom.js"></script><style>* { box-sizing: border-box }</style>'
    )
    (folder / "notebooks").mkdir()
    page = f"{head}<main><h1>Cell</h1>{''.join(cells)}</main></html>"
    (folder / "notebooks" / "cell.html").write_text(page, encoding="utf-8")
    with browsing.served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing.launched(None, tmp_path_factory.mktemp("fonts")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, site):
    """On a phone; at the end nothing has failed and nothing came from elsewhere."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.set_default_timeout(300_000)  # a busy machine is no fault of the page
    faults, page.requested = browsing.complaints(page), []
    page.on("response", lambda reply: reply.status >= 400 and faults.append(reply.url))
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(f"{site}notebooks/cell.html")
    yield page
    own = (site, "data:", f"blob:{site}")
    foreign = [url for url in page.requested if not url.startswith(own)]
    page.close()
    assert faults + foreign == []


def said(page, code=None):
    """What stands below the cell after a run of that code, or of what stands there."""
    page.evaluate("document.querySelector('.tb-said').textContent = ''")
    if code is not None:
        page.locator("textarea").fill(code)
    page.locator("textarea").press("Control+Enter")
    page.wait_for_function("document.querySelector('.tb-said').textContent")
    return page.locator(".tb-said").inner_text()


def test_python_is_the_released_one():
    """SOURCE.txt names the releases and what their files were, unpacked."""
    source = (run_here.PYTHON / "SOURCE.txt").read_text(encoding="utf-8")
    files = [run_here.PYTHON / name for name in ("pyodide.js", "pyodide.asm.js")]
    [wheel] = run_here.PYTHON.glob("numpy-*.whl")
    for file in (*files, run_here.PYTHON / "python_stdlib.zip", wheel):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in source
    wasm = gzip.decompress((run_here.PYTHON / "pyodide.asm.wasm.gz").read_bytes())
    assert hashlib.sha256(wasm).hexdigest() in source
    lock = json.loads((run_here.PYTHON / "pyodide-lock.json").read_text(encoding="utf-8"))
    assert list(lock["packages"]) == ["numpy"]
    assert lock["packages"]["numpy"]["file_name"] == wheel.name
    assert lock["packages"]["numpy"]["sha256"] in source
    for name, words in (("", "Mozilla"), (".python", "PYTHON"), (".numpy", "NumPy Developers")):
        assert words in (run_here.PYTHON / f"LICENSE{name}").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in run_here.PYTHON.iterdir()) < 12e6


def test_worker_takes_the_python_that_is_here():
    worker = (ROOT / "book" / "extra" / "run" / "worker.js").read_text(encoding="utf-8")
    assert f"../pyodide/{run_here.PYTHON.name}/" in worker


def test_numbers_are_sent_as_they_are():
    page = run_here.run_here(ARRAYS, ["known", "unknown"]).data
    facts = json.loads(re.search(r'<script type="application/json">(.+?)</script>', page)[1])
    sent = {name: (part["kind"], part["to"]) for name, part in facts["arrays"].items()}
    assert sent == {"H": ("<f2", "float64"), "Z": ("<f8", "float64"), "ood": ("|b1", "bool")}
    assert facts["arrays"]["H"]["shape"] == [200, 128]
    assert sum(facts["ood"]) == 100


@pytest.mark.parametrize("ood", [None, np.zeros(3), np.zeros((2, 2), bool)])
def test_outliers_must_be_known(ood):
    arrays = {"Z": np.zeros((3, 2))} if ood is None else {"ood": ood}
    with pytest.raises(ValueError, match="arrays needs 'ood'"):
        run_here.run_here(arrays, ["known", "unknown"])


def test_without_javascript_the_cell_stands(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}notebooks/cell.html")
    assert page.locator("pre").inner_text().strip() == CODE
    assert page.locator("noscript p").is_visible()
    context.close()


def test_group_stays_together(request):
    """The tests below build on each other: in several processes, their group must be known."""
    several = "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup")
    assert request.node.nodeid.endswith("@run here") == bool(several)


def test_nothing_heavy_is_loaded_unasked(page):
    page.get_by_role("button", name=re.compile(r"Run here \(\d+ MB\)")).wait_for()
    page.wait_for_load_state("networkidle")
    assert [url for url in page.requested if re.search("pyodide|worker", url)] == []
    assert page.locator("textarea").is_hidden()


def test_cell_runs_and_another_line_gives_another_number(page):
    page.get_by_role("button", name="Run here").press("Enter")
    page.wait_for_function("document.querySelector('.tb-said').textContent")
    assert page.locator("textarea").evaluate("node => node === document.activeElement")
    assert page.locator("textarea").input_value() == CODE
    first = float(page.locator(".tb-said").inner_text())
    assert first == pytest.approx(here(CODE), abs=1e-12)
    changed = CODE.replace("T = 5.0", "T = 0.5")
    assert changed != CODE
    second = float(said(page, changed))
    assert second == pytest.approx(here(changed), abs=1e-12)
    assert second != first
    assert page.locator("svg rect").count() == 200
    assert "of the 100 highest scores belong to unknown" in str(
        page.locator("svg").get_attribute("aria-label")
    )


def test_numbers_are_whole_again_in_the_next_run(page):
    assert said(page, "Z *= 0\nZ.sum()") == "0.0"
    assert float(said(page, "Z.sum()")) == pytest.approx(ARRAYS["Z"].sum())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ny = nothing", "Line 2: NameError: name 'nothing' is not defined"),
        ("for x in", "Line 1: SyntaxError: invalid syntax"),
        ("1 / 0", "Line 1: ZeroDivisionError: division by zero"),
        ("print('a')\nH.shape", "a\n(200, 128)"),
        ("x = 1", "The last line shows nothing. End with an expression."),
    ],
)
def test_what_python_says_is_text(page, code, words):
    assert said(page, code) == words


def test_a_drawing_is_of_scores_alone(page):
    assert said(page, "score = H\n1") == "1"
    assert page.locator(".tb-bench svg").is_hidden()


def test_cell_fits_a_phone_and_a_screen_reader(page):
    said(page, CODE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("async () => (await axe.run('.tb-run')).violations")
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []


def test_endless_run_is_stopped_and_reset_begins_anew(page):
    page.evaluate("document.querySelector('.tb-said').textContent = ''")
    page.locator("textarea").fill("while True:\n    pass")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.tb-said').textContent === 'Stopped.'")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("Number(document.querySelector('.tb-said').textContent)")
    assert page.locator("textarea").input_value() == CODE
    assert float(page.locator(".tb-said").inner_text()) == pytest.approx(here(CODE), abs=1e-12)
