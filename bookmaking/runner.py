"""Strict execution of the chapters with papermill, staging of the executed copies, and the build of
the book.

    python -m bookmaking [--profile smoke] [--only SLUG ...] [-p NAME VALUE]     execute, then build
    python -m bookmaking execute | build                                         one half of it
    python -m bookmaking --force                                                 also what is unchanged
    python -m bookmaking run notebooks/08_five_datasets.ipynb -o out.ipynb -p prevalence 0.5

papermill alone runs the defaults when a name is misspelt or the tag is missing, and is content when
a cell leaves the others unrun: here all three are errors. An unchanged chapter is not executed
again: :func:`refresh` knows what its executed copy was made of. One process at a time works in
``_build/``.
"""

from __future__ import annotations

import argparse
import ast
import errno
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

import thinkback_utils
from thinkback_utils.files import sha256

from . import demo
from .slim import slim

COMMON = (
    "profile",
    "seed",
    "device",
    "data_dir",
    "results_dir",
)  # a chapter may leave these undeclared
TIMEOUT = "cell_timeout"  # of a profile: seconds, for the runner; no chapter's parameter
KERNEL = {"kernel_name": "python3", "language": "python"}
PACKAGE = Path(thinkback_utils.__file__).parent
READ_AS_TEXT = (".bib", ".css", ".js", ".md")  # of the book's sources
SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


class BookError(ValueError):
    """What is wrong with a notebook, a profile or the built book, in one line."""


def slug(name: str | Path) -> str:
    """Name of a chapter without its number: ``five_datasets`` for
    ``notebooks/08_five_datasets.ipynb``.
    """
    return re.sub(r"^\d+_", "", Path(name).stem)


def tagged(cell: Any, tag: str) -> bool:
    """Whether a cell carries that tag."""
    return tag in cell.metadata.get("tags", [])


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


