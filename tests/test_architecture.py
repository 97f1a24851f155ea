"""Imports go one way, functions fit on a page, and optional packages stay optional."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import thinkback_utils

ROOT = Path(thinkback_utils.__file__).parents[1]
PLACES = ("thinkback_utils", "experiments", "bookmaking", "benchmarks")
OPTIONAL = ("IPython", "fontTools", "matplotlib", "onnx", "onnxscript", "pandas", "pytorch_ood")
OPTIONAL += ("seaborn", "tinycss2", "torchvision")
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked)
"""


def test_imports_point_downward(monkeypatch):
    """The contracts of pyproject.toml; what it prints names the import that breaks one."""
    importlinter = pytest.importorskip("importlinter.cli", reason="needs Python 3.11")
    monkeypatch.chdir(ROOT)
    assert importlinter.lint_imports(no_cache=True) == importlinter.EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("place", PLACES)
def test_functions_fit_on_a_page(place):
    """40 lines of code at most; a docstring may be as long as it has to say."""
    for path in (ROOT / place).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                docstring = first.end_lineno - first.lineno + 1 if documented else 0
                lines = node.end_lineno - node.lineno + 1 - docstring
                assert lines <= 40, f"{path}: {node.name}"


def test_public_names_exist():
    for name in thinkback_utils.__all__:
        assert hasattr(thinkback_utils, name)


@pytest.mark.parametrize("place", [*PLACES, "tests"])
def test_text_is_read_and_written_with_an_encoding(place):
    """Else it would be that of the system, which on Windows is another one."""
    for path in (ROOT / place).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", None)
            if name in ("read_text", "write_text"):
                positional = len(node.args) > (name == "write_text")
                named = "encoding" in {keyword.arg for keyword in node.keywords}
                assert positional or named, f"{path}:{node.lineno}"


def without_extras(code):
    """The lines that a process prints in which no optional package can be imported."""
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_readme_runs_without_any_extra():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (printed,) = without_extras(blocks[0])
    assert re.match(r"tensor\(\[.*dtype=torch.float64\) \{'tpr10': ", printed)


def test_every_module_imports_without_any_extra():
    code = """
import thinkback_utils as tb
for name in tb.__all__:
    getattr(tb, name)
for use in (tb.data.import_torchvision, lambda: tb.data.load("letters")):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    assert without_extras(code) == [
        "thinkback: this needs torchvision: pip install 'thinkback-utils[data]'",
        "thinkback: set 'letters' needs matplotlib: pip install 'thinkback-utils[data]'",
    ]
