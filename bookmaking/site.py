"""From executed chapters to a checked site: stage the sources, call Jupyter Book, check pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup

from experiments.run import Run

from . import demo, front
from .chapters import contents, errors, modules, renew, surroundings, unrun
from .profiles import declared
from .sources import BookError, pages, read, read_yaml, slug, tagged

READ_AS_TEXT = (".bib", ".css", ".html", ".js", ".md")  # of the book's sources
RENDERED = "This page was rendered with"


def scrub(notebook: Any) -> Any:
    """Remove what papermill wrote about this machine and this minute; the parameters stay."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if tagged(cell, "injected-parameters"):
            lines = [line for line in cell.source.splitlines() if line != "# Parameters"]
            cell.id = "injected-parameters"
            cell.source = "\n".join([f"# {RENDERED}:", *lines])
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["mystnb"] = {
                "code_prompt_show": f"{RENDERED} {', '.join(lines)}",
                "code_prompt_hide": RENDERED,
            }
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = re.sub(r"\r[^\n]*", "", output.text)  # progress bars
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("text", "stays").strip()]
    return notebook


def rendered(notebook: Any, executed: Any) -> Any:
    """A notebook as it reads now with the outputs and parameters of its executed copy.

    Returns: None if their code differs, or if the execution came to no good end.
    """
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    given = [cell for cell in ran if tagged(cell, "injected-parameters")]
    own = [cell for cell in ran if not tagged(cell, "injected-parameters")]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    partial = [*unrun(executed), *errors(executed)]
    if partial or [cell.source for cell in own] != [cell.source for cell in code]:
        return None
    for cell, done in zip(code, own, strict=True):
        cell.outputs = done.outputs
        cell.execution_count = done.execution_count
    after = next(i for i, cell in enumerate(notebook.cells) if tagged(cell, "parameters")) + 1
    notebook.cells[after:after] = given
    notebook.metadata = executed.metadata  # what the kernel says of its language
    return notebook


def stage(root: Path, build: Path) -> None:
    """Copy the sources of the book into ``src/``, with executed notebooks for the stripped ones."""
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
    if (src / "results" / "opening.md").is_file():
        (src / "results" / "front.md").write_text(front.as_markdown(root), encoding="utf-8")
    if (root / "results" / "gallery").is_dir():
        shutil.copytree(root / "results" / "gallery", src / "book" / "_static" / "gallery")
    if (root / "book" / "demo.md").is_file():
        add_demo(root, build)
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


def add_demo(root: Path, build: Path) -> None:
    """Put what the demo's page needs into ``src/``, made anew if its network or code changed."""
    network = Run.at(root / "results").folder
    if not network.is_dir():
        raise BookError(
            f"thinkback: there is no {network}, of which the demo is made; restore it, as git does"
        )
    code = Path(demo.__file__).read_text(encoding="utf-8")
    own = [code, modules(Path(demo.__file__).parents[1], code, demo.__package__)]
    made_of = [contents(root / "results"), own, *surroundings()]
    renew("demo", build / "demo", made_of, lambda: demo.assets(build / "demo", root))
    shutil.copytree(build / "demo", build / "src", dirs_exist_ok=True)


def clear(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def make(root: Path, build: Path) -> Path:
    """Stage, build and check the book; returns the first page of the built site."""
    stage(root, build)
    html = build / "html"
    for old in (html, build / ".doctrees"):  # no page or warning of a former build
        clear(old)
    book = ["build", str(build / "src"), "--path-output", str(build.parent)]
    strict = ["-W", "-n", "--keep-going", "-q"]
    program = "from jupyter_book.cli.main import main; main()"
    if subprocess.run([sys.executable, "-c", program, *book, *strict]).returncode:
        raise BookError(
            "thinkback: the book did not build without warnings; they are printed above"
        )
    check(root, html)
    return html / "index.html"


def check(root: Path, html: Path) -> None:
    """Look at the built pages: the builder also succeeds on pages that nobody should read."""
    expected = {page.with_suffix(".html").as_posix(): root / page for page in pages(root)}
    built = (page.relative_to(html) for page in html.rglob("*.html"))
    found = {page.as_posix() for page in built if "_static" not in page.parts}
    if found - {"index.html", "genindex.html", "search.html"} != set(expected):
        raise BookError(
            f"thinkback: the built pages are not those of _toc.yml: {sorted(found ^ set(expected))}"
        )
    for name, source in expected.items():
        page = BeautifulSoup((html / name).read_text(encoding="utf-8"), "html.parser")
        for fault in faults(page, (html / name).parent, source, root):
            raise BookError(f"thinkback: the page {name} {fault}")


def faults(page: BeautifulSoup, folder: Path, source: Path, root: Path) -> Iterator[str]:
    """What is wrong with a built page in that folder, made of that source."""
    for script in page("script"):
        script.decompose()
    notebook = source.suffix == ".ipynb"
    text = read(source).cells[0].source if notebook else source.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    words = re.findall(r"\w+", title[1]) if title else ["no title"]
    headings = " ".join(heading.get_text(" ") for heading in page("h1"))
    if set(words) - set(re.findall(r"\w+", headings)):
        yield "does not carry the title of its source"
    if page.select_one(".traceback"):
        yield "shows a traceback"
    if any(not output.decode_contents().strip() for output in page.select(".cell_output")):
        yield "has an empty output"
    if re.search(rf"(?<![\w.-]){re.escape(str(root.resolve()))}/", str(page)):
        yield "names a folder of this machine"
    for image in page("img"):
        address = str(image.get("src", ""))
        if not address.startswith("data:") and not folder.joinpath(address).is_file():
            yield f"shows an image without a file: {image}"
