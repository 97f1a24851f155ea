"""The opening: numbers against autograd, pictures against the gallery, words against the scores."""

import base64
import io
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from sklearn.metrics import roc_auc_score

from bookmaking import front, opening, opening_page
from experiments import ablations
from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.run import Run
from thinkback_utils import data
from thinkback_utils.files import read_json
from thinkback_utils.scores import head_gradients

BOOK = Path(__file__).parents[1] / "book"
RESULTS = BOOK.parent / "results"
RUN = Run.at(RESULTS)
T, DAMPING, PAPER_T = 3.0, 0.1, 5.0
FAR = ("svhn", "textures10", "places9_crop", "places9_resize", "sun_resize")
STYLE = (BOOK / "_static" / "opening.css").read_text(encoding="utf-8")
COMMAND = "run `python -m bookmaking.opening`"


@pytest.fixture(scope="module")
def story():
    return opening.tell(RUN)


@pytest.fixture(scope="module")
def facts():
    return opening.found(RUN)


@pytest.fixture(scope="module")
def bundle():
    return RUN.bundle()


@pytest.fixture(scope="module")
def kept():
    return RUN.scores()


@pytest.fixture(scope="module")
def committed():
    return (RESULTS / "opening.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(committed):
    return BeautifulSoup(committed, "html.parser")


def symmetric_inverse_root(matrix):
    """By eigenvalues, damped by their mean; the residuals' zero direction stays out."""
    floor = DAMPING * np.trace(matrix) / len(matrix)
    values, vectors = np.linalg.eigh(matrix + floor * np.eye(len(matrix)))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def residuals(z, temperature):
    return (softmax(z / temperature) - np.eye(z.shape[1])[z.argmax(1)]) / temperature


def test_cells_are_squared_gradients_of_autograd_against_training(story, bundle):
    train = bundle.sets[ID_TRAIN]
    z, h = train.logits.double().numpy(), train.features.double().numpy()
    E = (residuals(z, PAPER_T) ** 2).T @ h**2 / len(h)
    r = residuals(z, T)
    h = np.hstack([h / np.linalg.norm(h, axis=1, keepdims=True), np.ones((len(h), 1))])
    A, B = (symmetric_inverse_root(x.T @ x / len(x)) for x in (r, h))
    for pick in story.picks:
        own = bundle.sets[pick.name]
        x, length = own.features[[pick.number]].double(), own.features[pick.number].double().norm()
        weight, bias = bundle.weight.double(), bundle.bias.double()
        label = own.logits[[pick.number]].argmax(1)
        gradient = head_gradients(x, weight, bias, label, PAPER_T)[0].numpy()[:, :-1]
        paper = pick.lanes["thinkback"].cells
        # float16 features
        assert paper == pytest.approx(gradient**2 / E, rel=2e-2, abs=1e-3 * paper.max())
        p = softmax(own.logits[pick.number].double().numpy() / T)
        expected = 0
        for label in range(len(p)):  # the last layer reads x / length, so its weight is longer
            unit = (x / length, weight * length, bias, torch.tensor([label]), T)
            gradient = head_gradients(*unit)[0].numpy()
            expected = expected + p[label] * (A @ gradient @ B) ** 2
        repaired = pick.lanes["thinkback_averaged"].cells
        assert repaired == pytest.approx(expected, rel=2e-2, abs=1e-3 * expected.max())
        for lane in pick.lanes.values():
            assert lane.cells.sum() == pytest.approx(lane.score, rel=1e-9)


def test_the_pictures_follow_the_rule(story, kept):
    images = read_json(RESULTS / "gallery" / "examples.json")["images"]
    cut = {
        m: np.sort(kept[ID_TEST][m])[-500] for m in opening_page.LANES
    }  # of 10,000, to one place
    seen = []
    for pick in story.picks:
        scores = kept[pick.name][opening_page.REPAIRED]
        alarm = pick.lanes[opening_page.REPAIRED].alarm
        side = (scores > cut[opening_page.REPAIRED]) == alarm
        away = np.abs(scores - np.median(scores[side]))
        shown = [i["index"] for i in images if i["set"] == pick.name and side[i["index"]]]
        assert pick.number in shown
        assert away[pick.number] == pytest.approx(away[shown].min(), abs=0.5)
        for method, lane in pick.lanes.items():
            assert lane.score == pytest.approx(kept[pick.name][method][pick.number], rel=1e-6)
            assert lane.alarm == (lane.score > cut[method])
            below = 100 * (kept[ID_TEST][method] < lane.score).mean()
            assert lane.place == pytest.approx(below, abs=0.02)
        outcome = [kept[pick.name][m] > cut[m] for m in opening_page.LANES]
        same = [o == lane.alarm for o, lane in zip(outcome, pick.lanes.values(), strict=True)]
        assert pick.share == pytest.approx(np.mean(same[0] & same[1]), abs=1e-3)
        seen.append((pick.name, alarm))
    assert len(set(seen)) == 6


def test_doubt_and_length_are_places_among_the_test_images(story, bundle):
    test = bundle.sets[ID_TEST]
    doubts = (residuals(test.logits.double().numpy(), PAPER_T) ** 2).sum(1)
    lengths = test.features.double().norm(dim=1).numpy()
    for pick in story.picks:
        own = bundle.sets[pick.name]
        doubt = (residuals(own.logits[[pick.number]].double().numpy(), PAPER_T) ** 2).sum()
        assert pick.doubt == pytest.approx(100 * (doubts < doubt).mean(), abs=0.02)
        assert pick.length == pytest.approx(
            100 * (lengths < own.features[pick.number].double().norm().item()).mean(), abs=0.02
        )


def test_the_three_results_are_those_of_the_scores(facts, bundle):
    def auroc(inside, outside):
        return roc_auc_score([0] * len(inside) + [1] * len(outside), [*inside, *outside])

    seeds = [run.scores() for run in (RUN, *RUN.siblings())]
    for method in opening_page.NAMES:
        far = [auroc(own[ID_TEST][method], own[name][method]) for own in seeds for name in FAR]
        # table1 draws images
        assert facts["far"][method] == pytest.approx(np.mean(far), abs=0.005)
        near = [auroc(own[ID_TEST][method], own["cifar100"][method]) for own in seeds]
        assert facts["near"][method] == pytest.approx(np.mean(near), abs=0.005)
    arrays = ablations.load(RUN.folder)[0]
    reading = [auroc(arrays[f"{ID_TEST}.E_eq6"], arrays[f"{name}.E_eq6"]) for name in FAR]
    for run in RUN.siblings():
        own = {name: row["reading_E"] for name, row in run.scores("readings.npz").items()}
        reading += [auroc(own[ID_TEST], own[name]) for name in FAR]
    assert facts["reading"] == pytest.approx(np.mean(reading), abs=1e-6)
    assert facts["reading_images"] == max(len(arrays[f"{name}.E_eq6"]) for name in FAR)
    length = {name: bundle.sets[name].features.double().norm(dim=1) for name in (ID_TEST, *FAR)}
    alone = [auroc(length[ID_TEST], length[name]) for name in FAR]
    assert facts["alone"]["norm2"] == pytest.approx((min(alone), max(alone)), abs=1e-4)
    rows = read_json(RESULTS / "verdicts.json")["differences"]
    assert facts["printed"] == len(rows)
    assert facts["tested"] == sum(row["measured"] is not None for row in rows)


def test_the_committed_parts_follow_from_the_results(story, facts, committed):
    """Words to the letter, numbers but for the last digit of a drawing, pictures elsewhere."""
    fresh = opening_page.as_markdown(story, facts, read_json(RESULTS / "verdicts.json"))
    texts = [re.sub(r"data:[^\")]+", "", text) for text in (committed, fresh)]
    parts = [re.split(r"(-?\d+(?:\.\d+)?)", text) for text in texts]
    assert parts[0][::2] == parts[1][::2], COMMAND
    numbers = [[float(number) for number in part[1::2]] for part in parts]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.101), COMMAND
    assert len(committed.encode()) <= 120_000
    assert not re.search(r"https?:|<script|infinite", committed)


