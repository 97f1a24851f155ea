"""HTML from the templates beside this module; what is filled in is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    loader=PackageLoader("bookmaking"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}


def fill(template: str, **values: Any) -> Markup:
    """A template of ``templates/`` with these values; the result is not escaped again."""
    return Markup(_TEMPLATES.get_template(f"{template}.html").render(values))
