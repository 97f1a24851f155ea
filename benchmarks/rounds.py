"""Calls that are compared take turns in rounds, and a ratio is formed within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Clock = Callable[[], float]  # seconds
Record = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What is timed, and the share of the batch that it does: the time of a part is scaled up."""

    run: Callable[[], object]
    share: float = 1.0


def alternate(
    calls: Mapping[str, Call],
    budget: float,
    least: int,
    most: int,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, round by round, in both directions, so that no order is favoured.

    Args:
        calls: what takes turns.
        budget: seconds for the rounds, as the warm-up, which is not counted, foretells them.
        least, most: bounds on the number of rounds, whatever the budget.
        clock: seconds that have passed; on a GPU it must wait for the device.

    Returns:
        ``{name: [seconds of the whole batch, ...]}``, a list as long as there were rounds.

    >>> ticks = iter(range(100))
    >>> alternate({"a": Call(int), "b": Call(int, share=0.5)}, 15.0, 1, 3, lambda: next(ticks))
    {'a': [1.0, 1.0, 1.0], 'b': [2.0, 2.0, 2.0]}
    """

    def timed(call: Call) -> float:
        start = clock()
        call.run()
        return (clock() - start) / call.share

    for call in calls.values():  # the first run of all compiles, allocates and fills caches
        call.run()
    start = clock()
    seconds = {name: [timed(call)] for name, call in calls.items()}
    rounds = int(np.clip(budget / max(clock() - start, 1e-9), least, most))
    for turn in range(1, rounds):
        order = list(calls.items())
        for name, call in reversed(order) if turn % 2 else order:
            seconds[name].append(timed(call))
    return seconds


def summarize(seconds: Mapping[str, list[float]], reference: str, **facts: Any) -> list[Record]:
    """By call: median and quartiles of its seconds, and of its ratio to the reference by round.

    >>> summarize({"f": [2.0, 4.0, 2.0], "g": [1.0, 2.0, 1.0]}, "f", batch=8)[1]["ratio"]
    0.5
    """
    records = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[reference], strict=True)]
        record: Record = {"what": name, **facts, "reference": reference, "rounds": len(values)}
        for key, column in (("seconds", values), ("ratio", ratios)):
            low, middle, high = np.quantile(column, [0.25, 0.5, 0.75]).tolist()
            record |= {key: middle, f"{key}_q25": low, f"{key}_q75": high}
        records.append(record)
    return records
