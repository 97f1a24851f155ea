"""The search: what it holds of a page, and what it finds, in a browser and from files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

import browsing
import fonts
import pytest
from bs4 import BeautifulSoup

from bookmaking import search
from bookmaking.sources import pages

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGE = """
<nav>Elsewhere</nav><article><section id="top"><h1>2. Metrics<a class="headerlink">#</a></h1>
<p>Four <em>numbers</em>, with <span class="math">\\(T\\)</span> and
<span class="math">\\(\\hat y\\)</span>.</p><script>no()</script><pre>code = 1</pre>
<section id="noise"><h2>Noise</h2><p>Seeds differ.</p></section></section>
<dl><dt id="term-tie">Tie</dt><dd><p>Equal scores.</p></dd></dl></article>
"""


def test_sections_of_a_page() -> None:
    found = list(search.sections(BeautifulSoup(PAGE, "html.parser"), "n/02.html"))
    assert found == [
        {
            "at": "n/02.html#term-tie",
            "page": "2. Metrics",
            "heading": "Tie",
            "text": "Equal scores.",
        },
        {
            "at": "n/02.html#noise",
            "page": "2. Metrics",
            "heading": "Noise",
            "text": "Seeds differ.",
        },
        {
            "at": "n/02.html",
            "page": "2. Metrics",
            "heading": "2. Metrics",
            "text": "Four numbers, with T and ….",
        },
    ]


def test_a_site_has_one_index(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "02.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "searchindex.js").write_text("Search.setIndex({})", encoding="utf-8")
    search.write(tmp_path)
    assert not (tmp_path / "searchindex.js").exists()
    script = (tmp_path / search.SECTIONS).read_text(encoding="utf-8")
    assert script.startswith('window.thinkback.sections = [{"at":"n/02.html#term-tie"')


def test_engine_is_the_released_one() -> None:
    folder = ROOT / "book" / "vendor" / "minisearch"
    digest = hashlib.sha256((folder / "minisearch.js").read_bytes()).hexdigest()
    assert digest in (folder / "SOURCE.txt").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[fonts.FIRST])
def browser(request, tmp_path_factory):
    if not (HTML / search.SECTIONS).is_file():
        pytest.skip("the book is not built: make book")
    with browsing.launched(request.param, tmp_path_factory.mktemp("fonts")) as browser:
        yield browser


@pytest.fixture(scope="module", params=["served", "as files"])
def find(request, browser):
    """Ask the search page, as a server gives it or as a file; returns the addresses found."""
    page = browser.new_page(viewport={"width": 390, "height": 740})
    faults = browsing.complaints(page)

    def ask(query):
        page.goto(f"{start}search.html?q={quote(query)}")
        page.wait_for_selector("#search-count:not(:empty)")
        links = page.locator("#search-results li > a")
        return [link.get_attribute("href") for link in links.all()]

    ask.page = page
    if request.param == "as files":
        start = f"{HTML.as_uri()}/"
        yield ask
    else:
        with browsing.served(HTML) as start:
            yield ask
    page.close()
    assert faults == []


@pytest.mark.parametrize(
    ("query", "page", "within"),
    [
        ("how do i pick a threshold", "notebooks/13_your_model.html", 1),
        ("How can I use it on my own network?", "notebooks/13_your_model.html", 2),
        ("temprature", "notebooks/07_temperature_eps.html", 2),
        ("how do I run it on Colab", "book/how_to_run.html", 2),
        ("far set", "book/glossary.html", 3),
    ],
)
def test_questions_find_their_page(find, query: str, page: str, within: int) -> None:
    found = find(query)
    assert page in found[:within], found
    assert len(found) == len(set(found))
    assert all((HTML / address).is_file() for address in found)


def test_results_lead_to_sections_and_show_the_words(find) -> None:
    find("how do i pick a threshold")
    first = find.page.locator("#search-results li").first
    address, anchor = first.locator(".places a").first.get_attribute("href").split("#")
    assert f'id="{anchor}"' in (HTML / address).read_text(encoding="utf-8")
    marked = find.page.locator("#search-results mark").all_inner_texts()
    assert marked
    assert all(word.lower().startswith(("pick", "threshold")) for word in marked)


def test_nothing_found_is_said_and_typing_searches(find) -> None:
    assert find("qqqqxyz") == []
    assert "No page" in find.page.locator("#search-count").inner_text()
    assert find("how do I") == []
    field = find.page.locator(".bd-search-container input")
    field.fill("leverage")
    assert find.page.locator("#search-results li").count() > 0


def test_magnifier_leaves_the_text_free(find) -> None:
    """The icon ends before the text of the field begins."""
    find("leverage")
    for width in (390, 1280):
        find.page.set_viewport_size({"width": width, "height": 740})
        field = find.page.locator(".bd-search-container form")
        icon = field.locator("i").bounding_box()
        start = field.locator("input").evaluate(
            "e => e.getBoundingClientRect().left + parseFloat(getComputedStyle(e).paddingLeft)"
        )
        assert icon["x"] + icon["width"] <= start


@pytest.mark.skipif(not HTML.is_dir(), reason="the book is not built: make book")
def test_a_page_has_one_name() -> None:
    """Its title is its name in the sidebar, in the tab, and in the links of its neighbors."""
    addresses = [page.with_suffix(".html") for page in pages(ROOT)]
    soups = [
        BeautifulSoup((HTML / a).read_text(encoding="utf-8"), "html.parser") for a in addresses
    ]
    titles = [search.plain(soup.select_one("article h1")) for soup in soups]
    for i, soup in enumerate(soups):
        sidebar = [" ".join(a.get_text().split()) for a in soup.select(".bd-links a.internal")]
        assert sidebar == titles[1:] or sidebar[1:] == titles[1:], addresses[i]
        following = soup.select_one("a.right-next .prev-next-title")
        assert following is None or " ".join(following.get_text().split()) == titles[i + 1]
