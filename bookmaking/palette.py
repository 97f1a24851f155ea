"""Colours of the book in its two themes: what is drawn once in mid-tones becomes readable in both.

No colour has a contrast of 4.5:1 on white and on near-black. A notebook shows the mid-tones of
``experiments.plots``; the site shows a darker one of each on white and a lighter one in the dark.
"""

from __future__ import annotations

import colorsys
import functools
import re

from matplotlib.colors import to_hex, to_rgb

from experiments import plots

PAPER = {"light": "#ffffff", "dark": "#14171b"}  # as in book/_static/thinkback.css
CONTRAST = {plots.INK: 7.0}  # of axes and their text
LEAST = 4.6  # of all others; WCAG asks 4.5 for text
PALETTE = {"ink": plots.INK, "id": plots.ID_COLOR, "ood": plots.OOD_COLOR, **plots.METHOD_COLORS}
PALETTE |= {"paper": plots.PAPER}
PALETTE |= {f"other-{i}": color for i, color in enumerate(plots.OTHER_COLORS)}


def luminance(color: str) -> float:
    """Relative luminance of WCAG, in [0, 1]."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG, in [1, 21].

    >>> round(contrast("white", "#767676"), 2)
    4.54
    """
    low, high = sorted(luminance(color) + 0.05 for color in (one, other))
    return high / low


@functools.cache
def readable(color: str, theme: str) -> str:
    """The colour, as much darker or lighter as text on that theme's paper needs.

    >>> readable("#7c7f86", "light") < "#7c7f86" < readable("#7c7f86", "dark")
    True
    """
    if color == plots.PAPER:
        return PAPER[theme]
    wanted = CONTRAST.get(color, LEAST)
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    step = -0.005 if theme == "light" else 0.005
    while contrast(color, PAPER[theme]) < wanted:
        lightness += step
        color = to_hex(colorsys.hls_to_rgb(hue, lightness, saturation))
    return color


def both(color: str) -> str:
    """The value of a CSS property that has this colour in each theme.

    >>> both("#3d8fd1")
    'light-dark(#2b79b7, #3d8fd1)'
    """
    return f"light-dark({readable(color, 'light')}, {readable(color, 'dark')})"


def themed(svg: str) -> str:
    """A drawing in which the colours of the palette follow the theme of the page that shows it.

    An image knows that theme by the ``color-scheme`` of its element (Media Queries 5).

    >>> themed('<svg id="a"><path style="fill: #3D8FD1"/></svg>').partition("</style>")[2]
    '<path style="fill: var(--id)"/></svg>'
    """
    used = {}

    def variable(match: re.Match[str]) -> str:
        name = next(n for n, color in PALETTE.items() if color == match[0].lower())
        used[name] = match[0].lower()
        return f"var(--{name})"

    colors = "|".join(sorted(set(PALETTE.values())))
    svg = re.sub(rf"(?:{colors})\b", variable, svg, flags=re.IGNORECASE)
    if not used:
        return svg
    rules = [
        ":root{" + "".join(f"--{n}:{readable(c, theme)};" for n, c in used.items()) + "}"
        for theme in PAPER
    ]
    style = f"<style>{rules[0]}@media (prefers-color-scheme:dark){{{rules[1]}}}</style>"
    return re.sub(r"<svg\b[^>]*>", lambda tag: tag[0] + style, svg, count=1)