def pictures(tags):
    sources = [re.search(r"base64,([^\")]+)", str(tag))[1] for tag in tags]
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def test_the_committed_pictures_are_the_gallery_and_the_cells(story, drawn):
    sprite = np.asarray(Image.open(RESULTS / "gallery" / "sprite.png"))
    browsed = read_json(RESULTS / "gallery" / "examples.json")
    tiles = {(r["set"], r["index"]): r["tile"] for r in browsed["images"]}
    for where in (".op-pick img", ".op-seen img"):
        for pick, picture in zip(story.picks, pictures(drawn.select(where)), strict=True):
            tile = tiles[pick.name, pick.number]
            y, x = (data.SIDE * place for place in divmod(tile, browsed["columns"]))
            own = sprite[y : y + data.SIDE, x : x + data.SIDE]
            assert np.array_equal(np.asarray(picture.convert("RGB")), own)
    heats = pictures(drawn.select(".op-heat span"))
    for place, (pick, lane) in enumerate(itertools.product(story.picks, opening_page.LANES)):
        cells = [np.sqrt(other.lanes[lane].cells) for other in story.picks]
        top = np.quantile(cells, 0.99)
        opacity = np.asarray(heats[place].convert("RGBA"))[..., 3] / 255
        own = (np.sqrt(pick.lanes[lane].cells) / top).clip(0, 1)
        assert opacity == pytest.approx(own, abs=0.6 / (opening_page.LEVELS - 1))


