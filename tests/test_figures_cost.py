"""The drawings of the chapter "Cost"."""

import pytest
from tiny import drawn

from bookmaking.figures import cost as figures


@pytest.mark.parametrize("tall", [False, True])
def test_answer_draws_ratios_in_percent(tall):
    one = {"energy": {"ratio": 0.01}, "backward, batch 1": {"ratio": 3.0}, "extra": {"ratio": 1.0}}
    many = {"energy": {"ratio": 0.001}, "backward, batch 1": {"ratio": 8.0}}
    [ax] = drawn(figures.answer, {1: one, 200: many}, tall=tall).axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["full backward" + ", one by one" * (not tall), "Energy"]
    lines = [sorted(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert [300.0, 800.0] in lines
    assert any(line == pytest.approx([0.1, 1.0]) for line in lines)
    assert "network's time" in ax.get_xlabel()


@pytest.mark.parametrize("tall", [False, True])
def test_latency_labels_every_line(tall):
    curves = {"forward": [(1, 10.0), (16, 5.0)], "energy": [(1, 0.1), (16, 0.01)]}
    [ax] = drawn(figures.plot_latency, curves, tall=tall).axes
    assert [text.get_text() for text in ax.texts] == ["the network itself", "Energy"]
    assert ax.get_xlabel() == "batch size"


@pytest.mark.parametrize("tall", [False, True])
def test_memory_below_the_floor_is_drawn_at_it(tall):
    fits = {"diagonal": [(10, 5), (100, 2_000_000)], "KNN": [(10, 10**8)]}
    [ax] = drawn(figures.plot_memory, fits, {"diagonal": "80 B", "KNN": "10 MB"}, tall=tall).axes
    assert list(ax.lines[0].get_ydata()) == [figures.FAINT, 2_000_000]
    assert ax.texts[0].get_text() == ("diagonal, 80 B" if tall else "diagonal, keeps 80 B")
    assert ax.get_ylabel()
