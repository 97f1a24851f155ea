"""The house rules: imports point downward, and no room outgrows its name."""

import ast
from pathlib import Path

import pytest

import thinkback_utils

PACKAGE = Path(thinkback_utils.__file__).parent
LAYERS = {
    **dict.fromkeys(("arrays", "commands", "devices", "files", "images"), 0),
    **dict.fromkeys(
        ("calibration", "data", "heads", "metrics", "models", "provenance", "scores"), 1
    ),
    **dict.fromkeys(("batches", "fisher"), 2),
    **dict.fromkeys(("checks", "identity", "methods", "passes"), 3),
    "features": 4,
    **dict.fromkeys(("gradients", "shards", "train"), 5),
    **dict.fromkeys(
        ("adapters", "detector", "evaluation", "calibrate", "export", "fit", "plots", "score"), 6
    ),
    "study": 7,  # the experiments
    **dict.fromkeys(("pages", "reproduce"), 8),
    "runner": 9,
}
SHELLS = LAYERS["detector"]  # thin ones, which may read each other; so may the modules of a room
MODULES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"
)


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(module: Path) -> set[str]:
    """The rooms of this package that a module names in its imports."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            here = module.parts[: len(module.parts) - node.level]  # where the dots lead
            path = [*here, *(node.module or "").split(".")] if node.module else list(here)
            names |= {path[0]} if path else {alias.name for alias in node.names}
    return names


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_downward(module):
    own = LAYERS[room(module)]
    for name in imported(module):
        beside = name == room(module) or own == LAYERS[name] == SHELLS
        assert beside or LAYERS[name] < own, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_functions_fit_on_a_page(module):
    """40 lines of code at most; a docstring may be as long as it has to say."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= 40, f"{module}: {node.name}"


def test_public_names_exist():
    for name in thinkback_utils.__all__:
        assert hasattr(thinkback_utils, name)
