"""The figures of chapter 1 draw what they are given, and say what their axes are."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from tiny import drawn

from bookmaking.figures import problem
from bookmaking.toys import three_classes


def titles(figure: Figure) -> list[str]:
    return [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]


def cloud() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = three_classes(30)
    return x.double(), y


def test_the_answer_has_a_map_and_a_curve_for_each_ray() -> None:
    for tall in (False, True):

        def confidence(points: torch.Tensor) -> torch.Tensor:
            return 1 - 0.6 / (1 + points.norm(dim=1))

        figure = drawn(problem.answer, confidence, *cloud(), [0, 90], tall=tall)
        assert "distance from the origin" in titles(figure)
        assert len(figure.axes[1].lines) == 2
        assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == [
            "0°",
            "90°",
        ]


def test_methods_and_controls_are_drawn_in_percent() -> None:
    called = {"Softmax": [0.5, 0.0], "a control": [0.5, 1.0]}
    figure = drawn(problem.plot_far, [1.0, 100.0], called, cloud()[0])
    softmax, control = figure.axes[0].lines
    assert control.get_ydata().tolist() == [50, 100]
    assert softmax.get_color() != control.get_color()
    assert all(titles(figure))


def test_every_ray_has_a_panel_and_every_score_a_curve() -> None:
    curve = np.array([0.0, 0.5, 1.0])
    shares = {0: {"Softmax": curve, "Eq. 6": curve}, 90: {"Softmax": curve, "Eq. 6": curve}}
    for tall in (False, True):
        given = torch.tensor([1.0, 10.0, 100.0]), shares, cloud()[0]
        figure = drawn(problem.plot_scores, *given, tall=tall)
        assert [ax.get_title() or ax.get_title("left") for ax in figure.axes] == ["0°", "90°"]
        assert [len(ax.lines) for ax in figure.axes] == [3, 3]  # and the threshold


def test_the_decay_marks_where_the_exponential_wins() -> None:
    falling = torch.tensor([3.0, 0.0, -20.0])
    curves = {0: {"Eq. 5": falling, "Eq. 6": falling}}
    figure = drawn(problem.plot_decay, torch.tensor([1.0, 10.0, 100.0]), curves, [7.0], cloud()[0])
    assert [7.0, 7.0] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    assert all(titles(figure))
