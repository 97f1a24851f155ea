"""What the search page searches: the sections of all pages, in one script beside them.

Sphinx's own search wants every word of a query on a page, "how" and "I" among them, and does not
rank by how often a word is used. The sections are ranked in the browser by MiniSearch (BM25). They
come as a script, since a page that was opened as a file may load nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.element import Tag

SECTIONS = "search/sections.js"  # of the site
SILENT = (  # has no sentences, or not those of the book
    "h1, h2, h3, h4, script, style, noscript, svg, pre, button, select, .headerlink, .eqno,"
    " .cell_input, .cell summary, .cell_output table, div.math, [class*=tb-]"
)
LEFT_OUT = ("genindex", "search")


def write(html: Path) -> None:
    """Write the sections of the pages of a built site, and remove Sphinx's index of them."""
    found: list[dict[str, str]] = []
    for file in sorted(html.glob("*/*.html")):
        if "_static" not in file.parts and file.stem not in LEFT_OUT:
            page = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
            found += sections(page, file.relative_to(html).as_posix())
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (html / SECTIONS).parent.mkdir(exist_ok=True)
    (html / SECTIONS).write_text(f"window.thinkback.sections = {text};\n", encoding="utf-8")
    (html / "searchindex.js").unlink(missing_ok=True)


def sections(page: BeautifulSoup, address: str) -> Iterator[dict[str, str]]:
    """Address, title of the page, heading and text of each section, and of each word explained."""
    title = page.select_one("article h1")
    if title is None:
        return
    name = plain(title)
    for entry in page.select("article dt[id]"):
        meaning = entry.find_next_sibling("dd")
        if isinstance(meaning, Tag):
            where = f"{address}#{entry['id']}"
            yield {"at": where, "page": name, "heading": plain(entry), "text": plain(meaning)}
            meaning.decompose()
        entry.decompose()
    for part in page.select("article section[id]")[::-1]:  # the innermost first
        heading = part.find(re.compile("^h[1-4]$"), recursive=False)
        if isinstance(heading, Tag):
            where = address if heading.name == "h1" else f"{address}#{part['id']}"
            yield {"at": where, "page": name, "heading": plain(heading), "text": plain(part)}
            part.decompose()


def plain(element: Tag) -> str:
    """The sentences of an element; one without a word of its own keeps what it has.

    >>> plain(BeautifulSoup("<p>The  <b>score</b><a class='headerlink'>#</a></p>", "html.parser"))
    'The score'
    """
    copy = BeautifulSoup(str(element), "html.parser")
    own = "h1, h2, h3, h4" if element.name in ("h1", "h2", "h3", "h4") else ""
    for part in copy.select(SILENT):
        if not (own and part.name == element.name):
            part.decompose()
    for formula in copy.select("span.math"):
        tex = re.sub(r"^\\\(|\\\)$", "", formula.get_text().strip())
        formula.string = "…" if re.search(r"[\\_^{}]", tex) else tex
    return " ".join(copy.get_text(" ").split()).replace(" .", ".").replace(" ,", ",")
