"""The house rules: imports point downward, and no room outgrows its name."""

import ast
from pathlib import Path

import pytest

import thinkback_utils

PACKAGE = Path(thinkback_utils.__file__).parent
LAYERS = {
    "files": -1,
    "provenance": 0,
    "data": 0,
    "models": 0,
    "metrics": 0,
    "scores": 0,
    "audit": 1,
    "fisher": 1,
    "outliers": 1,
    "features": 1,
    "methods": 2,
    "evaluation": 3,
    "train": 2,
    "gradients": 2,
    "plots": 3,
    "reproduce": 3,
    "detector": 3,
    "ablations": 3,
    "variants": 3,
    "development": 3,
    "family": 2,
    "shards": 2,
    "adapters": 3,
    "export": 3,
    "demo": 3,
    "peers": 3,
    "gallery": 3,
    "gallery_page": 3,
    "slim": 0,
    "explorers": 3,
    "opening": 3,
    "fit": 3,
    "score": 3,
    "claims": 3,
    "runner": 3,
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_every_module_has_a_layer():
    assert set(MODULES) == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                below, same = LAYERS[name] < LAYERS[module], LAYERS[name] == LAYERS[module] == 3
                assert below or same, f"{module} (layer {LAYERS[module]}) imports {name} (layer {LAYERS[name]})"


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_on_a_page(module):
    """40 lines of code at most; a docstring may be as long as it has to say."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= 40, f"{module}.{node.name}"


def test_public_names_exist():
    for name in thinkback_utils.__all__:
        assert hasattr(thinkback_utils, name)
