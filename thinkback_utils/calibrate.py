"""Give a fitted detector its threshold: ``python -m thinkback_utils.calibrate``."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from .commands import Parser, run_main
from .detector import OODDetector
from .devices import process_device
from .fit import add_arguments, named
from .shards import Batches, load_model, open_sources, place


def main(arguments: list[str] | None = None) -> None:
    """Set the threshold on held-out images, so that a stated rate of false alarms is kept."""
    parser = Parser(prog="python -m thinkback_utils.calibrate", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--detector", type=Path, required=True, help="file that thinkback_utils.fit wrote"
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="largest rate of false alarms")
    parser.add_argument(
        "--delta",
        type=float,
        help="largest chance that these images break it; default: the mean rate",
    )
    parser.add_argument(
        "--by", choices=["predicted"], help="keep the rate in each predicted class, not over all"
    )
    parser.add_argument(
        "--few", choices=["error", "accept"], default="error", help="classes with too few images"
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the calibrated detector")
    given = parser.parse_args(arguments)
    if place()[1] > 1:
        raise ValueError(
            "thinkback: calibration takes all scores at once; run one process, without torchrun"
        )
    dataset = open_sources(given.sources, given.side, given.skip_broken)
    model = load_model(given.model).to(process_device(given.device))
    detector = OODDetector.load(given.detector, model)
    batches = Batches(dataset, range(len(dataset)), given.batch_size, given.workers)
    with tqdm(batches) as shown:  # which ends its line before an error begins one
        detector.calibrate(shown, given.alpha, given.delta, given.by, given.few)
    detector.save(given.out)
    read = len(dataset) - len(dataset.skipped)
    print(
        f"calibrated {detector.method}, alpha {given.alpha:g} from {read:,} images, wrote"
        f" {given.out}{named(dataset, dataset.skipped)}"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
