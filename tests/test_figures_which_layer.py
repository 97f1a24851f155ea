"""Figures of chapter 10 draw what they are given."""

import numpy as np
import pandas as pd
import pytest
from tiny import drawn

from bookmaking.figures import which_layer as figures
from thinkback_utils.metrics import mean_auroc

INDEX = ["energy", *figures.ROWS]


@pytest.mark.parametrize("tall", [False, True])
def test_the_answer_is_the_distance_to_energy(tall):
    aurocs = pd.DataFrame({"One": [90.0, 80, 91, 89, 94], "Two": [95.0, 85, 90, 91, 70]}, INDEX)
    [ax] = drawn(figures.answer, aurocs, tall=tall).axes
    marks = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 4]
    assert [list(x) for x in marks] == [[-10, 1, -1, 4], [-10, -5, -4, -25]]
    assert "Energy" in ax.get_xlabel()
    named = [text.get_text() for text in (*ax.get_yticklabels(), *ax.texts)]
    assert set(figures.ROWS.values()) <= set(named)


@pytest.mark.parametrize("tall", [False, True])
def test_rows_show_every_set_and_the_far_mean(tall):
    noise = np.random.default_rng(0)
    names = {"cifar10-test": 0, "svhn": 1, "textures10": 2, "cifar100": 0.5}
    scores = {name: noise.normal(shift, 1, 200) for name, shift in names.items()}
    rows = {"A": {"eq5": scores, "eq6": scores}, "B": {"eq6": scores}}
    [ax] = drawn(figures.draw_rows, rows, ["svhn", "textures10"], tall=tall).axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["A", "B"]
    assert ax.get_xlabel() == "AUROC (%)"
    diamonds = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    expected = mean_auroc(scores["cifar10-test"], [scores["svhn"], scores["textures10"]])[0]
    assert [line.get_xdata()[0] for line in diamonds] == pytest.approx([expected] * 3)
    assert [line.get_ydata()[0] for line in diamonds] == pytest.approx([-0.17, 0.17, 1])
    squares = [line for line in ax.lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert len(squares) == 3  # the near set
    assert "portrait" in figures.plot_rows(rows, ["svhn"])._repr_svg_()


@pytest.mark.parametrize("tall", [False, True])
def test_epochs_are_lines_over_the_accuracy(tall):
    auroc = dict.fromkeys(figures.EPOCH_LINES, 0.8)
    records = [{"epoch": i, "accuracy": a, "auroc": auroc} for i, a in enumerate((0.7, 0.5, 0.9))]
    figure = drawn(figures.plot_epochs, records, tall=tall)
    (ax,) = figure.axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[50, 70, 90]] * 5
    assert "accuracy" in ax.get_xlabel()
    assert len(figure.legends[0].get_texts()) == 5
