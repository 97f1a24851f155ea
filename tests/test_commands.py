"""Programs: a wrong input is one line and a status; a fault of the program keeps its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thinkback_utils.commands import Parser, run_main

ROOT = Path(__file__).parents[1]


def program(*arguments, **environment):
    """Status and standard error of ``python -m …``."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {"OMP_NUM_THREADS": "1"}
        | {name: str(value) for name, value in environment.items()},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["thinkback_utils.train", "--out", "{}/run", "--peak-lr", "nan"],
            "TrainConfig.peak_lr must be positive and finite, got nan",
        ),
        (["experiments.reproduce", "--results", "{}", "--sets", "moon"], "unknown set 'moon'"),
    ],
)
def test_wrong_inputs_are_one_line_and_status_1(tmp_path, arguments, message):
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"cifar10-{split}.npz",
            images=np.zeros((4, 32, 32, 3), np.uint8),
            labels=np.arange(4),
        )
    module, *options = (argument.format(tmp_path) for argument in arguments)
    status, said = program(module, *options, THINKBACK_DATA=tmp_path)
    assert status == 1
    assert said.startswith("thinkback: ")
    assert said.count("\n") == 1, said
    assert message in said


def fails(error):
    def main():
        raise error

    return main


def test_errors_that_explain_themselves_are_one_line(tmp_path, capsys):
    for error in (ValueError, FileNotFoundError, FloatingPointError):
        assert run_main(fails(error("thinkback: a thing\n is wrong"))) == 1
        assert capsys.readouterr().err == "thinkback: a thing is wrong\n"
    assert run_main(lambda: (tmp_path / "absent").read_text(encoding="utf-8")) == 1
    assert (
        capsys.readouterr().err == f"thinkback: {tmp_path / 'absent'}: No such file or directory\n"
    )
    assert run_main(fails(OSError(28, "No space left on device"))) == 1
    assert capsys.readouterr().err == "thinkback: a file: No space left on device\n"
    assert run_main(lambda: None) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [ValueError("math"), OSError("odd"), KeyError("thinkback: no"), RuntimeError("x")]
)
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_main(fails(error))


def test_wrong_arguments_are_one_line(capsys):
    parser = Parser(prog="python -m something")
    parser.add_argument("--size", type=int, choices=(1, 2))
    for arguments, message in (
        (["--size", "3"], "argument --size: invalid choice: 3 (choose from"),
        (["--sise", "1"], "unrecognized arguments: --sise 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(arguments)
        said = capsys.readouterr().err
        assert stopped.value.code == 1
        assert said.startswith(f"thinkback: {message}")
        assert said.endswith("; see python -m something --help\n")
        assert said.count("\n") == 1