def test_bars_and_lines_have_the_lengths_of_the_numbers(story, drawn):
    def width(tag, name="--w"):
        return float(re.search(rf"{name}: (-?[\d.]+)%", tag["style"])[1]) / 100

    strips = [path["d"] for path in drawn.select(".op-seen path")]
    tallest = max(pick.h.max() for pick in story.picks)
    bars = [[width(i) for i in block("i")] for block in drawn.select(".op-answers")]
    for pick, strip, own in zip(story.picks, strips, bars, strict=True):
        lines = [-float(x) for x in re.findall(r"v(-?[\d.]+)", strip)]
        assert lines == pytest.approx(opening_page.STRIP * pick.h / tallest, abs=0.051)
        assert own == pytest.approx(pick.p, abs=0.0006)
    scales = iter(drawn.select(".op-scale"))
    for pick, lane in itertools.product(story.picks, opening_page.LANES):
        scale, own = next(scales), pick.lanes[lane]
        cut, bar = width(scale, "--cut"), width(scale.i)
        assert bar / cut == pytest.approx(own.score / story.threshold[lane], rel=1e-3)
        assert (bar > cut) == own.alarm


@pytest.mark.parametrize("familiar", [True, False])
@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("repaired", [True, False])
def test_the_text_says_what_is_drawn(story, familiar, paper, repaired):
    pick = next(p for p in story.picks if (p.name == ID_TEST) == familiar)
    alarm = dict(zip(opening_page.LANES, (paper, repaired), strict=True))
    lanes = {name: lane._replace(alarm=alarm[name]) for name, lane in pick.lanes.items()}
    for doubt, length in ((90.0, 10.0), (90.0, 90.0)):
        pick = replace(pick, lanes=lanes, doubt=doubt, length=length)
        text = opening_page.explained(pick)
        assert ("false alarm" in text) == (familiar and (paper or repaired))
        assert ("miss" in text) == (not familiar and not paper and not repaired)
        hides = not familiar and repaired and not paper and length < 25
        assert ("short features hide the doubt" in text) == hides
        assert ("Both" in text) == (paper == repaired)


