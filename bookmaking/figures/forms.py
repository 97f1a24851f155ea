"""Figures in two forms: wide for a page, upright for a phone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from matplotlib.figure import Figure

from bookmaking.answer import Answer

P = ParamSpec("P")
Size = tuple[float, float]


def two_forms(
    wide: Size, tall: Size
) -> Callable[[Callable[Concatenate[Figure, bool, P], object]], Callable[P, Answer]]:
    """Let a function that draws return its drawing in two forms.

    The function is written with two arguments before its own, which its callers do not give: an
    empty figure, and whether it is the upright one.

    Args:
        wide: width and height in inches of the form for a page.
        tall: those of the form for a phone.

    >>> @two_forms((4, 2), (2, 4))
    ... def plot(figure, tall, values):
    ...     figure.subplots().plot(values)
    >>> plot([1, 2])
    Answer figure
    """

    def decorate(
        draw: Callable[Concatenate[Figure, bool, P], object],
    ) -> Callable[P, Answer]:
        @wraps(draw)
        def both(*args: P.args, **kwargs: P.kwargs) -> Answer:
            return Answer(lambda fig, up: draw(fig, up, *args, **kwargs), wide=wide, tall=tall)

        return both

    return decorate
