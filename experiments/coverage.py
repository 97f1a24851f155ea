"""Do the bootstrap's 95 % intervals hold the truth in 95 of 100 data sets? A simulation.

    python -m experiments.coverage --results results

Scores are normal, of mean 0 in distribution and of mean d out of it, so all four metrics are known
exactly. Each trial draws fresh scores, as many as a set has images, and asks of each interval of
``metrics.resampled`` whether it holds the true value.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from thinkback_utils.commands import run_main
from thinkback_utils.files import write_json
from thinkback_utils.metrics import METRICS, interval95, resampled

from .provenance import describe
from .run import program_parser


@dataclass(frozen=True)
class Setup:
    """What is simulated: distance of the means, numbers of scores, mix of the AUPR, repetitions."""

    distance: float = 2.0  # AUROC 92.1 %, near that of the baselines in the book
    n_id: int = 2000
    n_ood: int = 1000
    prevalence: float = 1 / 6
    resamples: int = 200
    trials: int = 1000


def truth(distance: float, prevalence: float = 1 / 6) -> dict[str, float]:
    """The four metrics of scores N(0, 1) in distribution and N(distance, 1) out of it.

    >>> {name: round(value, 4) for name, value in truth(2.0).items()}
    {'tpr10': 0.7638, 'fpr95': 0.3612, 'auroc': 0.9214, 'aupr': 0.7558}
    """
    thresholds = np.linspace(distance + 9, -9, 200_001)
    tpr, fpr = norm.sf(thresholds - distance), norm.sf(thresholds)
    precision = prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)
    middle = (precision[1:] + precision[:-1]) / 2
    return {
        "tpr10": float(norm.sf(norm.isf(0.10) - distance)),
        "fpr95": float(norm.sf(distance + norm.isf(0.95))),
        "auroc": float(norm.cdf(distance / np.sqrt(2))),
        "aupr": float((np.diff(tpr) * middle).sum()),
    }


def coverage(setup: Setup, seed: int = 0) -> pd.DataFrame:
    """How many intervals hold the true value.

    Returns:
        A row for each metric: ``truth``, ``coverage`` and the 95 % interval of that share over the
        trials (Wilson), ``low`` and ``high``, all in [0, 1].
    """
    random = np.random.default_rng(seed)
    known = truth(setup.distance, setup.prevalence)
    held = dict.fromkeys(METRICS, 0)
    for trial in range(setup.trials):
        inside = random.normal(size=setup.n_id)
        outside = random.normal(setup.distance, size=setup.n_ood)
        drawn = resampled(inside, outside, setup.prevalence, setup.resamples, seed=trial)
        for metric, (low, high) in interval95(drawn).items():
            held[metric] += low <= known[metric] <= high
    rows = []
    for metric, count in held.items():
        share = binomtest(count, setup.trials).proportion_ci(method="wilson")
        row = {"metric": metric, "truth": known[metric], "coverage": count / setup.trials}
        rows.append(row | {"low": share.low, "high": share.high})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Simulate, and keep the shares as ``coverage.json``."""
    parser = program_parser("experiments.coverage", main.__doc__, "results", "seed")
    options = parser.parse_args(arguments)
    start, record, setup = time.perf_counter(), describe(), Setup()
    frame = coverage(setup, options.seed)
    record |= {"setup": asdict(setup), "seed": options.seed}
    record["seconds"] = round(time.perf_counter() - start, 1)
    rows = frame.to_dict("records")
    write_json(options.results / "coverage.json", {"provenance": record, "records": rows})
    print(frame.to_string(index=False))


if __name__ == "__main__":
    sys.exit(run_main(main))
