import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt
from tiny import drawn

from bookmaking.figures import temperature_eps as figures

TS = [0.1, 1.0, 5.0, 100.0]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("metric", "best"), [("auroc", 0.1), ("fpr95", 100.0)])
def test_answer_marks_the_paper_and_the_best(tall, metric, best):
    values = dict(zip(TS, [90.0, 80.0, 70.0, 60.0], strict=True))
    given = values, {T: 1 / T**2 for T in TS}, metric
    left, right = drawn(figures.answer, *given, tall=tall).axes
    assert f"best, T = {best:g}" in [line.get_label() for line in left.lines]
    [square] = [line for line in right.lines if line.get_marker() == "s"]
    assert list(square.get_xdata()) == [100.0]
    assert left.get_ylabel()
    assert right.get_ylabel()


def test_answer_has_two_forms():
    values = dict.fromkeys(TS, 50.0)
    assert "portrait" in figures.answer(values, values, "auroc")._repr_svg_()


def test_sweep_has_a_line_for_each_set_and_their_mean():
    by_set = {T: np.full((2, 4), T) for T in TS}
    figure = figures.plot_sweep(by_set, ["A", "B"], "auroc")
    assert [line.get_label() for line in figure.axes[0].lines] == ["A", "B", "mean"]


def test_heat_maps_mark_settings_where_they_are():
    rows = [[(1e-16, 0.0), (1e-8, 0.0)], [(1e-16, 0.0), (1e-16, 0.1)]]
    values = {(T, floor): T for T in TS for floor in {*rows[0], *rows[1]}}
    marks = {"the paper": (5.0, (1e-16, 0.0)), "best": (0.1, (1e-16, 0.1))}
    figure = drawn(figures.plot_heat, values, rows, marks, "AUROC")
    upper, lower = figure.axes[:2]
    assert len(upper.collections) == 2  # the map, and the paper
    assert len(lower.collections) == 3
    assert lower.collections[2].get_offsets().tolist() == [[-1.0, 1.0]]


def test_rule_marks_what_it_picks():
    factors = pd.DataFrame({"Eq. 6": 80.0, "‖r‖² alone": 70.0}, TS)
    criteria = pd.DataFrame({"std, Eq. 5": [4.0, 3.0, 2.0, 1.0]}, TS)
    picks = pd.DataFrame({"narrow": [5.0], "wide": [100.0]}, ["std, Eq. 5"])
    upper, lower = drawn(figures.plot_rule, factors, criteria, picks).axes
    assert len(upper.lines) == 2
    assert [mark.get_offsets().tolist() for mark in lower.collections[:2]] == [
        [[5, 1]],
        [[100, 0.5]],
    ]
