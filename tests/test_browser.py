"""The built site in a real browser: offline, on a phone, by keyboard, in both themes.

Without the built book or without Chromium these tests are skipped; where the variable CI is set,
they fail.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browsing
import fonts
import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from bookmaking.site import check
from bookmaking.sources import pages

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
SITE, REPOSITORY = CONFIG["html"]["baseurl"], CONFIG["repository"]
WRITTEN = [page.with_suffix(".html").as_posix() for page in pages(ROOT)]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
CHECKS = (ROOT / "tests" / "browser.js").read_text(encoding="utf-8")
ICONS = ROOT / "book" / "_static" / "vendor" / "fontawesome"


@pytest.fixture(scope="session")
def html() -> Path:
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").is_file():
        browsing.absent("the book is not built: make book")
    return folder


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    with browsing.served(html) as address:
        yield address


@pytest.fixture(scope="module")
def browsers(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Gives the page of a browser that sees a set of fonts; each browser starts once."""
    other = os.environ.get("BROWSER")  # firefox or webkit, as Playwright installs them
    program = browsing.chromium()
    if program is None and not other:
        browsing.absent("no Chromium on this machine")
    options: dict[str, Any] = {} if other else {"executable_path": program, "args": browsing.FLAGS}
    with sync_playwright() as driver, contextlib.ExitStack() as started:

        @functools.cache
        def page(font: str | None) -> Page:
            options["env"] = fonts.environment(font, tmp_path_factory.mktemp("fonts"))
            program = getattr(driver, other or "chromium").launch(**options)
            page = started.enter_context(program).new_page(reduced_motion="reduce")
            page.set_default_timeout(300_000)  # a busy machine is no fault of the page
            return page

        yield page


@pytest.fixture(scope="module", params=[fonts.FIRST])
def browser(request: pytest.FixtureRequest, browsers: Any) -> Page:
    return browsers(request.param)


@pytest.fixture(scope="module")
def faults(browser: Page, site: str) -> list[Any]:
    """What went wrong in the browser since the list was cleared."""
    found: list[Any] = []
    browser.on("console", lambda message: message.type == "error" and found.append(message.text))
    browser.on("pageerror", lambda error: found.append(str(error)))
    browser.on(
        "response", lambda reply: reply.status >= 400 and found.append((reply.url, reply.status))
    )
    browser.on("requestfailed", lambda failed: found.append((failed.url, failed.failure)))
    browser.on(
        "request",
        lambda sent: sent.url.startswith((site, "data:", "blob:")) or found.append(sent.url),
    )
    return found


# the tests of a page run in one process
GROUPS = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name in ("index.html", "search.html", "genindex.html", *WRITTEN)
]


@pytest.fixture(scope="module", params=GROUPS)
def page(
    request: pytest.FixtureRequest, browser: Page, site: str, faults: list[Any]
) -> Iterator[Page]:
    """One page, loaded once, on a phone, everything unfolded."""
    browser.set_viewport_size(PHONE)
    browser.emulate_media(color_scheme="light")
    faults.clear()
    browser.goto(site + request.param, wait_until="load")
    browser.evaluate("async () => { await document.fonts.ready; }")
    browser.evaluate(
        "() => document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
    )
    browser.add_style_tag(
        content="* { transition: none !important; scroll-behavior: auto !important; }"
    )
    browser.evaluate(AXE_SCRIPT)
    browser.evaluate(CHECKS)
    yield browser
    browser.goto("about:blank")


def test_site_is_complete(html: Path) -> None:
    check(ROOT, html)


def test_sitemap_and_cards_name_every_page(html: Path) -> None:
    places = {place.text for place in ElementTree.parse(html / "sitemap.xml").findall(".//{*}loc")}
    assert places == {SITE + name for name in WRITTEN}
    for name in WRITTEN:
        text = (html / name).read_text(encoding="utf-8")
        card = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', text))
        assert card["url"] == SITE + name
        assert card["description"]
        assert not re.search(r"\\[a-z]", card["description"]), (
            f"{name}: a preview shows formulas as TeX"
        )
        assert card["image"].startswith(SITE), "readers of cards take no relative address"
        with Image.open(html / card["image"].removeprefix(SITE)) as picture:
            assert picture.width >= 1000, name
        (card,) = BeautifulSoup(text, "html.parser").select('meta[name="twitter:card"]')
        assert card["content"] == "summary_large_image", name


