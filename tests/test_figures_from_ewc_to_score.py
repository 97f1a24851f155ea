"""The figures of chapter 4 draw what they are given, and say what their axes are."""

from __future__ import annotations

import torch
from tiny import drawn

from bookmaking.figures import from_ewc_to_score as figures

F2 = torch.tensor([[4.0, 1.0], [1.0, 0.5]], dtype=torch.float64)


def test_the_answer_ranks_every_probe() -> None:
    h = torch.randn(20, 2, dtype=torch.float64)
    order = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]])
    for tall in (False, True):
        given = lambda x: x[:, 0] > 1, h, h[:4], order, "divide"
        plane, ranks = drawn(figures.answer, *given, tall=tall).axes
        assert plane.get_xlabel()
        assert plane.get_ylabel()
        assert ranks.get_ylabel()
        assert [line.get_ydata().tolist() for line in ranks.lines] == order.T.tolist()
        assert plane.get_title() + plane.get_title("left") == "Called OOD: divide"


def test_leverage_is_written_beside_each_point() -> None:
    near, far = torch.tensor([[2.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    ax = drawn(figures.plot_leverage, F2, {"near": near, "far": far}, torch.randn(9, 2)).axes[0]
    said = [text.get_text() for text in ax.texts if text.get_text()]
    assert said == ["near (2, 1), leverage 2", "far (2, −1), leverage 10"]
    for line, leverage in zip(ax.lines, (2, 10), strict=False):  # the ellipses
        points = torch.tensor(line.get_xydata())
        distance = (points @ torch.linalg.inv(F2) * points).sum(1)
        assert torch.allclose(distance, torch.full_like(distance, leverage))


def test_steps_are_labelled_with_their_price() -> None:
    axis = torch.linspace(-3, 3, 31, dtype=torch.float64)
    square = -0.5 * (axis[:, None].square() + axis.square())
    unit = torch.eye(2, dtype=torch.float64)
    moves = {"gradient": 2 * unit[0], "natural gradient": unit[1]}
    line = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0])
    figure = drawn(figures.plot_steps, (axis, axis), square, 0 * unit[0], moves, line, unit)
    said = {text.get_text() for text in figure.axes[0].texts}
    assert {"gradient\nprice 2.0σ", "natural gradient\nprice 1.0σ"} <= said


def test_predictions_and_traps_have_labelled_axes() -> None:
    gain = torch.tensor([1e-4, 1e-2])
    refit = drawn(figures.plot_refit, gain, dict.fromkeys(figures.REFIT_COLORS, gain)).axes[0]
    trap = drawn(figures.plot_trap, gain, {"damping 0": gain, "damping 1": gain / 2}, 0.1).axes[0]
    for ax in (refit, trap):
        assert ax.get_xlabel()
        assert ax.get_ylabel()
    assert {" damping 0", " damping 1"} <= {text.get_text() for text in trap.texts}
