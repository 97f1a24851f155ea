"""The figures of chapter 3 draw what they are given, and say what their axes are."""

from __future__ import annotations

import torch
from tiny import drawn

from bookmaking.figures import fisher_ewc

MATRIX = torch.tensor([[4.0, 1.0], [1.0, 0.5]], dtype=torch.float64)


def test_the_answer_follows_the_price_it_is_given() -> None:
    for tall in (False, True):
        center = torch.tensor([1.0, -1.0], dtype=torch.float64)

        def cost(moves: torch.Tensor) -> torch.Tensor:
            return 0.5 * ((moves @ MATRIX) * moves).sum(1)

        [ax] = drawn(fisher_ewc.answer, cost, center, MATRIX, tall=tall).axes
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        cross = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "+"]
        assert cross == [[[1.0, -1.0]]]


def test_an_ellipse_for_each_label() -> None:
    figure = drawn(fisher_ewc.plot_kinds, {"a": [MATRIX] * 3, "b": [2 * MATRIX] * 3})
    for ax, scale in zip(figure.axes, (1, 2), strict=True):
        assert len(ax.lines) == 3
        ellipse = torch.tensor(ax.lines[0].get_xydata())
        price = scale * ((ellipse @ MATRIX) * ellipse).sum(1)
        assert torch.allclose(price, torch.ones(200, dtype=torch.float64))


def test_prices_and_gaps_have_labelled_axes() -> None:
    line = torch.tensor([0.0, 180.0, 360.0])
    wave = drawn(fisher_ewc.plot_wave, line, 1 + line / 360, 1 + line / 360).axes[0]
    assert wave.get_ylabel()
    assert len(wave.get_xticklabels()) == 9
    upright = drawn(fisher_ewc.plot_wave, line, 1 + line / 360, 1 + line / 360, tall=True)
    assert len(upright.axes[0].get_xticklabels()) == 4
    gaps = {name: [4.0, 2.0] for name in fisher_ewc.GAP_STYLES}
    ax = drawn(fisher_ewc.plot_gaps, [50, 200], gaps, [3.9, 1.9]).axes[0]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert len(ax.texts) == 6
