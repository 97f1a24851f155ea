"""Parameters of the chapters: typed in the notebook, set by a profile or on the command line.

papermill alone runs the defaults when a name is misspelt or the tag is missing; here both are
errors, and so is a value of another type.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .hints import fits, parse, words
from .sources import BookError, as_mapping, one_line, pages, read, read_yaml, slug, tagged

COMMON = ("profile", "seed", "device", "data_dir", "results_dir")  # optional in a chapter
TIMEOUT = "cell_timeout"  # of a profile: seconds, for the execution; no chapter's parameter


def declared(path: Path) -> dict[str, ast.expr]:
    """Names and annotations of a notebook's parameters: ``name: type = literal`` in one cell."""
    notebook = read(path)
    if (kernel := notebook.metadata.get("kernelspec", {}).get("name")) != "python3":
        raise BookError(
            f"thinkback: {path} asks for the kernel {kernel!r}; every chapter runs on 'python3'"
        )
    cells = [cell for cell in notebook.cells if tagged(cell, "parameters")]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise BookError(
            f"thinkback: {path} has {len(cells)} cells tagged 'parameters'; it needs exactly one"
            " code cell"
        )
    try:
        lines = ast.parse(cells[0].source).body
    except (SyntaxError, ValueError) as error:  # a null character is a ValueError
        raise BookError(
            f"thinkback: {path}: the cell tagged 'parameters' is no Python: {one_line(error)}"
        ) from error
    hints: dict[str, ast.expr] = {}
    for line in lines:
        if (text := ast.unparse(line)) == "from typing import Literal":
            continue
        if not (
            isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
        ):
            raise BookError(
                f"thinkback: {path}: parameters are 'name: type = literal', not {text!r}"
            )
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError) as error:  # a list as a key is a TypeError
            raise BookError(f"thinkback: {path}: the default in {text!r} is no literal") from error
        try:
            alike = fits(default, line.annotation)
        except ValueError as error:
            raise BookError(f"thinkback: {path}: {one_line(error)[11:]}") from None
        if not alike:
            raise BookError(f"thinkback: {path}: the default in {text!r} is of another type")
        hints[line.target.id] = line.annotation
    return hints


def choose(
    path: Path, common: Mapping[str, Any], section: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Parameters to inject into a notebook.

    Args:
        path: of the notebook.
        common: of the profile; those that the notebook declares are taken.
        section: the profile's own for this notebook, which go before the common ones.
        texts: of the command line, which go before both.

    Raises:
        BookError: on a name that the notebook does not declare, or a value of another type.
    """
    hints = declared(path)
    for name in {*section, *texts} - set(hints):
        raise BookError(
            f"thinkback: {path} has no parameter {name!r}; it declares {', '.join(hints) or 'none'}"
        )
    values = {name: value for name, value in common.items() if name in hints} | dict(section)
    values |= {name: parse(text, hints[name]) for name, text in texts.items()}
    for name, value in values.items():
        if not fits(value, hints[name]):
            raise BookError(f"thinkback: {path}: {name}={value!r} is not {words(hints[name])}")
    return values


def load_profile(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The common parameters of a profile with its ``cell_timeout``, and the chapters' by slug."""
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.yml"))
        raise BookError(f"thinkback: there is no {path}; there are {there}")
    common = read_yaml(path)
    sections = as_mapping(common.pop("notebooks", None), f"{path}: notebooks")
    for name in set(common) - {*COMMON, TIMEOUT}:
        known = ", ".join((*COMMON, TIMEOUT))
        raise BookError(
            f"thinkback: {path}: {name!r} is not one of {known}: put it under notebooks: slug:"
        )
    seconds = common.get(TIMEOUT, 1)
    if type(seconds) is not int or seconds < 1:
        raise BookError(
            f"thinkback: {path}: {TIMEOUT}={seconds!r}; a cell may take whole seconds, from 1 on"
        )
    return common, {
        name: as_mapping(part, f"{path}: notebooks: {name}") for name, part in sections.items()
    }


def plan(
    root: Path, profile: str, only: Sequence[str], texts: Mapping[str, str]
) -> tuple[dict[Path, dict[str, Any]], int | None]:
    """Parameters of the chosen chapters in reading order, and the seconds a cell may take.

    All chapters are checked, also those that are not chosen.
    """
    chapters = {slug(page): root / page for page in pages(root) if page.suffix == ".ipynb"}
    common, sections = load_profile(root / "profiles" / f"{profile}.yml")
    chosen = [slug(name) for name in only] or list(chapters)
    for name in {*sections, *chosen} - set(chapters):
        raise BookError(
            f"thinkback: there is no chapter {name!r}; the chapters are {', '.join(chapters)}"
        )
    hints = {name: declared(path) for name, path in chapters.items()}
    for text in set(texts) - {hint for name in chosen for hint in hints[name]}:
        raise BookError(f"thinkback: none of {', '.join(chosen)} has a parameter {text!r}")
    values = {}
    for name, path in chapters.items():
        mine = {text: value for text, value in texts.items() if text in hints[name]}
        values[name] = choose(path, common, sections.get(name, {}), mine)
    return {chapters[name]: values[name] for name in chosen}, common.get(TIMEOUT)
