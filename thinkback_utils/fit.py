"""Fit a detector on many images: ``python -m thinkback_utils.fit``, or under ``torchrun`` with many processes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from .detector import OODDetector
from .methods import METHODS
from .shards import blocks, load_model, loader, open_sources, place
from .train import pick_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What fitting and scoring have in common."""
    parser.add_argument("sources", nargs="+", help="folders, .tar archives or .npz arrays of images")
    parser.add_argument("--model", required=True, help="weights of a WideResNet, or package.module:function")
    parser.add_argument("--side", type=int, help="scale and crop files to squares of that many pixels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each process")
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU of this process when there is one")


def device_of(name: str | None) -> torch.device:
    """The device asked for; else, of several GPUs, the one that has the number of this process."""
    device = pick_device(name)
    return device if name or device.type != "cuda" else torch.device("cuda", place()[0] % torch.cuda.device_count())


def main(arguments: list[str] | None = None) -> None:
    """Fit a detector in one pass; each process reads its blocks, and one sum joins them."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.fit", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--method", default="thinkback_averaged", choices=METHODS)
    parser.add_argument("--head", help="name of the last linear layer; found when it is not given")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--damping", type=float)
    parser.add_argument("--out", type=Path, required=True, help="file of the detector")
    given = parser.parse_args(arguments)
    rank, world = place()
    device = device_of(given.device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    dataset = open_sources(given.sources, given.side)
    mine = [i for _, block in blocks(len(dataset), rank, world, given.batch_size) for i in block]  # type: ignore[arg-type]
    options = {name: value for name in ("temperature", "damping") if (value := getattr(given, name)) is not None}
    detector = OODDetector(load_model(given.model).to(device), given.head, given.method, **options)
    detector.fit(tqdm(loader(dataset, mine, given.batch_size, given.workers), disable=rank > 0))
    if rank == 0:
        detector.save(given.out)
        print(f"fitted {given.method} on {len(dataset):,} images, wrote {given.out}")  # type: ignore[arg-type]
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
