"""The figures of chapter 12 draw what they are given, and say what their axes are."""

import numpy as np
import pandas as pd
import pytest
from tiny import drawn

from bookmaking.figures import beyond

both = pytest.mark.parametrize("tall", [False, True])


def labelled(ax):
    return bool(ax.get_xlabel() and ax.get_title() + ax.get_ylabel())


def test_the_answer_has_a_row_for_each_named_score():
    standing = pd.DataFrame(
        {"title": ["A", "B", "C"], "far": [0.9, 0.8, 0.7], "near": [0.8, 0.85, 0.6]},
        index=["a", "energy", "c"],
    )
    for tall in (False, True):
        [ax] = drawn(beyond.answer, standing, ["energy", "a"], "a", tall=tall).axes
        named = ax.texts if tall else ax.get_yticklabels()
        assert [text.get_text() for text in named] == ["B", "A"]
        dots = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"]
        assert dots[:2] == [[0.8], [0.9]]
        assert ax.get_xlabel()


@both
def test_the_sphere_holds_directions_alone(tall):
    random = np.random.default_rng(0)
    made = random.random((20, 2)), np.arange(20) % 2, random.random((5, 2))
    first, second = drawn(beyond.plot_sphere, *made, tall=tall).axes
    assert labelled(first)
    assert labelled(second)
    for line in second.lines[:3]:
        if len(line.get_xdata()) > 2:
            lengths = np.hypot(line.get_xdata(), line.get_ydata())
            np.testing.assert_allclose(lengths, 1)


@both
def test_factors_point_away_from_chance(tall):
    given = {"a": (0.3, 0.01), "b": (0.8, 0.02)}
    [ax] = drawn(beyond.plot_factors, given, tall=tall).axes
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [-0.2, 0.3]
    assert ax.get_xlabel()


@both
def test_prediction_draws_both_halves(tall):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({name: random.random(9) for name in ("far", "near", "suite_far")})
    frame["suite_near"], frame["unit"] = frame["near"], np.arange(9) % 2 == 0
    figure = drawn(beyond.plot_prediction, frame, tall=tall)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles == ["Far sets", "Near set"]
    first, second = (ax.get_subplotspec() for ax in figure.axes)
    assert (first.colspan == second.colspan) == tall  # one above the other
    np.testing.assert_allclose(
        figure.axes[1].lines[0].get_xdata(), figure.axes[1].lines[0].get_ydata()
    )
