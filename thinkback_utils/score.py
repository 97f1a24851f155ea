"""Score many images with a fitted detector: ``python -m thinkback_utils.score``, or under ``torchrun``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .detector import OODDetector
from .files import sha256
from .fit import add_arguments, device_of
from .shards import BLOCK, block_file, blocks, load_model, loader, open_sources, place, read_blocks, start, write_block


def main(arguments: list[str] | None = None) -> None:
    """Write the scores of all images block by block; blocks that are there already stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.score", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--detector", type=Path, required=True, help="file that thinkback_utils.fit wrote")
    parser.add_argument("--block", type=int, default=BLOCK, help="images in a file of scores")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    given = parser.parse_args(arguments)
    rank, world = place()
    dataset = open_sources(given.sources, given.side)
    detector = OODDetector.load(given.detector, load_model(given.model).to(device_of(given.device)))
    total: int = len(dataset)  # type: ignore[arg-type]
    job = {"samples": total, "block": given.block, "sources": list(map(str, given.sources)), "model": given.model}
    start(given.out, job | {"detector_sha256": sha256(given.detector), "side": given.side})
    for number, indices in blocks(total, rank, world, given.block):
        if not block_file(given.out, number).exists():
            score = detector.score(loader(dataset, indices, given.batch_size, given.workers))
            write_block(given.out, number, {"score": score})
            print(f"block {number}: {len(indices)} images", flush=True)
    if world == 1:
        print(f"scored {len(read_blocks(given.out)['score']):,} images into {given.out}")


if __name__ == "__main__":
    main()
