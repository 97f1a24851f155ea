"""Fit a detector on many images: ``python -m thinkback_utils.fit``, or under ``torchrun`` with many
processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from .commands import Parser, run_main
from .detector import OODDetector
from .devices import process_device
from .methods import METHODS
from .shards import Sources, blocks, load_model, loader, open_sources, place

OPTIONS = ("temperature", "eps", "damping")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What fitting, calibrating and scoring have in common."""
    parser.add_argument(
        "sources", nargs="+", help="folders, .tar archives or .npz arrays of images"
    )
    parser.add_argument(
        "--model", required=True, help="weights of a WideResNet, or package.module:function"
    )
    parser.add_argument(
        "--side", type=int, help="scale and crop images to squares of that many pixels"
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out what cannot be read, and name it"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that decode images, for each process"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, …; default: the GPU of this process when there is one"
    )


def named(dataset: Sources, skipped: Iterable[int]) -> str:
    """A sentence about the images that were left out; none where all were read."""
    names = [dataset.name(i) for i in sorted(skipped)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"; left out {len(names):,} that cannot be read: {', '.join(names[:5])}{more}"
        if names
        else ""
    )


def main(arguments: list[str] | None = None) -> None:
    """Fit a detector in one pass; each process reads its blocks, and one sum joins them."""
    parser = Parser(prog="python -m thinkback_utils.fit", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--method", default="thinkback_averaged", choices=METHODS)
    parser.add_argument("--head", help="name of the last layer; found when it is not given")
    parser.add_argument(
        "--mean",
        type=float,
        nargs="+",
        help="of each channel of pixels in [0, 1], as in the training",
    )
    parser.add_argument("--std", type=float, nargs="+", help="likewise")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", type=float, help="of the score; default: the method's")
    parser.add_argument("--out", type=Path, required=True, help="file of the detector")
    given = parser.parse_args(arguments)
    rank, world = place()
    device = process_device(given.device)
    dataset = open_sources(given.sources, given.side, given.skip_broken)
    options = {name: value for name in OPTIONS if (value := getattr(given, name)) is not None}
    model = load_model(given.model).to(device)
    detector = OODDetector(
        model, given.head, given.method, mean=given.mean, std=given.std, **options
    )
    mine = [i for _, block in blocks(len(dataset), rank, world, given.batch_size) for i in block]
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with tqdm(
            loader(dataset, mine, given.batch_size, given.workers), disable=rank > 0
        ) as batches:
            detector.fit(batches)
    finally:
        if world > 1:
            dist.destroy_process_group()
    if rank == 0:
        detector.save(given.out)
        print(
            f"fitted {given.method} on {len(dataset):,} images, wrote"
            f" {given.out}{named(dataset, dataset.skipped)}"
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
