"""A classifier with a thousand classes goes the whole way, and what was kept of it holds."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from experiments import thousand_classes
from thinkback_utils.files import read_json

RECORD = Path(__file__).parents[1] / "results" / "thousand_classes.json"


def make_photos(path, count, side=8):
    """A tar file of JPEGs, each of one grey, written backwards."""
    with tarfile.open(path, "w") as archive:
        for i in reversed(range(count)):
            file = path.with_name(f"{i:04d}_x.jpg")
            Image.new("RGB", (side, side), (20 * i,) * 3).save(file)
            archive.add(file, file.name)


def test_photos_come_in_the_order_of_their_names(tmp_path):
    make_photos(tmp_path / "photos.tar", 5)
    found = thousand_classes.photos(tmp_path / "photos.tar", 3)
    assert found.shape == (3, 3, 8, 8)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.mean((1, 2, 3)), [0, 20, 40], atol=1)
    with pytest.raises(FileNotFoundError, match=r"thinkback: no photos at .*--photos"):
        thousand_classes.photos(tmp_path / "others.tar")


@pytest.mark.filterwarnings("ignore:thinkback")  # of few photos and an untrained network
@pytest.mark.parametrize("method", thousand_classes.METHOD_NAMES)
def test_the_whole_way_gives_the_same_scores_in_each_form(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 30)).eval()
    pixels = np.random.default_rng(0).integers(256, size=(60, 3, 8, 8), dtype=np.uint8)
    found = thousand_classes.whole_way(model, pixels[:40], pixels[40:], method)
    assert set(found["seconds"]) == {"fit", "calibrate", "score", "save", "export"}
    assert found["apart"]["saved"] < 1e-5  # it reads other batches, in float32
    assert found["apart"]["onnx"] < 1e-4
    assert thousand_classes.against_autograd(model, pixels[:4]) < 1e-5


def test_a_table_has_a_row_for_each_score(tmp_path):
    assert thousand_classes.table(tmp_path).empty
    frame = thousand_classes.table(RECORD.parent)
    assert list(frame.index) == [
        thousand_classes.METHODS[name].title for name in thousand_classes.METHOD_NAMES
    ]
    assert (frame.drop(columns="fit (s)") >= 0).all(axis=None)


def test_the_kept_record_is_of_a_thousand_classes():
    record = read_json(RECORD)
    assert (record["classes"], record["features"]) == (1000, 1280)
    assert record["autograd"] < 1e-6
    assert all(found["apart"]["onnx"] < 1e-3 for found in record["methods"].values())
    # the saved detector read other batches, in float32
    assert all(found["apart"]["saved"] < 1e-4 for found in record["methods"].values())


@pytest.mark.filterwarnings("ignore:thinkback")  # of few photos
@pytest.mark.skipif(
    not os.environ.get("THINKBACK_PHOTOS"), reason="THINKBACK_PHOTOS names no folder of photos"
)
def test_one_command_takes_the_published_classifier_all_the_way(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    given = ["--photos", os.environ["THINKBACK_PHOTOS"], "--count", "20"]
    thousand_classes.main([*given, "--results", str(tmp_path)])
    record = read_json(tmp_path / "thousand_classes.json")
    assert (record["classes"], record["features"]) == (1000, 1280)
    assert record["photos"] == {"known": 20, "new": 20}
    assert record["autograd"] < 1e-6
