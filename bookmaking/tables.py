"""Tables of the chapters: a pandas DataFrame as Markdown, which the book, Colab and Jupyter render
alike, and one way to write a number.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Format = str | int | Callable[[Any], str]
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
A_NAME = re.compile(r"\b[A-Z]+-\d+-\d+\b")  # as WRN-40-2, which stays on one line
A_NUMBER = re.compile(rf"[*≤≥±+{MINUS}]*{SPACE}?\d")


def number(value: Any, form: str | int = 2) -> str:
    """A number with the true minus sign and its power of ten written out; one that rounds to zero
    has no sign, and one that is missing (None, NaN) is an en dash.

    Args:
        value: the number, 0-d arrays and tensors included.
        form: how many decimals, or a format specification as of :func:`format`.

    >>> number(-0.126), number(1234567, ","), number(-0.001, "+.2f"), number(float("nan"))
    ('−0.13', '1,234,567', '0.00', '–')
    >>> number(2.5e-16, ".1e"), number(1e-16, "g")
    ('2.5\xa0·\xa010⁻¹⁶', '10⁻¹⁶')
    """
    if value is None or math.isnan(value):
        return MISSING
    if not isinstance(value, numbers.Number):
        value = value.item()
    text = format(value, f".{form}f" if isinstance(form, int) else form)
    text = re.sub(r"^[+-](?=[0.]+%?$)", "", text)
    text = re.sub(r"^(.*)e([+-]\d+)$", _power_of_ten, text)
    return text.replace("-", MINUS).replace("%", f"{SPACE}%")


def _power_of_ten(parts: re.Match[str]) -> str:
    power = f"10{str(int(parts[2])).translate(RAISED)}"
    return {"1": power, "-1": f"-{power}"}.get(parts[1], f"{parts[1]}{SPACE}·{SPACE}{power}")


def percent(share: Any, decimals: int = 1) -> str:
    """A share in [0, 1] as a percentage that stays on one line.

    >>> percent(0.9236), percent(0.0004, 2)
    ('92.4\\xa0%', '0.04\\xa0%')
    """
    return number(share, f".{decimals}%")


def signed(value: Any, decimals: int = 1) -> str:
    """A difference with its sign.

    >>> signed(2), signed(-36.24), signed(-0.01)
    ('+2.0', '−36.2', '0.0')
    """
    return number(value, f"+.{decimals}f")


def interval(low: Any, high: Any, decimals: int = 1) -> str:
    """Both ends of an interval, on one line.

    >>> interval(-0.5, 2)
    '−0.5\\xa0to\\xa02.0'
    """
    return f"{number(low, decimals)}{SPACE}to{SPACE}{number(high, decimals)}"


def estimate(value: Any, low: Any, high: Any, decimals: int = 1) -> str:
    """A value and its interval, on one line.

    >>> estimate(1.011, 0.92, 1.04, 2)
    '1.01\\xa0(0.92\\xa0to\\xa01.04)'
    """
    return f"{number(value, decimals)}{SPACE}({interval(low, high, decimals)})"


def literal(text: str) -> str:
    """Text in which Markdown's signs mean nothing: for names that come from files.

    >>> print(literal("conv_1 | $5"))
    conv\\_1 \\| \\$5
    """
    return re.sub(r"([\\`*_\[\]<>$|])", r"\\\1", text)


@dataclass(frozen=True)
class Table:
    """Markdown that a notebook shows as a table."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown


def show(
    frame: pd.DataFrame,
    caption: str | None = None,
    index: bool = True,
    formats: Format | Sequence[Format] | Mapping[Any, Format] = 2,
) -> Table:
    """A DataFrame as a table, the last expression of a cell; a sentence where it has no row.

    Text in cells, heads and caption is Markdown: maths, code and links are rendered. Columns in
    which every cell starts with a number are aligned to the right.

    Args:
        frame: one row of the table a row; the name of its index heads the first column.
        caption: a sentence above the table.
        index: whether the index is the first column.
        formats: how numbers are written: a number of decimals, a format specification or a function
            such as :func:`percent`; one for all columns, one for each in their order, or some by
            name (two decimals elsewhere). A number of decimals means floats alone: integers have
            none, and commas between thousands.

    Raises:
        ValueError: a format for no column, or not as many formats as columns.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"score": ["Softmax", "$E$"], "n": [1, 1000], "gain": [-2.5, None]})
    >>> show(frame, index=False, formats={"gain": signed})
    | score | n | gain |
    |---|---:|---:|
    | Softmax | 1 | −2.5 |
    | $E$ | 1,000 | – |
    """
    if frame.empty:
        return Table("*Nothing to show: no results of this kind are there.*")
    heads, forms = list(frame.columns), formats
    if isinstance(forms, Mapping) and forms.keys() <= set(heads):
        forms = [forms.get(head, 2) for head in heads]
    elif callable(forms) or isinstance(forms, str | int):
        forms = [forms] * len(heads)
    if isinstance(forms, Mapping) or len(forms) != len(heads):
        raise ValueError(f"thinkback: formats {formats!r} do not fit the columns {heads}")
    if index:
        frame = frame.rename_axis(frame.index.name or "").reset_index()
        forms = [2 if frame.dtypes.iloc[0].kind in "iu" else "g", *forms]
    columns = []
    for position, (head, form) in enumerate(zip(frame.columns, forms, strict=True)):
        cells = [written(value, form) for value in frame.iloc[:, position]]
        right = all(A_NUMBER.match(cell) or cell in ("", MISSING) for cell in cells)
        columns.append([written(str(head)), "---:" if right else "---", *cells])
    first, rule, *rows = ("| " + " | ".join(row) + " |" for row in zip(*columns, strict=True))
    lines = [first, rule.replace(" ", ""), *rows]
    return Table("\n".join([f"{caption}\n", *lines] if caption else lines))


def written(value: Any, form: Format = 2) -> str:
    """The Markdown of one cell."""
    if isinstance(value, str):
        unbroken = A_NAME.sub(lambda name: name[0].replace("-", "\N{NON-BREAKING HYPHEN}"), value)
        return re.sub(r"\s*\n\s*", " ", unbroken).replace("|", r"\|")  # the table takes the \ away
    if callable(form):
        return MISSING if value is None or math.isnan(value) else form(value)
    whole = isinstance(form, int) and isinstance(value, numbers.Integral)
    return number(value, "," if whole else form)
