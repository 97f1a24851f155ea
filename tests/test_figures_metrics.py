"""The figures of chapter 2 draw what they are given, and say what their axes are."""

from __future__ import annotations

import numpy as np
from tiny import drawn

from bookmaking.figures import metrics as figures
from thinkback_utils import metrics

IDS, OODS = np.arange(100.0), np.arange(60.0, 130.0)


def test_the_answer_shows_scores_and_mixes() -> None:
    for tall in (False, True):
        scores, mixes = drawn(figures.answer, IDS, OODS, 0.25, tall=tall).axes
        assert scores.get_xlabel()
        assert scores.get_ylabel()
        assert mixes.get_xlabel()
        dots = [line.get_xydata().tolist() for line in mixes.lines if len(line.get_xdata()) == 1]
        assert dots == [[[0.25, metrics.ood_metrics(IDS, OODS, 0.25)["aupr"]]]]


def test_one_roc_curve_and_a_precision_for_each_mix() -> None:
    curve = metrics.roc(IDS, OODS)
    left, right = drawn(figures.plot_curves, curve, [0.5, 0.1]).axes
    assert (metrics.fpr_at_tpr(curve), 0.95) in [
        tuple(p) for line in left.lines for p in line.get_xydata()
    ]
    assert {text.get_text() for text in right.texts} == {"50 % OOD", "10 % OOD"}
    assert left.get_xlabel()
    assert right.get_xlabel()


def test_noise_is_drawn_for_each_metric() -> None:
    noise = {"TPR10": [2.0, 1.0], "AUROC": [1.0, 0.5]}
    figure = drawn(figures.plot_noise, [100, 400], noise, 400)
    [ax], [legend] = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["TPR10", "AUROC"]
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_the_threshold_catches_nineteen_of_twenty() -> None:
    threshold = figures.catching(metrics.roc(IDS, OODS))
    assert 0.95 <= (threshold <= OODS).mean() < 0.97
    ax = figures.plot_scores(IDS, OODS).axes[0]
    assert [threshold, threshold] in [list(line.get_xdata()) for line in ax.lines]
