"""Figures of chapter 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.plots import ID_COLOR, INK, METHOD_COLORS, OOD_COLOR, PAPER

from .forms import two_forms

COLUMNS = ["$F\\,g^2$\nmultiply", "$g^2$\nnone", "$g^2/F$\ndivide"]
REFIT_COLORS = {
    "full F": ID_COLOR,
    "diagonal F": OOD_COLOR,
    "diagonal E (Eq. 6)": METHOD_COLORS["thinkback"],
}
DAMPING_STYLES = ("-", "--", "-.")
BOLD: dict[str, Any] = {"weight": "bold", "ha": "center"}


@two_forms(wide=(7.6, 3.4), tall=(3.9, 6.2))
def answer(
    figure: Figure,
    tall: bool,
    called: Callable[[Tensor], Tensor],
    h: Tensor,
    probes: Tensor,
    order: Tensor,
    title: str,
) -> None:
    """Probes in the plane of two features, and their ranks under three scores.

    Args:
        called: whether a score calls points (M, 2) OOD: bool (M,).
        h: training points (N, 2).
        probes: the points that are ranked (P, 2); the last three are outliers.
        order: rank of each probe under each score (3, P), 1 = most OOD.
        title: of the score that shades the plane.
    """
    if tall:
        plane, ranks = figure.subplots(2, 1, height_ratios=(1, 1.5))
    else:
        plane, ranks = figure.subplots(1, 2, width_ratios=(1, 1.15))
    inside = len(probes) - 3
    colors = [ID_COLOR] * inside + [OOD_COLOR] * 3
    plot_plane(called, h, probes, plane)
    plane.set_title(f"Called OOD: {title}")
    for i, point in enumerate(probes):
        name = str(i + 1)
        plane.plot(*point, "o", color=colors[i], markersize=13)
        plane.text(*point, name, color=PAPER, va="center_baseline", clip_on=True, **BOLD)
        ranks.plot(range(3), order[:, i], color=colors[i], marker="o", markersize=15)
        for column, rank in enumerate(order[:, i].tolist()):
            ranks.text(column, rank, name, color=PAPER, va="center_baseline", **BOLD)
    ranks.set_xticks(range(3), COLUMNS)
    ranks.set(ylabel="rank, 1 = most OOD", ylim=(len(probes) + 0.6, 0.4), xlim=(-0.3, 2.3))
    ranks.set_title("Rank of each point")


def plot_plane(called: Callable[[Tensor], Tensor], h: Tensor, probes: Tensor, ax: Axes) -> Axes:
    """Training points, and the zone that a score calls OOD, as far as points and probes reach."""
    low, high = torch.cat([h, probes]).aminmax(dim=0)
    margin = 0.12 * (high - low)
    ends = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    places = [torch.linspace(*pair, 200) for pair in ends]
    x = torch.cartesian_prod(*places).to(h.dtype)
    zone = called(x).double().view(200, 200)
    ax.contourf(*places, zone.T, levels=[0.5, 1.5], colors=[OOD_COLOR], alpha=0.2)
    ax.scatter(h[:, 0], h[:, 1], s=4, color=INK, alpha=0.4, linewidths=0)
    ax.set(xlabel="feature $h_1$ (large values)", ylabel="feature $h_2$ (small values)")
    return ax


@two_forms(wide=(7.2, 3.9), tall=(3.9, 3.6))
def plot_leverage(
    figure: Figure, tall: bool, fisher: Tensor, points: Mapping[str, Tensor], cloud: Tensor
) -> None:
    """Leverage as a distance: ellipses of equal leverage through some points of one length.

    Args:
        fisher: the matrix F (2, 2).
        points: name -> features (2,), all equally far from the origin.
        cloud: training points (N, 2) whose mean outer product is F.
    """
    ax = figure.subplots()
    ax.scatter(cloud[:, 0], cloud[:, 1], s=5, color=INK, alpha=0.4, linewidths=0)
    angle = torch.linspace(0, 2 * torch.pi, 300, dtype=fisher.dtype)
    circle = torch.stack([angle.cos(), angle.sin()])
    root = torch.linalg.cholesky(fisher)
    for (name, h), color in zip(points.items(), (ID_COLOR, OOD_COLOR), strict=True):
        leverage = h @ torch.linalg.solve(fisher, h)
        ax.plot(*(leverage.sqrt() * root @ circle), color=color)
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkB": 0}
        ax.annotate("", tuple(h.tolist()), (0, 0), arrowprops=arrow)
        gap, up = "\n" if tall else " ", bool(h[1] > 0)
        label = f"{name} ({h[0]:g}, {h[1]:g}),{gap}leverage {leverage:.0f}".replace("-", "−")
        beside = (float(h[0]) + 0.1, float(h[1]) + (1.6 if up else -0.5))
        ax.text(*beside, label, color=color, weight="bold", va="bottom" if up else "top")
    ax.plot(*(h.norm() * circle), ":", color=INK, linewidth=1.2, label="same length")
    upright = torch.sqrt((h.square() / fisher.diagonal()).sum() * fisher.diagonal())
    label = "same leverage for the diagonal"
    ax.plot(*(upright[:, None] * circle), "--", color=INK, linewidth=1.2, label=label)
    ax.set(xlabel="feature $h_1$", ylabel="feature $h_2$", aspect="equal")
    ax.set(xlim=(-7, 7.4), ylim=(-4, 5) if tall else (-2.8, 3.6))
    figure.legend(loc="outside upper center", ncols=1 if tall else 2)


@two_forms(wide=(7.2, 4.2), tall=(3.9, 4.2))
def plot_steps(
    figure: Figure,
    tall: bool,
    axes: Sequence[Tensor],
    log_posterior: Tensor,
    w: Tensor,
    moves: Mapping[str, Tensor],
    line: Sequence[Tensor],
    information: Tensor,
) -> None:
    """Two steps of equal gain in the plane of two weights, over the exact posterior.

    Args:
        axes: places of each weight, two of (G,).
        log_posterior: its logarithm there, 0 at the peak (G, G).
        w: the peak (2,).
        moves: name -> what is subtracted from the weights (2,): first the shorter-lived, then the
            natural gradient.
        line: weights of equal gain: values of the first, of the second weight.
        information: precision of the Gaussian that replaces the posterior (2, 2).
    """
    ax = figure.subplots()
    covariance = torch.linalg.inv(information)
    contours: dict[str, Any] = {"colors": INK, "linestyles": "-", "linewidths": 1}
    ax.contour(*axes, log_posterior.T, levels=[-4.5, -2, -0.5], **contours)
    plain, natural = moves.values()
    for k in (1, 2, 3):
        side = w + k * natural.sign()[1] * covariance[1] / covariance[1, 1].sqrt()
        place: dict[str, Any] = {"ha": "center", "va": "top" if side[1] < w[1] else "bottom"}
        ax.text(float(side[0]), float(side[1]), f"{k}σ", **place)
    ax.plot(*line, color=INK, linestyle="--", linewidth=1)
    below, right = bool(natural[1] < 0), 1 if plain[0] < 0 else -1
    tones, shifts = (OOD_COLOR, ID_COLOR), (4 * right, -30 * right)
    for (name, move), tone, shift in zip(moves.items(), tones, shifts, strict=True):
        arrow = {"arrowstyle": "-|>", "color": tone, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        end = tuple((w - move).tolist())
        ax.annotate("", end, tuple(w.tolist()), arrowprops=arrow)
        label = f"{name}\nprice {(move @ information @ move).sqrt():.1f}σ"
        place = {
            "ha": "left" if shift > 0 else "right",
            "va": "top" if below else "bottom",
        }
        offset = (shift, -4 if below else 4)
        shown = ax.annotate(label, end, offset, textcoords="offset points", **place)
        shown.set(color=tone, weight="bold")
    reach = (1.9 if tall else 2.2) * float(plain[0].abs())
    ax.set(xlim=(float(w[0]) - reach, float(w[0]) + reach))
    ax.set(xlabel="weight $w_1$", ylabel="weight $w_2$")


@two_forms(wide=(7.2, 4.0), tall=(3.9, 4.4))
def plot_refit(figure: Figure, tall: bool, gain: Tensor, predicted: Mapping[str, Tensor]) -> None:
    """Predicted over exact gain from refitting with a point, against the exact gain.

    Args:
        gain: exact, for each point (N,).
        predicted: a key of ``REFIT_COLORS`` -> prediction (N,).
    """
    ax = figure.subplots()
    for name, value in predicted.items():
        dots: dict[str, Any] = {"s": 12, "color": REFIT_COLORS[name], "alpha": 0.7, "linewidths": 0}
        ax.scatter(gain, value / gain, label=name, **dots)
    ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="exact gain from refitting with the point")
    ax.set(yscale="log", ylabel="predicted / exact")
    ax.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"], minor=False)
    ax.tick_params(axis="y", which="minor", left=False, labelleft=False)
    columns = 1 if tall else 3
    figure.legend(loc="outside upper center", markerscale=2, handletextpad=0, ncols=columns)


@two_forms(wide=(7.2, 3.8), tall=(3.9, 4.2))
def plot_trap(
    figure: Figure,
    tall: bool,
    amplitude: Tensor,
    scores: Mapping[str, Tensor],
    ceiling: float,
) -> None:
    """Score of a point against the activation of a feature that was silent in training.

    Args:
        amplitude: activations (N,).
        scores: label -> scores (N,), three at most.
        ceiling: the largest score of a training point.
    """
    ax = figure.subplots()
    colors = (OOD_COLOR, ID_COLOR, INK)
    for (label, values), color, style in zip(scores.items(), colors, DAMPING_STYLES, strict=False):
        ax.plot(amplitude, values, style, color=color)
        ax.text(float(amplitude[-1]), float(values[-1]), f" {label}", color=color, va="center")
    ax.axhline(ceiling, color=INK, linewidth=0.8, linestyle=":")
    end = 1e6 if tall else 2e4
    ceiling_label = "largest score of\na training point"  # at the right, below the curves
    ax.text(end, ceiling * 1.4, ceiling_label, ha="right", va="bottom")
    ax.set(xscale="log", xlim=(5e-11, end))
    ax.set_xticks([1e-10, 1e-5, 1] if tall else [1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1])
    ax.set(xlabel="activation $a$ of the silent feature")
    ax.set(yscale="log", ylabel="score, Eq. 6")
