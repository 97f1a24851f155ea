"""Small data and small networks, made while a page is executed: what the method chapters run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import thinkback_utils as tb


def three_classes(n: int) -> tuple[Tensor, Tensor]:
    """Points (n, 2) of three round classes, and their classes (n,).

    The centers lie 2 from the origin, at 90, 210 and 330 degrees; the standard deviation is 0.7.
    torch's own generator draws the points.

    >>> [tuple(part.shape) for part in three_classes(6)]
    [(6, 2), (6,)]
    """
    angle = torch.tensor([90.0, 210.0, 330.0]).deg2rad()
    centers = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.arange(n) % 3
    return centers[labels] + 0.7 * torch.randn(n, 2), labels


def along(degrees: float, distances: Any) -> Tensor:
    """Points at the given distances (N,) from the origin, in one direction: (N, 2) float64.

    >>> along(0, [1, 3])
    tensor([[1., 0.],
            [3., 0.]], dtype=torch.float64)
    """
    angle = np.deg2rad(degrees)
    direction = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)
    return torch.as_tensor(distances).double()[:, None] * direction


def turned(name: str, split: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random images of a set, each turned and shifted a little, and their labels.

    Drawn with replacement; turned by up to 0.15 radians and shifted by up to one pixel of 32.

    Args:
        name: of an image set, as of :func:`thinkback_utils.data.load`.
        split: of that set, ``"train"`` or ``"test"``.
        size: how many.
        rng: makes every choice.

    Returns: 8 x 8 gray pixels in [0, 1] as float32 (size, 64), and labels (size,).
    """
    images = tb.data.load(name, split)
    index = torch.from_numpy(rng.integers(len(images), size=size))
    angle = torch.from_numpy(rng.uniform(-0.15, 0.15, size))
    shift = torch.from_numpy(rng.uniform(-0.06, 0.06, (size, 2)))
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    motion = torch.cat([torch.stack(rows, 1), shift[:, :, None]], 2).float()  # (N, 2, 3)
    grid = F.affine_grid(motion, [size, 1, 32, 32], False)
    gray = images.images[index, :1].float() / 255
    moved = F.grid_sample(gray, grid, align_corners=False)
    labels = images.labels
    assert labels is not None
    return F.avg_pool2d(moved, 4).flatten(1), labels[index]


class Pools(NamedTuple):
    """Logits of a small network: of handwritten digits, which it knows, and of printed letters."""

    digits: Tensor  # (20000, 10) float64
    letters: Tensor  # (10000, 10) float64
    accuracy: float  # on the digits, in [0, 1]


def digits_and_letters(rng: np.random.Generator) -> Pools:
    """Train a network with one hidden layer on 6,000 digits; run it on test digits and on letters.

    Weights are drawn by torch's own generator, all else by ``rng``.
    """
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    x, y = turned("digits", "train", 6_000, rng)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(12):
        for batch in torch.from_numpy(rng.permutation(len(x))).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        known, labels = turned("digits", "test", 20_000, rng)
        unknown, _ = turned("letters", "test", 10_000, rng)
        digits, letters = net(known).double(), net(unknown).double()
    return Pools(digits, letters, float((digits.argmax(1) == labels).double().mean()))


def fit_logistic(h: Tensor, y: Tensor, start: Sequence[float] = ()) -> Tensor:
    """Maximum-likelihood weights of a logistic regression without bias, by Newton's method.

    Args:
        h: inputs (N, D), float64.
        y: labels (N,), 0 or 1.
        start: weights (D,) to start from; zeros where none are given.

    Raises:
        ValueError: the likelihood has no maximum that Newton's method finds, as where a plane
            separates the labels.

    >>> h = torch.tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    >>> fit_logistic(h, torch.tensor([1.0, 1.0, 1.0, 0.0])).exp()  # odds of 3 to 1
    tensor([3.0000], dtype=torch.float64)
    """
    w = torch.tensor(start or [0.0] * h.shape[1], dtype=torch.float64)
    step = torch.full_like(w, torch.inf)
    for _ in range(30):
        p = torch.sigmoid(h @ w)
        curvature = (h.T * (p * (1 - p))) @ h
        step, singular = torch.linalg.solve_ex(curvature, (p - y) @ h)
        w = w - step
        if singular:
            break
    # Where a plane separates the labels every step is as long as the last, while slopes vanish.
    if not step.norm() < 1e-8 * (1 + w.norm()):
        remedy = "take more points or another seed"
        raise ValueError(f"thinkback: no weights of {len(h)} points are the best; {remedy}")
    return w
