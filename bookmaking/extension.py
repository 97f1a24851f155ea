"""Sphinx extension of the book: what its theme and docutils leave to be done on each page.

The pages are also made small. Of what no reader sees each would bring 0.3 MB: style rules that no
page uses, digits too fine for a figure, an element for each word of code. Another 1.9 MB of icons
go by ``book/_templates/layout.html`` and the cut fonts in ``book/_static/vendor``.
"""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from PIL import Image
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.token import Token  # type: ignore[import-untyped]
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

from . import palette, search, terms
from .answer import portrait

FOR = {  # files, and the classes they serve
    "explorers": "tb-",
    "gallery": "tb-",
    "opening": "op-",
    "design": "sd-",
    "terms": terms.CLASS,
    "katex": "math",
    "clipboard": "highlight",
    "copybutton": "highlight",
}
COLORLESS = (Token.Name, Token.Punctuation, Token.Text.Whitespace)  # as the text around
BRACKETS = r"\((?:[^()]|\([^()]*\))*\)"  # with those in them
EMPTY = re.compile(r"\s*@[^{};]+\{\s*\}")  # a group of rules without rules
ALIKE = re.compile(r'<use ([^>]*?) style="([^"]*)"/>(?:\s*<use [^>]*? style="\2"/>)+')
ADDRESSES = ("href", "src", "srcset", "action", "data-content_root")
NARROW = "(max-width: 600px)"  # where answer figures stand upright


class Formatter(HtmlFormatter):  # type: ignore[misc]
    """Code in which what has the color of the text has no element of its own."""

    def format(self, tokensource: Iterable[tuple[Any, str]], outfile: Any) -> None:
        """Write the tokens as HTML."""
        plain = ((Token.Text if kind in COLORLESS else kind, text) for kind, text in tokensource)
        super().format(plain, outfile)


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in the build; Jupyter Book calls this."""
    PygmentsBridge.html_formatter = Formatter
    app.connect("html-page-context", finish_page, priority=900)  # after those of the theme
    app.connect("build-finished", finish_site, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Mend the HTML of one page, and leave out the scripts and styles that it has no use for."""
    page = BeautifulSoup(context.get("body", ""), "html.parser")
    for entry in page.select('[role="doc-biblioentry"]'):  # deprecated; items of their list
        entry["role"] = "listitem"
    origins = {name: Path(app.srcdir, uri) for uri, name in app.builder.images.items()}
    for image in page.select('img[src*="_images/"][src$=".svg"]'):
        origin = origins[posixpath.basename(str(image["src"]))]
        size(image, origin)
        add_portrait(page, image, origin, Path(app.outdir))
    if "body" in context:
        terms.explain(app, pagename, page)
        context["body"] = str(page)
    classes = {name for element in page.select("[class]") for name in element["class"]}
    for key in ("css_files", "script_files"):
        context[key] = [file for file in context[key] if needed(str(file.filename), classes)]


def size(image: Any, file: Path) -> None:
    """Say how large a drawing of Matplotlib is: its place is kept, style sheets know its width."""
    if pixels := measured(file.read_text(encoding="utf-8")):
        image.attrs |= {**pixels, "style": f"--width: {pixels['width']}px"}


def measured(svg: str) -> dict[str, str]:
    """Width and height in pixels of a drawing of Matplotlib; nothing for any other."""
    points = re.findall(r' (width|height)="([\d.]+)pt"', svg[:2000])
    return {name: str(round(float(length) * 4 / 3)) for name, length in points}


