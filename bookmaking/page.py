"""The start of a chapter: what its setup cell calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.plots import use_style
from experiments.provenance import Box
from thinkback_utils.devices import process_device

PROFILES = ("smoke", "full")


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 0


# Parameters that several chapters have: what fits, in code and in words.
SHARED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "profile": (PROFILES.__contains__, f"one of {', '.join(PROFILES)}"),
    "seed": (_counts, "a whole number from 0 on"),
    "run_seed": (_counts, "a whole number from 0 on"),
    "data_dir": (lambda value: not value or Path(value).is_dir(), "a folder that is there"),
    "results_dir": (
        lambda value: Path(value).parent.is_dir(),
        "the folder of the full runs (the book's own is ../results)",
    ),
}


def start(*, threads: int | None = None, data_dir: str = "", **parameters: Any) -> Box:
    """Set up a chapter; show what it returns in the last cell.

    Args:
        threads: how many CPU threads torch may use; 1 where arrays are so small that more only wait
            for each other. None leaves the number as it is.
        data_dir: folder of the image sets; empty leaves the usual one.
        parameters: of the chapter, to be printed in the box. Those that chapters share are checked,
            since papermill checks nothing: ``profile``, ``seed``, ``run_seed``, ``device``,
            ``results_dir``.

    Returns: The reproducibility box, which counts the time from here on.

    Raises:
        ValueError: on a parameter that cannot be, with its value and what may be given.
    """
    _check(parameters | {"data_dir": data_dir})
    use_style()
    if threads is not None:
        torch.set_num_threads(threads)
    if data_dir:
        os.environ["THINKBACK_DATA"] = data_dir
    return Box(**parameters)


def _check(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        fits, words = SHARED.get(name, (lambda _: True, ""))
        if not fits(value):
            raise ValueError(f"thinkback: {name} is {words}, got {value!r}")
    if "device" in parameters:
        process_device(parameters["device"])
