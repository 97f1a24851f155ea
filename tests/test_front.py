"""The map of the chapters: every chapter once, every way possible, every link a page."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from bookmaking import extension, front
from bookmaking.sources import pages, read

ROOT = Path(__file__).parents[1]
STYLE = (ROOT / "book" / "_static" / "opening.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    return BeautifulSoup(front.as_markdown(ROOT), "html.parser")


def test_the_map_has_every_chapter_once_in_order(page):
    chapters = [path for path in pages(ROOT) if path.suffix == ".ipynb"]
    links = [link["href"] for link in page.select(".op-stop a")]
    assert links == [f"../{path.with_suffix('.html').as_posix()}" for path in chapters]
    for number, (stop, path) in enumerate(zip(page.select(".op-stop"), chapters, strict=True), 1):
        first = nbformat.read(ROOT / path, as_version=4).cells[0].source
        assert stop.b.get_text() == str(number)
        assert stop.a.get_text().removeprefix(str(number)) in first
        assert stop.span.get_text().endswith("?")
        assert re.fullmatch(r"\d+ min", stop.small.get_text())


def test_every_link_leads_to_a_page(page):
    known = {f"../{path.with_suffix('.html').as_posix()}" for path in pages(ROOT)}
    known |= {path.removeprefix("../book/") for path in known}
    colab, own = [], []
    for link in page.select("a"):
        (colab if link["href"].startswith("https:") else own).append(link["href"])
    assert set(own) <= known
    repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    (address,) = colab
    name, _, notebook = address.partition(f"/blob/{repository['branch']}/")
    assert name.endswith(repository["url"].removeprefix("https://github.com"))
    assert (ROOT / notebook).is_file()


def test_ways_lead_through_chapters_and_take_their_time(page):
    minutes = {stop.number: stop.minutes for stop in front.stops(ROOT)}
    for way, (numbers, label) in enumerate(
        zip(front.WAYS.values(), page.select(".op-way"), strict=True), 1
    ):
        marked = [int(stop.b.get_text()) for stop in page.select(f".op-w{way}")]
        assert marked == sorted(numbers)
        assert label.small.get_text() == front.duration(sum(minutes[n] for n in numbers))
        assert f":has(#op-way-{way}:checked) .op-w{way}" in STYLE
    assert set(front.WAYS["All of it"]) == set(minutes)


def test_minutes_are_of_the_text_that_is_open():
    def of(*cells):
        return front.minutes(nbformat.v4.new_notebook(cells=list(cells)))

    text = nbformat.v4.new_markdown_cell("word " * 10 * front.WORDS)
    more = nbformat.v4.new_markdown_cell("word " * front.WORDS)
    code = nbformat.v4.new_code_cell("x = 1\n" * 1000)
    assert (of(text), of(text, code), of(text, more)) == (10, 10, 15)
    for fold in (
        ":::{{dropdown}} Deeper\n{}\n:::",
        "<details><summary>Deeper</summary>{}</details>",
    ):
        assert of(text, nbformat.v4.new_markdown_cell(fold.format(text.source))) == 10


def test_a_chapter_says_the_minutes_of_the_map():
    for stop in front.stops(ROOT):
        page = ROOT / "book" / stop.page
        first = read(page.with_suffix(".ipynb").resolve()).cells[0].source
        assert f"\n*{stop.minutes} minutes without the code · needs: " in first, stop


def test_a_chapter_without_a_question_still_has_a_place(tmp_path):
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: notebooks/01_one\n", encoding="utf-8"
    )
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1. One")])
    nbformat.write(notebook, tmp_path / "notebooks" / "01_one.ipynb")
    assert front.stops(tmp_path) == [front.Stop(1, "One", "", "../notebooks/01_one.html", "", 5)]


def test_its_style_is_for_the_pages_that_show_it():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["sphinx"]["config"]
    assert "opening.css" in config["html_css_files"]
    assert extension.needed("_static/opening.css", {"op-pick", "tb-explorer"})
    assert not extension.needed("_static/opening.css", {"tb-explorer"})
