"""Strict execution of the chapters with papermill, staging of the executed copies, and the build of the book.

    python -m thinkback_utils.runner [--profile smoke] [--only SLUG ...] [-p NAME VALUE]     execute, then build
    python -m thinkback_utils.runner execute | build                                         one half of it
    python -m thinkback_utils.runner --force                                                 also what is unchanged
    python -m thinkback_utils.runner run notebooks/08_five_datasets.ipynb -o out.ipynb -p prevalence 0.5

papermill alone runs the defaults when a name is misspelt or the tag is missing: here both are errors. An
unchanged chapter is not executed again: :func:`refresh` knows what its executed copy was made of.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from .files import sha256
from .pages import demo
from .pages.slim import slim

COMMON = ("profile", "seed", "device", "data_dir", "results_dir")  # a chapter may leave these undeclared
KERNEL = {"kernel_name": "python3", "language": "python"}
PACKAGE = Path(__file__).parent
SCALARS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


class BookError(ValueError):
    """What is wrong with a notebook, a profile or the built book, in one line."""


def slug(name: str | Path) -> str:
    """Name of a chapter without its number: ``five_datasets`` for ``notebooks/08_five_datasets.ipynb``."""
    return re.sub(r"^\d+_", "", Path(name).stem)


def tagged(cell: Any, tag: str) -> bool:
    """Whether a cell carries that tag."""
    return tag in cell.metadata.get("tags", [])


def read(path: Path) -> Any:
    """The notebook of that file."""
    if not path.is_file():
        raise BookError(f"thinkback: there is no {path}")
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def fits(value: object, hint: ast.expr) -> bool:
    """Whether a value has the annotated type; only types that papermill can show and inject are known."""
    match hint:
        case ast.Name(id=name) if name in SCALARS:
            return isinstance(value, SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(fits(element, item) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(fits(k, key) and fits(v, item) for k, v in value.items())
    raise BookError(f"thinkback: {ast.unparse(hint)!r} is none of bool, int, float, str, list[...], dict[..., ...]")


def declared(path: Path) -> dict[str, ast.expr]:
    """Names and annotations of a notebook's parameters, all ``name: type = literal`` in one cell tagged so."""
    notebook = read(path)
    if (kernel := notebook.metadata.get("kernelspec", {}).get("name")) != KERNEL["kernel_name"]:
        raise BookError(f"thinkback: {path} asks for the kernel {kernel!r}; every chapter runs on 'python3'")
    cells = [cell for cell in notebook.cells if tagged(cell, "parameters")]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise BookError(f"thinkback: {path} has {len(cells)} cells tagged 'parameters'; it needs exactly one code cell")
    hints: dict[str, ast.expr] = {}
    for line in ast.parse(cells[0].source).body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
            raise BookError(f"thinkback: {path}: parameters are 'name: type = literal', not {ast.unparse(line)!r}")
        try:
            default = ast.literal_eval(line.value)
        except ValueError:
            raise BookError(f"thinkback: {path}: the default in {ast.unparse(line)!r} is no literal") from None
        if not fits(default, line.annotation):
            raise BookError(f"thinkback: {path}: the default in {ast.unparse(line)!r} is of another type")
        hints[line.target.id] = line.annotation
    return hints


def parse(text: str, hint: ast.expr) -> Any:
    """A command-line value in the annotated type, as YAML: ``5``, ``0.1``, ``true``, ``[svhn, lsun_crop]``."""
    reader: Any = {"str": str, "float": float}.get(ast.unparse(hint), yaml.safe_load)  # YAML reads 1e-16 as text
    try:
        return reader(text)
    except (ValueError, yaml.YAMLError):
        return text