def read(path: Path) -> Any:
    """The notebook of that file, which must be a valid one."""
    if not path.is_file():
        raise BookError(f"thinkback: there is no {path}")
    try:
        notebook = nbformat.convert(nbformat.reader.reads(path.read_text(encoding="utf-8")), 4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
    except (
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        nbformat.ValidationError,
    ) as error:  # nbformat raises each
        why = one_line(error.__cause__ or error)
        raise BookError(
            f"thinkback: {path} is no notebook: {why:.200}; restore it, or end its merge"
        ) from error
    return notebook


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except (ValueError, yaml.YAMLError) as error:  # a date that no calendar has is a ValueError
        why = one_line(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            why = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise BookError(
            f"thinkback: {path} cannot be read as YAML: {why}; mend it, or end its merge"
        ) from error
    return as_mapping(content, str(path))


def as_mapping(content: Any, place: str) -> dict[Any, Any]:
    """What was read at some place of a YAML file, if it is a mapping; nothing is an empty one."""
    if not isinstance(content, dict | None):
        raise BookError(
            f"thinkback: {place} holds {content!r:.80}; it needs lines of the form 'name: value'"
        )
    return content or {}


def fits(value: object, hint: ast.expr) -> bool:
    """Whether a value has the annotated type; only types that papermill can show and inject are
    known.
    """
    match hint:
        case ast.Name(id=name) if name in SCALARS:
            return isinstance(value, SCALARS[name]) and (
                name == "bool" or not isinstance(value, bool)
            )
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(fits(element, item) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(
                fits(k, key) and fits(v, item) for k, v in value.items()
            )
    raise BookError(
        f"thinkback: {ast.unparse(hint)!r} is none of bool, int, float, str, list[...], dict[...,"
        " ...]"
    )


def declared(path: Path) -> dict[str, ast.expr]:
    """Names and annotations of a notebook's parameters, all ``name: type = literal`` in one cell
    tagged so.
    """
    notebook = read(path)
    if (kernel := notebook.metadata.get("kernelspec", {}).get("name")) != KERNEL["kernel_name"]:
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
        if not (
            isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
        ):
            raise BookError(
                f"thinkback: {path}: parameters are 'name: type = literal', not"
                f" {ast.unparse(line)!r}"
            )
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError) as error:  # a list as a key is a TypeError
            raise BookError(
                f"thinkback: {path}: the default in {ast.unparse(line)!r} is no literal"
            ) from error
        if not fits(default, line.annotation):
            raise BookError(
                f"thinkback: {path}: the default in {ast.unparse(line)!r} is of another type"
            )
        hints[line.target.id] = line.annotation
    return hints


def parse(text: str, hint: ast.expr) -> Any:
    """A command-line value in the annotated type, as YAML: ``5``, ``0.1``, ``true``,
    ``[svhn, lsun_crop]``.
    """
    reader: Any = {"str": str, "float": float}.get(
        ast.unparse(hint), yaml.safe_load
    )  # YAML reads 1e-16 as text
    try:
        return reader(text)
    except (ValueError, yaml.YAMLError):
        return text


def choose(
    path: Path, common: Mapping[str, Any], section: Mapping[str, Any], texts: Mapping[str, str]
) -> Any:
    """Parameters to inject: the common ones that are declared, then the notebook's own, then the
    command line's.
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
            raise BookError(f"thinkback: {path}: {name}={value!r} is no {ast.unparse(hints[name])}")
    return values


def load_profile(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The common parameters of a profile file with its ``cell_timeout``, and those of single
    chapters by slug.
    """
    if not path.is_file():
        raise BookError(
            f"thinkback: there is no {path}; there are"
            f" {sorted(p.stem for p in path.parent.glob('*.yml'))}"
        )
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


def listed(contents: Any) -> Iterator[str]:
    """Names that a part of ``_toc.yml`` gives as ``root`` or ``file``, in its order."""
    if isinstance(contents, dict):
        for key, value in contents.items():
            yield from [str(value)] if key in ("root", "file") else listed(value)
    elif isinstance(contents, list):
        for part in contents:
            yield from listed(part)


def pages(root: Path) -> list[Path]:
    """Source files of the book, relative to its root, in the order of ``_toc.yml``."""
    if not (root / "_toc.yml").is_file():
        raise BookError(
            f"thinkback: no _toc.yml in {root.resolve()}; run this from the root of the repository"
        )
    names = list(listed(read_yaml(root / "_toc.yml")))
    if not names:
        raise BookError(
            "thinkback: _toc.yml lists no page: it needs 'root: NAME', and 'file: NAME' for each"
            " other"
        )
    files = {
        name: [Path(name + end) for end in (".ipynb", ".md") if (root / (name + end)).is_file()]
        for name in names
    }
    for name in (name for name, found in files.items() if len(found) != 1):
        raise BookError(
            f"thinkback: _toc.yml lists {name}, which exists {len(files[name])} times (.ipynb, .md)"
        )
    return [found[0] for found in files.values()]


def use_own_kernel() -> None:
    """Make ``python3`` the kernel of this interpreter, also where another one is installed for the
    user.
    """
    folders = (os.path.join(sys.prefix, "share", "jupyter"), os.environ.get("JUPYTER_PATH"))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, folders))
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel as error:
        raise BookError(
            f"thinkback: there is no kernel 'python3'; install ipykernel for {sys.executable}"
        ) from error
    if not (
        re.fullmatch(r"python[\d.]*", command)
        or Path(command).resolve() == Path(sys.executable).resolve()
    ):
        raise BookError(
            f"thinkback: the kernel 'python3' starts {command}; install ipykernel for"
            f" {sys.executable}"
        )


def run(path: Path, output: Path, values: Mapping[str, Any], timeout: int | None = None) -> None:
    """Execute one notebook with these parameters, in its own folder; the partial copy stays when a
    cell fails.

    Args:
        path: of the notebook.
        output: where its executed copy goes.
        values: parameters to inject.
        timeout: seconds that a cell may take; None: any number.

    Raises:
        BookError: if a cell raises, stops the kernel or takes longer, or if any code cell did not
            run.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    source, reached = read(path), [0]

    def name(index: int) -> str:
        """Of a cell of the copy, which may hold one more than the source: the injected parameters."""
        number = index - (
            bool(values) and any(tagged(cell, "parameters") for cell in source.cells[:index])
        )
        return f"cell {number + 1} (id {source.cells[number].get('id')})"

    def failed(index: int, what: str) -> BookError:
        return BookError(f"thinkback: {path}, {name(index)}: {what}; partial copy: {output}")

    def started_cell(cell_index: int, **_: Any) -> None:
        reached.append(cell_index)

    def executed_cell(cell_index: int, execute_reply: Mapping[str, Any], **_: Any) -> None:
        if any(
            sent.get("source") == "ask_exit" for sent in execute_reply["content"].get("payload", [])
        ):
            raise failed(
                cell_index, "exit() or quit() stops the kernel"
            )  # which lives on for a moment

    hooks = {"on_cell_start": started_cell, "on_cell_executed": executed_cell}
    try:
        done = papermill.execute_notebook(
            path,
            output,
            dict(values),
            cwd=path.parent,
            execution_timeout=timeout,
            **KERNEL,
            **hooks,
        )
    except PapermillExecutionError as error:
        print(error, file=sys.stderr)
        raise failed(error.cell_index, first_line(error)) from error
    except CellTimeoutError as error:
        said = " ".join(str(error).splitlines()[:2])  # the cell itself follows
        raise failed(reached[-1], f"{said} The {TIMEOUT} of the profile is {timeout}") from error
    except RuntimeError as error:  # how nbclient says that the kernel died or did not start
        raise failed(reached[-1], f"the kernel stopped: {one_line(error)}") from error
    for index in unrun(done):
        raise failed(
            index, "it did not run" + "".join(f": {said} in {name(i)}" for i, said in errors(done))
        )
    for index, said in errors(done):  # SystemExit: papermill raises for all others
        raise failed(index, f"{said} ended it early")
    print(f"{path.name}: {time.perf_counter() - started:.1f} s", flush=True)


def unrun(executed: Any) -> Iterator[int]:
    """Indices of the cells of an executed copy that hold code and did not run."""
    for index, cell in enumerate(executed.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            yield index


def first_line(error: Any) -> str:
    """What a cell's error says, as far as its first line break."""
    return f"{error.ename}: {error.evalue}".splitlines()[0].rstrip(": ")


