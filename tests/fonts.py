"""Sets of system fonts for the browser: a page must keep its layout whichever of them a machine
has.
"""

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


FIRST = next(
    (name for name in SETS if folder(name)), None
)  # what the other tests see; None: all fonts there are
both_font_sets = pytest.mark.parametrize("browser", list(SETS), indirect=True)


def environment(name: str | None, scratch: Path) -> dict[str, str]:
    """The environment of a browser that sees one set of fonts alone; ``scratch`` takes its
    configuration.
    """
    if name is None:
        return dict(os.environ)
    if (fonts := folder(name)) is None:
        pytest.skip(f"the fonts {SETS[name]} are not on this machine: apt-get install fonts-{name}")
    names = (  # which font 'sans-serif' is
        "<include ignore_missing='yes'>/etc/fonts/conf.d</include>"
    )
    (scratch / "fonts.conf").write_text(
        f"<fontconfig><dir>{fonts}</dir><cachedir>{scratch / 'cache'}</cachedir>{names}</fontconfig>",
        encoding="utf-8",
    )
    return os.environ | {"FONTCONFIG_FILE": str(scratch / "fonts.conf")}