def choose(path: Path, common: Mapping[str, Any], section: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
    """Parameters to inject: the common ones that are declared, then the notebook's own, then the command line's."""
    hints = declared(path)
    for name in {*section, *texts} - set(hints):
        raise BookError(f"thinkback: {path} has no parameter {name!r}; it declares {', '.join(hints) or 'none'}")
    values = {name: value for name, value in common.items() if name in hints} | dict(section)
    values |= {name: parse(text, hints[name]) for name, text in texts.items()}
    for name, value in values.items():
        if not fits(value, hints[name]):
            raise BookError(f"thinkback: {path}: {name}={value!r} is no {ast.unparse(hints[name])}")
    return values


def load_profile(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The common parameters of a profile file, and those of single chapters by slug."""
    if not path.is_file():
        raise BookError(f"thinkback: there is no {path}; there are {sorted(p.stem for p in path.parent.glob('*.yml'))}")
    common = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    sections = common.pop("notebooks", None) or {}
    for name in set(common) - set(COMMON):
        raise BookError(f"thinkback: {path}: {name!r} is not one of {', '.join(COMMON)}: put it under notebooks: slug:")
    return common, {name: section or {} for name, section in sections.items()}


def pages(root: Path) -> list[Path]:
    """Source files of the book, relative to its root, in the order of ``_toc.yml``."""
    if not (root / "_toc.yml").is_file():
        raise BookError(f"thinkback: no _toc.yml in {root.resolve()}; run this from the root of the repository")
    names = re.findall(r"^[\s-]*(?:root|file):\s*(\S+)", (root / "_toc.yml").read_text(encoding="utf-8"), re.MULTILINE)
    files = {name: [Path(name + end) for end in (".ipynb", ".md") if (root / (name + end)).is_file()] for name in names}
    for name in (name for name, found in files.items() if len(found) != 1):
        raise BookError(f"thinkback: _toc.yml lists {name}, which exists {len(files[name])} times (.ipynb, .md)")
    return [found[0] for found in files.values()]


def use_own_kernel() -> None:
    """Make ``python3`` the kernel of this interpreter, also where another one is installed for the user."""
    folders = (os.path.join(sys.prefix, "share", "jupyter"), os.environ.get("JUPYTER_PATH"))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, folders))
    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if not (re.fullmatch(r"python[\d.]*", command) or Path(command).resolve() == Path(sys.executable).resolve()):
        raise BookError(f"thinkback: the kernel 'python3' starts {command}; install ipykernel for {sys.executable}")


def run(path: Path, output: Path, values: Mapping[str, Any]) -> None:
    """Execute one notebook with these parameters, in its own folder; the partial copy stays when a cell raises."""
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(path, output, dict(values), cwd=path.parent, **KERNEL)
    except PapermillExecutionError as error:
        print(error, file=sys.stderr)
        cells = read(path).cells
        after = any(tagged(cell, "parameters") for cell in cells[: error.cell_index]) and bool(values)
        number = error.cell_index - after  # papermill put the injected cell in between
        message = f"{error.ename}: {str(error.evalue).partition(os.linesep)[0]}; partial copy: {output}"
        raise BookError(f"thinkback: {path}, cell {number + 1} (id {cells[number].get('id')}): {message}") from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise BookError(f"thinkback: {path}: {error}; partial copy: {output}") from None
    print(f"{path.name}: {time.perf_counter() - started:.1f} s", flush=True)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def surroundings() -> list[Any]:
    """What all chapters are made of: this package, Python, what is installed in it, and where images lie."""
    installed = sorted((found.name, found.version) for found in distributions())
    return [contents(PACKAGE), sys.version, installed, os.environ.get("THINKBACK_DATA")]


def refresh(path: Path, output: Path, values: Mapping[str, Any], around: list[Any], force: bool = False) -> None:
    """:func:`run`, unless the copy was made of this very code, parameters, results and surroundings."""
    results = contents(path.parent / values.get("results_dir", "../results"))
    code = [(cell.source, cell.metadata.get("tags")) for cell in read(path).cells if cell.cell_type == "code"]
    names = re.findall(r"^(?:from|import) (\w+)", "\n".join(source for source, _ in code), re.MULTILINE)
    others = sorted({*names} - {PACKAGE.name})  # which is part of the surroundings
    beside = [contents(path.parent.parent / name) for name in others]  # benchmarks/, if it is imported
    made_of = [code, sorted(values.items()), results, beside, around]
    renew(path.name, output, made_of, lambda: run(path, output, values), force)


def renew(name: str, product: Path, made_of: list[Any], make: Callable[[], None], force: bool = False) -> None:
    """Make the product, unless the one that is there was made of the very same; a hash beside it says of what."""
    recipe, now = product.with_suffix(".sha256"), hashlib.sha256(repr(made_of).encode()).hexdigest()
    if not force and product.exists() and recipe.is_file() and recipe.read_text(encoding="utf-8") == now:
        print(f"{name}: unchanged", flush=True)
        return
    recipe.unlink(missing_ok=True)  # what fails leaves a partial copy
    make()
    recipe.write_text(now, encoding="utf-8")


def execute(
    root: Path, build: Path, profile: str, only: Sequence[str], texts: Mapping[str, str], force: bool = False
) -> None:
    """Execute changed chapters in reading order into ``executed/``, after all parameters of all were checked."""
    chapters = {slug(page): root / page for page in pages(root) if page.suffix == ".ipynb"}
    common, sections = load_profile(root / "profiles" / f"{profile}.yml")
    chosen = [slug(name) for name in only] or list(chapters)
    for name in {*sections, *chosen} - set(chapters):
        raise BookError(f"thinkback: there is no chapter {name!r}; the chapters are {', '.join(chapters)}")
    hints = {name: declared(path) for name, path in chapters.items()}
    for text in set(texts) - {hint for name in chosen for hint in hints[name]}:
        raise BookError(f"thinkback: none of {', '.join(chosen)} has a parameter {text!r}")
    values = {}
    for name, path in chapters.items():
        mine = {text: value for text, value in texts.items() if text in hints[name]}
        values[name] = choose(path, common, sections.get(name, {}), mine)
    use_own_kernel()
    around = surroundings()
    for name in chosen:
        refresh(chapters[name], build / "executed" / chapters[name].name, values[name], around, force)


def scrub(notebook: Any) -> Any:
    """Remove what papermill wrote about this machine and this minute; the injected parameters stay to be read."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in cell.metadata if key not in ("papermill", "execution")}
        if tagged(cell, "injected-parameters"):
            cell.id, said = "injected-parameters", "This page was rendered with"
            lines = [line for line in cell.source.splitlines() if line != "# Parameters"]
            cell.source = "\n".join([f"# {said}:", *lines])
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": f"{said} {', '.join(lines)}", "code_prompt_hide": said}
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = re.sub(r"\r[^\n]*", "", output.text)  # progress bars
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("text", "stays").strip()]
    return notebook


def rendered(notebook: Any, executed: Any) -> Any:
    """A notebook as it reads now, with the outputs and parameters of its executed copy; None where code differs."""
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    given = [cell for cell in ran if tagged(cell, "injected-parameters")]
    own = [cell for cell in ran if not tagged(cell, "injected-parameters")]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    partial = any(cell.source and cell.execution_count is None for cell in own)
    if partial or [cell.source for cell in own] != [cell.source for cell in code]:
        return None
    for cell, done in zip(code, own, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    after = next(i for i, cell in enumerate(notebook.cells) if tagged(cell, "parameters")) + 1
    notebook.cells[after:after] = given
    notebook.metadata = executed.metadata  # what the kernel says of its language
    return notebook


def stage(root: Path, build: Path) -> None:
    """Copy the sources of the book into ``src/``, with executed, scrubbed notebooks in place of the stripped ones."""
    src = build / "src"
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(root / "book", src / "book", ignore=shutil.ignore_patterns(".*"))
    for part in (root / "results").glob("*.md"):  # what pages of prose include
        (src / "results").mkdir(exist_ok=True)
        shutil.copyfile(part, src / "results" / part.name)
    if (root / "results" / "gallery").is_dir():
        shutil.copytree(root / "results" / "gallery", src / "book" / "_static" / "gallery")
    if (root / "book" / "demo.md").is_file():
        made_of = [contents(root / "results"), *surroundings()]
        renew("demo", build / "demo", made_of, lambda: demo.assets(build / "demo", root))
        shutil.copytree(build / "demo", src, dirs_exist_ok=True)
    for page in (Path("_config.yml"), Path("_toc.yml"), *pages(root)):
        (src / page).parent.mkdir(parents=True, exist_ok=True)
        if page.suffix != ".ipynb":
            shutil.copyfile(root / page, src / page)
            continue
        done = rendered(read(root / page), read(build / "executed" / page.name))
        if done is None:
            raise BookError(f"thinkback: {page} changed or failed since its execution: repeat it, --only {slug(page)}")
        nbformat.write(scrub(done), src / page)  # type: ignore[no-untyped-call]


def front_page(html: Path, first: str) -> None:
    """Make the site's root a real page: the book's first one, its relative addresses rewritten."""

    def moved(match: re.Match[str]) -> str:
        if not match[2] or re.match(r"[#/]|[a-z]+:", match[2]):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(first), match[2]))
        return f'{match[1]}"{target}{"/" if match[2].endswith("/") else ""}"'

    page = re.sub(r'(\b(?:href|src|action|data-content_root)=)"([^"]*)"', moved, (html / first).read_text("utf-8"))
    (html / "index.html").write_text(page, encoding="utf-8")