def errors(executed: Any) -> Iterator[tuple[int, str]]:
    """Indices of the cells of an executed copy that ended with an error, and the errors' first
    lines.
    """
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
    """What all chapters are made of: this package, Python, what is installed in it, and where
    images lie.
    """
    installed = sorted((found.name, found.version) for found in distributions())
    return [contents(PACKAGE), sys.version, installed, os.environ.get("THINKBACK_DATA")]


def refresh(
    path: Path,
    output: Path,
    values: Mapping[str, Any],
    around: list[Any],
    timeout: int | None = None,
    force: bool = False,
) -> None:
    """:func:`run`, unless the copy was made of this very code, parameters, results and
    surroundings.
    """
    results = contents(path.parent / values.get("results_dir", "../results"))
    code = [
        (cell.source, cell.metadata.get("tags"))
        for cell in read(path).cells
        if cell.cell_type == "code"
    ]
    names = re.findall(
        r"^(?:from|import) (\w+)", "\n".join(source for source, _ in code), re.MULTILINE
    )
    others = sorted({*names} - {PACKAGE.name})  # which is part of the surroundings
    beside = [
        contents(path.parent.parent / name) for name in others
    ]  # benchmarks/, if it is imported
    made_of = [code, sorted(values.items()), results, beside, around]
    renew(path.name, output, made_of, lambda: run(path, output, values, timeout), force)


def renew(
    name: str, product: Path, made_of: list[Any], make: Callable[[], None], force: bool = False
) -> None:
    """Make the product, unless the one that is there was made of the very same; a hash beside it
    says of what.
    """
    recipe, now = product.with_suffix(".sha256"), hashlib.sha256(repr(made_of).encode()).hexdigest()
    if not force and product.exists() and recipe.is_file() and recipe.read_bytes() == now.encode():
        print(f"{name}: unchanged", flush=True)
        return
    recipe.unlink(missing_ok=True)  # what fails leaves a partial copy
    make()
    recipe.write_text(now, encoding="utf-8")


def plan(
    root: Path, profile: str, only: Sequence[str], texts: Mapping[str, str]
) -> tuple[dict[Path, dict[str, Any]], int | None]:
    """Parameters of the chosen chapters in reading order, and the seconds a cell may take, once all
    were checked.
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


@contextmanager
def alone(build: Path) -> Iterator[None]:
    """Have a folder of built files to oneself; where another process builds in it, wait for its
    end, and say so.
    """
    build.mkdir(parents=True, exist_ok=True)
    lock = FileLock(build / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"thinkback: another process builds in {build}; waiting for its end",
            file=sys.stderr,
            flush=True,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def scrub(notebook: Any) -> Any:
    """Remove what papermill wrote about this machine and this minute; the injected parameters stay
    to be read.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata = {
            key: cell.metadata[key]
            for key in cell.metadata
            if key not in ("papermill", "execution")
        }
        if tagged(cell, "injected-parameters"):
            cell.id, said = "injected-parameters", "This page was rendered with"
            lines = [line for line in cell.source.splitlines() if line != "# Parameters"]
            cell.source = "\n".join([f"# {said}:", *lines])
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["mystnb"] = {
                "code_prompt_show": f"{said} {', '.join(lines)}",
                "code_prompt_hide": said,
            }
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = re.sub(r"\r[^\n]*", "", output.text)  # progress bars
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.get("text", "stays").strip()
            ]
    return notebook


