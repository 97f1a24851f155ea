"""The answer figure of a chapter, drawn twice: wide for a page, portrait for a phone.

One SVG carries both, so that it travels in a notebook's output like any figure: the wide drawing,
with the portrait one as text in a ``<metadata>`` element, which nothing shows. Where the book is
built, :func:`portrait` takes it out again; ``extension.py`` shows it on narrow screens.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.plots import STYLE

CARRIED = re.compile(r'<metadata class="portrait">(.*?)</metadata>\s*', re.DOTALL)


class Answer:
    """A figure in two forms; as the last expression of a cell, the cell shows it.

    Args:
        draw: called as ``draw(figure, tall)`` with an empty figure in the book's style, once with
            ``tall=False`` and once with ``tall=True``; it draws and returns nothing. The layout is
            matplotlib's constrained one.
        wide: width and height in inches of the figure for a page.
        tall: the same for a phone, where about 360 pixels are shown: text of 9 pt is 11 pixels
            high there, and less than 8 pt is too small to be read.

    >>> figure = Answer(lambda figure, tall: figure.subplots().plot([1, 2]))
    >>> "<svg" in figure._repr_svg_(), portrait(figure._repr_svg_()) is not None
    (True, True)
    """

    def __init__(
        self,
        draw: Callable[[Figure, bool], object],
        *,
        wide: tuple[float, float] = (7.6, 3.4),
        tall: tuple[float, float] = (3.9, 4.8),
    ) -> None:
        self._wide, self._tall = (
            drawn(draw, size, form) for size, form in ((wide, False), (tall, True))
        )

    def _repr_svg_(self) -> str:
        carried = f'<metadata class="portrait">{html.escape(self._tall, quote=False)}</metadata>'
        return self._wide.replace("</svg>", f"{carried}\n</svg>")

    def __repr__(self) -> str:
        return "Answer figure"


def drawn(draw: Callable[[Figure, bool], object], size: tuple[float, float], tall: bool) -> str:
    """One form as SVG: ``draw`` is called with an empty figure of that size in inches."""
    file = io.StringIO()
    with plt.style.context(STYLE):
        figure = Figure(figsize=size)
        draw(figure, tall)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def portrait(svg: str) -> str | None:
    """The portrait form that the SVG of an :class:`Answer` carries; None for any other SVG."""
    found = CARRIED.search(svg)
    return html.unescape(found[1]) if found else None
