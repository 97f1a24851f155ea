"""Every figure function draws what it is given on the axes it is given."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from experiments import plots

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def ax():
    plots.use_style()
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_iso_scores_are_lines_of_equal_product(ax):
    cloud = {"a": GENERATOR.uniform(1, 10, 30)}
    plots.plot_iso_scores(cloud, {"a": GENERATOR.uniform(1, 10, 30)}, levels=3, ax=ax)
    assert len(ax.lines) == 3
    for line in ax.lines:
        product = line.get_xdata() * line.get_ydata()
        assert product[0] == pytest.approx(product[-1])


def test_training_curves(ax):
    plots.plot_training([2.0, 1.0], [0.1, 0.8], ax=ax)
    assert list(ax.lines[0].get_ydata()) == [2.0, 1.0]


def test_dumbbells_keep_ours_and_the_papers_apart(ax):
    row = {"set": "svhn", "method": "msp", "auroc": 0.9}
    paper = [{**row, "auroc": 0.8}, {**row, "set": "isun"}, {**row, "set": "not drawn"}]
    titles = {"isun": "iSUN", "svhn": "SVHN", "absent": "Absent"}
    plots.plot_dumbbells([row], paper, "auroc", titles, ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["iSUN", "SVHN"]
    ours, *printed = ax.collections
    assert ours.get_offsets()[0][0] == pytest.approx(90)
    assert len(ours.get_facecolors()) == 1
    assert all(len(points.get_facecolors()) == 0 for points in printed)


def test_dumbbells_draw_the_interval_of_their_metric(ax):
    row = {"set": "svhn", "method": "energy", "auroc": 0.9, "interval95": {"auroc": (0.88, 0.91)}}
    plots.plot_dumbbells([row], [], "auroc", {"svhn": "SVHN"}, ax=ax)
    band = ax.lines[-1]
    assert list(band.get_xdata()) == pytest.approx([88, 91])
    assert band.get_color() == plots.METHOD_COLORS["energy"]
