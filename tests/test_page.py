"""The call that sets up a chapter."""

import os

import pytest
import torch
from refusals import refused

from bookmaking.page import start


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
