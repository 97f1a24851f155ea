"""The book is executed strictly where papermill is lenient; tiny notebooks show each refusal."""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from refusals import refused

from bookmaking import __main__ as command
from bookmaking import chapters, demo, gallery, hints, opening, profiles, site, sources
from experiments.run import Run
from thinkback_utils.commands import run_main

ROOT = Path(__file__).parents[1]
PARAMETERS = """\
seed: int = 0  # of everything random
device: str = "cpu"  # cpu or cuda
eps: float = 1e-16  # added to the Fisher
sets: list[str] = ["svhn"]  # image sets"""
RUN_ONE = ["run", "notebooks/01_one.ipynb", "-o", "out.ipynb"]
MERGE = "<<<<<<< HEAD\nseed: 0\n=======\nseed: 1\n>>>>>>> other\n"


def write(path: Path, *code: str, kernel: str = "python3", tag: str = "parameters") -> Path:
    """A notebook with a title, a parameters cell, and these code cells."""
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(f"# Chapter {path.stem}")]
    cells += [v4.new_code_cell(text) for text in code]
    cells[1].metadata["tags"] = [tag]
    spec = {"name": kernel, "display_name": "Python 3"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of two chapters in the working directory."""
    write(tmp_path / "notebooks" / "01_one.ipynb", PARAMETERS, "print('seed', seed, sets)")
    write(tmp_path / "notebooks" / "02_two.ipynb", "seed: int = 0  # seed", "seed + 1")
    contents = {"format": "jb-book", "root": "book/intro", "chapters": []}
    contents["chapters"] = [{"file": "notebooks/01_one"}, {"file": "notebooks/02_two"}]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
    (tmp_path / "_config.yml").touch()
    (tmp_path / "book").mkdir()
    intro = "# Tiny\n\nOn to [one](../notebooks/01_one.ipynb), $x^2$.\n"
    (tmp_path / "book" / "intro.md").write_text(intro, encoding="utf-8")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "smoke.yml").write_text("profile: smoke\nseed: 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_kernel(folder: Path) -> None:
    """A kernel 'python3' of another Python, as a user may have one."""
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = '{"argv": ["/bin/false"], "display_name": "x", "language": "python"}'
    (folder / "kernels" / "python3" / "kernel.json").write_text(spec, encoding="utf-8")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Slugs of the chapters that were executed, which here is to copy them."""
    slugs: list[str] = []

    def run(path: Path, output: Path, values: dict[str, Any], timeout: int | None) -> None:
        slugs.append(sources.slug(path))
        time.sleep(0.02)
        if "raise" in path.read_text(encoding="utf-8"):
            raise sources.BookError("thinkback: no")
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output)

    monkeypatch.setattr(chapters, "run", run)
    return slugs


