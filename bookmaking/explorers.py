"""What a reader can explore without a kernel: numbers as small JSON, or tables, for a script.

``book/_static/explorers.js`` finds these outputs on a page and draws, in place of a figure's image
that shows a part of the same. Without it (Jupyter, Colab, no JavaScript) nothing is lost: the
figure stays, and a table is a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from IPython.display import HTML
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from experiments import evaluation
from thinkback_utils import metrics
from thinkback_utils.methods import TITLES

from . import palette
from .markup import fill

BINS = 40  # of a drawn histogram
STEPS = 3 * BINS  # of the threshold's slider
START = "thinkback"  # the score that the example browser shows first
# of its sets, in their order
SET_COLORS = tuple(palette.PALETTE[name] for name in ("id", "ood", "other-0"))
SLIDERS = '<a href="#{}">A figure of this page</a> has sliders where JavaScript runs.'
MARKS = '<a href="#{}">The figure</a> shows the picture behind each mark where JavaScript runs.'

Pair = tuple[ArrayLike, ArrayLike]
Record = Mapping[str, Any]


def threshold(pairs: Mapping[str, Pair], figure: str, prevalence: float = 1 / 6) -> HTML:
    """Two histograms under a threshold, and the AUPR under a prevalence: both on a slider.

    Counts at every place of the threshold and the AUPR at every prevalence are exact, so the page
    only divides.

    Args:
        pairs: what the reader chooses from, by title: (N_id,) and (N_ood,) scores, higher = more
            OOD.
        figure: name of the figure on the same page whose image gives way.
        prevalence: where the slider starts, in (0, 1).

    Raises:
        ValueError: on scores without two different values, or as
            :func:`thinkback_utils.metrics.ood_metrics` does.

    >>> '"auroc":0.875' in threshold({"toy": ([0.0, 1.0], [1.0, 3.0])}, "fig-toy").data
    True
    """
    grid = sorted({*np.arange(0.01, 0.995, 0.01).round(2).tolist(), round(prevalence, 6)})
    choices = []
    for title, sides in pairs.items():
        curve = metrics.roc(*sides)
        ids, ood = (np.asarray(side, dtype=float) for side in sides)
        edges = _edges(min(ids.min(), ood.min()), max(ids.max(), ood.max()), STEPS)
        choices.append(
            {
                "title": title,
                "range": [float(edges[0]), float(edges[-1])],
                "id": [int((ids >= edge).sum()) for edge in edges],
                "ood": [int((ood >= edge).sum()) for edge in edges],
                "auroc": _digits(metrics.summary(curve)["auroc"]),
                "aupr": [_digits(metrics.average_precision(curve, pi)) for pi in grid],
            }
        )
    start = grid.index(round(prevalence, 6))
    return _fed(
        "threshold",
        figure,
        {"bin": STEPS // BINS, "start": start, "prevalence": grid, "pairs": choices},
    )


def temperature(
    steps: Mapping[float, Sequence[ArrayLike]], sets: Sequence[str], figure: str, start: float = 5.0
) -> HTML:
    """Histograms of the score at every T, in-distribution against one set at a time, over AUROC and
    FPR95 by T.

    The axis is the logarithm of the score; what lies below the lowest 1 % of a set is counted in
    the first bin.

    Args:
        steps: T -> scores, not negative: (N_id,), then one (N,) per set.
        sets: titles of the OOD sets.
        figure: name of the figure on the same page whose image gives way.
        start: the T that is shown first.

    Raises:
        ValueError: on a T without scores of every set, or as
            :func:`thinkback_utils.metrics.ood_metrics` does.
    """
    frames = []
    for T, (ids, *oods) in steps.items():
        if len(oods) != len(sets):
            raise ValueError(
                f"thinkback: T = {T:g} has scores of {len(oods)} OOD sets, the titles name"
                f" {len(sets)}"
            )
        curves = [metrics.roc(ids, ood) for ood in oods]
        numbers = [metrics.summary(curve) for curve in curves]
        logs = [_log10(side) for side in (ids, *oods)]
        edges = _edges(
            min(np.quantile(side, 0.01) for side in logs), max(side.max() for side in logs), BINS
        )
        frames.append(
            {
                "T": T,
                "range": [_digits(edges[0]), _digits(edges[-1])],
                "counts": [np.histogram(side.clip(edges[0]), edges)[0].tolist() for side in logs],
                "cut": [
                    _digits(_log10(curve.threshold[(curve.tpr >= 0.95).argmax()]))
                    for curve in curves
                ],
                "auroc": [_digits(number["auroc"]) for number in numbers],
                "fpr95": [_digits(number["fpr95"]) for number in numbers],
            }
        )
    first = min(range(len(frames)), key=lambda i: abs(list(steps)[i] - start))
    return _fed("temperature", figure, {"start": first, "sets": list(sets), "frames": frames})


def examples(browsed: Record, figure: str) -> HTML:
    """Single images as marks on a plane, each with its picture, the network's answer and what every
    score says.

    Args:
        browsed: of ``results/gallery/examples.json``: see :func:`bookmaking.gallery.examples`.
        figure: name of the figure on the same page whose image gives way.
    """
    rows, sets = browsed["images"], list(dict.fromkeys(row["set"] for row in browsed["images"]))
    keys = ("index", "predicted", "true", "norm2", "residual2", "residual2_T1", "tile")
    data: dict[str, Any] = {key: [row[key] for row in rows] for key in keys}
    data["set"] = [sets.index(row["set"]) for row in rows]
    data["sets"] = [
        {"title": set_title(name), "color": color, "outlier": name != evaluation.ID_TEST}
        for name, color in zip(sets, SET_COLORS, strict=False)
    ]
    data["methods"] = [
        {"title": title}
        | {key: [row[key][name] for row in rows] for key in ("scores", "percentiles")}
        | {"alarms": [int(row["alarms"][name]) for row in rows]}
        for name, title in browsed["methods"].items()
    ]
    data |= {
        "start": list(browsed["methods"]).index(START),
        "alpha": browsed["alpha"],
        "columns": browsed["columns"],
    }
    return _fed("examples", figure, data, MARKS)


def set_title(name: str) -> str:
    """What a set is called, the in-distribution test images included.

    >>> set_title("cifar10-test")
    'CIFAR-10'
    """
    return evaluation.SET_TITLES[name.removesuffix("-test")]


def results(
    records: Sequence[Record], paper: Sequence[Record], sets: Sequence[str], methods: Sequence[str]
) -> HTML:
    """One table per metric, a set a row and a method a column: ours, its 95 % interval, and what
    the paper printed.

    Of several records of a set and method (training seeds) the mean is shown, and the interval
    holds all of theirs; ± is the standard deviation over these records, then, in brackets where
    both are there, over draws of images.

    Args:
        records: from :func:`experiments.evaluation.with_intervals`.
        paper: from :func:`experiments.evaluation.paper_table`.
        sets: rows from top to bottom; ``mean`` is the foot of the table.
        methods: columns.
    """
    prevalence = next((record["prevalence"] for record in records if "prevalence" in record), None)
    tables = []
    for metric, title in metrics.TITLES.items():
        rows = []
        for name in [*sets, "mean"]:
            cells = [_cell(_of(records, name, m), _of(paper, name, m), metric) for m in methods]
            label = evaluation.SET_TITLES[name].replace("-", "‑")  # hyphens that do not break
            rows.append({"name": name, "title": label, "cells": cells})
        said = metric == "aupr" and prevalence is not None
        table = {"metric": metric, "title": title, "rows": rows}
        tables.append(table | {"prevalence": f", prevalence {prevalence:.3g}" if said else ""})
    content = fill("results", tables=tables, methods={name: TITLES[name] for name in methods})
    hint = "These tables can be sorted and drawn where JavaScript runs."
    return _explorer("results", content, hint)


def _of(records: Sequence[Record], name: str, method: str) -> list[Record]:
    return [record for record in records if (record["set"], record["method"]) == (name, method)]


def _cell(own: Sequence[Record], printed: Sequence[Record], metric: str) -> dict[str, Any]:
    """What one cell of a table shows: numbers in percent, and the spread of ours in words."""
    numbers: dict[str, float] = {}
    spread = []
    if own:
        values = [100 * record[metric] for record in own]
        numbers["here"] = float(np.mean(values))
        if len(own) > 1:
            spread.append(f"± {np.std(values, ddof=1):.2f}")
        if own[0].get("draws", 1) > 1:
            spread.append(f"± {np.mean([100 * record[f'{metric}_std'] for record in own]):.2f}")
    if own and all("interval95" in record for record in own):
        low, high = zip(*(record["interval95"][metric] for record in own), strict=True)
        numbers |= {"low": 100 * min(low), "high": 100 * max(high)}
    if printed:
        numbers["paper"] = 100 * printed[0][metric]
    return {"numbers": numbers, "spread": " (".join(spread) + ")" * (len(spread) > 1)}


def _fed(kind: str, figure: str, data: Mapping[str, Any], hint: str = SLIDERS) -> HTML:
    content = fill("fed", facts={"figure": figure, **data})
    return _explorer(kind, content, Markup(hint).format(figure))


def _explorer(kind: str, content: Markup, hint: str) -> HTML:
    colors = palette.PALETTE.items()
    style = "; ".join(f"--tb-{name}: {palette.both(color)}" for name, color in colors)
    return HTML(fill("explorer", kind=kind, content=content, hint=hint, style=style))


def _edges(low: float, high: float, count: int) -> NDArray[np.float64]:
    if not low < high:
        raise ValueError(f"thinkback: all scores are {low}; an explorer needs two different values")
    return np.linspace(low, high, count + 1)


def _log10(scores: ArrayLike) -> Any:
    return np.log10(np.maximum(scores, 1e-300))


def _digits(value: float) -> float:
    return round(float(value), 7)
