"""A built site without what no reader sees: icons and style rules that no page uses, digits too fine for a figure."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

GROUPS = ("@media", "@supports", "@container", "@layer")
ICONS = re.compile(r"""<script [^>]*fontawesome[^>]*></script>|<link rel="preload" as="font"[^>]*>""")
FOR = {"explorers|gallery": "tb-", "sphinx-design|design-tabs": "sd-"}  # files, and the classes that they serve
PLAIN = re.compile(r'<span class="[np]">([^<]*)</span>')  # names and marks in code have the color of what is around
ALIKE = re.compile(r'<use ([^>]*?) style="([^"]*)"/>(?:\s*<use [^>]*? style="\2"/>)+')
TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]""", re.DOTALL)


def slim(html: Path) -> None:
    """Lighten the site in that folder in place; it looks and works as before."""
    for page in html.rglob("*.html"):
        text = PLAIN.sub(r"\1", ICONS.sub("", page.read_text(encoding="utf-8")))
        for files, mark in FOR.items():
            if not re.search(rf'class="[^"]*\b{mark}', text):
                text = re.sub(rf"<(?:script|link) [^>]*_static/(?:{files})[^>]*>(?:</script>)?", "", text)
        page.write_text(text, encoding="utf-8")
    for folder in html.glob("_static/vendor/fontawesome/*/js"):  # icons as scripts, beside those as fonts
        shutil.rmtree(folder)
    used, glyphs = names(html), set()
    for sheet in html.glob("_static/**/*.css"):
        text = prune(sheet.read_text(encoding="utf-8"), used)
        text = re.sub(r"""url\([^)]*\.woff2\) ?format\("woff2"\), ?""", "", text)
        glyphs |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", text)}
        glyphs |= {ord(letter) for letter in text if "\ue000" <= letter <= "\uf8ff"}
        sheet.write_text(text, encoding="utf-8")
    for font in html.glob("_static/vendor/fontawesome/*/webfonts/*.ttf"):
        cut(font, glyphs)
        font.with_suffix(".woff2").unlink(missing_ok=True)
    for figure in html.glob("_images/*.svg"):
        figure.write_text(short(figure.read_text(encoding="utf-8")), encoding="utf-8")


def names(html: Path) -> set[str]:
    """Every word of the pages and scripts, among them all names that style sheets can ask for."""
    files = [*html.rglob("*.html"), *html.glob("_static/**/*.js"), *html.glob("demo/*.js")]
    return {word for file in files for word in re.findall(r"[\w-]+", file.read_text(encoding="utf-8"))}


def prune(css: str, used: set[str]) -> str:
    """A style sheet without comments and without rules for classes and ids that are not used.

    A used word that ends in "-" is the beginning of names that a script makes; licences, ``/*! ... */``, stay.

    >>> prune("a, .old { top: 0 } .new-1 { left: 0 } @media print { .old { top: 1px } }", {"new-"})
    'a{ top: 0 }.new-1{ left: 0 }'
    """
    stems = tuple(word for word in used if word.endswith("-") and len(word) > 2)

    def wanted(selector: str) -> bool:
        found = re.findall(r"[.#]((?:[\w-]|\\.)+)", re.sub(r"\[[^]]*\]|\([^()]*\)", "", selector))
        return all(name in used or name.startswith(stems) or "\\" in name for name in found)

    def kept(css: str) -> Iterator[str]:
        for head, body in statements(css):
            if head.startswith(GROUPS):
                inner = "".join(kept(body))
                yield f"{head}{{{inner}}}" if inner else ""
            elif head.startswith("@"):
                yield f"{head}{{{body}}}" if body else head
            else:
                nested = re.search(r"\([^()]*\(", head)
                selectors = [part for part in re.split(r",(?![^()]*\))", head) if wanted(part)]
                yield f"{head if nested else ','.join(selectors)}{{{body}}}" if nested or selectors else ""

    licences = re.findall(r"/\*!.*?\*/", css, re.DOTALL)
    return "".join(licences) + "".join(kept(re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)))


def statements(css: str) -> Iterator[tuple[str, str]]:
    """Head and body of every rule of a style sheet without comments; of ``@import ...;`` the body is empty."""
    depth = start = opened = 0
    for token in TOKEN.finditer(css):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if token[0] == "{" and depth == 1:
            opened = token.end()
        elif token[0] == "}" and depth == 0:
            yield css[start : opened - 1].strip(), css[opened : token.start()]
            start = token.end()
        elif token[0] == ";" and depth == 0:
            yield css[start : token.end()].strip(), ""
            start = token.end()


def cut(font: Path, glyphs: set[int]) -> None:
    """Leave only these code points in a font."""
    whole, cutter = TTFont(font), Subsetter(Options(notdef_outline=True))
    cutter.populate(unicodes=glyphs)
    cutter.subset(whole)
    whole.save(font)


def short(svg: str) -> str:
    """A figure with the places of its points to a tenth of a point, and with the style of many alike said once.

    >>> short('<path d="M 1.23456 -0.5 L 2.04 3" style="opacity: 0.12345"/>')
    '<path d="M1.2 -0.5L2 3" style="opacity: 0.12345"/>'
    >>> short('<use x="1" style="fill: red"/> <use x="2" style="fill: red"/> <use x="3" style="fill: blue"/>')
    '<g style="fill: red"><use x="1"/> <use x="2"/></g> <use x="3" style="fill: blue"/>'
    """

    def together(run: re.Match[str]) -> str:
        style = f' style="{run[2]}"'
        return f"<g{style}>{run[0].replace(style, '')}</g>"

    def tenths(places: re.Match[str]) -> str:
        near = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), places[0])
        return re.sub(r"\s*([MLCQZ])\s*", r"\1", near)

    svg = re.sub(r'\b(?:d|x|y|points)="[^"]*"', tenths, re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL))
    return re.sub(r"\n\s+", "\n", ALIKE.sub(together, svg))
