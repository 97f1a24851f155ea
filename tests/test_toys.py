"""What the method chapters run on is made as they say, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookmaking import toys


def test_points_along_a_ray_lie_at_their_distance() -> None:
    points = toys.along(123, [0.5, 2.0])
    assert torch.allclose(points.norm(dim=1), torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert torch.allclose(points[1], 4 * points[0])


def test_classes_lie_around_their_centers() -> None:
    torch.manual_seed(0)
    x, y = toys.three_classes(6_000)
    centers = torch.stack([x[y == k].mean(0) for k in range(3)])
    assert torch.allclose(centers.norm(dim=1), torch.tensor(2.0), atol=0.1)
    assert torch.allclose(centers.sum(0), torch.zeros(2), atol=0.1)
    assert torch.allclose(x[y == 0].std(0), torch.tensor(0.7), atol=0.05)


def test_a_generator_decides_how_images_are_turned() -> None:
    first, again, other = (
        toys.turned("digits", "test", 9, np.random.default_rng(s)) for s in (0, 0, 1)
    )
    assert first[0].shape == (9, 64)
    assert first[1].shape == (9,)
    assert first[0].min() >= 0
    assert first[0].max() <= 1
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_newton_finds_the_odds_or_says_that_there_are_none() -> None:
    h = torch.ones(4, 1, dtype=torch.float64)
    w = toys.fit_logistic(h, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.allclose(w.exp(), torch.tensor([3.0], dtype=torch.float64))
    assert torch.equal(toys.fit_logistic(h, torch.tensor([1.0, 1.0, 1.0, 0.0]), w.tolist()), w)
    for labels in (torch.ones(4), torch.zeros(4)):
        with pytest.raises(ValueError, match="thinkback: no weights of 4 points"):
            toys.fit_logistic(h, labels.double())
