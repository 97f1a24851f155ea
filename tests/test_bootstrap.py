"""The cell that finds or fetches the book, from each place where a chapter may be opened."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from bookmaking import sources

ROOT = Path(__file__).parents[1]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
CELLS = sources.read(sorted((ROOT / "notebooks").glob("*.ipynb"))[0]).cells
BOOTSTRAP = next(cell.source for cell in CELLS if sources.tagged(cell, "bootstrap"))
REPORT = """
import experiments, bookmaking, thinkback_utils
print(thinkback_utils.__file__, experiments.__file__, os.getcwd(), sep="\\n")
"""


def opened(folder, **environment):
    """The cell in a process whose working directory is that folder; the book is not installed.

    No .pth file is read (-S), so this environment's own copy is not found, but its libraries are.
    """
    program = [sys.executable, "-S", "-c", BOOTSTRAP + REPORT]
    libraries = {"PYTHONPATH": sysconfig.get_path("purelib")}
    options = {"capture_output": True, "text": True, "check": False, "cwd": folder}
    return subprocess.run(program, env=os.environ | libraries | environment, **options)


def from_this_clone(address=None):
    """Git takes this repository, or another place, for the published one."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{address or ROOT.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }


def assert_works_in(book, done):
    assert done.returncode == 0, done.stderr
    package, experiments, folder = map(Path, done.stdout.splitlines())
    assert package == book / "thinkback_utils" / "__init__.py"
    assert experiments == book / "experiments" / "__init__.py"
    assert folder == book / "notebooks"


def test_the_cell_names_the_one_address():
    assert f'ADDRESS = "{ADDRESS}"' in BOOTSTRAP


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_in_a_clone_it_moves_to_the_notebooks(place):
    """Git is not even called: the address leads nowhere."""
    assert_works_in(ROOT, opened(ROOT / place, **from_this_clone("file:///nowhere")))


def test_with_the_package_installed_from_a_clone_it_works_from_any_folder(tmp_path):
    libraries = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    done = opened(tmp_path, PYTHONPATH=libraries, **from_this_clone("file:///nowhere"))
    assert_works_in(ROOT, done)


def test_elsewhere_it_fetches_the_book_once(tmp_path):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no clone, or there is no git")
    assert_works_in(tmp_path / "thinkback", opened(tmp_path, **from_this_clone()))
    again = opened(tmp_path, **from_this_clone("file:///nowhere"))
    assert_works_in(tmp_path / "thinkback", again)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (from_this_clone("file:///nowhere"), "nowhere"),
        ({"PATH": ""}, "No such file or directory: 'git'"),
    ],
)
def test_what_failed_is_said_in_one_sentence_with_its_remedy(tmp_path, environment, why):
    done = opened(tmp_path, **environment)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"RuntimeError: thinkback: the book could not be fetched from {ADDRESS}")
    assert why in last
    assert "clone it by hand" in last
    assert "CalledProcessError" not in done.stderr
