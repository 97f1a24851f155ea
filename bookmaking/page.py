"""The start of a chapter: what its setup cell calls."""

from __future__ import annotations

import os
from typing import Any

import torch

from experiments.plots import use_style
from experiments.provenance import Box


def start(*, threads: int | None = None, data_dir: str = "", **parameters: Any) -> Box:
    """Set up a chapter; show what it returns in the last cell.

    Args:
        threads: how many CPU threads torch may use; 1 where arrays are so small that more only wait
            for each other. None leaves the number as it is.
        data_dir: folder of the image sets; empty leaves the usual one.
        parameters: of the chapter, to be printed in the box.

    Returns: The reproducibility box, which counts the time from here on.
    """
    use_style()
    if threads is not None:
        torch.set_num_threads(threads)
    if data_dir:
        os.environ["THINKBACK_DATA"] = data_dir
    return Box(**parameters)