def refusal(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command line refuses."""
    capsys.readouterr()
    assert command.main(arguments) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("thinkback: ")
    return last


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        ("int", [0, -3], [True, 1.0, "1"]),
        ("float", [0, 0.5], [False, "0.5"]),
        ("bool", [True], [1, "true"]),
        ("str", ["", "x"], [1, None]),
        ("list[float]", [[], [1, 2.5]], [(1.0,), ["a"], 1]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "b"}, {1: 1}]),
        ("Literal['a', 'off']", ["a", "off"], ["b", "", False, None, ["a"]]),
        ("Literal[1, -2, True]", [1, -2, True], [0, 1.0, "1", False]),
        ("Literal['all']", ["all"], ["al"]),
        ("list[Literal['a', 'b']]", [[], ["b", "a"]], [["c"], "a"]),
    ],
)
def test_types(hint: str, good: list[Any], bad: list[Any]) -> None:
    node = ast.parse(hint, mode="eval").body
    assert all(hints.fits(value, node) for value in good)
    assert not any(hints.fits(value, node) for value in bad)


@pytest.mark.parametrize("hint", ["int | None", "Literal[1.5]", "Literal[a]", "Literal[None]"])
def test_types_that_papermill_cannot_show_are_refused(hint: str) -> None:
    with refused(rf"{re.escape(ast.unparse(ast.parse(hint)))}['\"] is none of bool, int"):
        hints.fits(None, ast.parse(hint, mode="eval").body)


def test_a_choice_is_written_in_the_notebook_and_named_in_the_refusal(tmp_path: Path) -> None:
    source = "from typing import Literal\nhow: Literal['auto', 'off', 2] = 'auto'"
    path = write(tmp_path / "01_one.ipynb", source)
    for text, value in {"off": "off", "auto": "auto", "2": 2}.items():
        assert profiles.choose(path, {}, {}, {"how": text}) == {"how": value}
    with refused(r"how='on' is not one of 'auto', 'off', 2"):
        profiles.choose(path, {}, {"how": "on"}, {})


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [("5", "int", 5), ("1e-16", "float", 1e-16), ("5", "str", "5"), ("[a]", "list[str]", ["a"])],
)
def test_command_line_values(text: str, hint: str, value: Any) -> None:
    assert hints.parse(text, ast.parse(hint, mode="eval").body) == value


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("seed = 0", "not 'seed = 0'"),
        ("import os", "not 'import os'"),
        ("seed: int = 1 + len('a')", "is no literal"),
        ("seed: int = '1'", "of another type"),
        ("seed: tuple = ()", "'tuple' is none of"),
        ("seed: dict[str, int] = {[]: 1}", "is no literal"),
        ("seed: int = (", "is no Python: '(' was never closed"),
        ("seed: int = 0\0", "is no Python"),
    ],
)
def test_parameters_cell_holds_typed_literals_alone(
    tmp_path: Path, cell: str, message: str
) -> None:
    with pytest.raises(sources.BookError, match=re.escape(message)):
        profiles.declared(write(tmp_path / "a.ipynb", cell))


def test_exactly_one_tagged_cell(tmp_path: Path) -> None:
    with pytest.raises(sources.BookError, match="has 0 cells tagged 'parameters'"):
        profiles.declared(write(tmp_path / "none.ipynb", PARAMETERS, tag="params"))
    two = write(tmp_path / "two.ipynb", PARAMETERS, "1")
    notebook = nbformat.read(two, as_version=4)
    notebook.cells[-1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, two)
    with pytest.raises(sources.BookError, match="has 2 cells"):
        profiles.declared(two)


def test_only_the_python3_kernel(tmp_path: Path) -> None:
    with pytest.raises(sources.BookError, match="asks for the kernel 'ir'"):
        profiles.declared(write(tmp_path / "a.ipynb", PARAMETERS, kernel="ir"))


def test_common_parameters_reach_only_chapters_that_declare_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", PARAMETERS)
    common = {"profile": "smoke", "seed": 3}
    values = profiles.choose(path, common, {"eps": 0.1}, {"sets": "[lsun_crop]"})
    assert values == {"seed": 3, "eps": 0.1, "sets": ["lsun_crop"]}
    with pytest.raises(sources.BookError, match=r"seed='x' is not an int"):
        profiles.choose(path, {"seed": "x"}, {}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sead", "1"], "none of one, two has a parameter 'sead'"),
        (["--only", "two", "-p", "eps", "1"], "none of two has a parameter 'eps'"),
        (["-p", "seed", "one"], "seed='one' is not an int"),
        (["-p", "sets", "svhn"], "sets='svhn' is not a list[str]"),
        (["--only", "three"], "there is no chapter 'three'; the chapters are one, two"),
        (["--profile", "huge"], "there are ['smoke']"),
        ([*RUN_ONE, "-p", "sead", "1"], "it declares seed, device, eps, sets"),
        (["run", "notebooks/09.ipynb", "-o", "out.ipynb"], "there is no notebooks/09.ipynb"),
    ],
)
def test_command_line_refuses(
    book: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal(*arguments, capsys=capsys)
    assert not (book / "_build").exists()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("epochs: 2", "'epochs' is not one of profile, seed"),
        ("notebooks: {one: {epochs: 2}}", "01_one.ipynb has no parameter 'epochs'"),
        ("notebooks: {three: {seed: 2}}", "there is no chapter 'three'"),
        ("notebooks: {two: {seed: two}}", "seed='two' is not an int"),
        ("- 1", "smoke.yml holds [1]; it needs lines of the form 'name: value'"),
        ("7", "smoke.yml holds 7;"),
        ("notebooks: [two]", "smoke.yml: notebooks holds ['two'];"),
        ("notebooks: 0", "smoke.yml: notebooks holds 0;"),
        ("notebooks: {two: 3}", "smoke.yml: notebooks: two holds 3;"),
        ("seed: [1", "smoke.yml cannot be read as YAML: line 1: expected"),
        (MERGE, "smoke.yml cannot be read as YAML: line 2: "),
        ("seed: 2020-02-31", "smoke.yml cannot be read as YAML: day is out of range"),
        ("seed: \x07", "smoke.yml cannot be read as YAML: "),
        ("cell_timeout: 0", "cell_timeout=0; a cell may take whole seconds"),
        ("cell_timeout: soon", "cell_timeout='soon'"),
        ("cell_timeout: true", "cell_timeout=True"),
    ],
)
def test_profiles_are_held_to_the_chapters(
    book: Path, capsys: pytest.CaptureFixture[str], profile: str, message: str
) -> None:
    (book / "profiles" / "smoke.yml").write_text(profile, encoding="utf-8")
    # Also for chapters that would not run now.
    assert message in refusal("execute", "--only", "two", capsys=capsys)


TWO = "notebooks/02_two.ipynb"
NONE = "02_two.ipynb is no notebook: "
GOOD = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TWO, b"", f"{NONE}Expecting value: line 1"),
        (TWO, b'{"cells": [\n<<<<<<< HEAD\n', f"{NONE}Expecting value: line 2"),
        (TWO, GOOD.encode("utf-16"), f"{NONE}'utf-8' codec can't decode"),
        (TWO, b"[1]", NONE),
        (TWO, b"3", NONE),
        (TWO, GOOD.replace("[]", "3").encode(), NONE),
        (TWO, GOOD.replace("[]", '[{"cell_type": "code"}]').encode(), NONE),
        (TWO, GOOD.replace("4,", '"four",').encode(), NONE),
        (TWO, GOOD.encode(), "02_two.ipynb asks for the kernel None"),
        ("_toc.yml", b"- notebooks/01_one", "_toc.yml holds ['notebooks/01_one'];"),
        ("_toc.yml", b"root: [", "_toc.yml cannot be read as YAML: line 1"),
        ("_toc.yml", b"", "_toc.yml: 'root' key not found"),
        ("_toc.yml", b"root: {a: b}", "_toc.yml: doc validation @ '/': 'docname' must be"),
        ("profiles/smoke.yml", b"seed: 0 # \xe9", "smoke.yml cannot be read as YAML: "),
    ],
)
def test_broken_sources_are_refused_in_one_line(
    book: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (book / name).write_bytes(content)
    assert message in refusal("execute", capsys=capsys)
    assert len(capsys.readouterr().err) == 0
    assert not (book / "_build").exists()


def test_contents_are_read_by_the_reader_of_jupyter_book(book: Path) -> None:
    chapters = '[{file: "notebooks/02_two"}, {url: https://example.org, title: x}]'
    parts = f'[{{caption: "file: none", chapters: {chapters}}}]'
    (book / "_toc.yml").write_text(
        f"{{format: jb-book, root: book/intro, parts: {parts}}} # file: notebooks/01_one",
        encoding="utf-8",
    )
    assert sources.pages(book) == [Path("book/intro.md"), Path("notebooks/02_two.ipynb")]


def test_pages_that_cannot_be_made_are_refused_in_one_line(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (book / "book" / "other.md").write_bytes("# Caf\u00e9".encode("latin-1"))
    assert f"{Path('book/other.md')} is not in UTF-8" in refusal("build", capsys=capsys)
    (book / "book" / "other.md").unlink()
    assert "01_one.ipynb changed or failed since its execution" in refusal("build", capsys=capsys)
    (book / "book" / "demo.md").touch()
    assert f"there is no {Run.at('results').folder}" in refusal("build", capsys=capsys)
    (book / "_config.yml").write_text("title: [", encoding="utf-8")
    assert "_config.yml cannot be read as YAML" in refusal("build", capsys=capsys)


def test_folders_that_cannot_be_written_are_refused_in_one_line(
    book: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (book / "_build").touch()
    for action in ("all", "execute", "build"):
        assert "exists: '_build'" in refusal(action, capsys=capsys)
    (book / "_build").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "_build/executed/01_one.ipynb")

    monkeypatch.setattr(chapters.papermill, "execute_notebook", full)
    expected = "thinkback: [Errno 28] No space left on device: '_build/executed/01_one.ipynb'"
    assert refusal("execute", capsys=capsys) == f"{expected}; _build must be writable and have room"
    assert not (book / "_build" / "executed" / "01_one.sha256").exists()


def test_messages_of_the_package_stay_and_faults_are_seen_whole(
    book: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError(message)

    monkeypatch.setattr(site, "stage", fail)
    message = "thinkback: a bundle is damaged"
    assert refusal("build", capsys=capsys) == message
    message = "too many values to unpack"
    with pytest.raises(ValueError, match=message):
        command.main(["build"])


@pytest.mark.parametrize("program", [demo, gallery, opening])
@pytest.mark.parametrize("arguments", [["--results", "none"], ["--result", "a", "b"]])
def test_programs_answer_a_wrong_input_in_one_line(
    program: Any,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("urllib.request.urlopen", absent)
    try:
        status = run_main(lambda: program.main(arguments))
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr().err
    assert status == 1
    assert said.startswith("thinkback: ")
    assert len(said.splitlines()) == 1


def absent(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def test_contents_must_exist(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (book / "notebooks" / "02_two.ipynb").unlink()
    assert "_toc.yml lists notebooks/02_two" in refusal(capsys=capsys)
    (book / "_toc.yml").unlink()
    assert "run this from the root of the repository" in refusal(capsys=capsys)


def test_raising_cell_stops_everything(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = book / "notebooks" / "01_one.ipynb"
    write(one, PARAMETERS, "print('before')", "raise RuntimeError('no\\nway')", "print('after')")
    cell = nbformat.read(one, as_version=4).cells[3]
    last = refusal(capsys=capsys)
    copy = Path("_build", "executed", "01_one.ipynb")
    said = f"{Path('notebooks/01_one.ipynb')}, cell 4 (id {cell.id}): RuntimeError: no"
    assert last == f"thinkback: {said}; partial copy: {copy}"
    ended = [c for c in nbformat.read(copy, as_version=4).cells if c.cell_type == "code"]
    # Parameters, injected, printed, raised, not run.
    assert [len(cell.outputs) for cell in ended] == [0, 0, 1, 1, 0]
    assert not (book / "_build" / "executed" / "02_two.ipynb").exists()
    assert not (book / "_build" / "html").exists()
    write(book / "notebooks" / "02_two.ipynb", "seed: int = 0")
    assert "01_one.ipynb changed or failed since its execution" in refusal("build", capsys=capsys)


@pytest.mark.parametrize(
    ("code", "named", "message"),
    [
        ("import sys; sys.exit(0)", 3, "it did not run: SystemExit: 0 in cell 3 (id leaves);"),
        ("raise SystemExit", 3, "it did not run: SystemExit in cell 3 (id leaves);"),
        ("quit()", 2, "exit() or quit() stops the kernel;"),
        ("import os; os._exit(0)", 2, "the kernel stopped: Kernel died;"),
    ],
)
def test_a_cell_that_leaves_early_is_refused(
    book: Path, capsys: pytest.CaptureFixture[str], code: str, named: int, message: str
) -> None:
    path = write(book / "notebooks" / "02_two.ipynb", "seed: int = 0", code, "print('after')")
    notebook = nbformat.read(path, as_version=4)
    for cell, name in zip(notebook.cells, ("title", "parameters", "leaves", "after"), strict=True):
        cell.id = name
    nbformat.write(notebook, path)
    last = refusal("run", str(path), "-o", "out.ipynb", "-p", "seed", "1", capsys=capsys)
    place = f"cell {named + 1} (id {notebook.cells[named].id})"
    assert last.startswith(f"thinkback: {path}, {place}: {message}")
    assert len(nbformat.read("out.ipynb", as_version=4).cells) == 5


def test_the_last_cell_must_come_to_its_end(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaves = "import sys; sys.exit(); print('after')"
    write(book / TWO, "seed: int = 0", "# nothing", " \n", leaves)
    last = refusal("execute", "--only", "two", capsys=capsys)
    assert re.search(r"02_two\.ipynb, cell 5 \(id \w+\): SystemExit ended it early; partial", last)


def test_an_endless_cell_is_stopped_and_named(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = "print('before', flush=True)\nwhile True: pass"
    write(book / "notebooks" / "01_one.ipynb", PARAMETERS, endless)
    (book / "profiles" / "smoke.yml").write_text("seed: 3\ncell_timeout: 2\n", encoding="utf-8")
    last = refusal("execute", capsys=capsys)
    said = r"01_one\.ipynb, cell 3 \(id \w+\): A cell timed out .* after 2 seconds\..* cell_timeout"
    assert re.search(said, last)
    cells = nbformat.read(Path("_build", "executed", "01_one.ipynb"), as_version=4).cells
    assert cells[-1].outputs[0].text == "before\n"
    assert cells[-1].execution_count is not None
    assert "01_one.ipynb changed or failed since its execution" in refusal("build", capsys=capsys)


@pytest.mark.usefixtures("book")
def test_builds_take_turns(capsys: pytest.CaptureFixture[str], ran: list[str]) -> None:
    """Two at once: the second says that it waits, and then finds everything done."""
    both = [threading.Thread(target=command.main, args=(["execute"],)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert ran == ["one", "two"]
    printed = capsys.readouterr()
    assert printed.err == "thinkback: another process builds in _build; waiting for its end\n"
    assert printed.out.splitlines() == ["01_one.ipynb: unchanged", "02_two.ipynb: unchanged"]


def test_made_once_of_the_same(tmp_path: Path) -> None:
    product, made = tmp_path / "model.onnx", []

    def make() -> None:
        made.append(1)
        product.write_text("half", encoding="utf-8")
        if len(made) == 2:
            raise sources.BookError("thinkback: no")

    chapters.renew("model", product, ["a"], make)
    chapters.renew("model", product, ["a"], make)
    assert len(made) == 1
    with pytest.raises(sources.BookError):
        chapters.renew("model", product, ["b"], make)
    chapters.renew("model", product, ["a"], make)  # what a failure left is not the old one
    assert len(made) == 3
    product.unlink()
    chapters.renew("model", product, ["a"], make)
    assert len(made) == 4


def test_only_what_changed_is_executed(
    book: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    def again(*arguments: str) -> list[str]:
        ran.clear()
        command.main(["execute", *arguments])
        return list(ran)

    def write_text(name: str, text: str) -> None:
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        (book / name).write_text(text, encoding="utf-8")

    monkeypatch.setattr(chapters, "PACKAGE", book / "package")
    assert again() == ["one", "two"]
    assert again() == []
    assert again("--force", "--only", "two") == ["two"]
    write(book / "notebooks" / "02_two.ipynb", "seed: int = 0  # seed", "seed + 2")
    assert again() == ["two"]
    prose = nbformat.read(book / "notebooks" / "02_two.ipynb", as_version=4)
    prose.cells[0].source += ", told otherwise"
    nbformat.write(prose, book / "notebooks" / "02_two.ipynb")
    assert again() == []
    prose.cells[2].metadata["tags"] = ["skip-execution"]
    nbformat.write(prose, book / "notebooks" / "02_two.ipynb")
    assert again() == ["two"]
    assert again("-p", "eps", "0.5") == ["one"]  # which two does not have
    assert again("-p", "eps", "0.5") == []
    assert again() == ["one"]
    write(book / "notebooks" / "02_two.ipynb", "seed: int = 0  # seed", "from beside import timing")
    assert again() == ["two"]
    write_text("beside/timing.py", "1")
    assert again() == ["two"]
    write_text("beside/other.py", "1")
    assert again() == []
    for name in ("profiles/smoke.yml", "package/part.py", "results/seed0/scores.npz"):
        write_text(name, "seed: 4")
        assert again() == ["one", "two"], name
        assert again() == [], name
    (book / "results" / "seed0").rename(book / "results" / "seed1")
    monkeypatch.setenv("THINKBACK_DATA", "elsewhere")
    assert again() == ["one", "two"]
    (book / "_build" / "executed" / "01_one.ipynb").unlink()
    assert again() == ["one"]
    write(book / "notebooks" / "01_one.ipynb", PARAMETERS, "raise")
    assert again() == ["one"]
    assert again() == ["one"]  # it failed: nothing of it counts as done


def test_a_chapter_depends_on_what_it_imports_and_on_what_that_imports(tmp_path: Path) -> None:
    files = {
        "beside/__init__.py": "",
        "beside/timing.py": "import beside.units\ndef f():\n    from .deep.clock import now",
        "beside/units.py": "import thinkback_utils.scores, math",
        "beside/deep/__init__.py": "",
        "beside/deep/clock.py": "from .. import units",
        "beside/gallery.py": "from . import timing",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = chapters.modules(tmp_path, "from beside import timing")
    assert set(found) == set(files) - {"beside/gallery.py"}
    assert set(chapters.modules(tmp_path, "import beside.gallery")) == set(files)
    assert chapters.modules(tmp_path, "no python") == {}


def test_no_chapter_depends_on_the_gallery_or_on_the_making_of_the_book() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = sources.read(path).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found = chapters.modules(ROOT, code)
        assert found or not re.search(r"import (experiments|bookmaking|benchmarks)", code)
        assert not found.keys() & {f"bookmaking/{name}.py" for name in ("gallery", "demo", "site")}


def test_new_prose_stands_around_old_outputs(tmp_path: Path) -> None:
    written = sources.read(write(tmp_path / "a.ipynb", PARAMETERS, "1 + 1"))
    executed = sources.read(tmp_path / "a.ipynb")
    tags = {"tags": ["injected-parameters"]}
    injected = nbformat.v4.new_code_cell("# Parameters", execution_count=2, metadata=tags)
    executed.cells[1].execution_count, executed.cells[2].execution_count = 1, 3
    executed.cells[2].outputs = [nbformat.v4.new_output("stream", text="2")]
    executed.cells.insert(2, injected)
    written.cells[0].source = "# New title"
    written.cells.insert(2, nbformat.v4.new_markdown_cell("New paragraph"))
    done = site.rendered(written, executed)
    texts = ["# New title", PARAMETERS, "# Parameters", "New paragraph", "1 + 1"]
    assert [cell.source for cell in done.cells] == texts
    assert done.cells[-1].outputs[0].text == "2"
    written.cells[-1].source = "1 + 2"
    assert site.rendered(written, executed) is None


def test_run_executes_one_notebook_in_its_own_folder(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kernel(book / "share")
    monkeypatch.setenv("JUPYTER_PATH", str(book / "share"))
    code = "import os, sys; print(os.getcwd(), sys.executable, eps)"
    path = write(book / "notebooks" / "01_one.ipynb", PARAMETERS, code)
    assert command.main(["run", str(path), "-o", "out/copy.ipynb", "-p", "eps", "1e-3"]) == 0
    printed = nbformat.read(Path("out/copy.ipynb"), as_version=4).cells[-1].outputs[0].text.split()
    assert [Path(printed[0]), printed[1], printed[2]] == [path.parent, sys.executable, "0.001"]


def test_kernel_of_another_python_is_refused(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kernel(book / "share" / "jupyter")
    monkeypatch.setenv("JUPYTER_PATH", "")
    monkeypatch.setattr(sys, "prefix", str(book))
    with pytest.raises(sources.BookError, match="the kernel 'python3' starts /bin/false"):
        chapters.use_own_kernel()


def test_missing_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: KernelSpecManager, name: str) -> None:
        raise NoSuchKernel(name)

    monkeypatch.setenv("JUPYTER_PATH", "")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", missing)
    with pytest.raises(sources.BookError, match="no kernel 'python3'; install ipykernel for"):
        chapters.use_own_kernel()


def test_scrub_leaves_no_trace_of_the_machine() -> None:
    v4 = nbformat.v4
    tags = {"tags": ["injected-parameters"]}
    injected = v4.new_code_cell("# Parameters\nseed = 1\n", metadata=tags)
    traces = {"papermill": {"start_time": "now"}, "execution": {}}
    cell = v4.new_code_cell("f()", metadata=traces | {"tags": ["hide-input"]})
    errors = ("\r 10%", "\r100%\n", "careful\n")
    cell.outputs = [v4.new_output("stream", name="stderr", text=text) for text in errors]
    cell.outputs.append(v4.new_output("stream", name="stdout", text="out\n"))
    kept = {"papermill": {"input_path": "/a/b"}, "colab": {}}
    clean = site.scrub(v4.new_notebook(cells=[injected, cell], metadata=kept))
    assert dict(clean.metadata) == {"colab": {}}
    assert clean.cells[0].source.startswith("# This page was rendered with:\nseed = 1")
    prompt = clean.cells[0].metadata["mystnb"]["code_prompt_show"]
    assert prompt == "This page was rendered with seed = 1"
    assert clean.cells[1].metadata == {"tags": ["hide-input"]}
    assert [output.text for output in clean.cells[1].outputs] == ["careful\n", "out\n"]


def test_whole_book(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Execute, stage, build, check; then each thing the check is there for."""
    shutil.copyfile(ROOT / "_config.yml", book / "_config.yml")
    config = sources.read_yaml(book / "_config.yml")
    (book / "book" / "references.bib").touch()
    for name in ("_static", "_templates", "extra", "vendor"):
        shutil.copytree(ROOT / "book" / name, book / "book" / name)
    shutil.copytree(ROOT / "results" / "gallery", book / "results" / "gallery")
    card = config["sphinx"]["config"]["ogp_social_cards"]["image_mini"]
    for name in (config["logo"], config["html"]["favicon"], card):
        shutil.copyfile(ROOT / name, book / name)
    before = {path for path in book.rglob("*") if "_build" not in path.parts}
    assert command.main(["-p", "sets", "[isun]"]) == 0
    assert {path for path in book.rglob("*") if "_build" not in path.parts} == before
    built = book / "_build" / "html"
    assert str(built / "index.html") in capsys.readouterr().out
    page = (built / "notebooks" / "01_one.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub("<[^>]+>", "", page))
    assert "seed 3 ['isun']" in text
    assert "# This page was rendered with:" in text
    source = built / "_sources" / "notebooks" / "01_one.ipynb"
    assert str(book) not in source.read_text(encoding="utf-8")
    assert 'href="notebooks/01_one.html"' in (built / "index.html").read_text(encoding="utf-8")
    wrong = {
        "names a folder of this machine": f"<p>{book}{os.sep}data</p>",
        "shows a traceback": '<div class="output traceback">',
        "has an empty output": '<div class="cell_output docutils container">\n</div>',
        "shows an image without a file": '<img alt="" src="../none.svg">',
    }
    for message, insert in wrong.items():
        (built / "notebooks" / "01_one.html").write_text(page + insert, encoding="utf-8")
        with pytest.raises(sources.BookError, match=message):
            site.check(Path(), built)
    (built / "notebooks" / "01_one.html").write_text(page.replace("Chapter", ""), encoding="utf-8")
    with pytest.raises(sources.BookError, match="does not carry the title"):
        site.check(Path(), built)
    (built / "notebooks" / "01_one.html").unlink()
    with pytest.raises(sources.BookError, match=r"are not those of _toc\.yml"):
        site.check(Path(), built)
