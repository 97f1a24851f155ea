"""The glossary at work: what is found on a page, and what the built pages show of it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import browsing
import pytest
from bs4 import BeautifulSoup

from bookmaking import terms
from bookmaking.sources import pages, read

ROOT = Path(__file__).parents[1]
GLOSSARY = terms.read((ROOT / "book" / "glossary.md").read_text(encoding="utf-8"))
HTML = ROOT / "_build" / "html"
NEEDED = """
    AUPR; AUROC; backward pass; baseline; beyond chance; bootstrap; bundle; calibration;
    closed form; conformal; coverage; damping; detector; doubt; elastic weight consolidation;
    empirical Fisher;
    Energy; EWC; far set; Fisher information; FPR95; ID; in-distribution; leverage; logit; margin;
    near set; OOD; out-of-distribution; p-value; peers; penultimate features; prevalence; profile;
    reading A; reading B; reading C; reading D; reading E; recipe; residual; ROC curve; Softmax;
    softmax; stand-in; temperature; test suite; threshold; TPR10; training seed; unit features;
    validation outliers
"""  # what the chapters use, some of it before they explain it


def marked(html: str, glossary: str = "Far OOD, far set\n: Of another kind. More.\n") -> str:
    page = BeautifulSoup(html, "html.parser")
    terms.mark(page, terms.read(glossary), "g.html")
    return str(page)


def test_glossary_can_be_shown() -> None:
    """Each definition is one short sentence without formulas; entries are in order."""
    assert len(GLOSSARY) > 90
    names = [name for term in GLOSSARY for name in term.names]
    assert len(set(names)) == len(names)
    for term in GLOSSARY:
        assert re.fullmatch(r"[^$\\_{}]{20,210}\.", term.definition), term
        assert term.definition[0].isupper(), term
    firsts = [re.sub(r"[^a-z0-9 ]", "", term.names[0].lower()) for term in GLOSSARY]
    assert firsts == sorted(firsts)


def test_what_the_chapters_need_is_defined() -> None:
    names = {name for term in GLOSSARY for name in term.names}
    lower = {term.names[0][0].lower() + term.names[0][1:] for term in GLOSSARY}
    assert {name.strip() for name in NEEDED.split(";")} - names - lower == set()


@pytest.mark.parametrize("page", ["glossary", "notation"])
def test_chapters_have_one_name(page: str) -> None:
    """The names that the glossary and the notation use for chapters are those chapters' titles."""
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    for name, file in re.findall(r"(?m)^\[(.+)\]: \.\./(notebooks/.+)$", text):
        title = read(ROOT / file).cells[0].source.splitlines()[0]
        numbered = re.fullmatch(r"# (\d+)\. (.+)", title)
        if numbered:
            assert int(numbered[1]) == int(Path(file).name[:2])
            assert name == numbered[2]
        assert f"[{name}]" in " ".join(text.split())


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("<p>Two far sets, one far set.</p>", ["far sets"]),
        ("<p>Far OOD</p>", ["Far OOD"]),
        ("<p>far OOD</p>", ["far OOD"]),
        ("<p>FAR SET, far-set, afar sets, far settings</p>", []),
        ("<h2>far set</h2><p><code>far set</code> <a href='x'>far set</a></p>", []),
        ("<p><span class='math'>far set</span></p><table><tr><td>far set</td></tr></table>", []),
        ("<section class='mathjax_ignore'><p>a far\n set</p></section>", ["far\n set"]),
        ("<details><p>far set</p></details><p><b>far set</b>s</p>", ["far set"]),
        ("<div class='tb-demo'><p>far set</p></div>", []),
        ("<!-- far set -->", []),
    ],
)
def test_first_use_is_found(html: str, words: list[str]) -> None:
    links = BeautifulSoup(marked(html), "html.parser").select("a.defined")
    assert [link.get_text() for link in links] == words
    for link in links:
        assert link["href"] == "g.html#term-far-ood"
        assert link["title"] == "Of another kind."


def test_nothing_else_of_a_page_changes() -> None:
    html = "<p>One &lt;far set&gt; &amp; <i>far</i> sets\n of it.</p><details><p>x</p></details>"
    changed = BeautifulSoup(marked(html), "html.parser")
    for link in changed.select("a.defined"):
        link.unwrap()
    assert str(changed) == str(BeautifulSoup(html, "html.parser"))


def test_a_seen_use_goes_before_a_folded_one() -> None:
    page = BeautifulSoup(marked("<details><p>far set</p></details><p>far set</p>"), "html.parser")
    [link] = page.select("a.defined")
    assert link.find_parent("details") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("we draw lots of it, then a draw, draws", ["draw"]),
        ("we draw", []),
        ("On reading it, this reading; The reading E, no reading", ["reading"]),
        ("Softmax and the softmax", ["Softmax", "softmax"]),
        ("an average precision, the precision", ["average precision", "precision"]),
    ],
)
def test_words_with_several_meanings(text: str, found: list[str]) -> None:
    glossary = "Draw (noun)\n: A.\n\nReading (noun), reading A to E\n: B.\n\n"
    glossary += "Softmax score, Softmax\n: C.\n\n"
    glossary += "Softmax function, softmax\n: D.\n\nPrecision\n: E.\n\nAverage precision\n: F.\n"
    page = BeautifulSoup(marked(f"<p>{text}</p>", glossary), "html.parser")
    assert [link.get_text() for link in page.select("a.defined")] == found


