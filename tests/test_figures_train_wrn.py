import pandas as pd
import pytest
from tiny import drawn

from bookmaking.figures import train_wrn as figures

HISTORY = {"loss": [2.0, 1.0], "accuracy": [0.3, 0.7]}
RUNS = pd.DataFrame(
    [
        ("WRN-40-2", "cpu", 0, 0.92, HISTORY),
        ("WRN-40-2", "cpu", 1, 0.94, HISTORY),
        ("WRN-16-2", "cpu-wrn16", 0, 0.91, HISTORY),
    ],
    columns=["network", "recipe", "seed", "accuracy", "history"],
)


@pytest.mark.parametrize("tall", [False, True])
def test_answer_shows_means_and_every_seed(tall):
    [ax] = drawn(figures.draw_answer, RUNS, 0.95, tall=tall).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([10, 93, 91, 95])
    [seeds] = ax.lines  # of the one network with several
    assert list(seeds.get_xdata()) == pytest.approx([92, 94])
    words = [text.get_text() for text in ax.texts]
    assert "93.0 % (2 seeds)" in words
    assert ax.get_xlabel()


def test_answer_has_two_forms():
    for made in (figures.answer(RUNS, 0.95), figures.plot_band(RUNS, 0.95, 0.004)):
        assert "portrait" in made._repr_svg_()


def test_band_and_curves():
    for tall in (False, True):
        [ax] = drawn(figures.draw_band, RUNS, 0.95, 0.004, tall=tall).axes
        assert list(ax.lines[0].get_xdata()) == pytest.approx([92, 94, 91])
        assert len(ax.get_yticks()) == 3
    [ax] = drawn(figures.plot_losses, RUNS).axes
    assert len(ax.lines) == 3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "WRN-40-2, cpu",
        "WRN-16-2, cpu-wrn16",
    ]
    ax, _ = drawn(figures.plot_history, HISTORY).axes
    assert list(ax.lines[0].get_ydata()) == HISTORY["loss"]
