"""The drawings of the chapter "Your model"."""

import numpy as np
import pytest
from tiny import drawn

from bookmaking.figures import your_model as figures
from experiments.false_alarms import Halves

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("tall", [False, True])
def test_answer_shows_threshold_and_promises(tall):
    scores = GENERATOR.lognormal(size=400)
    halves = Halves(400, [0.02, 0.1], splits=5, seed=0)
    rates = {"energy": halves.rates(scores)}
    figure = drawn(figures.answer, scores, 3 * scores, 2.0, halves, rates, tall=tall)
    first, second = figure.axes
    assert first.lines[0].get_xdata()[0] == pytest.approx(np.log10(2))
    assert second.get_xlabel() == "false alarms promised (%)"
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert [title[:2] for title in titles] == ["A.", "B."]
    means = second.lines[1].get_ydata()
    assert list(means) == pytest.approx(list(100 * rates["energy"].mean(0)))


@pytest.mark.parametrize("alarms", [0, 2])
def test_ranks_are_numbered_and_alarms_stand_out(alarms):
    [ax] = drawn(figures.plot_ranks, [3.0, 1.0, 2.0], alarms, tall=bool(alarms)).axes
    numbers = [text for text in ax.texts if text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == ["1", "2", "3", "4"]
    weights = [text.get_fontweight() for text in numbers]
    assert weights.count("bold") == alarms


@pytest.mark.parametrize("tall", [False, True])
def test_luck_names_its_promise(tall):
    rates = {n: GENERATOR.beta(1, n, 50) for n in (9, 19)}
    [ax] = drawn(figures.plot_luck, rates, 0.1, tall=tall).axes
    assert "promise" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_xlabel()


@pytest.mark.parametrize("tall", [False, True])
def test_streams_name_their_promise(tall):
    running = [np.linspace(0, 0.1, 300), np.full(300, 0.1)]
    figure = drawn(figures.plot_streams, running, 0.05, tall=tall)
    [ax] = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["promise"]
    assert ax.get_xlabel()
    ends = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in ends] == pytest.approx([10, 10])


@pytest.mark.parametrize("tall", [False, True])
def test_classes_have_two_dots_each(tall):
    figure = drawn(figures.plot_classes, ["a", "b"], [0.1, 0.2], [0.05, 0.06], 0.05, tall=tall)
    assert list(figure.axes[0].lines[0].get_xdata()) == pytest.approx([10, 20])
    assert len(figure.legends[0].get_texts()) == 3


@pytest.mark.parametrize("tall", [False, True])
def test_drift_has_a_panel_for_each_change(tall):
    drift = {"noise": GENERATOR.random((3, 10)), "shift": GENERATOR.random((3, 10))}
    levels = dict.fromkeys(drift, (0, 1, 2))
    errors = {change: [0, 0.1, 0.2] for change in drift}
    figure = drawn(figures.plot_drift, drift, errors, levels, 0.05, "energy", tall=tall)
    assert [ax.get_xlabel() for ax in figure.axes] == ["noise", "shift"]
