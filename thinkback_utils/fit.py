"""Fit a detector on many images: ``python -m thinkback_utils.fit``, also under ``torchrun``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from .commands import Parser, listed, run_main
from .detector import OODDetector
from .devices import process_device
from .methods import METHODS
from .shards import Batches, Sources, blocks, load_model, open_sources, place

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
    return f"; left out {len(names):,} that cannot be read: {listed(names)}" if names else ""


def _parser() -> Parser:
    parser = Parser(prog="python -m thinkback_utils.fit", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--method", default="thinkback_averaged", choices=METHODS)
    parser.add_argument("--head", help="name of the last layer; found when it is not given")
    pixels = "of each channel of pixels in [0, 1], as in the training"
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs="+", help=pixels)
    parser.add_argument(
        "--precision",
        choices=("auto", "float32"),
        default="auto",
        help="auto: bfloat16 before the last layer where it should be faster, in all that follows",
    )
    for name in OPTIONS:
        parser.add_argument(f"--{name}", type=float, help="of the score; default: the method's")
    parser.add_argument("--out", type=Path, required=True, help="file of the detector")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Fit a detector in one pass; each process reads its blocks, and one sum joins them."""
    given = _parser().parse_args(arguments)
    rank, world = place()
    device = process_device(given.device)
    dataset = open_sources(given.sources, given.side, given.skip_broken)
    detector = OODDetector(
        load_model(given.model).to(device),
        given.head,
        given.method,
        mean=given.mean,
        std=given.std,
        precision=given.precision,
        **{name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None},
    )
    mine = [i for _, block in blocks(len(dataset), rank, world, given.batch_size) for i in block]
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        batches = Batches(dataset, mine, given.batch_size, given.workers)
        with tqdm(batches, disable=rank > 0) as shown:  # it ends its line before an error
            detector.fit(shown)
    finally:
        if world > 1:
            dist.destroy_process_group()
    if rank == 0:
        detector.save(given.out)
        left_out = named(dataset, dataset.skipped)
        print(f"fitted {given.method} on {len(dataset):,} images, wrote {given.out}{left_out}")


if __name__ == "__main__":
    sys.exit(run_main(main))
