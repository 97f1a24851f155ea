"""A lighter site says and shows the same: what pages and scripts name stays, the rest goes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont

from bookmaking import slim

PAGE = """<link rel="preload" as="font" href="fa-solid-900.woff2" />
<link rel="stylesheet" href="_static/explorers.css?v=1" /><script defer="defer" src="_static/explorers.js?v=1"></script>
<script src="_static/vendor/fontawesome/6/js/all.min.js"></script><i class="fa-solid fa-bars"></i>
<pre><span class="n">a</span><span class="p">[</span><span class="mi">1</span></pre>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A page with one icon of the theme's own set, which comes as scripts, style sheet and fonts."""
    theme = Path(pydata_sphinx_theme.__file__).parent
    [icons] = theme.glob("**/static/vendor/fontawesome/*/webfonts")
    shutil.copytree(icons.parent, tmp_path / "_static" / "vendor" / "fontawesome" / "6")
    (tmp_path / "index.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "explorer.html").write_text(
        PAGE + '<div class="wide tb-explorer"></div>', encoding="utf-8"
    )
    slim.slim(tmp_path)
    return tmp_path


def test_icons_in_use_are_left(site: Path) -> None:
    icons = site / "_static" / "vendor" / "fontawesome" / "6"
    assert not (icons / "js").exists()
    style = (icons / "css" / "all.min.css").read_text(encoding="utf-8")
    assert ".fa-bars:before" in style
    assert ".fa-rocket" not in style
    assert "Font Awesome Free" in style.partition("*/")[0]  # its licence
    assert {path.name for path in (icons / "webfonts").iterdir()} == set(
        re.findall(r"webfonts/([\w.-]+)\)", style)
    )
    glyphs = TTFont(icons / "webfonts" / "fa-solid-900.ttf").getBestCmap()
    assert 0xF0C9 in glyphs  # the bars
    assert 0xF135 not in glyphs  # the rocket


def test_page_keeps_what_it_shows(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<(?:script|link)\b", text) == []
    assert '<i class="fa-solid fa-bars"></i>' in text
    assert '<pre>a[<span class="mi">1</span></pre>' in text
    assert (site / "explorer.html").read_text(encoding="utf-8").count("explorers.") == 2


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".in, .out { top: 0 }", ".in{ top: 0 }"),
        (".in .out { top: 0 } #in { top: 0 }", "#in{ top: 0 }"),
        ('p[src$=".svg"], :not(.out) { top: 0 }', 'p[src$=".svg"],:not(.out){ top: 0 }'),
        (".in:is(.a, :not(.b, .c)), .out:is(.in) { top: 0 }", ".in:is(.a, :not(.b, .c)){ top: 0 }"),
        (r".in\:in, .in\:out { top: 0 }", r".in\:in{ top: 0 }"),
        ('@import "a;b.css"; .bs-top { top: 0 }', '@import "a;b.css";.bs-top{ top: 0 }'),
        ("@media print { @supports (top: 0) { .in { top: 0 } } }", "@media print{@supports (top: 0){.in{ top: 0 }}}"),
        ("@supports (top: 0) { .out { top: 0 } }", ""),
        ('/*! MIT */ /* x */ .in::before { content: "}" } @font-face { src: url(a) }',
         '/*! MIT */.in::before{ content: "}" }@font-face { src: url(a) }'),
    ],
)  # fmt: skip
def test_rules_that_can_apply_are_left(css: str, kept: str) -> None:
    assert slim.prune(css, {"in", "bs-"}) == kept
