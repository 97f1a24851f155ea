"""One comparison of scores, described once: which sets, which rules; to be put to any network.

suite = Benchmark(sets=("svhn", "textures"))
scored = suite.scores(suite.features(model))   # [set][method], one score an image
records = suite.records(scored)                # the metrics with intervals over the images
suite.over(runs)                               # the same of several networks, each row labelled
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from thinkback_utils.features import Features, extract
from thinkback_utils.files import locking, read_json, write_json

from .evaluation import (
    COMPARED,
    ID_TEST,
    ID_TRAIN,
    Record,
    Scores,
    image_set,
    means,
    score_sets,
    table,
    with_intervals,
)
from .run import Run


@dataclass(frozen=True)
class Benchmark:
    """Sets, scores and rules of one table. The defaults are those of ``results/table1.json``.

    Args:
        sets: the OOD sets.
        methods: keys of ``methods.METHODS``.
        train: the set that scores are fitted on.
        test: the in-distribution set.
        n_ood, draws, seed, prevalence: as in ``evaluation.table``.
        resamples: of the bootstrap over the images.
    """

    sets: Sequence[str] = ()
    methods: Sequence[str] = COMPARED
    train: str = ID_TRAIN
    test: str = ID_TEST
    n_ood: int = 2000
    draws: int = 10
    seed: int = 0
    prevalence: float = 1 / 6
    resamples: int = 200

    @property
    def names(self) -> list[str]:
        """All sets, each once: the training set, the test set, the OOD sets."""
        return list(dict.fromkeys((self.train, self.test, *self.sets)))

    def features(
        self, model: nn.Module, kept: Mapping[str, Features] | None = None
    ) -> dict[str, Features]:
        """Features of all sets, by one pass of the network over those that are not in ``kept``."""
        out = dict(kept or {})
        for name in self.names:
            if name not in out:  # in float32, as on every machine
                out[name] = extract(model, image_set(name), precision="float32")
        return {name: out[name] for name in self.names}

    def scores(self, features: Mapping[str, Features]) -> Scores:
        """Scores ``[set][method]`` (N,) of all sets but the training set, on which they are fitted.

        Without OOD sets of its own the benchmark scores all that there are.
        """
        names = [name for name in self.names if name != self.train] if self.sets else None
        return score_sets(features, self.methods, names, self.train)

    def records(self, scored: Scores) -> list[Record]:
        """The metrics of each set and method, then of each mean over sets, with intervals.

        A record is that of ``evaluation.with_intervals``.
        """
        rows = table(scored, self.n_ood, self.draws, self.seed, self.prevalence, self.test)
        rows += means(rows)
        return with_intervals(rows, scored, self.prevalence, self.resamples, self.seed, self.test)

    def over(self, runs: Iterable[Run], like: Scores) -> list[Record]:
        """Records of several networks, labelled by network and seed, from the scores they keep.

        Args:
            runs: finished runs; one that lacks a set of ``like`` is left out.
            like: scores whose sets are compared.
        """
        records = []
        for run in runs:
            kept = run.scores()
            if like.keys() <= kept.keys():
                rows = {name: self._own(kept[name]) for name in like}
                records += [run.label | record for record in self.records(rows)]
        return records

    def _own(self, row: Mapping[str, NDArray[np.floating]]) -> dict[str, NDArray[np.floating]]:
        return {method: row[method] for method in self.methods if method in row}


def keep(path: Path, run: Run, records: Iterable[Record]) -> None:
    """Put the records of one run into a file of several, in place of those that it had there.

    Processes that share the file wait for each other.
    """
    with locking(path):
        old = read_json(path) if path.exists() else []
        others = [row for row in old if not run.label.items() <= row.items()]
        write_json(path, [*others, *(run.label | record for record in records)])