def rendered(notebook: Any, executed: Any) -> Any:
    """A notebook as it reads now, with the outputs and parameters of its executed copy; None where
    code differs.
    """
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    given = [cell for cell in ran if tagged(cell, "injected-parameters")]
    own = [cell for cell in ran if not tagged(cell, "injected-parameters")]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    partial = [*unrun(executed), *errors(executed)]
    if partial or [cell.source for cell in own] != [cell.source for cell in code]:
        return None
    for cell, done in zip(code, own, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    after = next(i for i, cell in enumerate(notebook.cells) if tagged(cell, "parameters")) + 1
    notebook.cells[after:after] = given
    notebook.metadata = executed.metadata  # what the kernel says of its language
    return notebook


def stage(root: Path, build: Path) -> None:
    """Copy the sources of the book into ``src/``, with executed, scrubbed notebooks in place of the
    stripped ones.
    """
    src = build / "src"
    clear(src)
    read_yaml(root / "_config.yml")
    for source in (path for path in (root / "book").rglob("*") if path.suffix in READ_AS_TEXT):
        try:
            source.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BookError(f"thinkback: {source} is not in UTF-8: {error}; save it so") from error
    shutil.copytree(root / "book", src / "book", ignore=shutil.ignore_patterns(".*"))
    for part in (root / "results").glob("*.md"):  # what pages of prose include
        (src / "results").mkdir(exist_ok=True)
        shutil.copyfile(part, src / "results" / part.name)
    if (root / "results" / "gallery").is_dir():
        shutil.copytree(root / "results" / "gallery", src / "book" / "_static" / "gallery")
    if (root / "book" / "demo.md").is_file():
        if not (root / "results" / demo.RUN).is_dir():
            missing = root / "results" / demo.RUN
            raise BookError(
                f"thinkback: there is no {missing}, of which the demo is made; restore it, as git"
                " does"
            )
        made_of = [contents(root / "results"), *surroundings()]
        renew("demo", build / "demo", made_of, lambda: demo.assets(build / "demo", root))
        shutil.copytree(build / "demo", src, dirs_exist_ok=True)
    for page in (Path("_config.yml"), Path("_toc.yml"), *pages(root)):
        (src / page).parent.mkdir(parents=True, exist_ok=True)
        if page.suffix != ".ipynb":
            shutil.copyfile(root / page, src / page)
            continue
        declared(root / page)
        copy = build / "executed" / page.name
        whole = copy.is_file() and copy.with_suffix(".sha256").is_file()
        done = rendered(read(root / page), read(copy)) if whole else None
        if done is None:
            raise BookError(
                f"thinkback: {page} changed or failed since its execution: repeat it, --only"
                f" {slug(page)}"
            )
        nbformat.write(scrub(done), src / page)  # type: ignore[no-untyped-call]


def clear(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def front_page(html: Path, first: str) -> None:
    """Make the site's root a real page: the book's first one, its relative addresses rewritten."""

    def moved(match: re.Match[str]) -> str:
        if not match[2] or re.match(r"[#/]|[a-z]+:", match[2]):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(first), match[2]))
        return f'{match[1]}"{target}{"/" if match[2].endswith("/") else ""}"'

    page = re.sub(
        r'(\b(?:href|src|action|data-content_root)=)"([^"]*)"',
        moved,
        (html / first).read_text("utf-8"),
    )
    (html / "index.html").write_text(page, encoding="utf-8")


def size(html: Path) -> None:
    """Say how large each drawing is: its place is kept before it has come, and style sheets can ask
    for its width.
    """

    def sized(image: re.Match[str], folder: Path) -> str:
        head = (folder / image[1]).read_text(encoding="utf-8")[:2000]
        points = re.findall(r' (?:width|height)="([\d.]+)pt"', head)
        if len(points) != 2:  # none of Matplotlib's
            return image[0]
        width, height = (round(float(length) * 4 / 3) for length in points)
        return f'{image[0]} width="{width}" height="{height}" style="--width: {width}px"'

    for page in html.rglob("*.html"):
        text, drawings = (
            page.read_text(encoding="utf-8"),
            r'<img\b(?=[^>]*? src="([^":]*_images/[^"]*\.svg)")',
        )
        page.write_text(
            re.sub(drawings, partial(sized, folder=page.parent), text), encoding="utf-8"
        )


def mend(html: Path) -> None:
    """Make entries of a bibliography items of their list: the role that docutils gives them is
    deprecated.
    """
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if 'role="doc-biblioentry"' in text:
            page.write_text(
                text.replace('role="doc-biblioentry"', 'role="listitem"'), encoding="utf-8"
            )


