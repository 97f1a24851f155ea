"""What all commands share: a wrong input is one line on standard error, and status 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
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
