"""The call that sets up a chapter."""

import ast
import os

import pytest
import torch
from refusals import refused

from bookmaking.page import start
from experiments import provenance


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("THINKBACK_DATA", "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_chapter_is_set_up(tmp_path):
    box = start(threads=1, data_dir=str(tmp_path), profile="smoke", seed=3, n=5)
    assert torch.get_num_threads() == 1
    assert os.environ["THINKBACK_DATA"] == str(tmp_path)
    assert box.parameters == {"profile": "smoke", "seed": 3, "n": 5}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"profile": "smokes"}, "profile is one of smoke, full, got 'smokes'"),
        ({"seed": -1}, "seed is a whole number from 0 on, got -1"),
        ({"seed": "1"}, "seed is a whole number from 0 on, got '1'"),
        ({"run_seed": 1.0}, "run_seed is a whole number from 0 on, got 1.0"),
        ({"data_dir": "nowhere"}, "data_dir is a folder that is there, got 'nowhere'"),
        ({"device": "gpu"}, "there is no kind of device 'gpu'"),
        ({"results_dir": "no/where"}, r"results_dir is the folder of .*, got 'no/where'"),
    ],
)
def test_what_cannot_be_is_named(parameters, message):
    with refused(message):
        start(**parameters)


@pytest.fixture
def chapter(monkeypatch):
    """Start a chapter as its setup cell does, with another value for one parameter."""

    def begin(hint, value, name="eps"):
        parsed = ast.parse(hint, mode="eval").body
        monkeypatch.setattr(provenance, "parameters", lambda: {name: (value, parsed)})
        return start()

    return begin


@pytest.mark.parametrize(
    ("name", "hint", "value", "message"),
    [
        ("eps", "float", "small", "eps is a float, got 'small'"),
        ("eps", "float", -1.0, "eps is a number from 0 on, got -1.0"),
        ("temperature", "float", float("nan"), "temperature is a number above 0, got nan"),
        ("methods", "list[str]", "[msp]", r"methods is a list\[str\], got '\[msp\]'; .* -y '{meth"),
        ("methods", "list[str]", [], r"methods is a list of one score or more, got \[\]"),
        ("dampings", "list[float]", [0.0, -1.0], r"dampings is one number .* got \[0.0, -1.0\]"),
        ("how", "Literal['a', 'b']", "c", "how is one of 'a', 'b', got 'c'"),
        ("out", "str", __file__, "out is a folder, there or to be made"),
        ("out", "str", f"{__file__}/x", "out is a folder, there or to be made"),
        ("device", "str", "gpu", "there is no kind of device 'gpu'"),
    ],
)
def test_parameters_are_checked_that_the_cell_does_not_give(chapter, name, hint, value, message):
    with refused(message):
        chapter(hint, value, name)


def test_values_that_fit_are_let_through(chapter, tmp_path):
    chapter("float", 0)
    chapter("str", str(tmp_path / "new" / "folder"), "out")
    chapter("list[float]", [1, 2.5], "temperatures")
