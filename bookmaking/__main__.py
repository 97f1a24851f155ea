"""Execution of the chapters and build of the book, on the command line.

    python -m bookmaking [--profile smoke] [--only SLUG ...] [-p NAME VALUE]  execute, then build
    python -m bookmaking execute | build                                      one half of it
    python -m bookmaking --force                                              also the unchanged
    python -m bookmaking run notebooks/08_five_datasets.ipynb -o out.ipynb -p prevalence 0.5

One process at a time works in ``_build/``.
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .chapters import execute, run, use_own_kernel
from .profiles import TIMEOUT, choose, load_profile, plan
from .site import make
from .sources import one_line, slug

UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)


@contextmanager
def alone(build: Path) -> Iterator[None]:
    """Have a folder of built files to oneself; wait for the end of another build, and say so."""
    build.mkdir(parents=True, exist_ok=True)
    lock = FileLock(build / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        said = f"thinkback: another process builds in {build}; waiting for its end"
        print(said, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = __doc__.partition("\n")[0]
    own = argparse.ArgumentParser(prog="python -m bookmaking", description=about)
    add = own.add_argument
    actions = ("all", "execute", "build", "run")
    add("action", nargs="?", default="all", choices=actions)
    add("notebook", nargs="?", type=Path, help="for run: the notebook to execute")
    add("-o", "--output", type=Path, help="for run: where the executed copy goes")
    pair = ("NAME", "VALUE")
    add("-p", dest="parameters", nargs=2, action="append", default=[], metavar=pair)
    add("--profile", help="a file of profiles/ (default: smoke; for run: none)")
    add("--only", nargs="+", default=[], metavar="SLUG", help="execute these chapters alone")
    add("--force", action="store_true", help="execute also what is unchanged since the last time")
    add("--build", type=Path, default=Path(), metavar="DIR", help="where _build/ goes (here)")
    return own


def perform(options: argparse.Namespace, build: Path) -> None:
    """Do what the options say."""
    started = time.perf_counter()
    texts = dict(options.parameters)
    if options.action == "run":
        profile = Path("profiles", f"{options.profile}.yml")
        common, sections = load_profile(profile) if options.profile else ({}, {})
        section = sections.get(slug(options.notebook), {})
        values = choose(options.notebook, common, section, texts)
        use_own_kernel()
        run(options.notebook, options.output, values, common.get(TIMEOUT))
        return
    if options.action != "build":
        planned = plan(Path(), options.profile or "smoke", options.only, texts)
    with alone(build):
        if options.action != "build":
            execute(build, *planned, options.force)
        if options.action != "execute":
            site = make(Path(), build).resolve()
            print(f"{site}: ready in {time.perf_counter() - started:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser()
    options = command.parse_args(arguments)
    build = options.build / "_build"
    if (options.action == "run") != (options.notebook is not None and options.output is not None):
        command.error("'run' needs a notebook and -o; nothing else takes them")
    try:
        perform(options, build)
    except (OSError, ValueError) as error:
        said = one_line(error)
        if isinstance(error, ValueError) and not said.startswith("thinkback: "):
            raise  # no message of this project: a fault to be seen whole
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            said += f"; {build} must be writable and have room"
        print(said if said.startswith("thinkback: ") else f"thinkback: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
