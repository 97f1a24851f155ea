"""What produced a result: written beside everything under results/."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thinkback_utils
from thinkback_utils.files import read_json


def describe(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Command, commit, time, device and versions of the running process, as JSON types."""
    program, *arguments = sys.orig_argv
    in_notebook = any("ipykernel" in argument for argument in arguments)
    return {
        "command": "a notebook" if in_notebook else shlex.join([Path(program).name, *arguments]),
        "commit": _commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": _device(torch.device(device)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def label(folder: str | Path) -> str:
    """Which network made the numbers of a page: size, recipe, device, training seeds, accuracy.

    Args:
        folder: of one run, ``results/<network>/seed<k>``; or of a network, for all its runs.

    Returns: As in "WRN-40-2, `cpu` recipe (23 epochs on AMD EPYC, 2 threads, AVX2), 1 training
        seed, 92.8 % test accuracy"; of one run among others "training seed 0, one of 3"; differing
        recipes and machines are all named.

    Raises:
        ValueError: No finished run is there.
    """
    folder, name = Path(folder), "provenance.json"
    files = [folder / name] if (folder / name).exists() else sorted(folder.glob(f"seed*/{name}"))
    if not files:
        raise ValueError(
            f"thinkback: no {name} in {folder} or its seed folders; has the run finished?"
        )
    runs, beside = [read_json(file) for file in files], list(folder.parent.glob(f"seed*/{name}"))
    made: list[str] = []
    for run in runs:
        config, epochs = run["training"]["config"], len(run["training"]["history"]["loss"])
        recipe = f"`{run['recipe']}` recipe ({epochs} epochs on {run['training']['device']})"
        made.append(f"WRN-{config['depth']}-{config['width']}, {recipe}")
    seeds = f"{len(files)} training seed{'s' * (len(files) > 1)}"
    if len(beside) > 1:
        seeds = f"training seed {runs[0]['seed']}, one of {len(beside)}"
    accuracies = [run["accuracy"]["cifar10-test"] for run in runs]
    ends = dict.fromkeys(f"{100 * end:.1f}" for end in (min(accuracies), max(accuracies)))
    return f"{'; '.join(dict.fromkeys(made))}, {seeds}, {' to '.join(ends)} % test accuracy"


class Box:
    """The reproducibility box at the end of a chapter: the parameters it ran with, and on what.

    >>> box = Box(profile="smoke", seed=0)  # at the top; shown later, it adds the time in between
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters, self.start = parameters, time.perf_counter()

    def _repr_markdown_(self) -> str:
        facts = describe(self.parameters.get("device", "cpu"))
        seconds = time.perf_counter() - self.start
        commit = re.sub(r"^([0-9a-f]{12})[0-9a-f]*", r"\1", facts["commit"])
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        parameters = ", ".join(f"`{name} = {value!r}`" for name, value in self.parameters.items())
        rows = {
            "Parameters": parameters,
            "Commit": f"`{commit}`",
            "Device": facts["device"],
            "Versions": versions,
            "Run time": f"{seconds:.0f} s",
        }
        return "\n".join(
            ["| Reproduce this page | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
        )


def _commit() -> str:
    """Commit of this package's checkout, ``-dirty`` where tracked files differ from it.

    "unknown" and the version of the package where it is installed: also in a folder of somebody
    else's repository.
    """
    source = Path(__file__)
    own = ["ls-files", "--error-unmatch", source.name]  # fails where it is not of the repository
    commit = ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    # A hook of another repository sets these.
    here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "env": here}
    try:
        for arguments in (own, commit):
            said = subprocess.run(["git", "-C", str(source.parent), *arguments], **options)
        return str(said.stdout).strip()
    except (OSError, subprocess.CalledProcessError):
        return f"unknown, thinkback_utils {thinkback_utils.__version__}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    kind = "" if device.type == "cpu" else f"{device.type} of "
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{kind}{cpu}, {threads} threads, {instructions}"