def test_a_set_without_such_a_picture_is_refused():
    scored = {
        name: {m: np.arange(100.0) for m in opening_page.LANES} for name in opening_page.GROUPS
    }
    with pytest.raises(ValueError, match=r"thinkback: .* no picture of cifar10-test without"):
        opening.chosen(scored, [])


def test_verdicts_have_marks_and_no_interval(drawn):
    rows = drawn.select(".op-verdicts li:not(.op-head)")
    claims = read_json(RESULTS / "verdicts.json")["claims"]
    assert len(rows) == len(claims) + 1
    for row, claim in zip(rows, claims, strict=False):
        assert claim["verdict"] in row.select_one(".op-mark").get_text()
        assert len(row.select_one(".op-finding").get_text()) > 10
        assert not re.search(r"\[[+−]", row.get_text())


def test_findings_on_other_networks_are_named():
    counts = {"won": 10, "lost": 29, "count": 40}, {"won": 3, "lost": 4, "count": 40}
    facts = [n | {"network": title} for n, title in zip(counts, ("", "A net"), strict=True)]
    expected = "Of 40 comparisons it wins 10 and loses 29; the rest could be chance."
    said = opening_page.plain({"key": "gains", "facts": facts})[1]
    assert said == f"{expected} A net: 3 won, 4 lost of 40."
    facts = [{"reading": "E", "layer": "weight of it", "gain": 0.0159}]
    facts.append({"network": "A net", "reading": "E", "gain": -0.032})
    said = opening_page.plain({"key": "reading", "facts": facts})[1]
    assert said.endswith(
        "E, the weight of it: AUROC +1.59 points against Energy. A net: −3.20 points for E."
    )


@pytest.mark.parametrize(
    ("verdict", "mark"),
    [
        ("reproduced", "✓"),
        ("not reproduced", "✗"),
        ("inconclusive", "?"),
        ("cannot be tested here", "?"),
    ],
)
def test_every_verdict_has_a_mark_and_a_word(verdict, mark):
    facts = [{"T": 4.75}]
    claim = {"key": "rule", "facts": facts, "verdict": verdict}
    differences = [{"verdict": verdict}, {"verdict": "cannot be tested here"}]
    first, last = opening_page.judged({"claims": [claim], "differences": differences})
    assert (first["mark"], first["verdict"]) == (mark, verdict)
    assert first["finding"].endswith("the rule says T\u00a0=\u00a04.75.")
    assert last["verdict"] == verdict
    mixed = [{"verdict": "reproduced"}, {"verdict": "inconclusive"}]
    assert opening_page.judged({"claims": [], "differences": mixed})[0]["verdict"] == "in parts"


def test_words_follow_the_numbers(facts):
    turned = facts | {"near": dict(facts["near"], thinkback_averaged=0.99)}
    for given in (facts, turned):
        behind = given["near"][opening_page.REPAIRED] < given["near"]["energy"]
        assert ("it loses to Energy" in opening_page.summary(given)) == behind
        assert ("Energy stays ahead" in opening_page.cards(given)) == behind
    assert "reading E" in opening_page.cards(facts)
    assert "reading E" not in opening_page.cards(facts | {"reading": None})


def test_the_readme_says_what_was_found(facts):
    """Its three results name no number; each must follow from the numbers."""
    text = " ".join((BOOK.parent / "README.md").read_text(encoding="utf-8").split())
    far, near, alone = facts["far"], facts["near"], facts["alone"]
    assert "less well than Softmax and Energy" in text
    assert far["thinkback"] < min(far["msp"], far["energy"])
    assert "ahead of Energy on images unlike the training set, but not on those" in text
    assert far[opening_page.REPAIRED] > far["energy"]
    assert near[opening_page.REPAIRED] <= near["energy"]
    assert "leave more doubt but have shorter features" in text
    assert alone["norm2"][1] < 0.5 < alone["residual2"][0]
    assert "the printed formula works on this network" in text
    assert facts["reading"] > far["energy"]
    for file in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (BOOK.parent / file).is_file()


