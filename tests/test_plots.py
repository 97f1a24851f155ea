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
