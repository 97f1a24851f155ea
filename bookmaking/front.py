"""What the front page takes from the sources as they are: buttons, colors, map of the chapters."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from . import palette
from .markup import fill
from .sources import pages, read, read_yaml

WORDS = 180  # that are read in a minute
STEP = 5  # minutes are rounded up to a multiple of this
FOLDED = re.compile(r"<details>.*?</details>|(`{3,}|:{3,})\{.*?dropdown.*?\n\1", re.DOTALL)
COLAB = "05_closed_form"  # what the button opens: the score, and no training
WAYS = {  # goal -> chapters by number, in order
    "I am in a hurry": (1, 8),
    "How does the score work?": (1, 3, 4, 5, 12),
    "Is the paper right?": (2, 4, 8, 9, 10),
    "I want to use it": (2, 11, 13),
    "I want to run it all again": (6, 7, 8, 12),
    "All of it": tuple(range(1, 14)),
}


class Stop(NamedTuple):
    """A chapter on the map."""

    number: int
    title: str
    question: str
    page: str  # its address from ``book/``
    part: str
    minutes: int


def stops(root: Path) -> list[Stop]:
    """The chapters in the order of ``_toc.yml``, with what their first cell says of them."""
    found: list[Stop] = []
    parts = read_yaml(root / "_toc.yml").get("parts", [])
    captions = {c["file"]: part["caption"] for part in parts for c in part["chapters"]}
    for page in pages(root):
        if page.suffix == ".ipynb":
            notebook = read(root / page)
            first = notebook.cells[0].source
            title = re.search(r"^# (?:\d+\. )?(.+)$", first, re.MULTILINE)
            question = re.search(r"\*\*(.+?)\*\*", first, re.DOTALL)
            name, asks = (plain(match[1]) if match else "" for match in (title, question))
            place = f"../{page.with_suffix('.html').as_posix()}"
            part = captions.get(page.with_suffix("").as_posix(), "")
            found.append(Stop(len(found) + 1, name, asks, place, part, minutes(notebook)))
    return found


def plain(text: str) -> str:
    r"""One line of Markdown as text.

    >>> plain("What do $T$ and\n$\\varepsilon$ do?")
    'What do T and ε do?'
    """
    return re.sub(r"[$*`]", "", " ".join(text.split())).replace(r"\varepsilon", "ε")


def minutes(notebook: Any) -> int:
    """How long a chapter takes to read, without its code and what is folded.

    >>> import nbformat.v4 as v4
    >>> minutes(v4.new_notebook(cells=[v4.new_markdown_cell("word " * 1000)]))
    10
    """
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    words = sum(len(FOLDED.sub("", text).split()) for text in texts)
    return STEP * max(1, math.ceil(words / WORDS / STEP))


def duration(total: int) -> str:
    """Minutes in words.

    >>> duration(25), duration(135)
    ('25 min', '2 h 15 min')
    """
    hours, rest = divmod(total, 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0 or not hours))


def as_html(found: list[Stop]) -> Markup:
    """The map: ways to choose from, and every chapter with its place on each of them."""
    time = {stop.number: stop.minutes for stop in found}
    ways = []
    for goal, numbers in WAYS.items():
        on = [number for number in numbers if number in time]
        ways.append((goal, on, duration(sum(time[number] for number in on))))
    by_part: dict[str, list[Stop]] = {}
    for stop in found:
        by_part.setdefault(stop.part, []).append(stop)
    return fill("chapter_map", ways=ways, parts=by_part)


def colab(root: Path) -> str:
    """The address in Colab of the chapter that the button opens."""
    repository = read_yaml(root / "_config.yml")["repository"]
    place = repository["url"].removeprefix("https://github.com/")
    return (
        f"https://colab.research.google.com/github/{place}/blob/{repository['branch']}/notebooks/"
        f"{COLAB}.ipynb"
    )


def colors() -> Markup:
    """The colors of the book's figures under the names that ``opening.css`` knows."""
    named = {name: palette.both(color) for name, color in palette.PALETTE.items()}
    rules = "; ".join(f"--op-{name.replace('_', '-')}: {color}" for name, color in named.items())
    return Markup(f"<style>:root {{ {rules} }}</style>")  # names and colors of this book's code


def as_markdown(root: Path) -> str:
    """What the front page includes of this module."""
    found = stops(root)
    buttons = fill("buttons", colab=colab(root), first=found[0].page, last=found[-1].page)
    parts = {"buttons": buttons + colors(), "map": as_html(found)}
    return "".join(
        f"<!-- {name} -->\n\n```{{raw}} html\n{part}\n```\n\n<!-- end -->\n\n"
        for name, part in parts.items()
    )
