"""Measure groups of benchmarks and write them:
``python -m benchmarks [group ...] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import torch

import thinkback_utils as tb
from experiments import provenance

from .context import Context

GROUPS = ("machine", "score", "fit", "job", "evaluation", "layers", "inference", "training")


def lines(records: list[dict[str, Any]]) -> list[str]:
    """A line a record, for the terminal."""
    out = []
    for record in records:
        facts = ", ".join(
            f"{key} {record[key]}" for key in ("place", "batch", "K", "samples") if key in record
        )
        if "skipped" in record:
            value = f"skipped: {record['skipped']}"
        elif "seconds" in record:
            quartiles = f"{record['ratio_q25']:.4g} to {record['ratio_q75']:.4g}"
            value = (
                f"{1e3 * record['seconds']:.4g} ms, {record['ratio']:.4g} ({quartiles}) of"
                f" {record['reference']}"
            )
        else:
            value = f"{record['peak_bytes'] / 1e6:.1f} MB"
        out.append(f"  {record['what']} ({facts}): {value}")
    return out


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write ``<out>/<group>-<device>.json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; all when none is named"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where network and features are read"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder of the JSON files"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, small sizes: a check, not a measurement"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device on this machine; nothing was measured")
    context, began = Context(device, options.quick, options.results), time.perf_counter()
    for group in options.groups or GROUPS:
        start = time.perf_counter()
        head = provenance.describe(device) | {"group": group}
        head["threads"] = torch.get_num_threads()
        records = importlib.import_module(f"benchmarks.{group}").run(context)
        head |= {"quick": options.quick, "took_seconds": round(time.perf_counter() - start, 1)}
        tb.files.write_json(
            options.out / f"{group}-{device.type}.json", head | {"records": records}
        )
        print(f"{group}: {head['took_seconds']} s", *lines(records), sep="\n", flush=True)
    print(f"all: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
