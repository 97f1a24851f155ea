"""Answer figures: one output carries both forms, and a page shows the one that fits its screen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup

from bookmaking import extension
from bookmaking.answer import Answer, portrait


def line(figure, tall):
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1])
    ax.set_title("a < b & tall" if tall else "a < b & wide")


def test_output_is_the_wide_form_and_carries_the_tall_one() -> None:
    wide = Answer(line)._repr_svg_()
    tall = portrait(wide)
    sizes = [
        tuple(float(ElementTree.fromstring(svg).get(side)[:-2]) for side in ("width", "height"))
        for svg in (wide, tall)
    ]
    assert sizes == [pytest.approx((547.2, 244.8)), pytest.approx((280.8, 345.6))]
    assert "wide -->" in wide.partition("<metadata class")[0]
    assert "tall -->" in tall
    assert portrait(tall) is None


def test_same_drawing_gives_the_same_bytes() -> None:
    assert Answer(line)._repr_svg_() == Answer(line)._repr_svg_()


def test_style_of_the_book_holds_whatever_the_chapter_set() -> None:
    import matplotlib as mpl

    expected = Answer(line)._repr_svg_()
    with mpl.rc_context({"font.size": 30, "text.color": "red"}):
        assert Answer(line)._repr_svg_() == expected


def test_page_shows_the_form_that_fits(tmp_path: Path) -> None:
    svg = Answer(line, tall=(3, 5))._repr_svg_()
    (tmp_path / "a.svg").write_text(svg, encoding="utf-8")
    app = SimpleNamespace(
        srcdir=tmp_path,
        outdir=tmp_path / "html",
        builder=SimpleNamespace(images={"a.svg": "a1.svg"}),
    )
    context = {
        "body": '<figure><img alt="A" src="../_images/a1.svg"/></figure>',
        "css_files": [],
        "script_files": [],
    }
    extension.finish_page(app, "page", "page.html", context, None)
    picture = BeautifulSoup(context["body"], "html.parser").figure.picture
    source, image = picture("source")[0], picture("img")[0]
    assert (image["alt"], image["src"], image["width"]) == ("A", "../_images/a1.svg", "730")
    assert (source["width"], source["height"]) == ("288", "480")
    assert source["srcset"] == "../_images/a1.portrait.svg"
    shown = (tmp_path / "html" / "_images" / "a1.portrait.svg").read_text(encoding="utf-8")
    assert shown == portrait(svg)
    assert "<metadata class" not in extension.short(svg)
