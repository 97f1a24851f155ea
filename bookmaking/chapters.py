"""Strict execution of the chapters with papermill, of those alone that changed.

papermill is content when a cell leaves the others unrun: here that is an error.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import distributions
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

import thinkback_utils
from thinkback_utils.files import sha256

from .profiles import TIMEOUT
from .sources import BookError, one_line, read, tagged

KERNEL = {"kernel_name": "python3", "language": "python"}
PACKAGE = Path(thinkback_utils.__file__).parent


def use_own_kernel() -> None:
    """Make ``python3`` the kernel of this interpreter, also where the user has another one."""
    folders = (os.path.join(sys.prefix, "share", "jupyter"), os.environ.get("JUPYTER_PATH"))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, folders))
    remedy = f"install ipykernel for {sys.executable}"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel as error:
        raise BookError(f"thinkback: there is no kernel 'python3'; {remedy}") from error
    own = Path(command).resolve() == Path(sys.executable).resolve()
    if not own and not re.fullmatch(r"python[\d.]*", command):
        raise BookError(f"thinkback: the kernel 'python3' starts {command}; {remedy}")


def run(path: Path, output: Path, values: Mapping[str, Any], timeout: int | None = None) -> None:
    """Execute one notebook with these parameters, in its own folder.

    Args:
        path: of the notebook.
        output: where its executed copy goes; a partial copy stays when a cell fails.
        values: parameters to inject.
        timeout: seconds that a cell may take; None: any number.

    Raises:
        BookError: if a cell raises, stops the kernel or takes longer, or if any code cell did not
            run.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    source = read(path)
    reached = [0]

    def name(index: int) -> str:
        """Of a cell of the copy, which may hold one more than the source: the parameters given."""
        before = source.cells[:index]
        number = index - (bool(values) and any(tagged(cell, "parameters") for cell in before))
        return f"cell {number + 1} (id {source.cells[number].get('id')})"

    def failed(index: int, what: str) -> BookError:
        return BookError(f"thinkback: {path}, {name(index)}: {what}; partial copy: {output}")

    def started_cell(cell_index: int, **_: Any) -> None:
        reached.append(cell_index)

    def executed_cell(cell_index: int, execute_reply: Mapping[str, Any], **_: Any) -> None:
        if ends_kernel(execute_reply):
            raise failed(cell_index, "exit() or quit() stops the kernel")

    hooks = {"on_cell_start": started_cell, "on_cell_executed": executed_cell}
    settings = {"cwd": path.parent, "execution_timeout": timeout, **KERNEL, **hooks}
    try:
        done = papermill.execute_notebook(path, output, dict(values), **settings)
    except PapermillExecutionError as error:
        print(error, file=sys.stderr)
        raise failed(error.cell_index, first_line(error)) from error
    except CellTimeoutError as error:
        said = " ".join(str(error).splitlines()[:2])  # the cell itself follows
        raise failed(reached[-1], f"{said} The {TIMEOUT} of the profile is {timeout}") from error
    except RuntimeError as error:  # how nbclient says that the kernel died or did not start
        raise failed(reached[-1], f"the kernel stopped: {one_line(error)}") from error
    for index in unrun(done):
        why = "".join(f": {said} in {name(i)}" for i, said in errors(done))
        raise failed(index, f"it did not run{why}")
    for index, said in errors(done):  # SystemExit: papermill raises for all others
        raise failed(index, f"{said} ended it early")
    print(f"{path.name}: {time.perf_counter() - started:.1f} s", flush=True)


def ends_kernel(reply: Mapping[str, Any]) -> bool:
    """Whether a cell asked that its kernel ends; until it does, other cells may still run."""
    return any(sent.get("source") == "ask_exit" for sent in reply["content"].get("payload", []))


def unrun(executed: Any) -> Iterator[int]:
    """Indices of the cells of an executed copy that hold code and did not run."""
    for index, cell in enumerate(executed.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            yield index


def first_line(error: Any) -> str:
    """What a cell's error says, as far as its first line break."""
    return f"{error.ename}: {error.evalue}".splitlines()[0].rstrip(": ")


def errors(executed: Any) -> Iterator[tuple[int, str]]:
    """Indices of the cells of an executed copy that ended with an error, and its first line."""
    for index, cell in enumerate(executed.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield index, first_line(output)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def surroundings() -> list[Any]:
    """What all chapters depend on: the package, Python and what is installed, and the images."""
    installed = sorted((found.name, found.version) for found in distributions())
    return [contents(PACKAGE), sys.version, installed, os.environ.get("THINKBACK_DATA")]


def imports(code: str, package: str) -> Iterator[str]:
    """Dotted names that code in that package imports, anywhere in it; code that is none: nothing.

    >>> list(imports("import os.path; from . import score", "benchmarks"))
    ['os.path', 'benchmarks', 'benchmarks.score']
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from [origin, *(f"{origin}.{alias.name}" for alias in node.names)]


def modules(root: Path, code: str, package: str = "") -> dict[str, str]:
    """SHA-256 of the files below a folder that code imports, and of those that they import.

    Files of the package ``thinkback_utils`` are left out: :func:`surroundings` has them all.
    """
    found: dict[str, str] = {}
    unread = [(code, package)]
    while unread:
        for name in imports(*unread.pop()):
            parts = name.split(".")
            if parts[0] == PACKAGE.name:
                continue
            places = [root.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
            files = [file for p in places for file in (p / "__init__.py", p.with_suffix(".py"))]
            for file in files:
                place = file.relative_to(root)
                if file.is_file() and place.as_posix() not in found:
                    found[place.as_posix()] = sha256(file)
                    unread.append((file.read_text(encoding="utf-8"), ".".join(place.parent.parts)))
    return dict(sorted(found.items()))


def refresh(
    path: Path,
    output: Path,
    values: Mapping[str, Any],
    around: list[Any],
    timeout: int | None = None,
    force: bool = False,
) -> None:
    """:func:`run`, unless the copy was made of this code, these parameters and results.

    ``around`` is what all chapters depend on: :func:`surroundings`.
    """
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    code = [(cell.source, cell.metadata.get("tags")) for cell in cells]
    imported = [modules(path.parent.parent, cell.source) for cell in cells]
    results = contents(path.parent / values.get("results_dir", "../results"))
    made_of = [code, sorted(values.items()), results, imported, around]
    renew(path.name, output, made_of, lambda: run(path, output, values, timeout), force)


def renew(
    name: str, product: Path, made_of: list[Any], make: Callable[[], None], force: bool = False
) -> None:
    """Make the product, unless the one that is there was made of the very same.

    A hash beside the product says of what it was made.
    """
    recipe = product.with_suffix(".sha256")
    now = hashlib.sha256(repr(made_of).encode()).hexdigest()
    if not force and product.exists() and recipe.is_file() and recipe.read_bytes() == now.encode():
        print(f"{name}: unchanged", flush=True)
        return
    recipe.unlink(missing_ok=True)  # what fails leaves a partial copy
    make()
    recipe.write_text(now, encoding="utf-8")


def execute(
    build: Path,
    chapters: Mapping[Path, Mapping[str, Any]],
    timeout: int | None = None,
    force: bool = False,
) -> None:
    """Execute those of the planned chapters that changed into ``executed/``, in their order."""
    use_own_kernel()
    around = surroundings()
    for path, values in chapters.items():
        refresh(path, build / "executed" / path.name, values, around, timeout, force)
