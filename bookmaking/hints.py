"""Types of the chapters' parameters, as their annotations say them: ``list[float]``."""

from __future__ import annotations

import ast
from typing import Any

import yaml

SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def fits(value: object, hint: ast.expr) -> bool:
    """Whether a value has the annotated type, one of those that papermill can show and inject.

    Raises:
        ValueError: on an annotation that is none of these types.
    """
    if members := choices(hint):
        return any(type(value) is type(member) and value == member for member in members)
    match hint:
        case ast.Name(id=name) if name in SCALARS:
            alike = name == "bool" or not isinstance(value, bool)
            return alike and isinstance(value, SCALARS[name])
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(fits(element, item) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(
                fits(k, key) and fits(v, item) for k, v in value.items()
            )
    raise ValueError(
        f"thinkback: {ast.unparse(hint)!r} is none of bool, int, float, str, list[...],"
        " dict[..., ...], Literal[...] of these"
    )


def choices(hint: ast.expr) -> list[bool | int | str]:
    """What a ``Literal[...]`` lets one choose from; nothing for another annotation.

    >>> choices(ast.parse("Literal['a', -1, True]", mode="eval").body)
    ['a', -1, True]
    """
    match hint:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inside):
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            try:
                members = [ast.literal_eval(part) for part in parts]
            except ValueError:
                return []
            return members if all(type(m) in (bool, int, str) for m in members) else []
    return []


def words(hint: ast.expr) -> str:
    """What may be given, in a message: ``a list[float]``, or ``one of 'a', 'b'``."""
    if members := choices(hint):
        return f"one of {', '.join(map(repr, members))}"
    name = ast.unparse(hint)
    return f"{'an' if name == 'int' else 'a'} {name}"


def parse(text: str, hint: ast.expr) -> Any:
    """A value of the command line in the annotated type: ``5``, ``true``, ``[svhn, lsun_crop]``."""
    if text in choices(hint):  # YAML reads off as a bool
        return text
    own: Any = {"str": str, "float": float}  # YAML reads 1e-16 as text
    try:
        return own.get(ast.unparse(hint), yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError):
        return text
