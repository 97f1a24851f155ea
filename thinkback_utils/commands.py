"""What is said to a user: errors of commands in one line, warnings, and lists in a sentence."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, without the usage, and status 1."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave."""
        self.exit(1, f"thinkback: {' '.join(message.split())}; see {self.prog} --help\n")


def run_main(main: Callable[[], object]) -> int:
    """Call the ``main`` of a command; returns the exit status.

    It is 1 after an error that explains itself in one line: the package's own, which start with
    "thinkback: ", and those of the system about files. Any other is a fault of the program and
    keeps its traceback. Used as ``if __name__ == "__main__": sys.exit(run_main(main))``.
    """
    try:
        main()
    except (ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        line = str(error)
        if isinstance(error, OSError) and error.errno is not None:  # of the system: a full disk
            line = f"thinkback: {error.filename or 'a file'}: {error.strerror}"
        elif not line.startswith("thinkback: "):
            raise
        print(" ".join(line.split()), file=sys.stderr)
        return 1
    return 0


def warn(remarks: Iterable[str]) -> None:
    """A ``UserWarning`` for each remark, from the first caller outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        f"{__package__}."
    ):
        frame, level = frame.f_back, level + 1
    for remark in remarks:
        warnings.warn(f"thinkback: {remark}", stacklevel=level)


def listed(items: Sequence[object], separator: str = ", ") -> str:
    """The first five, and how many more there are.

    >>> listed(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(map(str, items[:5])) + more
