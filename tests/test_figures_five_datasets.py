"""Figures of chapter 8 draw what they are given, in both forms."""

import pandas as pd
import pytest
import torch
from tiny import drawn

from bookmaking.figures import five_datasets as figures
from experiments import evaluation
from thinkback_utils.features import Features

PAPER = evaluation.paper_table()


def frame(*titles):
    values = {title: [80.0 + i, 90.0, 70.0, 85.0, 93.0] for i, title in enumerate(titles)}
    return pd.DataFrame(values, index=list(figures.ROWS))


@pytest.mark.parametrize("tall", [False, True])
def test_the_answer_has_a_mark_for_each_network_and_a_ring_for_the_paper(tall):
    figure = drawn(figures.answer, frame("One", "Two"), PAPER, tall=tall)
    (ax,) = figure.axes
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(marks) == 3 + 2 * 5  # the paper prints three scores
    assert "AUROC" in ax.get_xlabel()
    shown = [text.get_text() for text in (*ax.get_yticklabels(), *ax.texts)]
    assert [text.replace("\n", " ") for text in shown if text] == [
        title.replace("\n", " ") for title in figures.ROWS.values()
    ]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["One", "Two", "printed in the paper"]


def test_without_a_network_the_paper_stands_alone():
    [ax] = drawn(figures.answer, pd.DataFrame(), PAPER).axes
    assert len(ax.lines) == 3


@pytest.mark.parametrize("tall", [False, True])
def test_clouds_are_of_the_named_sets(tall):
    item = Features(torch.rand(30, 4), torch.randn(30, 3))
    sets = {"cifar10-test": item, "svhn": item}
    figure = drawn(figures.plot_clouds, sets, ["svhn"], tall=tall, count=20)
    [ax] = figure.axes
    assert [c.get_label() for c in ax.collections] == ["CIFAR-10 test", "SVHN"]
    assert {len(c.get_offsets()) for c in ax.collections} == {20}
    assert ax.get_legend() is None
    assert len(figure.legends[0].get_texts()) == 2