def test_one_command_writes_it(story, facts, tmp_path, monkeypatch, capsys):
    here = Run.at(tmp_path)
    here.folder.mkdir(parents=True)
    here.weights.write_bytes(b"weights")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "verdicts.json").write_text((RESULTS / "verdicts.json").read_text("utf-8"), "utf-8")
    monkeypatch.setattr(opening, "tell", lambda *_: story)
    monkeypatch.setattr(opening, "found", lambda *_: facts)
    opening.main(["--results", str(tmp_path)])
    assert "opening.md" in capsys.readouterr().out
    kept = read_json(tmp_path / "gallery" / "opening.json")["images"]
    assert [(row["set"], row["index"]) for row in kept] == [(p.name, p.number) for p in story.picks]
    assert Image.open(tmp_path / "gallery" / "card.png").size == (1200, 630)
    committed, six = (
        np.asarray(Image.open(r / "gallery/pictures.png")) for r in (RESULTS, tmp_path)
    )
    assert np.array_equal(committed, six), COMMAND


def test_the_front_page_includes_every_part(committed):
    page = (BOOK / "intro.md").read_text(encoding="utf-8")
    parts = re.findall(r"<!-- (\w+) -->\n", committed + front.as_markdown(BOOK.parent))
    named = re.findall(r'start-after: "<!-- (\w+) -->"', page)
    assert sorted(named) == sorted(part for part in parts if part != "end")


def test_the_drawing_rests_complete_and_moves_for_a_short_time():
    still, moving = STYLE.split("@media screen and (prefers-reduced-motion: no-preference) {")
    moving = moving[: moving.index("/* Three cards */")]
    assert "animation" not in still + STYLE.split("/* Three cards */")[1]
    step, duration = (
        float(re.search(time, moving)[1])
        for time in (r"--s\) \* ([\d.]+)s", r"duration: ([\d.]+)s")
    )
    assert 4 * step + duration <= 2


@pytest.fixture(scope="module")
def page_file(committed, tmp_path_factory):
    """The parts alone, under their style."""
    parts = re.findall(
        r"```\{raw\} html\n(.*?)\n```", committed + front.as_markdown(BOOK.parent), re.S
    )
    body = f"<style>body {{ margin: 8px }} {STYLE}</style>{''.join(parts)}"
    file = tmp_path_factory.mktemp("page") / "page.html"
    text = f'<!doctype html><html lang="en"><body class="bd-content">{body}</body></html>'
    file.write_text(text, encoding="utf-8")
    return file.as_uri()


VISIBLE = """() => [...document.querySelectorAll(".op-steps > .op-panel")]
  .map((e) => e.checkVisibility({ visibilityProperty: true })).indexOf(true)"""
PLACES = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getClientRects().length).map((e) => {
    const { x, y, width, height } = e.getBoundingClientRect();
    return [x + scrollX, y + scrollY, width, height].map(Math.round).join();
  }).join(";")"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_arrows_pick_pictures_and_nothing_moves(browser, page_file, width, scripts):
    size = {"width": width, "height": 844}
    context = browser.new_context(
        viewport=size, java_script_enabled=scripts, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(page_file)
    page.focus("#op-3")
    places = page.evaluate(PLACES)
    for place in (2, 3, 4, 5, 0, 1):
        assert page.evaluate(VISIBLE) == place
        page.keyboard.press("ArrowRight")
    page.focus("#op-way-1")
    for _ in front.WAYS:
        assert page.evaluate(PLACES) == places
        page.keyboard.press("ArrowRight")
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) == 0
    small = """() => [...document.querySelectorAll("body *")].filter((e) =>
      [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) &&
      parseFloat(getComputedStyle(e).fontSize) < 12 && e.tagName !== "STYLE").length"""
    assert page.evaluate(small) == 0
    context.close()
