"""The glossary at work: the first use of each of its terms on a page tells what it means.

``book/glossary.md`` is the only list. A line there names a term: ``Out-of-distribution (OOD)`` and
``Far OOD, far set`` have two names each, ``reading A to E`` stands for five. The first name may
begin with a small letter on a page, the others are found as they are written or at the start of a
sentence. ``Draw (noun)`` is found only where a word such as "a" or "each" makes it a noun. The
first sentence below is what a page shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag

GLOSSARY = "book/glossary"
TITLES_ALONE = ("book/bibliography",)  # pages without sentences of the book
CLASS = "defined"  # of the links; _static/terms.js and terms.css know it
ENTRY = re.compile(r"(?m)^([^#:\s\[].*)\n: ((?:.+\n)(?: +.+\n)*)")
MARKUP = re.compile(r"\[([^]]*)\](?:\([^)]*\))?|[*`]")  # links keep their words
NOT_IN = {  # elements in which nothing is explained
    *("a", "button", "caption", "code", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "kbd", "label"),
    *("noscript", "pre", "script", "select", "style", "summary", "svg", "table", "textarea"),
}
NOR_IN = re.compile(
    r"(?:tb-|highlight|sd-card|sd-btn|op-panel|op-bars|op-stop).*|math|admonition-title"
)  # classes
NOUN = (
    r"(?i:an?|the|each|every|one|two|three|ten|which|both|other|any|all|no"
    r"|its|another|same)\s+"
)


@dataclass(frozen=True)
class Term:
    """An entry of the glossary."""

    names: tuple[str, ...]
    noun: bool  # whether the first name is found as a noun alone
    definition: str  # one sentence, plain text

    @property
    def anchor(self) -> str:
        """The place of the entry on the page of the glossary.

        >>> Term(("Reading A", "reading B"), False, "").anchor
        'term-reading-a'
        """
        return "term-" + "-".join(re.findall(r"\w+", self.names[0].lower()))


def read(text: str) -> list[Term]:
    r"""The terms of a glossary, in their order.

    >>> read("Far OOD, far set\n: Images of *another* kind. See [Metrics].\n")
    [Term(names=('Far OOD', 'far set'), noun=False, definition='Images of another kind.')]
    """
    found = []
    for line, body in ENTRY.findall(text):
        names = [name for part in re.split(r",\s*|\s*[()]\s*", line) for name in spread(part)]
        noun = "noun" in names
        sentence = re.split(r"(?<=[.?!])\s+(?=[\[A-Z`*])", " ".join(body.split()))[0]
        plain = MARKUP.sub(lambda match: match[1] or "", sentence)
        found.append(Term(tuple(name for name in names if name != "noun"), noun, plain))
    return found


def spread(name: str) -> Iterator[str]:
    """The names that one such name stands for.

    >>> list(spread("reading A to C")), list(spread("logit"))
    (['reading A', 'reading B', 'reading C'], ['logit'])
    """
    if letters := re.fullmatch(r"(.+ )([A-Z]) to ([A-Z])", name):
        yield from (letters[1] + chr(i) for i in range(ord(letters[2]), ord(letters[3]) + 1))
    elif name:
        yield name


def pattern(terms: Sequence[Term]) -> re.Pattern[str]:
    """What finds every name; ``lastgroup`` says of which term it is: ``t`` and its index."""
    ranked = []  # as written goes before another case, longer before shorter
    for index, term in enumerate(terms):
        for place, name in enumerate(term.names):
            own = r"\s+".join(map(re.escape, name.split())) + ("s?" if name[-1].isalpha() else "")
            before = NOUN if term.noun and not place else ""
            first = name[0]
            ranked.append((-len(name), place == 0, before, own, index))
            other = first.swapcase()
            if first != other and ((place == 0 and not name[:2].isupper()) or first.islower()):
                ranked.append((-len(name), True, before, re.escape(other) + own[1:], index))
    ranked.sort()
    parts = [
        f"{before}(?P<t{index}_{i}>{own})" for i, (_, _, before, own, index) in enumerate(ranked)
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(parts)})(?![\w-])")


def mark(page: BeautifulSoup, terms: Sequence[Term], glossary: str) -> None:
    """Make the first use of each term on a page a link with its definition.

    What is folded is searched last: a first use should be seen.

    Args:
        page: its body, which is changed.
        terms: of the glossary.
        glossary: address of its page.
    """
    names, seen = pattern(terms), set[int]()
    for folded in (False, True):
        for text in list(texts(page, folded)):
            pieces = list(split(page, str(text), names, terms, seen, glossary))
            if len(pieces) > 1:
                text.replace_with(*pieces)


def texts(element: Tag, folded: bool, inside: bool = False) -> Iterator[NavigableString]:
    """The texts in which terms are explained: those outside of what is folded, or those inside."""
    for child in element.children:
        if isinstance(child, Tag):
            classes: Any = child.get("class") or []
            silent = any(map(NOR_IN.fullmatch, classes)) or "aria-hidden" in child.attrs
            if child.name not in NOT_IN and not silent:
                hidden = child.name == "details" or "dropdown" in classes
                yield from texts(child, folded, inside or hidden)
        elif type(child) is NavigableString and inside == folded and child.strip():
            yield child


def split(
    page: BeautifulSoup,
    text: str,
    names: re.Pattern[str],
    terms: Sequence[Term],
    seen: set[int],
    glossary: str,
) -> Iterator[Any]:
    """A text in pieces, links for what is used for the first time; ``seen`` is kept."""
    end = 0
    for match in names.finditer(text):
        group = str(match.lastgroup)
        index = int(group[1:].partition("_")[0])
        if index in seen:
            continue
        seen.add(index)
        yield NavigableString(text[end : match.start(group)])
        facts: dict[str, Any] = {"class": [CLASS], "title": terms[index].definition}
        link = page.new_tag("a", href=f"{glossary}#{terms[index].anchor}", attrs=facts)
        link.string = match[group]
        yield link
        end = match.end(group)
    yield NavigableString(text[end:])


def place(page: BeautifulSoup, terms: Sequence[Term]) -> None:
    """Give the entries of the glossary's own page their anchors."""
    for name, term in zip(page.select("dl > dt"), terms, strict=True):
        name["id"] = term.anchor


def explain(app: Any, pagename: str, page: BeautifulSoup) -> None:
    """What the Sphinx extension does with the body of each page."""
    file = Path(app.srcdir, f"{GLOSSARY}.md")
    if not file.is_file():
        return
    terms = read(file.read_text(encoding="utf-8"))
    if pagename == GLOSSARY:
        place(page, terms)
    elif pagename not in TITLES_ALONE:
        mark(page, terms, app.builder.get_relative_uri(pagename, GLOSSARY))
