"""Score many images with a fitted detector: ``python -m thinkback_utils.score``, or under
``torchrun``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .commands import Parser, run_main
from .detector import OODDetector, Verdicts
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

SKIPPED = Verdicts(math.nan, -1, math.nan, False)._asdict()  # type: ignore[arg-type]  # of images that cannot be read


def main(arguments: list[str] | None = None) -> None:
    """Write scores, predicted classes and, once calibrated, p-values and verdicts of all images,
    block by block.

    Blocks that are there already stay as they are.
    """
    parser = Parser(prog="python -m thinkback_utils.score", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--detector", type=Path, required=True, help="file that fit or calibrate wrote"
    )
    parser.add_argument("--block", type=int, default=BLOCK, help="images in a file of scores")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    given = parser.parse_args(arguments)
    rank, world = place()
    dataset = open_sources(given.sources, given.side, given.skip_broken)
    detector = OODDetector.load(
        given.detector, load_model(given.model).to(process_device(given.device))
    )
    absent = {"p_value", "rejected"} if detector.calibration is None else set()
    blank = {name: value for name, value in SKIPPED.items() if name not in absent}
    job = {
        "samples": len(dataset),
        "block": given.block,
        "sources": dataset.known_by(),
        "model": given.model,
    }
    mine = blocks(len(dataset), rank, world, given.block)
    start(given.out, job | {"detector_sha256": sha256(given.detector), "side": given.side})

    def assessed(batches: Iterable[Tensor]) -> dict[str, Tensor]:
        return {
            name: values
            for name, values in detector.assess(batches)._asdict().items()
            if values is not None
        }

    for number, indices in mine:
        if not block_done(given.out, number):
            options = {"batch_size": given.batch_size, "workers": given.workers}
            write_block(
                given.out, number, score_samples(assessed, dataset, indices, blank, **options)
            )
            print(f"block {number}: {len(indices)} images", flush=True)
    if world == 1:
        found = read_blocks(given.out)
        alarms = (
            f", {int(found['rejected'].sum()):,} of them called OOD" if "rejected" in found else ""
        )
        skipped = found["score"].isnan().nonzero().flatten().tolist()
        print(
            f"scored {len(found['score']):,} images into"
            f" {given.out}{alarms}{named(dataset, skipped)}"
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