def add_portrait(page: BeautifulSoup, image: Any, file: Path, html: Path) -> None:
    """Show the portrait form of an answer figure on narrow screens; it becomes a file of its own.

    Args:
        page: the page that shows the image.
        image: the ``<img>`` element; it is put into a ``<picture>``.
        file: the drawing, which may carry a portrait form (:mod:`bookmaking.answer`).
        html: folder of the built site.
    """
    tall = portrait(file.read_text(encoding="utf-8"))
    if tall is None:
        return
    shown = str(image["src"])
    beside = shown.removesuffix(".svg") + ".portrait.svg"
    target = html / "_images" / posixpath.basename(beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(tall, encoding="utf-8")
    picture = image.wrap(page.new_tag("picture"))
    form = {"media": NARROW, "srcset": beside, **measured(tall)}
    source = page.new_tag("source", attrs=form)
    picture.insert(0, source)


def needed(file: str, classes: Iterable[str]) -> bool:
    """Whether a page with elements of these classes has a use for a style sheet or script."""
    prefixes = [prefix for part, prefix in FOR.items() if part in file]
    return all(any(name.startswith(prefix) for name in classes) for prefix in prefixes)


def finish_site(app: Sphinx, exception: Exception | None) -> None:
    """Make the files that all pages share small, and give the site its first page."""
    if exception or app.builder.name != "html":
        return
    html = Path(app.outdir)
    for figure in html.glob("_images/*.svg"):
        light = short(figure.read_text(encoding="utf-8"))
        figure.write_text(palette.themed(light), encoding="utf-8")
    used = words(html)
    for sheet in html.glob("_static/**/*.css"):
        sheet.write_text(prune(sheet.read_text(encoding="utf-8"), used), encoding="utf-8")
    for letters in html.glob("_static/fonts.css"):
        letters.write_text(self_contained(letters), encoding="utf-8")
    for sprite in html.glob("_static/gallery/sprite.png"):
        with Image.open(sprite) as pictures:
            pictures.save(sprite.with_suffix(".webp"), lossless=True, quality=100, method=6)
        sprite.unlink()
    search.write(html)
    front_page(html, f"{app.config.root_doc}.html")


def self_contained(sheet: Path) -> str:
    """A style sheet that holds the fonts it names; their files are removed."""

    def data(address: re.Match[str]) -> str:
        file = sheet.parent / address[1]
        content = base64.b64encode(file.read_bytes()).decode()
        file.unlink()
        return f'url("data:font/woff2;base64,{content}")'

    return re.sub(r'url\("([^":]+\.woff2)"\)', data, sheet.read_text(encoding="utf-8"))


def short(svg: str) -> str:
    """A figure with places of points to a tenth of a point, and the style of many marks said once.

    >>> short('<path d="M 1.23456 -0.5 L 2.04 3" style="opacity: 0.12345"/>')
    '<path d="M1.2 -0.5L2 3" style="opacity: 0.12345"/>'
    >>> short('<use x="1" style="fill: red"/> <use x="2" style="fill: red"/> <use x="3"/>')
    '<g style="fill: red"><use x="1"/> <use x="2"/></g> <use x="3"/>'
    """

    def together(marks: re.Match[str]) -> str:
        style = f' style="{marks[2]}"'
        return f"<g{style}>{marks[0].replace(style, '')}</g>"

    def tenths(places: re.Match[str]) -> str:
        near = re.sub(r"\d+\.\d{2,}", lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), places[0])
        return re.sub(r"\s*([MLCQZ])\s*", r"\1", near)

    svg = re.sub(r"<metadata\b.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(?:d|x|y|points)="[^"]*"', tenths, svg)
    return re.sub(r"\n\s+", "\n", ALIKE.sub(together, svg))


def words(html: Path) -> set[str]:
    """All words of the pages and scripts, among them the names that style sheets can ask for."""
    files = [*html.rglob("*.html"), *html.glob("_static/**/*.js"), *html.glob("demo/*.js")]
    ours = (file for file in files if "fontawesome" not in file.parts)  # which names all its icons
    return {word for file in ours for word in re.findall(r"[\w-]+", file.read_text("utf-8"))}


def prune(css: str, used: set[str]) -> str:
    """A style sheet without comments and without rules for classes and ids that are not used.

    A used word that ends in "-" is the beginning of names that a script makes; licences,
    ``/*! ... */``, stay.

    >>> prune("a, .old { top: 0 } .new-1 { left: 0 } @media print { .old { top: 1px } }", {"new-"})
    'a{ top: 0 }.new-1{ left: 0 }'
    """
    stems = tuple(word for word in used if word.endswith("-") and len(word) > 2)

    def wanted(selector: str) -> bool:
        outside = re.sub(rf"{BRACKETS}|\[[^]]*\]", "", selector)
        names = re.findall(r"[\w-]+", " ".join(re.findall(r"[.#](?!\d)((?:[\w-]|\\.)+)", outside)))
        return all(name in used or name.startswith(stems) for name in names)

    def kept(rule: re.Match[str]) -> str:
        selectors = re.findall(rf"(?:[^,()]|{BRACKETS})+", rule[1])
        some = ",".join(selector.strip() for selector in selectors if wanted(selector))
        return some + rule[2] if some else ""

    licences = re.findall(r"/\*!.*?\*/", css, re.DOTALL)
    bare = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    bare = re.sub(r"([^{};]+)(\{[^{}]*\})", kept, bare)
    while EMPTY.search(bare):
        bare = EMPTY.sub("", bare)
    return "".join(licences) + bare


def front_page(html: Path, first: str) -> None:
    """Make the site's root a real page: the book's first one, its relative addresses rewritten."""
    page = BeautifulSoup((html / first).read_text(encoding="utf-8"), "html.parser")
    for name in ADDRESSES:
        for element in page.select(f"[{name}]"):
            element[name] = moved(str(element[name]), posixpath.dirname(first))
    (html / "index.html").write_text(str(page), encoding="utf-8")


def moved(address: str, folder: str) -> str:
    """An address that was relative to a folder, relative to the site's root.

    >>> [moved(address, "book") for address in ("../notebooks/01.html#a", "limits.html", "../")]
    ['notebooks/01.html#a', 'book/limits.html', './']
    """
    if not address or re.match(r"[#/]|[a-z]+:", address):
        return address
    return posixpath.normpath(posixpath.join(folder, address)) + "/" * address.endswith("/")
