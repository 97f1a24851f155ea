import numpy as np
import pytest
from tiny import drawn

from bookmaking.figures import closed_form as figures

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("tall", [False, True])
def test_answer_draws_every_image_and_both_times(tall):
    scores = GENERATOR.uniform(1, 9, 10)
    both = {"formula": scores, "backpropagation": scores}
    seconds = {"formula": 1e-6, "backpropagation": 1e-3}
    figure = drawn(figures.answer, both, seconds, np.arange(10) >= 4, tall=tall)
    left, right = figure.axes
    assert [len(cloud.get_offsets()) for cloud in left.collections] == [4, 6]
    assert sorted(bar.get_width() for bar in right.patches) == pytest.approx([1, 1000])
    assert left.get_xlabel() == "score by the formula"
    assert right.get_xlabel()


def test_answer_has_two_forms():
    scores = GENERATOR.uniform(1, 9, 4)
    made = figures.answer({"a": scores, "b": scores}, {"a": 1.0, "b": 2.0}, np.arange(4) > 1)
    assert made._repr_svg_().count("<svg") == 1
    assert "portrait" in made._repr_svg_()


def test_outer_product_is_written_out():
    [ax] = drawn(figures.plot_outer, [0.7, 0.2, 0.1], [-0.3, 0.2, 0.1], [2, 1]).axes
    words = [text.get_text() for text in ax.texts]
    assert {"−0.6", "−0.3", "+0.4", "+0.2", "+0.1", "h = 2", "r = −0.3"} <= set(words)
    assert len(ax.patches) == 12  # a frame and a bar for each weight
    bars = [patch.get_width() for patch in ax.patches[1::2]]
    assert bars == pytest.approx([0.8 * abs(w) / 0.6 for w in (0.6, 0.3, 0.4, 0.2, 0.2, 0.1)])


def test_map_and_trap_have_labels():
    cloud = {"a": GENERATOR.uniform(1, 10, 30), "b": GENERATOR.uniform(1, 10, 30)}
    [legend] = drawn(figures.plot_map, cloud, cloud).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    errors = {"float32": [1e-8, 1], "float64": [1e-16, 1], "careful": [0, 0]}
    [ax] = drawn(figures.plot_trap, [1, 20], errors).axes
    assert min(ax.lines[2].get_ydata()) > 0
    assert ax.get_xlabel()
    assert ax.get_ylabel()