def test_every_icon_is_in_the_fonts_that_were_cut(html: Path) -> None:
    source = (ICONS / "SOURCE.txt").read_text(encoding="utf-8")
    kept = set(",".join(re.findall(r"--unicodes=(\S+)", source)).split(","))
    sheets = [sheet.read_text(encoding="utf-8") for sheet in html.glob("_static/**/*.css")]
    asked = {code for text in sheets for code in re.findall(r"\\([ef][0-9a-f]{3})\b", text)}
    asked |= {f"{ord(x):x}" for text in sheets for x in text if "\ue000" <= x <= "\uf8ff"}
    assert len(asked) > 10
    assert asked - kept == set(), f"cut the fonts anew, as {ICONS / 'SOURCE.txt'} says"
    for font in ICONS.rglob("*.woff2"):
        [served] = html.rglob(font.name)
        digest = hashlib.sha256(served.read_bytes()).hexdigest()
        assert f"{font.name} SHA-256 {digest}" in " ".join(source.split())


def test_badges_open_the_notebook_of_the_page(html: Path) -> None:
    colab = "https://colab.research.google.com/github/"
    tree = REPOSITORY["url"].removeprefix("https://github.com/") + f"/blob/{REPOSITORY['branch']}/"
    for name in (name for name in WRITTEN if name.startswith("notebooks/")):
        found = set(
            re.findall(rf'href="({colab}[^"]*)"', (html / name).read_text(encoding="utf-8"))
        )
        assert found == {colab + tree + name.replace(".html", ".ipynb")}


def test_every_chapter_shows_what_it_was_rendered_with(html: Path) -> None:
    for name in (name for name in WRITTEN if name.startswith("notebooks/")):
        text = re.sub(r"<[^>]+>", "", (html / name).read_text(encoding="utf-8"))
        assert re.search(
            r"Reproduce this page\s+Parameters\s+.*profile = '\w+'.*\s+Commit\s", text
        ), name


@fonts.both_font_sets
def test_phone_shows_everything_and_scrolls_down_alone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    assert {fault: found for fault, found in page.evaluate("checks.look()").items() if found} == {}


def test_a_phone_shows_the_greater_part_of_a_drawing(page: Page) -> None:
    page.set_viewport_size(PHONE)
    drawings = page.evaluate("checks.drawings()")
    assert bool(drawings) == bool(re.search(r"/notebooks/\d", page.url))
    assert [hidden for hidden in drawings if hidden > 0.65 * PHONE["width"]] == []


def test_paper_shows_formulas_and_what_is_folded(page: Page) -> None:
    page.emulate_media(media="print")
    lost = page.evaluate("checks.lostOnPaper()")
    page.emulate_media(media="screen")
    assert lost == []


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_page_weighs_little(page: Page, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    plain, sent = page.evaluate("checks.weight()")
    assert 100_000 < plain <= 1_500_000
    assert sent <= 1_000_000


@fonts.both_font_sets
def test_a_word_longer_than_its_line_breaks(page: Page) -> None:
    page.set_viewport_size(PHONE)
    assert page.evaluate("checks.lookAtLongWords()") == {"unreachable": [], "wider": 0}


@fonts.both_font_sets
def test_fingers_hit_every_control(page: Page) -> None:
    page.set_viewport_size(PHONE)
    assert page.evaluate("checks.taps()") == []


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page) -> None:
    page.set_viewport_size(DESK)
    for _ in range(page.evaluate("checks.listen()") + 5):
        page.keyboard.down("Tab")
    page.keyboard.up("Tab")
    assert page.evaluate("checks.reached()") == {"missed": [], "unseen": []}


COLORS = ["color-contrast", "link-in-text-block"]  # the only rules that a theme can break
BUT_COLORS = {"rules": {rule: {"enabled": False} for rule in COLORS}}


def test_axe_finds_nothing_serious(page: Page) -> None:
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme="light")
    page.evaluate("checks.thin()")
    assert page.evaluate("(rules) => checks.axe(rules)", BUT_COLORS) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_contrast(page: Page, theme: str) -> None:
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme=theme)
    page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
    page.evaluate("checks.sample()")
    assert page.evaluate("(rules) => checks.axe(rules)", {"runOnly": COLORS}) == []


def test_nothing_failed_or_came_from_elsewhere(page: Page, faults: list[Any]) -> None:
    assert faults == [], page.url


def test_search_finds_words(browser: Page, site: str) -> None:
    browser.goto(f"{site}search.html?q=Fisher")
    browser.wait_for_selector("#search-results li a")
