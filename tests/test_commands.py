"""Programs: a wrong input is one line and a status; a fault of the program keeps its traceback."""

from pathlib import Path

import numpy as np
import pytest

from experiments import reproduce, training
from thinkback_utils.commands import Parser, run_main

ROOT = Path(__file__).parents[1]


def test_every_program_leaves_with_the_status_of_run_main():
    """One of them is started as a process of its own in test_programs.py."""
    end = 'if __name__ == "__main__":\n    sys.exit(run_main(main))\n'
    for place in ("thinkback_utils", "experiments"):
        for path in (ROOT / place).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert ("\ndef main(" in text) == text.endswith(end), path


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (training, "--out {}/run --peak-lr nan", "TrainConfig.peak_lr must be positive and finite"),
        (reproduce, "--results {} --sets moon", "unknown set 'moon'"),
    ],
)
def test_wrong_inputs_are_one_line(tmp_path, monkeypatch, capsys, program, arguments, message):
    for split in ("train", "test"):
        images = np.zeros((4, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"cifar10-{split}.npz", images=images, labels=np.arange(4))
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    assert run_main(lambda: program.main(arguments.format(tmp_path).split())) == 1
    said = capsys.readouterr().err
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
    absent = tmp_path / "absent"
    assert run_main(lambda: absent.read_text(encoding="utf-8")) == 1
    assert capsys.readouterr().err == f"thinkback: {absent}: No such file or directory\n"
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
