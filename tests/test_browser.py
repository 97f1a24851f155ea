"""The built site is complete, and works in a real browser: offline, on a phone, by keyboard, in
both themes.

Without the built book or without Chromium these tests are skipped; where the variable CI is set,
they fail.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import fonts
import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, sync_playwright

from bookmaking.site import check
from bookmaking.sources import pages

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
SITE, REPOSITORY = CONFIG["html"]["baseurl"], CONFIG["repository"]
WRITTEN = [page.with_suffix(".html").as_posix() for page in pages(ROOT)]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
FLAGS = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network but this site
]

LOOK = """() => {
    const named = (e) => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.querySelector("title");
    const drawn = [...document.querySelectorAll(".cell_output img, .cell_output svg")];
    const small = (e) => e.getBoundingClientRect().width < 8 || e.getBoundingClientRect().height < 8;
    const scrolls = (e) => e.scrollWidth > e.clientWidth && /auto|scroll/.test(getComputedStyle(e).overflowX);
    const name = (e) => e.src || e.outerHTML.slice(0, 120);
    return {
        nameless: [...document.images].filter((i) => !i.hasAttribute("alt"))
            .concat([...document.querySelectorAll("article img")].filter((i) => !i.alt.trim()))
            .concat(drawn.filter((e) => e.tagName == "svg" && !e.closest("[aria-hidden=true]") && !named(e))).map(name),
        empty: [...document.images].filter((i) => !(i.complete && i.naturalWidth))
            .concat(drawn.filter((e) => !e.closest("svg svg, button, label") && small(e))).map(name),
        formulas: document.querySelectorAll(".math mjx-merror, .math [data-mjx-error]").length,
        unreachable: [...document.querySelectorAll("article *")].filter(scrolls)
            .filter((e) => e.tabIndex < 0 && !e.querySelector("a[href], button, input, [tabindex='0']")).map(name),
        wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
}"""
# The same colour a thousand times over costs seconds: one token of each kind of code and one
# formula stay.
THIN = """() => {
    const kinds = new Set();
    const again = [...document.querySelectorAll("pre span[class]")].filter((token) => {
        const kind = token.className + Boolean(token.closest(".cell_output"));
        return kinds.has(kind) || !kinds.add(kind);
    });
    for (const token of again) token.replaceWith(token.textContent);
    for (const formula of [...document.querySelectorAll("mjx-container")].slice(1)) formula.replaceWith("x");
}"""
AXE = """async (rules) => {
    const { violations } = await axe.run({ resultTypes: ["violations"], preload: false, ...rules });
    return violations.filter((rule) => ["serious", "critical"].includes(rule.impact))
        .flatMap((rule) => rule.nodes.map((node) => [rule.id, node.target.join(" "), node.failureSummary]));
}"""
LISTEN = """() => {
    const look = (e) => {
        const s = getComputedStyle(e);
        return [s.outline, s.boxShadow, s.textDecoration, s.backgroundColor, s.borderColor].join();
    };
    const there = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length;
    const controls = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
        .filter((e) => e.tabIndex >= 0 && !e.matches(":disabled") && !(e.type === "radio" && !e.checked) && there(e));
    window.before = new Map(controls.map((e) => [e, look(e)]));
    window.reached = new Map();
    addEventListener("focusin", ({ target: e }) => {
        const { top, bottom, left, right } = e.getBoundingClientRect();
        const inside = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
        reached.set(e, { shown: inside && look(e) !== before.get(e) });
    });
    return before.size;
}"""
REACHED = """() => {
    const name = (e) => e.outerHTML.slice(0, 120);
    return {
        missed: [...before.keys()].filter((e) => e.tabIndex >= 0 && !reached.has(e)).map(name), // what scrolls still
        unseen: [...reached].filter(([, focus]) => !focus.shown).map(([e]) => name(e)),
    };
}"""

WEIGHT = """async () => {
    const entries = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
    const timed = entries.map((file) => file.name);
    const linked = document.querySelectorAll("link[rel=stylesheet], script[src], img[src]");
    const named = [...linked].map((e) => e.href ?? e.src);
    const files = new Set([...timed, ...named].filter((name) => name.startsWith(location.origin)));
    const bodies = [...files].map(async (name) => (await fetch(name)).arrayBuffer());
    return (await Promise.all(bodies)).reduce((sum, body) => sum + body.byteLength, 0);
}"""  # as files, before any compression; what came from the cache counts, too
PICTURES = ("book/limits.html", "book/examples.html")  # photographs, hundreds of them in one file


def absent(reason: str) -> NoReturn:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # the browser left for the next page
            super().handle()


@pytest.fixture(scope="session")
def html() -> Path:
    folder = ROOT / "_build" / "html"
    return (
        folder if (folder / "index.html").is_file() else absent("the book is not built: make book")
    )


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(
    scope="module", params=[fonts.FIRST]
)  # one driver at a time: other modules start their own
def browser(
    request: pytest.FixtureRequest, html: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    other = os.environ.get("BROWSER")  # firefox or webkit, as Playwright installs them
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None and not other:
        absent("no Chromium on this machine")
    options: dict[str, Any] = {} if other else {"executable_path": program, "args": FLAGS}
    options["env"] = fonts.environment(request.param, tmp_path_factory.mktemp("fonts"))
    with (
        sync_playwright() as driver,
        getattr(driver, other or "chromium").launch(**options) as browser,
    ):
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(300_000)  # a busy machine is no fault of the page
        yield page


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


@pytest.fixture(scope="module", params=["index.html", "search.html", "genindex.html", *WRITTEN])
def page(
    request: pytest.FixtureRequest, browser: Page, site: str, faults: list[Any]
) -> Iterator[Page]:
    """One page, loaded once, on a phone, everything unfolded."""
    browser.set_viewport_size(PHONE)
    browser.emulate_media(color_scheme="light")
    faults.clear()
    browser.goto(site + request.param, wait_until="load")
    browser.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    browser.evaluate(
        "() => document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
    )
    browser.add_style_tag(
        content="* { transition: none !important; scroll-behavior: auto !important; }"
    )
    browser.evaluate(AXE_SCRIPT)
    yield browser
    browser.goto("about:blank")


def test_site_is_complete(html: Path) -> None:
    check(ROOT, html)


def test_sitemap_and_cards_name_every_page(html: Path) -> None:
    places = {place.text for place in ElementTree.parse(html / "sitemap.xml").findall(".//{*}loc")}
    assert places == {SITE + name for name in WRITTEN}
    for name in WRITTEN:
        found = re.findall(
            r'<meta property="og:(\w+)" content="([^"]*)"',
            (html / name).read_text(encoding="utf-8"),
        )
        card = dict(found)
        assert card["url"] == SITE + name
        assert card["description"]
        assert not re.search(r"\\[a-z]", card["description"]), (
            f"{name}: a preview shows formulas as TeX"
        )
        assert (html / card["image"].removeprefix(SITE)).is_file(), name


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
            r"Reproduce this page\s+Parameters\s+profile = '\w+'.*\s+Commit\s", text
        ), name


@fonts.both_font_sets
def test_phone_shows_everything_and_scrolls_down_alone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    assert {fault: found for fault, found in page.evaluate(LOOK).items() if found} == {}


DRAWN = """() => [...document.querySelectorAll(".cell_output figure > img[width]")].map((drawing) => ({
    text: (10 * 4 / 3) * (drawing.clientWidth / drawing.getAttribute("width")), // 10 pt, as book.mplstyle has it
    hidden: drawing.parentElement.scrollWidth - drawing.parentElement.clientWidth,
}))"""


def test_drawings_fit_a_phone_and_can_be_read(page: Page) -> None:
    page.set_viewport_size(PHONE)
    drawings = page.evaluate(DRAWN)
    assert bool(drawings) == bool(re.search(r"/notebooks/\d", page.url))
    assert [d for d in drawings if d["text"] < 7.5 or d["hidden"] > 0.11 * PHONE["width"]] == []


def test_page_weighs_little(page: Page) -> None:
    if page.url.endswith(PICTURES):
        pytest.skip("a page of photographs")
    assert 0.1 * 2**20 < page.evaluate(WEIGHT) <= 1.5 * 2**20


TAPS = """() => {
    const there = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length;
    const target = (e) => e.labels?.[0] ?? e; // a label is hit in place of what it is for
    const inText = (e) => e.matches("a") && getComputedStyle(e).display === "inline"; // as tall as its line
    return [...document.querySelectorAll("main :is(a[href], button, input, select, summary)")]
        .filter((e) => there(e) && !e.disabled && !inText(e))
        .map((e) => [e.outerHTML.slice(0, 120), target(e).getBoundingClientRect()])
        .filter(([, box]) => Math.min(box.width, box.height) < 24).map(([name]) => name);
}"""


@fonts.both_font_sets
def test_fingers_hit_every_control(page: Page) -> None:
    page.set_viewport_size(PHONE)
    assert page.evaluate(TAPS) == []


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page) -> None:
    page.set_viewport_size(DESK)
    for _ in range(page.evaluate(LISTEN) + 5):
        page.keyboard.down("Tab")
    page.keyboard.up("Tab")
    assert page.evaluate(REACHED) == {"missed": [], "unseen": []}


COLORS = {"runOnly": ["color-contrast", "link-in-text-block"]}  # what else could differ in the dark


@pytest.mark.parametrize(
    ("theme", "rules"), [("light", {}), ("dark", COLORS)], ids=["light", "dark"]
)
def test_axe_finds_nothing_serious(page: Page, theme: str, rules: dict[str, Any]) -> None:
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("(theme) => document.documentElement.dataset.theme === theme", arg=theme)
    page.evaluate(THIN)
    assert page.evaluate(AXE, rules) == []


def test_nothing_failed_or_came_from_elsewhere(page: Page, faults: list[Any]) -> None:
    assert faults == [], page.url


def test_search_finds_words(browser: Page, site: str) -> None:
    browser.goto(f"{site}search.html?q=Fisher")
    browser.wait_for_selector("#search-results li a")