def test_glossary_page_has_the_anchors(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    text = "Far OOD, far set\n: Of another kind.\n"
    (tmp_path / f"{terms.GLOSSARY}.md").write_text(text, encoding="utf-8")
    page = BeautifulSoup("<dl><dt>Far OOD, far set</dt><dd>far set</dd></dl>", "html.parser")
    app = SimpleNamespace(srcdir=tmp_path)
    terms.explain(app, terms.GLOSSARY, page)
    assert page.dt["id"] == "term-far-ood"
    assert page.a is None


built = pytest.mark.skipif(not HTML.is_dir(), reason="the book is not built: make book")
CHAPTERS = [page.stem for page in pages(ROOT) if page.suffix == ".ipynb"]


@built
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_first_use_in_a_chapter_carries_its_definition(chapter: str) -> None:
    """Counted apart from the code that does it: no seen text before a link has one of its names."""
    file = HTML / "notebooks" / f"{chapter}.html"
    page = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
    article = BeautifulSoup(str(page.select_one("article")), "html.parser")
    assert page.select("script[src*='terms.js']")
    assert page.select("link[href*='terms.css']")
    places = BeautifulSoup((HTML / "book" / "glossary.html").read_text("utf-8"), "html.parser")
    links = article.select("a.defined")
    assert len(links) > 8
    for link in links:
        address, anchor = link["href"].split("#")
        assert address == "../book/glossary.html"
        assert places.find("dt", id=anchor)
    used = {link["href"].split("#")[1]: link for link in links}
    assert len(used) == len(links)  # once on a page
    silent = "h1, h2, h3, h4, a:not(.defined), code, pre, table, summary, details, .math"
    for part in article.select(
        f"{silent}, button, label, svg, script, style, select, [class*=tb-]"
    ):
        part.decompose()
    for term in (term for term in GLOSSARY if not term.noun):
        link = used.get(term.anchor)
        before = article.get_text("\n")  # a term without a link that is seen: all of it
        if link is not None and not link.decomposed:
            before = "\n".join(map(str, link.find_all_previous(string=True)[::-1]))
        for name in term.names:
            longer = [
                n for t in GLOSSARY for n in t.names if name.lower() in n.lower() != name.lower()
            ]
            seen = re.sub("|".join(map(re.escape, longer)) or "$^", "", before, flags=re.IGNORECASE)
            assert not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", seen), (chapter, name)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page of a few words with the script and style of the book, and no theme around it."""
    html = tmp_path_factory.mktemp("terms")
    for name in ("dom.js", "terms.js", "terms.css"):
        (html / name).write_bytes((ROOT / "book" / "_static" / name).read_bytes())
    words = "word " * 60
    body = marked(f"<p>{words}</p><p>At the end a far set</p><p id=last>{words * 5}</p>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += '<title>T</title><link rel="icon" href="data:,"><link rel=stylesheet href=terms.css>'
    scripts = '<script src="dom.js"></script><script src="terms.js"></script>'
    page = f'<!doctype html><html lang="en">{head}<main class="bd-content">{body}</main>{scripts}'
    (html / "index.html").write_text(page, encoding="utf-8")
    (html / "g.html").write_text("<!doctype html><link rel=icon href=data:,>", encoding="utf-8")
    with browsing.served(html) as address:
        yield address


@pytest.fixture
def phone(browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 740}, has_touch=True)
    page = context.new_page()
    page.faults = browsing.complaints(page)
    page.goto(served)
    yield page
    faults = page.faults
    context.close()
    assert faults == []


def layout(page) -> list[float]:
    return page.evaluate("[scrollY, document.body.scrollHeight, last.offsetTop, last.offsetHeight]")


def test_keyboard_shows_and_escape_closes(phone) -> None:
    card, before = phone.locator("#definition"), layout(phone)
    assert card.is_hidden()
    phone.keyboard.press("Tab")
    assert card.is_visible()
    assert card.inner_text().split("\n") == ["Far set", "Of another kind."]
    link = phone.locator("a.defined")
    assert link.get_attribute("aria-describedby") == card.get_attribute("id")
    assert link.get_attribute("title") is None  # the browser shows no second card
    assert layout(phone) == before
    box, at = card.bounding_box(), link.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert at["y"] < box["y"] < at["y"] + 40
    phone.keyboard.press("Escape")
    assert card.is_hidden()
    assert link.get_attribute("aria-describedby") is None
    phone.keyboard.press("Enter")
    phone.wait_for_url("**/g.html#term-far-ood")


def test_pointer_may_move_onto_the_card(phone) -> None:
    card = phone.locator("#definition")
    phone.locator("a.defined").hover()
    assert card.is_visible()
    card.hover()
    phone.wait_for_timeout(500)
    assert card.is_visible()
    phone.mouse.move(1, 1)
    phone.wait_for_function("definition.hidden")


def test_first_tap_shows_and_second_follows(phone) -> None:
    card, before = phone.locator("#definition"), layout(phone)
    phone.locator("a.defined").tap()
    assert card.is_visible()
    assert "Tap the word again" in card.inner_text()
    assert layout(phone) == before
    phone.touchscreen.tap(5, 700)
    assert card.is_hidden()
    phone.locator("a.defined").tap()
    assert phone.url.endswith("/")
    phone.locator("a.defined").tap()
    phone.wait_for_url("**/g.html#term-far-ood")
