"""Figures of chapter 6, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bookmaking.answer import Answer
from experiments import plots

from .forms import two_forms

CHANCE = 0.1  # of ten classes
OURS, OTHERS = plots.OTHER_COLORS[1], plots.INK


def answer(runs: pd.DataFrame, published: float) -> Answer:
    """Test accuracy as bars from 0 to 100 %: guessing, the networks of the book, the published one.

    Args:
        runs: of :func:`bookmaking.runs.trained`.
        published: accuracy in [0, 1].
    """
    bars = 2 + runs.groupby(["network", "recipe"]).ngroups
    wide, tall = (7.6, 1.2 + 0.45 * bars), (3.9, 1.3 + 0.75 * bars)
    return two_forms(wide, tall)(draw_answer)(runs, published)


def draw_answer(figure: Figure, tall: bool, runs: pd.DataFrame, published: float) -> None:
    """The figure of :func:`answer`; of several seeds the bar is their mean, and each has a dot."""
    ax = figure.subplots()
    gap = "\n" if tall else " "
    rows = [("guessing", [CHANCE], OTHERS)]
    for (network, recipe), group in runs.groupby(["network", "recipe"], sort=False):
        rows.append((f"this book: {network},{gap}recipe {recipe}", list(group["accuracy"]), OURS))
    rows.append((f"published:{gap}WRN-40-2", [published], OTHERS))
    for place, (_, shares, color) in enumerate(rows):
        values = 100 * np.array(shares)
        ax.barh(-place, values.mean(), 0.62, color=color, alpha=0.75)
        if len(values) > 1:
            ax.plot(values, np.full(len(values), -place), "|", color=color, markersize=14)
        several = f" ({len(values)} seeds)" if len(values) > 1 else ""
        ax.text(values.max() + 1, -place, f"{values.mean():.1f} %{several}", va="center")
    ax.set_yticks([-place for place in range(len(rows))], [label for label, _, _ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 125), xticks=range(0, 101, 20))
    ax.set(xlabel="test images named correctly (%)")


def plot_band(runs: pd.DataFrame, published: float, error: float) -> Answer:
    """Each run's test accuracy beside the published one and its sampling error.

    Args:
        runs: of :func:`bookmaking.runs.trained`.
        published: accuracy in [0, 1].
        error: half the width of its 95 % interval.
    """
    height = 1.2 + 0.45 * len(runs)
    wide, tall = (6.4, height), (3.9, height + 0.2 * len(runs))
    return two_forms(wide, tall)(draw_band)(runs, published, error)


def draw_band(
    figure: Figure, tall: bool, runs: pd.DataFrame, published: float, error: float
) -> None:
    """The figure of :func:`plot_band`."""
    ax = figure.subplots()
    low, high = 100 * (published - error), 100 * (published + error)
    ax.axvspan(low, high, color=OTHERS, alpha=0.25, linewidth=0)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
    ax.text(100 * published, 1.02, "published ± sampling error", **style)
    values = 100 * runs["accuracy"].to_numpy()
    places = -np.arange(len(values))
    ax.plot(values, places, "o", color=OURS)
    for value, place in zip(values, places, strict=True):
        ax.text(value, place + 0.12, f"{value:.2f} %", ha="center", va="bottom")
    gap = ",\n" if tall else ", "
    labels = runs["network"] + ", " + runs["recipe"] + gap + "seed " + runs["seed"].astype(str)
    ax.set_yticks(places, labels)
    ax.set(xlabel="test accuracy (%)", ylim=(0.7 - len(values), 0.7))
    ax.set(xlim=(min(values.min() - 1, low - 1), max(values.max(), high) + 0.5))


@two_forms(wide=(6.4, 3.6), tall=(3.9, 3.2))
def plot_history(figure: Figure, tall: bool, history: Mapping[str, Sequence[float]]) -> None:
    """Loss (left scale) and accuracy (right scale) of one run by epoch."""
    plots.plot_training(history["loss"], history["accuracy"], ax=figure.subplots())


@two_forms(wide=(6.4, 3.4), tall=(3.9, 3.2))
def plot_losses(figure: Figure, tall: bool, runs: pd.DataFrame) -> None:
    """Training loss by epoch, a line for each run."""
    ax = figure.subplots()
    kinds = list(dict.fromkeys(zip(runs["network"], runs["recipe"], strict=True)))
    colors = (OURS, plots.OTHER_COLORS[0], *plots.OTHER_COLORS[2:])
    for run in runs.itertuples():
        kind = kinds.index((run.network, run.recipe))
        first = run.Index == runs.index[runs["network"].eq(run.network)][0]
        label = f"{run.network}, {run.recipe}" if first else None
        loss = run.history["loss"]
        epochs = np.arange(1, len(loss) + 1)
        ax.plot(epochs, loss, color=colors[kind % len(colors)], linewidth=1.5, label=label)
    ax.set(xlabel="epoch", ylabel="mean training loss", ylim=(0, None))
    ax.legend()
