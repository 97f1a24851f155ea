"""The book's Sphinx extension: what it does to pages, and that a lighter page shows the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from pygments import highlight
from pygments.lexers import PythonLexer

from bookmaking import extension

FILES = ["thinkback.css", "explorers.css", "gallery.css", "sphinx-design.min.css"]


def finished(tmp_path: Path, body: str) -> dict:
    """The context of a page of that body, among the drawings a.svg and b.svg."""
    sized = '<svg width="300.2pt" height="150pt" viewBox="0 0 300 150"/>'
    (tmp_path / "a.svg").write_text(sized, encoding="utf-8")
    (tmp_path / "b.svg").write_text('<svg viewBox="0 0 8 8"/>', encoding="utf-8")
    images = {"a.svg": "a1.svg", "b.svg": "b1.svg"}
    app = SimpleNamespace(srcdir=tmp_path, outdir=tmp_path, builder=SimpleNamespace(images=images))
    files = [SimpleNamespace(filename=f"_static/{name}") for name in FILES]
    context = {"body": body, "css_files": files, "script_files": files[:1]}
    extension.finish_page(app, "page", "page.html", context, None)
    context["css"] = [Path(file.filename).name for file in context["css_files"]]
    return context


def test_drawings_say_how_large_they_are(tmp_path: Path) -> None:
    body = '<img alt="A" src="../_images/a1.svg"/><img alt="B" src="../_images/b1.svg"/>'
    first, second = BeautifulSoup(finished(tmp_path, body)["body"], "html.parser")("img")
    size = {"width": "400", "height": "200", "style": "--width: 400px"}
    assert first.attrs == {"alt": "A", "src": "../_images/a1.svg", **size}
    assert second.attrs == {"alt": "B", "src": "../_images/b1.svg"}


def test_entries_of_a_bibliography_are_items(tmp_path: Path) -> None:
    body = '<div role="list"><div role="doc-biblioentry">&lt;b&gt; &amp; \\(x &lt; 1\\)</div></div>'
    expected = body.replace("doc-biblioentry", "listitem")
    assert finished(tmp_path, body)["body"] == expected


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ("<p>sd- tb-</p>", FILES[1:]),
        ('<div class="wide tb-explorer">', FILES[3:]),
        ('<div class="sd-tab-set">', FILES[1:3]),
    ],
)
def test_a_page_brings_the_styles_that_it_uses(
    tmp_path: Path, body: str, missing: list[str]
) -> None:
    context = finished(tmp_path, body)
    assert context["css"] == [name for name in FILES if name not in missing]
    assert len(context["script_files"]) == 1


def test_what_has_no_color_of_its_own_has_no_element() -> None:
    text = highlight("a[1] = b", PythonLexer(), extension.Formatter(nowrap=True))
    assert text == 'a[<span class="mi">1</span>] <span class="o">=</span> b\n'


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".in, .out { top: 0 }", ".in{ top: 0 }"),
        (".in .out { top: 0 } #in { top: 0 }", "#in{ top: 0 }"),
        ('p[src$=".svg"], :not(.out) { top: 0 }', 'p[src$=".svg"],:not(.out){ top: 0 }'),
        (".in:is(.a, :not(.b, .c)), .out:is(.in) { top: 0 }", ".in:is(.a, :not(.b, .c)){ top: 0 }"),
        (r".in\:in, .in\:out { top: 0 }", r".in\:in{ top: 0 }"),
        ('@import "a;b.css"; .bs-top { top: 0 }', '@import "a;b.css";.bs-top{ top: 0 }'),
        (
            "@media print { @supports (top: 0) { .in { top: 0 } } }",
            "@media print { @supports (top: 0) {.in{ top: 0 } } }",
        ),
        ("@media print { @supports (top: 0) { .out { top: 0 } } }", ""),
        (
            "/*! MIT */ /* .x */ .in::before { top: 0 } @font-face { src: url(a) }",
            "/*! MIT */.in::before{ top: 0 }@font-face{ src: url(a) }",
        ),
        ("@keyframes turn { 33.3% { top: 0 } }", "@keyframes turn {33.3%{ top: 0 } }"),
    ],
)
def test_rules_that_can_apply_are_left(css: str, kept: str) -> None:
    assert extension.prune(css, {"in", "bs-"}) == kept


def test_front_page_is_a_moved_copy(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.html").write_text(
        '<!DOCTYPE html><html data-content_root="../"><a href="#a"></a><a href="../n/x.html#b">'
        '<img src="../_images/i.svg"/></a><a href="https://example.org/x"></a>'
        '<a href="limits.html"></a><script src="../_static/../katex/m.js?v=1"></script></html>',
        encoding="utf-8",
    )
    extension.front_page(tmp_path, "book/intro.html")
    page = BeautifulSoup((tmp_path / "index.html").read_text(encoding="utf-8"), "html.parser")
    links = ["#a", "n/x.html#b", "https://example.org/x", "book/limits.html"]
    assert [element["href"] for element in page("a")] == links
    assert page.html["data-content_root"] == "./"
    assert page.img["src"] == "_images/i.svg"
    assert page.script["src"] == "katex/m.js?v=1"
