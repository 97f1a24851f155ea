"""Peak memory of one piece of work, in a process of its own: nothing that ran before can hide it.

python -m benchmarks.memory MODULE FUNCTION OPTIONS, the last as JSON, prints the bytes.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def peak(module: str, function: str, **options: Any) -> int:
    """Bytes by which memory grows at the highest point of the work over its start.

    Args:
        module, function: of this package; called with the options it prepares, and returns the work
            as a callable.
        options: JSON types; ``device`` decides whose memory is watched.

    Raises:
        RuntimeError: with the last lines of what the process said, if it fails.
    """
    command = [sys.executable, "-m", "benchmarks.memory", module, function, json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"benchmarks: {module}.{function}({options}) failed:\n{done.stderr[-2000:]}"
        )
    return int(done.stdout.split()[-1])


def growth(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that the work needs at its peak beyond what is held before it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):  # Linux: forget the peak of the preparation
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _high_water()
    work()
    return _high_water() - before


def _high_water() -> int:
    """Largest resident set of this process so far, in bytes; on Linux not ``getrusage``'s."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main() -> None:
    """Prepare, work, print the growth."""
    module, function, options = sys.argv[1:]
    chosen = json.loads(options)
    prepare = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    print(growth(prepare(**chosen), chosen.get("device", "cpu")))


if __name__ == "__main__":
    main()
