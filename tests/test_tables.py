"""The tables of the chapters: what is written in their cells, and what Markdown makes of it."""

import markdown_it
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from mdit_py_plugins.dollarmath import dollarmath_plugin

from bookmaking import tables
from bookmaking.tables import estimate, interval, literal, number, percent, show, signed


def rendered(table: tables.Table) -> pd.DataFrame:
    """The table that the book's Markdown makes of it: HTML of each cell."""
    parser = markdown_it.MarkdownIt().enable("table").use(dollarmath_plugin)
    html = parser.render(table.markdown)
    rows = [
        [cell.split(">", 1)[1].split("</t")[0] for cell in row.split("<t")[1:] if cell[0] in "hd"]
        for row in html.replace("<thead>", "").replace("<tbody>", "").split("<tr>")[1:]
    ]
    return pd.DataFrame(rows[1:], columns=rows[0])


def test_numbers_have_one_minus_sign_and_never_break() -> None:
    assert number(-1.5, 1) == "−1.5"
    assert number(-2e-16, ".0e") == "−2\xa0·\xa010⁻¹⁶"
    assert (number(1e5, "g"), number(1e16, "g")) == ("100000", "10¹⁶")
    assert number(-3, ",") == "−3"
    assert percent(-0.5) == "−50.0\xa0%"
    assert signed(-0.25, 2) == "−0.25"
    assert interval(-2, -1) == "−2.0\xa0to\xa0−1.0"
    assert estimate(0, -1, 1, 0) == "0\xa0(−1\xa0to\xa01)"


def test_the_name_of_a_network_stays_on_one_line() -> None:
    frame = pd.DataFrame({"WRN-16-2, far": ["a WRN-40-2", "2026-11-30"]})
    heads = "| WRN‑16‑2, far |", "| a WRN‑40‑2 |", "| 2026-11-30 |"
    lines = show(frame, index=False).markdown.splitlines()
    assert (lines[0], *lines[2:]) == heads


@pytest.mark.parametrize("zero", [0, -0.0, 0.04, -0.04, np.float32(0), torch.tensor(-0.01)])
def test_zero_has_no_sign(zero: float) -> None:
    assert signed(zero) == "0.0"


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_every_library_read_the_same(value: float) -> None:
    assert number(value, 3) == "0.500"
    assert percent(value) == "50.0\xa0%"


def test_what_is_missing_is_an_en_dash_and_what_is_empty_stays_so() -> None:
    frame = pd.DataFrame({"a": [1.0, None, float("nan")], "b": ["", "x", None]})
    found = show(frame, index=False, formats={"a": percent})
    assert found.markdown.splitlines()[2:] == ["| 100.0\xa0% |  |", "| – | x |", "| – | – |"]


@pytest.mark.parametrize(
    ("cell", "html"),
    [
        ("a | b", "a | b"),
        ("`p | q`", "<code>p | q</code>"),
        ("$|x|_1$", '<span class="math inline">|x|_1</span>'),
        (r"$\|h\|^2$", r'<span class="math inline">\|h\|^2</span>'),
        ("[E](e.md)", '<a href="e.md">E</a>'),
        ("cifar10_train_set", "cifar10_train_set"),
        ("two\nlines", "two lines"),
        (literal("$5 | _a_, *b*, `c`, [d](e), <f>"), "$5 | _a_, *b*, `c`, [d](e), &lt;f&gt;"),
    ],
)
def test_text_is_markdown_whatever_it_holds(cell: str, html: str) -> None:
    found = rendered(show(pd.DataFrame({cell: [cell], "n": [1]}), index=False))
    assert found.columns.to_list() == [html, "n"]
    assert found.iloc[0].to_list() == [html, "1"]


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    frame = pd.DataFrame(
        {
            "int": [1, 2],
            "float": [-0.5, None],
            "text": ["a", "1"],
            "percent": [percent(0.1), ""],
            "bold": ["**±\xa01**", "≤\xa00.3 points"],
        },
        index=pd.Index(["x", "y"], name="row"),
    )
    rule = show(frame).markdown.splitlines()[1]
    assert rule == "|---|---:|---:|---|---:|---:|"


def test_formats_by_name_in_order_or_for_all() -> None:
    frame = pd.DataFrame({"T": [0.1, 1000.0], "n": [10_000, 2], "e": [1e-7, 0.5]})
    each = show(frame, index=False, formats={"T": "g", "e": ".1e", "n": "05d"})
    rows = ["| 0.1 | 10000 | 1.0\xa0·\xa010⁻⁷ |", "| 1000 | 00002 | 5.0\xa0·\xa010⁻¹ |"]
    assert each.markdown.splitlines()[2:] == rows
    assert show(frame, index=False, formats=["g", "05d", ".1e"]) == each
    assert show(frame, index=False, formats=1).markdown.endswith("| 1000.0 | 2 | 0.5 |")
    assert show(frame, index=False, formats=percent).markdown.endswith("| 50.0\xa0% |")


@pytest.mark.parametrize("formats", [[1], [1, 1, 1], {"c": 1}])
def test_formats_must_fit_the_columns(formats: object) -> None:
    with pytest.raises(ValueError, match=r"^thinkback: formats .* do not fit .* \['a', 'b'\]$"):
        show(pd.DataFrame({"a": [1], "b": [2]}), formats=formats)


def test_two_columns_may_share_a_name_and_the_index_is_the_first_column() -> None:
    frame = pd.DataFrame([[1.0, 2.0]], index=["a"], columns=["AUROC", "AUROC"])
    assert show(frame, "What *it* says:", formats=0).markdown == (
        "What *it* says:\n\n|  | AUROC | AUROC |\n|---|---:|---:|\n| a | 1 | 2 |"
    )


@pytest.mark.parametrize(
    ("index", "cells"), [([10, 1000], "10 1,000"), ([0.5, 100.0], "0.5 100"), (["a", "2"], "a 2")]
)
def test_an_index_of_numbers_is_written_as_one_would(index: list[object], cells: str) -> None:
    rows = show(pd.DataFrame({"n": [1, 2]}, index=index)).markdown.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == cells.split()


def test_a_notebook_gets_markdown_and_plain_text() -> None:
    table = show(pd.DataFrame({"a": [1]}), index=False)
    data, _ = DisplayFormatter().format(table)
    assert data == {"text/plain": table.markdown, "text/markdown": table.markdown}


def test_a_frame_without_rows_is_said_in_a_sentence() -> None:
    for frame in (pd.DataFrame(), pd.DataFrame({"a": []})):
        shown = show(frame, "A caption.", index=False, formats={"b": percent})
        assert str(shown).startswith("*Nothing to show")
