"""What all tests in a browser need: the browser of this machine, and a folder served to it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import fonts
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network but this site
]


def absent(reason: str) -> NoReturn:
    """Skip a test; where the variable CI is set, fail it."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def chromium() -> str | None:
    """The program of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def launched(font: str | None, scratch: Path) -> Iterator[Any]:
    """A Chromium that sees that set of fonts; where there is none, the test is skipped."""
    if (program := chromium()) is None:
        absent("no Chromium on this machine")
    reason = "no playwright: pip install -e .[test]"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    options = {"executable_path": program, "args": FLAGS}
    options["env"] = fonts.environment(font, scratch)
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as browser:
        yield browser


def complaints(page: Any) -> list[Any]:
    """What the console and the scripts of a page say from now on of errors, a growing list."""
    found: list[Any] = []
    kinds = ("error", "warning")
    page.on("console", lambda said: said.type in kinds and found.append(said.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        left = (BrokenPipeError, ConnectionResetError)  # the browser, for the next page
        with contextlib.suppress(*left):
            super().handle()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
