"""Picks, statistics and texts of a toy against oracles; the committed gallery from its bundle."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from bookmaking import gallery, gallery_page
from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.run import Run
from thinkback_utils import data
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RUN = Run.at(RESULTS)
N = 900  # images a set
OUTLIERS = {"svhn": 10, "cifar100": 100, "textures10": 10}  # classes


@pytest.fixture(scope="module")
def toy():
    """A bundle of random features, alike inside and outside."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(10, 6, generator=generator), torch.zeros(10)
    sets = {}
    for name, classes in {ID_TRAIN: 10, ID_TEST: 10, **OUTLIERS}.items():
        h = 3 * torch.rand(N, 6, generator=generator)
        sets[name] = Features(h, h @ weight.T, torch.arange(N) % classes)
    return Bundle(sets, weight, bias)


@pytest.fixture(scope="module")
def gathered(toy):
    facts, browsed, scored = gallery.gather(toy)
    return facts, browsed, gallery.number(facts, browsed), scored


@pytest.mark.parametrize("method", gallery.METHODS)
def test_extremes_are_the_first_of_a_sorted_list(toy, gathered, method):
    facts, _, _, scored = gathered
    ranked = sorted((scored[name][method][i], name, i) for name in OUTLIERS for i in range(N))
    own, ids = facts["methods"][method], scored[ID_TEST][method]
    lowest = [(row["set"], row["index"]) for row in own["lowest"]]
    assert lowest == [row[1:] for row in ranked[: gallery.COUNT]]
    for name, rows in own["pictured"].items():
        first = [i for _, n, i in ranked if n == name][: gallery.SHOWN[name]]
        assert [row["index"] for row in rows] == first
    highest = sorted(range(N), key=lambda i: -ids[i])[: gallery.COUNT]
    assert [row["index"] for row in own["alarms"]] == highest
    row = own["pictured"]["cifar100"][0]
    answer = int(toy.sets["cifar100"].logits[row["index"]].argmax())
    assert row["true"] == gallery_page.CLASSES["cifar100"][row["index"] % 100]
    assert row["predicted"] == gallery_page.CLASSES[ID_TEST][answer]
    below = 100 * np.mean(ids < scored["cifar100"][method][row["index"]])
    assert row["percentile"] == pytest.approx(below, rel=1e-5)


def test_the_threshold_keeps_its_promise_and_splits_each_set(gathered):
    facts, _, _, scored = gathered
    for method, own in facts["methods"].items():
        # The most with (44 + 1) / (N + 1) <= 5 %.
        assert gallery.alarms(scored, ID_TEST, method).sum() == 44
        highest_quiet = np.sort(scored[ID_TEST][method])[-45]
        for name in OUTLIERS:
            caught = np.mean(scored[name][method] > highest_quiet)
            assert own["caught"][name] == pytest.approx(caught, rel=1e-5)
        # The toy's classes are equally frequent.
        assert np.mean(own["classes"]) == pytest.approx(44 / N, rel=1e-5)
        assert np.mean(own["near"]) == pytest.approx(own["caught"]["cifar100"], rel=1e-5)


