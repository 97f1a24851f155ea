"""The opening figure: numbers against autograd, pictures against the gallery, rest when played."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from bookmaking import opening
from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.run import Run
from thinkback_utils import data
from thinkback_utils.files import read_json
from thinkback_utils.scores import head_gradients

BOOK = Path(__file__).parents[1] / "book"
RESULTS = BOOK.parent / "results"
RUN = Run.at(RESULTS)
T, DAMPING = 3.0, 0.1


@pytest.fixture(scope="module")
def story():
    return opening.tell(RUN)


@pytest.fixture(scope="module")
def bundle():
    return RUN.bundle()


@pytest.fixture(scope="module")
def drawing():
    return ElementTree.parse(RESULTS / "gallery" / "opening.svg")


def symmetric_inverse_root(matrix):
    """By eigenvalues, damped by their mean; the residuals' zero direction stays out."""
    floor = DAMPING * np.trace(matrix) / len(matrix)
    values, vectors = np.linalg.eigh(matrix + floor * np.eye(len(matrix)))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_cells_are_squared_gradients_of_autograd_against_training(story, bundle):
    train = bundle.sets[ID_TRAIN]
    z = train.logits.double().numpy()
    r = (softmax(z / T) - np.eye(z.shape[1])[z.argmax(1)]) / T
    h = train.features.double().numpy()
    h = np.hstack([h / np.linalg.norm(h, axis=1, keepdims=True), np.ones((len(h), 1))])
    A, B = (symmetric_inverse_root(x.T @ x / len(x)) for x in (r, h))
    for row in story.rows:
        own = bundle.sets[row.name]
        x, length = own.features[[row.place]].double(), own.features[row.place].double().norm()
        p = softmax(own.logits[row.place].double().numpy() / T)
        expected = 0
        for label in range(len(p)):  # the last layer reads x / length, so its weight is longer
            weight, bias = bundle.weight.double() * length, bundle.bias.double()
            gradient = head_gradients(x / length, weight, bias, torch.tensor([label]), T)[0].numpy()
            expected = expected + p[label] * (A @ gradient @ B) ** 2
            if label == p.argmax():
                # float16 features
                assert row.r == pytest.approx(gradient[:, -1], rel=1e-3, abs=1e-6)
        assert row.cells == pytest.approx(expected, rel=2e-2, abs=1e-3 * expected.max())
        assert row.cells.sum() == pytest.approx(row.score, rel=1e-9)


def test_the_images_follow_the_rule(story):
    kept = RUN.scores()
    for row in story.rows:
        scores = kept[row.name][opening.METHOD]
        images = read_json(RESULTS / "gallery" / "examples.json")["images"]
        shown = [picture["index"] for picture in images if picture["set"] == row.name]
        away = np.abs(scores - np.median(scores))
        assert row.place in shown
        assert away[row.place] == away[shown].min()
        assert row.score == pytest.approx(scores[row.place], rel=1e-6)
    test, svhn = (kept[name][opening.METHOD] for name in (ID_TEST, "svhn"))
    assert (test >= story.threshold).mean() == pytest.approx(0.05, abs=1e-3)
    assert story.caught[opening.METHOD] == pytest.approx((svhn >= story.threshold).mean(), abs=1e-3)


def test_the_committed_drawing_shows_these_numbers(story, drawing):
    words = [text.text for text in drawing.findall(".//{*}text")]
    for row in story.rows:
        norm = np.sqrt((row.r**2).sum())
        verdict = "out: an alarm" if row.score > story.threshold else "in: no alarm"
        line = {f"{row.answer} {100 * row.p.max():.1f}\u00a0%", f"‖r‖ = {norm:.2f}"}
        line |= {f"adds up to {row.score:,.0f}", verdict}
        assert line <= set(words), "run `python -m bookmaking.opening`"
    assert (RESULTS / "opening.md").read_text(encoding="utf-8") == opening.as_markdown(story)


