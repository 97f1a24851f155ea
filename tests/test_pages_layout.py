"""Every page at two sizes and in both themes: whole, readable, and still under the reader's hands.

Each page is loaded once at each size; what is measured then is shared by all tests. Without the
built book or a browser the tests are skipped; where the variable CI is set, they fail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Page

from bookmaking.sources import pages

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
WRITTEN = [page.with_suffix(".html").as_posix() for page in pages(ROOT)]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
DEEPEST = {"desk": 800, "phone": 1.5 * 844}  # middle of an answer figure, in pixels from the top
MEASURES = (ROOT / "tests" / "layout.js").read_text(encoding="utf-8")
LETTERS = ROOT / "book" / "_static" / "vendor" / "type"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if not (HTML / "index.html").is_file():
        browsing.absent("the book is not built: make book")
    with (
        browsing.launched(None, tmp_path_factory.mktemp("fonts")) as program,
        browsing.served(HTML) as site,
    ):
        page = program.new_page(reduced_motion="reduce", base_url=site)
        page.set_default_timeout(300_000)
        yield page


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in WRITTEN],
)
def measured(request: pytest.FixtureRequest, browser: Page) -> dict[str, Any]:
    """What a page is like: size -> measure -> value."""
    found: dict[str, Any] = {"name": request.param}
    for size, (width, height) in SIZES.items():
        browser.set_viewport_size({"width": width, "height": height})
        browser.emulate_media(color_scheme="light")
        sent: list[str] = []
        note = lambda request, sent=sent: sent.append(request.url)  # noqa: E731
        browser.on("request", note)
        browser.goto(request.param, wait_until="load")
        browser.evaluate("async () => { await document.fonts.ready; }")
        browser.evaluate(MEASURES)
        here: dict[str, Any] = {"answer": browser.evaluate("layout.answer()")}
        browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        browser.wait_for_timeout(50)  # opened folds are measured anew by thinkback.js
        here["cut"] = browser.evaluate("(desk) => layout.cut(desk)", size == "desk")
        here["clipped"] = browser.evaluate("layout.clipped()")
        here["small"] = browser.evaluate("layout.smallText()")
        here["drawn"] = browser.evaluate("(desk) => layout.drawnText(desk)", size == "desk")
        here["moves"] = browser.evaluate("layout.moves()")
        here["letters"] = browser.evaluate("layout.letters()")
        browser.remove_listener("request", note)
        here["elsewhere"] = [url for url in sent if not re.match(r"http://127\.|data:|blob:", url)]
        found[size] = here
    return found


def told(faults: list[Any]) -> str:
    return "\n" + "\n".join(map(str, faults))


both_sizes = pytest.mark.parametrize("size", SIZES)


@both_sizes
def test_nothing_is_cut(measured: dict[str, Any], size: str) -> None:
    """On a desk nothing scrolls sideways; on a phone what is wider than the screen can scroll."""
    assert measured[size]["cut"] == [], told(measured[size]["cut"])


@both_sizes
def test_formulas_show_their_whole_height(measured: dict[str, Any], size: str) -> None:
    assert measured[size]["clipped"] == [], told(measured[size]["clipped"])


@both_sizes
def test_no_text_is_too_small(measured: dict[str, Any], size: str) -> None:
    assert measured[size]["small"] == [], told(measured[size]["small"])


@both_sizes
def test_text_in_drawings_can_be_read_in_both_themes(measured: dict[str, Any], size: str) -> None:
    assert measured[size]["drawn"] == [], told(measured[size]["drawn"])


@both_sizes
def test_answer_figure_is_near_the_top(measured: dict[str, Any], size: str) -> None:
    middle = measured[size]["answer"]
    if not measured["name"].startswith("notebooks/"):
        pytest.skip("a page of prose")
    assert middle is not None
    assert middle < DEEPEST[size]


@both_sizes
def test_nothing_moves_when_a_control_is_used(measured: dict[str, Any], size: str) -> None:
    assert measured[size]["moves"] == [], told(measured[size]["moves"])


@both_sizes
def test_page_asks_no_other_host(measured: dict[str, Any], size: str) -> None:
    assert measured[size]["elsewhere"] == [], told(measured[size]["elsewhere"])


@both_sizes
def test_page_is_set_in_the_letters_of_the_book(measured: dict[str, Any], size: str) -> None:
    used, ready = measured[size]["letters"]
    assert {"Book Serif", "Book Sans"} <= set(used) <= {"Book Serif", "Book Sans", "Book Code"}
    assert set(used) <= set(ready)


def test_every_sign_of_the_pages_is_in_the_letters_that_were_cut() -> None:
    source = (LETTERS / "SOURCE.txt").read_text(encoding="utf-8")
    kept: set[int] = set()
    for line in re.findall(r"--unicodes=([\dA-F,\s-]+)(?=\n\S|\npyft|\n\n)", source):
        for part in re.sub(r"\s", "", line).split(","):
            first, _, last = part.partition("-")
            kept |= set(range(int(first, 16), int(last or first, 16) + 1))
    assert len(kept) > 250
    for name in WRITTEN:
        page = BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")
        for other in page.select("script, style, .math, svg"):
            other.decompose()
        signs = {c for c in page.get_text() if not c.isspace() and ord(c) not in kept}
        assert signs == set(), f"{name}: cut the fonts anew, as {LETTERS / 'SOURCE.txt'} says"


def test_letters_are_those_of_their_source_and_small() -> None:
    source = (LETTERS / "SOURCE.txt").read_text(encoding="utf-8")
    files = sorted(LETTERS.glob("*.woff2"))
    assert len(files) == 9
    for font in files:
        digest = hashlib.sha256(font.read_bytes()).hexdigest()
        assert re.search(rf"{re.escape(font.name)}\s+\S+\s+SHA-256 {digest}", source)
    assert sum(font.stat().st_size for font in files) < 150_000
    assert not list((HTML / "_static").rglob("type/*.woff2")), "fonts.css holds them"
