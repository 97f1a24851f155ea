"""The drawings of the chapter "The audit": what is drawn follows from the numbers."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import drawn

from bookmaking.figures import audit as figures
from experiments import audit

ROWS = audit.table()
ROW = ROWS["Textures Thinkback"]


@pytest.mark.parametrize("tall", [False, True])
def test_answer_has_a_bar_a_row_and_a_cross_where_a_mix_is_impossible(tall):
    fits = dict.fromkeys(ROWS, (0.1, 0.4)) | {"SVHN Energy": (0.0, 1.0)}
    [ax] = drawn(figures.answer, ROWS, fits, {"1 : 5": 1 / 6, "1 : 1": 1 / 2}, tall=tall).axes
    assert len(ax.patches) == 15
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == 14
    assert {float(line.get_xdata()[0]) for line in crosses} == {0.5}
    assert ax.get_xlabel()
    assert ax.get_yticklabels()[0].get_text() == "Textures"


@pytest.mark.parametrize("tall", [False, True])
def test_staircases_run_through_both_points(tall):
    [ax] = drawn(figures.plot_boxes, ROW.curve, tall=tall).axes
    points = {(ROW.curve.at_fpr, ROW.curve.tpr10), (ROW.curve.fpr95, ROW.curve.at_tpr)}
    for line in ax.lines[:2]:
        assert points <= set(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert (np.diff(line.get_ydata()) >= 0).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("FPR", "TPR")


@pytest.mark.parametrize("tall", [False, True])
def test_lines_of_a_price_hold_all_curves(tall):
    levels = (np.arange(500) + 0.5) / 500
    f = audit.random_curves(ROW.curve, levels, 300)
    area, aupr = f.mean(1), (levels / (levels + 5 * f)).mean(1)
    [ax] = drawn(figures.plot_price, ROW.curve, 1 / 6, area, aupr, 0.9, tall=tall).axes
    below, above = (
        line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_label()[0] != "_"
    )
    for line, sign in ((below, 1), (above, -1)):
        heights = np.interp(area, line.get_xdata(), line.get_ydata())
        assert (sign * (aupr - heights) >= -1e-3).all()


@pytest.mark.parametrize("tall", [False, True])
def test_extremes_show_both_curves_and_the_print(tall):
    figure = drawn(figures.plot_extremes, replace(ROW, aupr=0.9), 1 / 6, tall=tall)
    first, second = figure.axes
    assert len(first.lines) == len(second.lines) == 3
    assert second.get_ylabel() == "precision"
    places = [ax.get_subplotspec().colspan for ax in figure.axes]
    assert (places[0] == places[1]) == tall  # one above the other
