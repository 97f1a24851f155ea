"""Score many images with a fitted detector: ``python -m thinkback_utils.score``, or torchrun."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .commands import Parser, run_main
from .detector import OODDetector
from .devices import process_device
from .files import sha256
from .fit import add_arguments, named
from .shards import (
    BLOCK,
    block_done,
    blocks,
    load_model,
    open_sources,
    place,
    read_blocks,
    score_samples,
    start,
    write_block,
)

# what stands for an image that cannot be read
SKIPPED = {"score": math.nan, "predicted": -1, "p_value": math.nan, "rejected": False}


def _parser() -> Parser:
    parser = Parser(prog="python -m thinkback_utils.score", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--detector", type=Path, required=True, help="file that fit or calibrate wrote"
    )
    parser.add_argument("--block", type=int, default=BLOCK, help="images in a file of scores")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write score, class and, once calibrated, p-value and verdict of all images, by blocks.

    Blocks that are there already stay as they are.
    """
    given = _parser().parse_args(arguments)
    rank, world = place()
    dataset = open_sources(given.sources, given.side, given.skip_broken)
    model = load_model(given.model).to(process_device(given.device))
    detector = OODDetector.load(given.detector, model)
    absent = {"p_value", "rejected"} if detector.calibration is None else set()
    blank = {name: value for name, value in SKIPPED.items() if name not in absent}
    job = {
        "samples": len(dataset),
        "block": given.block,
        "sources": dataset.known_by(),
        "model": given.model,
        "detector_sha256": sha256(given.detector),
        "side": given.side,
    }
    mine = blocks(len(dataset), rank, world, given.block)
    start(given.out, job)

    def assessed(batches: Iterable[Tensor]) -> dict[str, Tensor]:
        found = detector.assess(batches)._asdict()
        return {name: values for name, values in found.items() if values is not None}

    for number, indices in mine:
        if not block_done(given.out, number):
            options = {"batch_size": given.batch_size, "workers": given.workers}
            scores = score_samples(assessed, dataset, indices, blank, **options)
            write_block(given.out, number, scores)
            print(f"block {number}: {len(indices)} images", flush=True)
    if world == 1:
        found = read_blocks(given.out)
        skipped = found["score"].isnan().nonzero().flatten().tolist()
        line = f"scored {len(found['score']):,} images into {given.out}"
        if "rejected" in found:
            line += f", {int(found['rejected'].sum()):,} of them called OOD"
        print(f"{line}{named(dataset, skipped)}")


if __name__ == "__main__":
    sys.exit(run_main(main))
