"""Figures of chapter 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.plots import ID_COLOR, INK, OOD_COLOR

from .forms import two_forms

LEVELS = (0.7, 3)  # nats
LABEL_STYLES = {
    "from the model: Fisher": (ID_COLOR, "-"),
    "true label": (INK, "--"),
    "own decision": (OOD_COLOR, ":"),
}
GAP_STYLES = {
    "two weights, diagonal Fisher": (OOD_COLOR, "o-", 7),
    "two weights, full Fisher": (ID_COLOR, "o-", -15),
    "one weight, Beta posterior": (INK, "s-", -15),
}
MOVES = {
    0: "$w_1$\nup",
    45: "both\nup",
    90: "$w_2$\nup",
    135: "$w_1$ down\n$w_2$ up",
    180: "$w_1$\ndown",
    225: "both\ndown",
    270: "$w_2$\ndown",
    315: "$w_1$ up\n$w_2$ down",
    360: "$w_1$\nup",
}


@two_forms(wide=(7.6, 3.1), tall=(3.9, 4.8))
def answer(
    figure: Figure, tall: bool, cost: Callable[[Tensor], Tensor], mu: Tensor, information: Tensor
) -> None:
    """The true price of moving two weights, and what the Fisher and its diagonal say.

    Args:
        cost: price (N,) in nats of moves (N, 2) away from the minimum.
        mu: the minimum (2,).
        information: Fisher information of the whole training set (2, 2).
    """
    ax = figure.subplots()
    sd = torch.linalg.inv(information).diagonal().sqrt()
    line = torch.linspace(-3.6, 3.6, 121, dtype=torch.float64)
    moves = torch.cartesian_prod(*(sd[:, None] * line))
    w1, w2 = mu[:, None] + sd[:, None] * line

    def on_grid(prices: Tensor) -> Tensor:
        return prices.view(121, 121).T

    true = on_grid(cost(moves))
    ax.contourf(w1, w2, true, [0, *LEVELS], colors=[INK, INK], alpha=0.3)
    ax.contourf(w1, w2, true, [0, LEVELS[0]], colors=[INK], alpha=0.3)
    ax.plot([], [], color=INK, linewidth=6, alpha=0.5, label="true price")
    diagonal = torch.diag(information.diagonal())
    kinds = [("full Fisher", information, ID_COLOR, "--")]
    kinds += [("diagonal Fisher: EWC", diagonal, OOD_COLOR, "-")]
    for label, matrix, color, style in kinds:
        price = on_grid(0.5 * ((moves @ matrix) * moves).sum(1))
        ax.contour(w1, w2, price, LEVELS, colors=color, linestyles=style, linewidths=1.6)
        ax.plot([], [], color=color, linestyle=style, linewidth=1.6, label=label)
    ax.plot(*mu, "+", color=INK, markersize=10)
    ax.set(xlabel="weight $w_1$", ylabel="weight $w_2$")
    figure.legend(loc="outside upper center" if tall else "outside right upper")


@two_forms(wide=(7.2, 3.6), tall=(3.9, 6.4))
def plot_kinds(figure: Figure, tall: bool, panels: Mapping[str, Sequence[Tensor]]) -> None:
    """Moves of equal price according to the three kinds of Fisher, a panel for each data set.

    Args:
        panels: title -> matrices (2, 2) under labels from the model, true labels, own decisions.
    """
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    grid = (len(panels), 1) if tall else (1, len(panels))
    axes = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (title, matrices) in zip(axes, panels.items(), strict=True):
        for matrix, (name, (color, style)) in zip(matrices, LABEL_STYLES.items(), strict=True):
            ellipse = torch.linalg.solve(torch.linalg.cholesky(matrix).T, circle)
            ax.plot(*ellipse, style, color=color, label=name)
        ax.set(title=title, aspect="equal")
    figure.supxlabel("move of $w_1$", fontsize="medium")
    figure.supylabel("move of $w_2$", fontsize="medium")
    columns = 1 if tall else 3
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns)


@two_forms(wide=(7.2, 3.7), tall=(3.9, 4.2))
def plot_wave(
    figure: Figure, tall: bool, degrees: Tensor, price: Tensor, quadratic: Tensor
) -> None:
    """Price by direction of moves that all cost the same according to the diagonal Fisher.

    Args:
        degrees: directions (N,), measured in units of each weight's own width.
        price: the true one (N,), in units of the diagonal's.
        quadratic: that of the full Fisher (N,).
    """
    ax = figure.subplots()
    ax.plot(degrees, price, color=INK, linewidth=5, alpha=0.5, label="true price")
    ax.plot(degrees, quadratic, "--", color=ID_COLOR, label="full Fisher")
    ax.axhline(1, color=OOD_COLOR, label="diagonal Fisher")
    shown = dict(list(MOVES.items())[1::2]) if tall else MOVES
    ax.set_xticks(list(shown), list(shown.values()))
    ax.set(ylabel="price (diagonal = 1)", xlim=(0, 360), ylim=(0, 1.1 * float(price.max())))
    figure.legend(loc="outside upper center", ncols=1 if tall else 3)


@two_forms(wide=(7.2, 3.8), tall=(3.9, 4.6))
def plot_gaps(
    figure: Figure,
    tall: bool,
    sizes: Sequence[int],
    gaps: Mapping[str, Sequence[float]],
    predicted: Sequence[float],
) -> None:
    """Gap between a posterior and its Gaussian against the number of samples.

    Args:
        sizes: numbers of samples (S,).
        gaps: a key of ``GAP_STYLES`` -> gaps (S,), in percent.
        predicted: of the one weight (S,).
    """
    ax = figure.subplots()
    for label, values in gaps.items():
        color, style, above = GAP_STYLES[label]
        ax.plot(sizes, values, style, color=color, markersize=5, label=label)
        for n, value in zip(sizes, values, strict=True):
            place: dict[str, Any] = {
                "xytext": (0, above),
                "textcoords": "offset points",
                "ha": "center",
            }
            ax.annotate(f"{value:.1f}", (n, value), color=color, size=10, **place)
    ax.plot(sizes, predicted, ":", color=INK, label="one weight, predicted")
    ax.set(xscale="log", xlabel="number of samples $N$")
    ax.set(yscale="log", ylabel="gap to the exact posterior (%)")
    every = torch.tensor([*gaps.values()])
    ax.set_ylim(float(every.min()) * 0.5, float(every.max()) * 2)
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    ax.minorticks_off()
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)