def test_bars_and_lines_have_the_lengths_of_the_numbers(story, drawing):
    def lengths(name, letter):
        paths = [path.get("d") for path in drawing.findall(f".//{{*}}path[@class='{name}']")]
        return [np.array([float(x) for x in re.findall(rf"{letter}(-?[\d.]+)", d)]) for d in paths]

    strips, bars, unit = lengths("y", "v"), lengths("x", "h"), None
    longest = max(abs(row.r).max() for row in story.rows)
    tallest = max(row.h.max() for row in story.rows)
    for j, row in enumerate(story.rows):
        assert -strips[j] == pytest.approx(opening.TALL * row.h / tallest, abs=0.051)
        assert bars[j] == pytest.approx(72 * row.p, abs=0.051)
        assert bars[2 + j] == pytest.approx(72 * row.r / longest, abs=0.051)
        unit = unit or bars[4][0] / row.score
        assert bars[4 + j] == pytest.approx([unit * row.score], abs=0.3)
    cuts = [path.get("d") for path in drawing.findall(".//{*}path[@stroke-dasharray]")]
    places = [float(re.match(r"M([\d.]+)", cut)[1]) for cut in cuts]
    assert places == pytest.approx([unit * story.threshold] * 2, abs=0.3)


def test_the_committed_pictures_are_the_gallery_and_the_cells(story, drawing):
    sources = [
        image.get("href").partition("base64,")[2] for image in drawing.iterfind(".//{*}image")
    ]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]
    sprite = np.asarray(Image.open(RESULTS / "gallery" / "sprite.png"))
    browsed = read_json(RESULTS / "gallery" / "examples.json")
    for row, picture in zip(story.rows, pictures[:2], strict=True):
        tiles = {(r["set"], r["index"]): r["tile"] for r in browsed["images"]}
        tile = tiles[row.name, row.place]
        y, x = (data.SIDE * place for place in divmod(tile, browsed["columns"]))
        assert np.array_equal(np.asarray(picture), sprite[y : y + data.SIDE, x : x + data.SIDE])
    strength = [np.asarray(picture)[..., 3].astype(float) for picture in pictures[2:]]
    top = np.quantile([np.sqrt(row.cells) for row in story.rows], 0.99)
    for row, alpha in zip(story.rows, strength, strict=True):
        # Proportional to the gradient, in one unit for both.
        free = (alpha > 20) & (alpha < 255)
        unit = alpha[free] / np.sqrt(row.cells[free])
        assert free.sum() > 100
        assert np.ptp(unit) / unit.mean() < 0.06
        assert unit.mean() == pytest.approx(255 / top, rel=1e-2)
    assert strength[1].mean() > strength[0].mean()


def test_the_drawing_rests_complete_within_five_seconds(drawing):
    text = (RESULTS / "gallery" / "opening.svg").read_text(encoding="utf-8")
    assert len(text.encode()) <= 120_000
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|<script|url\(|infinite", text)
    style = drawing.find("{*}style").text
    still, moving = style.split("@media screen and (prefers-reduced-motion: no-preference) {")
    assert "animation" not in still
    # nothing waits, hidden, to be moved in
    assert not re.search(r"opacity|scale[XY]|clip-path", still)
    for frame in re.findall(r"@keyframes .*", moving):
        assert "to" not in frame or "inset(0)" in frame
    times = (r"delay: ([\d.]+)s", r"animation: \w+ ([\d.]+)s")
    delays, durations = ([float(x) for x in re.findall(time, moving)] for time in times)
    assert len(delays) == len(opening.STEPS)
    assert max(delays) + max(durations) <= 5


def test_one_command_writes_it(story, tmp_path, monkeypatch, capsys):
    here = Run.at(tmp_path)
    here.folder.mkdir(parents=True)
    here.weights.write_bytes(b"weights")
    monkeypatch.setattr(opening, "tell", lambda *_: story)
    opening.main(["--results", str(tmp_path)])
    assert "opening.svg" in capsys.readouterr().out
    facts = read_json(tmp_path / "gallery" / "opening.json")
    picks = {name: pick["index"] for name, pick in facts["images"].items()}
    assert picks == {row.name: row.place for row in story.rows}
    assert (tmp_path / "gallery" / "opening.svg").read_text(encoding="utf-8") == opening.draw(story)


def test_the_front_page_includes_it_in_a_box_of_its_shape():
    page = (BOOK / "intro.md").read_text(encoding="utf-8")
    assert "{include} ../results/opening.md" in page
    assert "#fig-opening" in page
    style = (BOOK / "_static" / "thinkback.css").read_text(encoding="utf-8")
    for width, height in (opening.WIDE, opening.NARROW):  # which decides how the steps lie
        assert f"aspect-ratio: {width} / {height};" in style