def check(root: Path, html: Path) -> None:
    """Look at the built pages, since the builder also succeeds on pages that nobody should read."""
    expected = {page.with_suffix(".html").as_posix(): root / page for page in pages(root)}
    found = {
        page.relative_to(html).as_posix()
        for page in html.rglob("*.html")
        if "_static" not in page.parts
    }
    if found - {"index.html", "genindex.html", "search.html"} != set(expected):
        raise BookError(
            f"thinkback: the built pages are not those of _toc.yml: {sorted(found ^ set(expected))}"
        )
    for name, source in expected.items():
        page = re.sub(
            r"<script\b.*?</script>", "", (html / name).read_text(encoding="utf-8"), flags=re.DOTALL
        )
        text = (
            read(source).cells[0].source
            if source.suffix == ".ipynb"
            else source.read_text(encoding="utf-8")
        )
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        heading = re.sub(r"<[^>]+>", " ", "".join(re.findall(r"<h1>.*?</h1>", page, re.DOTALL)))
        words = re.findall(r"\w+", title[1]) if title else ["no title"]
        faults: dict[str, Any] = {
            "does not carry the title of its source": set(words) - set(re.findall(r"\w+", heading)),
            "shows a traceback": re.search(r'class="[^"]*\btraceback\b', page),
            "has an empty output": re.search(r'<div class="cell_output[^>]*>\s*</div>', page),
            "names a folder of this machine": re.search(
                rf"(?<![\w.-]){re.escape(str(root.resolve()))}/", page
            ),
        }
        for image in re.findall(r"<img\b[^>]*>", page):
            address = re.search(r'\bsrc="(data:|[^"]+)', image)
            there = address and (
                address[1] == "data:" or (html / name).parent.joinpath(address[1]).is_file()
            )
            faults[f"shows an image without a file: {image}"] = not there
        for fault in (fault for fault, holds in faults.items() if holds):
            raise BookError(f"thinkback: the page {name} {fault}")


def make(root: Path, build: Path) -> Path:
    """Stage, build and check the book; returns the first page of the built site."""
    stage(root, build)
    html = build / "html"
    for old in (
        html,
        build / ".doctrees",
    ):  # neither pages nor forgotten warnings of an earlier build
        clear(old)
    book = [
        "build",
        str(build / "src"),
        "--path-output",
        str(build.parent),
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    if subprocess.run(
        [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *book]
    ).returncode:
        raise BookError(
            "thinkback: the book did not build without warnings; they are printed above"
        )
    mend(html)
    size(html)
    slim(html)
    front_page(html, pages(root)[0].with_suffix(".html").as_posix())
    check(root, html)
    return html / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bookmaking", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "action", nargs="?", default="all", choices=("all", "execute", "build", "run")
    )
    parser.add_argument("notebook", nargs="?", type=Path, help="for run: the notebook to execute")
    parser.add_argument("-o", "--output", type=Path, help="for run: where the executed copy goes")
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    parser.add_argument("--profile", help="a file of profiles/ (default: smoke; for run: none)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SLUG", help="execute these chapters alone"
    )
    parser.add_argument(
        "--force", action="store_true", help="execute also what is unchanged since the last time"
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where _build/ goes (default: here)",
    )
    options = parser.parse_args(arguments)
    if (options.action == "run") != (options.notebook is not None and options.output is not None):
        parser.error("'run' needs a notebook and -o; nothing else takes them")
    root, build, texts, started = (
        Path(),
        options.build / "_build",
        dict(options.parameters),
        time.perf_counter(),
    )
    try:
        if options.action == "run":
            profile = (
                load_profile(Path("profiles", f"{options.profile}.yml"))
                if options.profile
                else ({}, {})
            )
            values = choose(
                options.notebook, profile[0], profile[1].get(slug(options.notebook), {}), texts
            )
            use_own_kernel()
            run(options.notebook, options.output, values, profile[0].get(TIMEOUT))
            return 0
        if options.action != "build":
            planned = plan(root, options.profile or "smoke", options.only, texts)
        with alone(build):
            if options.action != "build":
                execute(build, *planned, options.force)
            if options.action != "execute":
                print(
                    f"{make(root, build).resolve()}: ready in {time.perf_counter() - started:.0f} s"
                )
    except (OSError, ValueError) as error:
        said = one_line(error)
        if isinstance(error, ValueError) and not said.startswith("thinkback: "):
            raise  # no message of this package: a fault to be seen whole
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EROFS,
            errno.EACCES,
            errno.EDQUOT,
        ):
            said += f"; {build} must be writable and have room"
        print(said if said.startswith("thinkback: ") else f"thinkback: {said}", file=sys.stderr)
        return 1
    return 0
