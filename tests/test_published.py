"""Published networks: our chain, from weights to a table, meets what their authors printed."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import published
from thinkback_utils.files import read_json

RESULTS = Path(__file__).parents[1] / "results"
needs_weights = pytest.mark.skipif(
    not os.environ.get("THINKBACK_PUBLISHED"),
    reason="THINKBACK_PUBLISHED names no folder of published weights",
)


def test_the_densenet_is_that_of_its_paper():
    """100 layers of weights, 342 features, 0.77 million parameters (Huang et al. 2017, table 2)."""
    model = published.DenseNet().eval()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert (len(layers), model.fc.in_features) == (100, 342)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 0.77
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_weights_that_are_not_there_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("THINKBACK_PUBLISHED", raising=False)
    with pytest.raises(FileNotFoundError, match="by --published or \\$THINKBACK_PUBLISHED"):
        published.load("oe-mnist-baseline")


@pytest.fixture(scope="module")
def kept():
    return pd.DataFrame(read_json(RESULTS / "published.json")["records"])


def test_every_printed_number_is_met(kept):
    assert len(kept) == 3 * (1 + 4 * 3)
    assert kept["meets"].all(), kept[~kept["meets"]].to_string()
    printed = []
    for row in published.MNIST.values():
        printed += [row.error, *(mean for kinds in row.sets.values() for mean, _ in kinds)]
    assert kept["printed"].tolist() == printed


@needs_weights
def test_the_committed_table_is_measured_again(kept):
    """On all sets, of one network."""
    frame = published.measure(names=["oe-mnist-baseline"])
    same = kept[kept["network"] == "oe-mnist-baseline"].reset_index()
    for column in ("set", "metric", "printed", "meets"):
        assert frame[column].tolist() == same[column].tolist()
    assert frame["measured"].tolist() == pytest.approx(same["measured"].tolist(), abs=0.02)


@needs_weights
def test_the_densenet_reads_its_weights():
    model = published.load(published.DENSENET)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model(images).isfinite().all()