def test_examples_lie_in_every_part_of_every_scores_range(toy, gathered):
    _, browsed, _, scored = gathered
    for name, count in gallery.EXAMPLES.items():
        drawn = [row["index"] for row in browsed["images"] if row["set"] == name]
        assert len(drawn) == len(set(drawn)) == count
        # The first score picks from all.
        ranks = np.argsort(np.argsort(scored[name][gallery.BROWSED[0]]))
        pieces = count // len(gallery.BROWSED)
        assert len({int(ranks[i]) * pieces // N for i in drawn}) == pieces
    for row in browsed["images"]:
        for method, alarm in row["alarms"].items():
            own = scored[row["set"]][method][row["index"]]
            assert alarm == ((scored[ID_TEST][method] >= own).sum() <= 44)
    other = gallery.examples(toy, scored, gallery.EXAMPLES, seed=1)
    assert other != gallery.examples(toy, scored, gallery.EXAMPLES)


def test_shared_properties_are_aurocs_of_wrong_against_right(toy, gathered):
    scored = gathered[3]
    statistics = {name: gallery.network_statistics(toy.sets[name]) for name in scored}
    found = gallery.shared(toy, scored, statistics, "energy")
    for name, sign in (("textures10", -1), (ID_TEST, 1)):
        alarm = gallery.alarms(scored, name, "energy")
        wrong = alarm if sign == 1 else ~alarm
        expected = roc_auc_score(wrong, toy.sets[name].features.square().sum(1))
        assert found[name]["norm2"][0] == pytest.approx(expected, rel=1e-5)
    assert {len(side) for side in found.values()} <= {4, 5}


def test_pixel_statistics_of_images_that_one_can_judge():
    flat = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 255
    ramp = torch.arange(32).mul(8).expand(32, 32)
    noise = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = torch.stack([flat, *(x.byte().expand(3, -1, -1) for x in (board, ramp, noise))])
    found = gallery.pixel_statistics(images)
    assert found["brightness"][:3] == pytest.approx([0.2, 0.5, 0.4863], abs=1e-4)
    assert found["contrast"][:3] == pytest.approx([0, 0.5, np.std(np.arange(32) * 8 / 255)])
    assert found["edges"][:3] == pytest.approx([0, 1, (8 / 255) / np.sqrt(2)])
    assert found["detail"][:2] == pytest.approx([0, 1])
    assert found["detail"][2] < 0.1 < 0.5 < found["detail"][3]
    assert found["size"].argmin() == 0
    assert found["size"].argmax() == 3


def test_louder_features_ask_the_head_again(toy):
    made = gallery.louder(toy, ["svhn"], count=3)
    assert len(made) == len(gallery.LOUDNESS)
    assert torch.equal(made["svhn*1"].features, toy.sets["svhn"].features[[0, 300, 600]])
    expected = 16 * toy.sets["svhn"].logits[[0, 300, 600]]
    assert torch.allclose(made["svhn*16"].logits, expected, rtol=1e-4)


def test_no_picture_too_many_and_none_of_another_set():
    facts = {"methods": {}}
    many = [{"set": "svhn", "index": i} for i in range(gallery.MOST_IMAGES + 1)]
    gallery.number(facts, {"images": many[:-1]})
    with pytest.raises(ValueError, match="thinkback: 301 pictures"):
        gallery.number(facts, {"images": many})
    with pytest.raises(ValueError, match="pictures from textures10"):
        gallery.number(facts, {"images": [{"set": "textures10", "index": 0}]})


def tiles_of(picture, count):
    side, columns = data.SIDE, gallery_page.COLUMNS
    for i in range(count):
        y, x = divmod(i, columns)
        yield picture[y * side : (y + 1) * side, x * side : (x + 1) * side]


def test_one_command_makes_everything(toy, gathered, tmp_path, monkeypatch, capsys):
    generator, hashes, images = np.random.default_rng(0), {}, {}
    for name in (ID_TEST, *OUTLIERS):
        images[name] = generator.integers(256, size=(N, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images[name])
        hashes[name] = hashlib.sha256(images[name].transpose(0, 3, 1, 2).tobytes()).hexdigest()
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    here = Run.at(tmp_path / "results", "net")
    toy.save(here.folder / "bundle.npz")
    here.weights.write_bytes(b"weights")
    facts = {"images_sha256": hashes, "float16_metric_error": 0.0}
    facts |= {"recipe": "toy", "accuracy": {ID_TEST: 0.1}}
    here.save_record(facts)
    write_json(here.results / "table1.json", [here.label])
    command = ["--results", str(here.results), "--network", "net"]
    gallery.main(command)
    assert "wrote" in capsys.readouterr().out
    out = here.results / "gallery"
    browsed = read_json(out / "examples.json")
    picture = np.asarray(Image.open(out / "sprite.png"))
    shown = list(tiles_of(picture, 300))
    for row in browsed["images"]:
        assert np.array_equal(shown[row["tile"]], images[row["set"]][row["index"]])
    text = (here.results / "gallery.md").read_text(encoding="utf-8")
    assert text.count("<!-- end -->") == 8
    assert "the only training run" in text
    examples = (here.results / "examples.md").read_text(encoding="utf-8")
    assert "96 of CIFAR-10, 48 of SVHN, 48 of CIFAR-100" in examples
    assert {path.name for path in out.glob("*.svg")} == {"examples.svg", "louder.svg", "shared.svg"}
    here.save_record(facts | {"images_sha256": dict.fromkeys(hashes, "0")})
    with pytest.raises(ValueError, match="is not the set that the bundle was made from"):
        gallery.main(command)


@pytest.fixture(scope="module")
def committed():
    folder = RESULTS / "gallery"
    return {name: read_json(folder / f"{name}.json") for name in ("limits", "examples")}


def alike(kept, fresh, where=""):
    """The same picks and words, and the same numbers give or take the last of six digits."""
    if isinstance(fresh, dict):
        for key in fresh:
            alike(kept[key], fresh[key], f"{where}.{key}")
    elif isinstance(fresh, list):
        assert len(kept) == len(fresh), where
        for i, pair in enumerate(zip(kept, fresh, strict=True)):
            alike(*pair, f"{where}[{i}]")
    elif isinstance(fresh, float):
        assert kept == pytest.approx(fresh, rel=2e-5, abs=1e-9), where
    else:
        assert kept == fresh, where


def test_committed_picks_follow_from_the_committed_bundle(committed):
    bundle = RUN.bundle()
    facts, browsed, scored = gallery.gather(bundle)
    tiles = gallery.number(facts, browsed)
    alike(committed["limits"], facts)
    alike(committed["examples"], browsed)
    statistics = {name: gallery.network_statistics(bundle.sets[name]) for name in scored}
    for method, own in committed["limits"]["methods"].items():
        alike(own["shared"], gallery.shared(bundle, scored, statistics, method))
    columns = gallery_page.COLUMNS
    size = (columns * data.SIDE, -(-len(tiles) // columns) * data.SIDE)
    assert Image.open(RESULTS / "gallery" / "sprite.png").size == size


def test_committed_pictures_are_few_and_of_the_three_sets(committed):
    rows = [*committed["examples"]["images"]]
    for own in committed["limits"]["methods"].values():
        rows += [*own["alarms"], *(row for part in own["pictured"].values() for row in part)]
    tiles = {row["tile"]: (row["set"], row["index"]) for row in rows}
    assert sorted(tiles) == list(range(len(tiles)))
    assert len(tiles) == len(set(tiles.values())) <= 300
    assert {name for name, _ in tiles.values()} == {ID_TEST, "cifar100", "svhn"}
    assert all(row["true"] for row in rows)
    assert (RESULTS / "gallery" / "examples.json").stat().st_size <= 120_000
    names = {path.name for path in (RESULTS / "gallery").glob("*.png")}
    assert names == {"sprite.png", "card.png", "pictures.png"}  # the last two: bookmaking.opening


def test_committed_pictures_are_the_images(committed):
    if not os.environ.get("THINKBACK_DATA"):
        pytest.skip("THINKBACK_DATA names no folder of images")
    picture = np.asarray(Image.open(RESULTS / "gallery" / "sprite.png"))
    shown = list(tiles_of(picture, gallery.MOST_IMAGES))
    for name, file in ((ID_TEST, "cifar10"), ("svhn", "svhn"), ("cifar100", "cifar100")):
        images = data.load(file).images.permute(0, 2, 3, 1).numpy()
        for row in committed["examples"]["images"]:
            if row["set"] == name:
                assert np.array_equal(shown[row["tile"]], images[row["index"]])


def test_committed_text_follows_from_the_committed_numbers(committed):
    command = "run `python -m bookmaking.gallery`"
    texts = {"gallery": gallery_page.limits(committed["limits"])}
    texts["examples"] = gallery_page.browser(committed["examples"])
    for name, text in texts.items():
        assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == text, command
    rows = [row for row in read_json(RESULTS / "table1.json") if row["network"] == RUN.network]
    assert set(committed["limits"]["runs"]) == {row["seed"] for row in rows}, command


@pytest.mark.parametrize(("page", "source"), [("limits", "gallery"), ("examples", "examples")])
def test_a_page_includes_every_part(page, source):
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    parts = re.findall(r"<!-- (\w+) -->\n", (RESULTS / f"{source}.md").read_text(encoding="utf-8"))
    named = re.findall(r'start-after: "<!-- (\w+) -->"', text)
    assert named == [part for part in parts if part != "end"]
    assert set(re.findall(r"results/(\w+)\.md", text)) == {source}


def test_the_style_fits_the_sprite():
    style = (ROOT / "book" / "_static" / "gallery.css").read_text(encoding="utf-8")
    assert f"calc({gallery_page.COLUMNS} * var(--side))" in style


def test_the_table_says_what_the_browser_shows(committed):
    table = gallery_page.browser(committed["examples"]).partition("<tbody>")[2]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    assert len(rows) == len(committed["examples"]["images"])
    for text, row in zip(rows, committed["examples"]["images"], strict=True):
        cells = re.findall(r"<td>([^<]*)</td>", text)
        true, predicted, norm2, residual2, *scores = cells[-8:]
        assert [true, predicted] == [row["true"], row["predicted"]]
        assert float(norm2) == pytest.approx(row["norm2"], rel=0.01)
        assert float(residual2) == pytest.approx(row["residual2"], rel=0.05)
        for cell, method in zip(scores, gallery.BROWSED, strict=True):
            percentile = float(cell.partition("\u00a0")[0])
            assert percentile == pytest.approx(row["percentiles"][method], abs=0.006)
            assert ("●" in cell) == row["alarms"][method]
        place = re.search(r"--x:(\d+);--y:(\d+)", text)
        assert int(place[1]) + gallery_page.COLUMNS * int(place[2]) == row["tile"]
