"""One palette: readable in both themes, and no colour with two meanings."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bookmaking import palette
from experiments import plots

ROOT = Path(__file__).parents[1]
DRAWN = {name: color for name, color in palette.PALETTE.items() if name != "paper"}


@pytest.mark.parametrize("theme", palette.PAPER)
@pytest.mark.parametrize("name", DRAWN)
def test_colours_are_readable_as_text(name: str, theme: str) -> None:
    least = 7 if name == "ink" else 4.5
    assert palette.contrast(palette.readable(DRAWN[name], theme), palette.PAPER[theme]) >= least


def test_no_two_colours_are_alike() -> None:
    for (one, first), (other, second) in itertools.combinations(DRAWN.items(), 2):
        apart = np.linalg.norm(np.subtract(to_rgb(first), to_rgb(second)))
        assert apart > 0.1, f"{one} and {other}"


def test_style_sheet_has_the_same_paper() -> None:
    sheet = (ROOT / "book" / "_static" / "thinkback.css").read_text(encoding="utf-8")
    for theme, color in palette.PAPER.items():
        assert re.search(rf'data-theme="{theme}"\] {{\s*--pst-color-background: {color};', sheet), (
            theme
        )


def test_figures_ask_for_no_colour_of_their_own_style() -> None:
    style = plots.STYLE.read_text(encoding="utf-8")
    assert set(re.findall(r"\b[0-9a-f]{6}\b", style)) == {plots.INK.removeprefix("#")}


def test_a_drawing_without_the_palette_stays_as_it_is() -> None:
    svg = '<svg><path style="fill: #123456"/></svg>'
    assert palette.themed(svg) == svg


def test_dark_rules_are_inside_their_query() -> None:
    svg = palette.themed(f'<svg viewBox="0 0 1 1"><g style="stroke: {plots.INK}"/></svg>')
    light, dark = (palette.readable(plots.INK, theme) for theme in palette.PAPER)
    assert (
        f":root{{--ink:{light};}}@media (prefers-color-scheme:dark){{:root{{--ink:{dark};}}}}"
        in svg
    )
    assert svg.startswith('<svg viewBox="0 0 1 1"><style>')
    assert "stroke: var(--ink)" in svg
