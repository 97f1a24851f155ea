"""The sources of the book, read strictly: list of pages, notebooks, YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import yaml
from sphinx_external_toc.parsing import MalformedError, parse_toc_data


class BookError(ValueError):
    """What is wrong with a notebook, a profile or the built book, in one line."""


def slug(name: str | Path) -> str:
    """Name of a chapter without its number.

    >>> slug("notebooks/08_five_datasets.ipynb")
    'five_datasets'
    """
    return re.sub(r"^\d+_", "", Path(name).stem)


def tagged(cell: Any, tag: str) -> bool:
    """Whether a cell carries that tag."""
    return tag in cell.metadata.get("tags", [])


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


def read(path: Path) -> Any:
    """The notebook of that file, which must be a valid one."""
    if not path.is_file():
        raise BookError(f"thinkback: there is no {path}")
    wrong = (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError)
    try:
        content = nbformat.reader.reads(path.read_text(encoding="utf-8"))  # type: ignore[no-untyped-call]
        notebook = nbformat.convert(content, 4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
    except wrong as error:  # nbformat raises each of them
        why = one_line(error.__cause__ or error)
        raise BookError(
            f"thinkback: {path} is no notebook: {why:.200}; restore it, or end its merge"
        ) from error
    return notebook


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except (ValueError, yaml.YAMLError) as error:  # a date that no calendar has is a ValueError
        why = one_line(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            why = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise BookError(
            f"thinkback: {path} cannot be read as YAML: {why}; mend it, or end its merge"
        ) from error
    return as_mapping(content, str(path))


def as_mapping(content: Any, place: str) -> dict[Any, Any]:
    """What was read at some place of a YAML file, if it is a mapping; nothing is an empty one."""
    if not isinstance(content, dict | None):
        raise BookError(
            f"thinkback: {place} holds {content!r:.80}; it needs lines of the form 'name: value'"
        )
    return content or {}


def pages(root: Path) -> list[Path]:
    """Source files of the book, relative to its root, in the order of ``_toc.yml``."""
    contents = root / "_toc.yml"
    if not contents.is_file():
        raise BookError(
            f"thinkback: no _toc.yml in {root.resolve()}; run this from the root of the repository"
        )
    try:
        names = list(parse_toc_data(read_yaml(contents)))
    except (MalformedError, TypeError) as error:
        raise BookError(f"thinkback: {contents}: {one_line(error)}; mend it") from error
    found = []
    for name in names:
        files = [Path(name + end) for end in (".ipynb", ".md") if (root / (name + end)).is_file()]
        if len(files) != 1:
            raise BookError(
                f"thinkback: _toc.yml lists {name}, which exists {len(files)} times (.ipynb, .md)"
            )
        found += files
    return found
