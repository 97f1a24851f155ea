"""Sets of system fonts: a page must keep its layout whichever of them a machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SETS = {
    "dejavu": "DejaVuSans.ttf",
    "liberation": "LiberationSans-Regular.ttf",
}  # wide letters, narrow letters
PLACES = [
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".local/share/fonts",
]


def folder(name: str) -> Path | None:
    """Where this machine keeps a set of fonts, if it has it."""
    return next((file.parent for place in PLACES for file in sorted(place.rglob(SETS[name]))), None)


# what the other tests see; None: all fonts there are
FIRST = next((name for name in SETS if folder(name)), None)
both_font_sets = pytest.mark.parametrize("browser", list(SETS), indirect=True)


def environment(name: str | None, scratch: Path) -> dict[str, str]:
    """The environment of a browser that sees one set of fonts; ``scratch`` takes its settings."""
    if name is None:
        return dict(os.environ)
    if (fonts := folder(name)) is None:
        pytest.skip(f"the fonts {SETS[name]} are not on this machine: apt-get install fonts-{name}")
    parts = f"<dir>{fonts}</dir><cachedir>{scratch / 'cache'}</cachedir>"
    parts += "<include ignore_missing='yes'>/etc/fonts/conf.d</include>"  # what 'sans-serif' is
    settings = f"<fontconfig>{parts}</fontconfig>"
    (scratch / "fonts.conf").write_text(settings, encoding="utf-8")
    return os.environ | {"FONTCONFIG_FILE": str(scratch / "fonts.conf")}
