"""A built site without what no reader sees: icons and style rules that no page uses, digits too
fine for a figure.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import tinycss2
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

Node = Any  # of tinycss2, which has no types

GROUPS = ("media", "supports", "container", "layer")
ICONS = re.compile(
    r"""<script [^>]*fontawesome[^>]*></script>|<link rel="preload" as="font"[^>]*>"""
)
FOR = {
    "explorers|gallery": "tb-",
    "sphinx-design|design-tabs": "sd-",
}  # files, and the classes that they serve
PLAIN = re.compile(
    r'<span class="[np]">([^<]*)</span>'
)  # names and marks in code have the color of what is around
WORD = re.compile(r"[\w-]+")
BARE = (True, True)  # without comments, without white space between rules
ALIKE = re.compile(r'<use ([^>]*?) style="([^"]*)"/>(?:\s*<use [^>]*? style="\2"/>)+')


def slim(html: Path) -> None:
    """Lighten the site in that folder in place; it looks and works as before."""
    for page in html.rglob("*.html"):
        text = PLAIN.sub(r"\1", ICONS.sub("", page.read_text(encoding="utf-8")))
        for files, mark in FOR.items():
            if not re.search(rf'class="[^"]*\b{mark}', text):
                text = re.sub(
                    rf"<(?:script|link) [^>]*_static/(?:{files})[^>]*>(?:</script>)?", "", text
                )
        page.write_text(text, encoding="utf-8")
    for folder in html.glob(
        "_static/vendor/fontawesome/*/js"
    ):  # icons as scripts, beside those as fonts
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
    return {word for file in files for word in WORD.findall(file.read_text(encoding="utf-8"))}


def prune(css: str, used: set[str]) -> str:
    """A style sheet without comments and without rules for classes and ids that are not used.

    A used word that ends in "-" is the beginning of names that a script makes; licences,
    ``/*! ... */``, stay.

    >>> prune("a, .old { top: 0 } .new-1 { left: 0 } @media print { .old { top: 1px } }", {"new-"})
    'a{ top: 0 }.new-1{ left: 0 }'
    """
    stems = tuple(word for word in used if word.endswith("-") and len(word) > 2)

    def wanted(selector: list[Node]) -> bool:
        classes = [
            name.value for dot, name in pairwise(selector) if dot == "." and name.type == "ident"
        ]
        asked = " ".join(
            classes + [part.value for part in selector if part.type == "hash"]
        )  # not those in brackets
        return all(name in used or name.startswith(stems) for name in WORD.findall(asked))

    def kept(rules: list[Node]) -> Iterator[str]:
        for rule in rules:
            if rule.type == "qualified-rule":
                commas = [i for i, part in enumerate(rule.prelude) if part == ","]
                selectors = [
                    rule.prelude[i + 1 : j] for i, j in pairwise([-1, *commas, len(rule.prelude)])
                ]
                if some := [
                    tinycss2.serialize(selector).strip()
                    for selector in selectors
                    if wanted(selector)
                ]:
                    yield f"{','.join(some)}{{{tinycss2.serialize(rule.content)}}}"
            elif (
                rule.type == "at-rule"
                and rule.lower_at_keyword in GROUPS
                and rule.content is not None
            ):
                if inner := "".join(kept(tinycss2.parse_rule_list(rule.content, *BARE))):
                    yield (
                        f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude).rstrip()}{{{inner}}}"
                    )
            else:
                yield rule.serialize()

    return "".join(
        [*re.findall(r"/\*!.*?\*/", css, re.DOTALL), *kept(tinycss2.parse_stylesheet(css, *BARE))]
    )


def cut(font: Path, glyphs: set[int]) -> None:
    """Leave only these code points in a font."""
    whole, cutter = TTFont(font), Subsetter(Options(notdef_outline=True))
    cutter.populate(unicodes=glyphs)
    cutter.subset(whole)
    whole.save(font)


def short(svg: str) -> str:
    """A figure with the places of its points to a tenth of a point, and with the style of many
    alike said once.

    >>> short('<path d="M 1.23456 -0.5 L 2.04 3" style="opacity: 0.12345"/>')
    '<path d="M1.2 -0.5L2 3" style="opacity: 0.12345"/>'
    >>> short('<use x="1" style="fill: red"/> <use x="2" style="fill: red"/> <use x="3" style="fill: blue"/>')
    '<g style="fill: red"><use x="1"/> <use x="2"/></g> <use x="3" style="fill: blue"/>'
    """

    def together(run: re.Match[str]) -> str:
        style = f' style="{run[2]}"'
        return f"<g{style}>{run[0].replace(style, '')}</g>"

    def tenths(places: re.Match[str]) -> str:
        near = re.sub(
            r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), places[0]
        )
        return re.sub(r"\s*([MLCQZ])\s*", r"\1", near)

    svg = re.sub(
        r'\b(?:d|x|y|points)="[^"]*"',
        tenths,
        re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL),
    )
    return re.sub(r"\n\s+", "\n", ALIKE.sub(together, svg))