def size(html: Path) -> None:
    """Say how large each drawing is: its place is kept before it has come, and style sheets can ask for its width."""

    def sized(image: re.Match[str], folder: Path) -> str:
        head = (folder / image[1]).read_text(encoding="utf-8")[:2000]
        points = re.findall(r' (?:width|height)="([\d.]+)pt"', head)
        if len(points) != 2:  # none of Matplotlib's
            return image[0]
        width, height = (round(float(length) * 4 / 3) for length in points)
        return f'{image[0]} width="{width}" height="{height}" style="--width: {width}px"'

    for page in html.rglob("*.html"):
        text, drawings = page.read_text(encoding="utf-8"), r'<img\b(?=[^>]*? src="([^":]*_images/[^"]*\.svg)")'
        page.write_text(re.sub(drawings, partial(sized, folder=page.parent), text), encoding="utf-8")


def mend(html: Path) -> None:
    """Make entries of a bibliography items of their list: the role that docutils gives them is deprecated."""
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if 'role="doc-biblioentry"' in text:
            page.write_text(text.replace('role="doc-biblioentry"', 'role="listitem"'), encoding="utf-8")


def check(root: Path, html: Path) -> None:
    """Look at the built pages, since the builder also succeeds on pages that nobody should read."""
    expected = {page.with_suffix(".html").as_posix(): root / page for page in pages(root)}
    found = {page.relative_to(html).as_posix() for page in html.rglob("*.html") if "_static" not in page.parts}
    if found - {"index.html", "genindex.html", "search.html"} != set(expected):
        raise BookError(f"thinkback: the built pages are not those of _toc.yml: {sorted(found ^ set(expected))}")
    for name, source in expected.items():
        page = re.sub(r"<script\b.*?</script>", "", (html / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        text = read(source).cells[0].source if source.suffix == ".ipynb" else source.read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        heading = re.sub(r"<[^>]+>", " ", "".join(re.findall(r"<h1>.*?</h1>", page, re.DOTALL)))
        words = re.findall(r"\w+", title[1]) if title else ["no title"]
        faults: dict[str, Any] = {
            "does not carry the title of its source": set(words) - set(re.findall(r"\w+", heading)),
            "shows a traceback": re.search(r'class="[^"]*\btraceback\b', page),
            "has an empty output": re.search(r'<div class="cell_output[^>]*>\s*</div>', page),
            "names a folder of this machine": re.search(rf"(?<![\w.-]){re.escape(str(root.resolve()))}/", page),
        }
        for image in re.findall(r"<img\b[^>]*>", page):
            address = re.search(r'\bsrc="(data:|[^"]+)', image)
            there = address and (address[1] == "data:" or (html / name).parent.joinpath(address[1]).is_file())
            faults[f"shows an image without a file: {image}"] = not there
        for fault in (fault for fault, holds in faults.items() if holds):
            raise BookError(f"thinkback: the page {name} {fault}")


def make(root: Path, build: Path) -> Path:
    """Stage, build and check the book; returns the first page of the built site."""
    stage(root, build)
    html = build / "html"
    for old in (html, build / ".doctrees"):  # neither pages nor forgotten warnings of an earlier build
        shutil.rmtree(old, ignore_errors=True)
    book = ["build", str(build / "src"), "--path-output", str(build.parent), "-W", "-n", "--keep-going", "-q"]
    if subprocess.run([sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *book]).returncode:
        raise BookError("thinkback: the book did not build without warnings; they are printed above")
    mend(html)
    size(html)
    slim(html)
    front_page(html, pages(root)[0].with_suffix(".html").as_posix())
    check(root, html)
    return html / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.runner", description=__doc__.partition("\n")[0])
    parser.add_argument("action", nargs="?", default="all", choices=("all", "execute", "build", "run"))
    parser.add_argument("notebook", nargs="?", type=Path, help="for run: the notebook to execute")
    parser.add_argument("-o", "--output", type=Path, help="for run: where the executed copy goes")
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--profile", help="a file of profiles/ (default: smoke; for run: none)")
    parser.add_argument("--only", nargs="+", default=[], metavar="SLUG", help="execute these chapters alone")
    parser.add_argument("--force", action="store_true", help="execute also what is unchanged since the last time")
    parser.add_argument("--build", type=Path, default=Path(), metavar="DIR", help="where _build/ goes (default: here)")
    options = parser.parse_args(arguments)
    if (options.action == "run") != (options.notebook is not None and options.output is not None):
        parser.error("'run' needs a notebook and -o; nothing else takes them")
    root, build, texts, started = Path(), options.build / "_build", dict(options.parameters), time.perf_counter()
    try:
        if options.action == "run":
            profile = load_profile(Path("profiles", f"{options.profile}.yml")) if options.profile else ({}, {})
            values = choose(options.notebook, profile[0], profile[1].get(slug(options.notebook), {}), texts)
            use_own_kernel()
            run(options.notebook, options.output, values)
        if options.action in ("all", "execute"):
            execute(root, build, options.profile or "smoke", options.only, texts, options.force)
        if options.action in ("all", "build"):
            print(f"{make(root, build).resolve()}: ready in {time.perf_counter() - started:.0f} s")
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
