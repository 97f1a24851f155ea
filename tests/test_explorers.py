"""The explorers work by keyboard, show what the metrics say, and lose nothing without a script."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import fonts
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_score

import thinkback_utils as tb
from bookmaking import explorers, palette
from experiments import evaluation, plots

ROOT = Path(__file__).parents[1]
STATIC, GALLERY = ROOT / "book" / "_static", ROOT / "results" / "gallery"
FIGURE = (
    '<figure id="fig-x"><img alt="the static figure" src="data:,"><figcaption>The'
    " caption</figcaption></figure>"
)
METHODS = ["msp", "energy", "thinkback"]
SETS = ["textures", "svhn", "isun", "cifar100"]
RNG = np.random.default_rng(0)
PAIRS = {
    "far": (RNG.normal(0, 1, 2_000), RNG.normal(2, 1, 500)),
    "near, with <ties>": (RNG.integers(0, 9, 3_000), RNG.integers(2, 11, 700)),
}
STEPS = {
    T: [10.0 ** RNG.normal(loc, T, n) for loc, n in ((0, 900), (1, 300), (2, 200))]
    for T in (0.5, 5.0, 50.0)
}
SCORES = {
    name: {m: RNG.normal(i, 1 + j, 400) for j, m in enumerate(METHODS)}
    for i, name in enumerate(["id", *SETS])
}

Open = Callable[..., Any]


def records() -> list[dict[str, Any]]:
    scored = {name: SCORES[name] for name in SETS if name != "isun"}
    scored[evaluation.ID_TEST] = SCORES["id"]
    rows = evaluation.table(scored)  # every set is smaller than a draw: drawn once, whole
    return evaluation.with_intervals([*rows, *evaluation.means(rows)], scored, resamples=20)


def results(seeds: int = 1) -> Any:
    return explorers.results(records() * seeds, evaluation.paper_table(), SETS, METHODS)


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page that holds these outputs of a cell; at the end no error may have come up."""
    faults: list[list[str]] = []

    def show(*outputs: str, script: bool = True, width: int = 1280) -> Any:
        static = shutil.copytree(STATIC, tmp_path / "_static", dirs_exist_ok=True)
        shutil.copytree(GALLERY, static / "gallery", dirs_exist_ok=True)
        with Image.open(GALLERY / "sprite.png") as sprite:
            sprite.save(static / "gallery" / "sprite.webp", lossless=True, quality=0, method=0)
        sheet = '<link rel="stylesheet" href="_static/{}.css">'
        head = sheet.format("gallery") + sheet.format("explorers")
        head += '<script src="_static/dom.js"></script>'
        head += '<script defer src="_static/explorers.js"></script>'
        body = f'<main class="bd-content"><div class="cell_output">{"".join(outputs)}</div></main>'
        file = tmp_path / "page.html"
        text = f'<!doctype html><html lang="en"><meta charset="utf-8">{head}{body}'
        file.write_text(text, encoding="utf-8")
        view = {"width": width, "height": 800}
        page = browser.new_page(java_script_enabled=script, viewport=view)
        page.set_default_timeout(60_000)
        faults.append(browsing.complaints(page))
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for context in browser.contexts:
        context.close()
    assert not any(faults), faults


def number(page: Any, name: str) -> float:
    """What the page shows, a fraction."""
    return float(page.locator(f'[data-number="{name}"]').inner_text().removesuffix(" %")) / 100


def close(value: float) -> Any:
    return pytest.approx(value, abs=0.0005 + 1e-9)  # one decimal of a percentage


def test_threshold_and_prevalence(show: Open) -> None:
    page = show(FIGURE, explorers.threshold(PAIRS, "fig-x", prevalence=0.2).data)
    threshold, prevalence = (
        page.get_by_role("slider", name=name) for name in ("Threshold", "Prevalence")
    )
    seen = set()
    for choice, (ids, ood) in enumerate(PAIRS.values()):
        page.get_by_role("combobox", name="Scores of").select_option(index=choice)
        edges = np.linspace(min(ids.min(), ood.min()), max(ids.max(), ood.max()), 121)
        curve, truth = tb.metrics.roc(ids, ood), np.repeat([0, 1], [len(ids), len(ood)])
        started = edges[int(threshold.input_value())]
        after = edges[int(threshold.input_value()) + 1]
        assert (ood >= started).mean() >= 0.95 > (ood >= after).mean()
        moves = [(threshold, ""), (threshold, "ArrowRight"), (prevalence, "PageDown")]
        moves += [(threshold, "PageDown"), (prevalence, "Home"), (threshold, "ArrowLeft")]
        moves += [(prevalence, "End"), (threshold, "Home")]
        for slider, key in moves:
            if key:
                slider.press(key)
            edge = edges[int(threshold.input_value())]
            said = prevalence.get_attribute("aria-valuetext")
            pi = float(re.search(r"([\d.]+) %", said)[1]) / 100
            at = int((curve.threshold >= edge).sum()) - 1
            weight = np.where(truth, pi / len(ood), (1 - pi) / len(ids))
            called = np.concatenate([ids, ood]) >= edge
            assert number(page, "TPR") == close(curve.tpr[at])
            assert number(page, "FPR") == close(curve.fpr[at])
            precision = precision_score(truth, called, sample_weight=weight)
            assert number(page, "Precision") == close(precision)
            assert number(page, "AUPR") == close(tb.metrics.average_precision(curve, pi))
            assert number(page, "AUROC") == close(tb.metrics.ood_metrics(ids, ood)["auroc"])
            label = page.locator("svg").first.get_attribute("aria-label")
            assert f"{100 * number(page, 'TPR'):.1f} %" in label
            seen.add((choice, number(page, "AUROC"), number(page, "AUPR")))
        assert len({auroc for c, auroc, _ in seen if c == choice}) == 1, "AUROC moved"
        assert len({aupr for c, _, aupr in seen if c == choice}) > 2, "AUPR did not move"
    # The explorer stands in the figure, over its caption.
    assert page.locator("figure .tb-explorer").count() == 1
    assert page.locator("figure img").count() == 0
    assert page.locator("figcaption").is_visible()


def test_temperature(show: Open) -> None:
    titles = ["first", "second"]
    page = show(FIGURE, explorers.temperature(STEPS, titles, "fig-x").data)
    slider, seen = page.get_by_role("slider", name="Temperature"), set()
    assert slider.get_attribute("aria-valuetext") == "5"
    for key in ("Home", "ArrowRight", "End"):
        slider.press(key)
        T = float(slider.get_attribute("aria-valuetext"))
        for i, title in enumerate(titles):
            page.get_by_role("combobox", name="OOD images").select_option(title)
            expected = tb.metrics.ood_metrics(STEPS[T][0], STEPS[T][i + 1])
            assert number(page, "AUROC") == close(expected["auroc"])
            assert number(page, "FPR95") == close(expected["fpr95"])
            seen.add((T, title, number(page, "AUROC")))
    assert len(seen) == len(STEPS) * len(titles)
    assert page.locator("svg[role=img]").count() == 3


def order(page: Any) -> list[str]:
    return page.locator("table:visible tbody tr:visible").evaluate_all(
        "rows => rows.map(row => row.dataset.set)"
    )


def test_results_show_what_was_measured(show: Open) -> None:
    page = show(results().data)
    for metric, title in tb.metrics.TITLES.items():
        choose_metric(page, title)
        assert page.locator("table:visible").get_attribute("data-metric") == metric
        for name in SETS:
            row = page.locator(f'table:visible tr[data-set="{name}"]')
            for column, method in enumerate(METHODS):
                text = row.locator("td").nth(column).inner_text()
                found = tb.metrics.ood_metrics(SCORES["id"][method], SCORES[name][method])
                measured = found[metric]
                shown = "not measured" if name == "isun" else f"{100 * measured:.2f}"
                assert text.startswith(shown)
                printed = evaluation.find(evaluation.paper_table(), set=name, method=method)
                assert ("paper" in text) == (name != "cifar100")
                assert printed is None or text.endswith(f"paper {100 * printed[metric]:.2f}")
            kinds = ("dot", "interval", "hollow")
            drawn = tuple(row.locator(f".tb-strip .tb-{kind}").count() for kind in kinds)
            assert drawn == {"isun": (0, 0, 3), "cifar100": (3, 3, 0)}.get(name, (3, 3, 3))


def choose_metric(page: Any, title: str) -> None:
    box = page.get_by_role("combobox", name="Metric")
    texts = box.locator("option").all_inner_texts()
    box.select_option(next(text for text in texts if text.startswith(title)))


def test_results_sort_by_keyboard(show: Open) -> None:
    page = show(results().data)
    measured = [name for name in SETS if name != "isun"]
    for metric, best in (("auroc", -1), ("fpr95", 1)):
        choose_metric(page, metric.upper())
        energy = {name: row["energy"] for name, row in SCORES.items()}
        key = {n: tb.metrics.ood_metrics(energy["id"], energy[n])[metric] for n in measured}
        head = page.locator("table:visible th", has_text="Energy")
        first = {1: "ascending", -1: "descending"}[best]
        for sign, state in ((best, first), (-best, None), (0, "none")):
            head.get_by_role("button").press("Enter")
            expected = [*sorted(measured, key=lambda n: sign * key[n]), "isun"] if sign else SETS
            assert order(page) == expected
            assert state in (None, head.get_attribute("aria-sort"))
            assert ("first" in page.locator("output").inner_text()) == bool(sign)


def test_results_filter_by_keyboard(show: Open) -> None:
    page = show(results().data)
    page.get_by_role("checkbox", name="Softmax").press("Space")
    assert page.locator("table:visible th:visible").filter(has_text="Softmax").count() == 0
    row = page.locator("table:visible tbody tr").first
    assert row.locator("td:visible").count() == 3  # two methods, one strip
    assert page.locator('table:visible tr[data-set="svhn"] .tb-dot').count() == 2
    page.locator("summary").press("Enter")
    page.get_by_role("checkbox", name="SVHN").press("Space")
    assert order(page) == [name for name in SETS if name != "svhn"]
    assert "3 of 4 sets" in page.locator("output").inner_text()
    colors = {m: palette.readable(plots.METHOD_COLORS[m], "light") for m in METHODS}
    paint = "button => getComputedStyle(button).borderBottomColor"
    for method in METHODS[1:]:
        head = page.locator(f'table:visible th[data-method="{method}"] button')
        assert head.evaluate(paint) == f"rgb{tuple(bytes.fromhex(colors[method][1:]))}"


BROWSED = json.loads((GALLERY / "examples.json").read_text(encoding="utf-8"))
IMAGES = BROWSED["images"]
TITLES = {"cifar10-test": "CIFAR-10", "svhn": "SVHN", "cifar100": "CIFAR-100"}
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def value(text: str) -> float:
    """A number as the page writes it."""
    digits, _, exponent = text.partition("10") if re.search("[⁰¹²³⁴-⁹]", text) else (text, "", "0")
    mantissa = digits.removesuffix(" · ").translate(SUPERSCRIPTS)
    return float(mantissa or 1) * 10.0 ** int(exponent.translate(SUPERSCRIPTS))


def card(page: Any) -> dict[str, Any]:
    """The image on the card, once everything on it was compared with the kept numbers."""
    name = page.locator(".tb-card output b").inner_text()
    title, index = re.fullmatch(r"(.+), image (\d+)", name).groups()
    (row,) = [row for row in IMAGES if (TITLES[row["set"]], row["index"]) == (title, int(index))]
    said = page.locator(".tb-card output").inner_text()
    facts = (
        r"Class: (.+)\s+Answer: (.+)\s+‖h‖² = (.+)\s+‖r‖² = (.+) at T = 5\s+‖r‖² = (.+) at T = 1"
    )
    true, predicted, norm2, residual2, sharp = re.search(facts, said).groups()
    assert [true, predicted] == [row["true"], row["predicted"]]
    for text, key in ((norm2, "norm2"), (residual2, "residual2"), (sharp, "residual2_T1")):
        assert value(text) == pytest.approx(row[key], rel=0.05 if "10" in text else 5e-4), key
    lines = page.locator(".tb-card tbody tr").all()
    for line, (method, name) in zip(lines, BROWSED["methods"].items(), strict=True):
        cells = line.locator("th, td").all_inner_texts()
        assert cells[0] == name
        assert value(cells[1]) == pytest.approx(row["scores"][method], rel=5e-4)
        assert float(cells[2]) == pytest.approx(row["percentiles"][method], abs=0.006)
        inside = row["set"] == "cifar10-test"
        expected = "rejects false alarm" if inside else "rejects caught"
        if not row["alarms"][method]:
            expected = "accepts rightly" if inside else "accepts missed"
        assert cells[3].split() == expected.split()
    return row


def test_examples_by_keyboard(show: Open) -> None:
    page = show(FIGURE, explorers.examples(BROWSED, "fig-x").data)
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == f"none of {len(IMAGES)}"
    # Pictures come when they are asked for.
    assert not [url for url in page.requested if url.endswith("sprite.webp")]
    assert page.locator("figure .tb-explorer").count() == 1
    assert page.locator("figcaption").is_visible()
    page.locator("select").first.focus()
    for _ in range(2 + 4):  # axis, three sets, mistakes, the slider: the marks are one stop
        page.keyboard.press("Tab")
    assert slider.evaluate("e => e === document.activeElement")
    for method, title in BROWSED["methods"].items():
        page.get_by_role("combobox", name="Score").select_option(title)
        ranked = sorted(IMAGES, key=lambda row: row["scores"][method])
        places = {"Home": 0, "ArrowRight": 1, "ArrowUp": 2, "End": -1, "ArrowLeft": -2}
        for key, place in places.items():
            slider.press(key)
            assert card(page) == ranked[place]
            said = f"{place % len(IMAGES) + 1} of {len(IMAGES)}"
            assert slider.get_attribute("aria-valuetext") == said
        assert page.locator(".tb-chosen th").inner_text() == title
        raised = sum(row["alarms"][method] for row in IMAGES)
        assert page.locator(".tb-alarm").count() == raised
        assert page.locator(".tb-explorer > svg .tb-hollow").count() == len(IMAGES) - raised
    assert page.locator(".tb-card output").count() == 1, "what changes is read aloud"


def test_examples_of_some_sets_and_mistakes_alone(show: Open) -> None:
    page = show(FIGURE, explorers.examples(BROWSED, "fig-x").data)
    slider = page.get_by_role("slider")
    page.get_by_role("checkbox", name="SVHN").press("Space")
    page.get_by_role("checkbox", name="only mistakes").press("Space")
    wrong = [row for row in IMAGES if row["alarms"]["thinkback"] == (row["set"] == "cifar10-test")]
    others = [row for row in wrong if row["set"] != "svhn"]
    expected = sorted(others, key=lambda row: row["scores"]["thinkback"])
    for place, row in enumerate(expected):
        slider.press("ArrowRight" if place else "Home")
        assert card(page) == row
    assert slider.get_attribute("aria-valuetext") == f"{len(expected)} of {len(expected)}"
    for name in ("CIFAR-10", "CIFAR-100"):
        page.get_by_role("checkbox", name=name, exact=True).press("Space")
    assert slider.is_disabled()
    assert slider.get_attribute("aria-valuetext") == "none of 0"


@fonts.both_font_sets
@pytest.mark.parametrize(
    ("axis", "key"), [(0, "residual2"), (1, "residual2_T1"), (2, "percentiles")]
)
def test_examples_by_pointer(show: Open, axis: int, key: str) -> None:
    """Marks lie where their numbers say, upward a logarithm or a percentile; pointing shows one."""
    page = show(FIGURE, explorers.examples(BROWSED, "fig-x").data, width=360)
    page.get_by_role("combobox", name="Vertical axis").select_option(index=axis)
    marks = page.locator(".tb-explorer > svg path")
    place = "all => all.map(e => e.transform.baseVal[0].matrix).map(m => [m.e, m.f])"
    places = np.array(marks.evaluate_all(place))
    ranked = sorted(IMAGES, key=lambda row: row["scores"]["thinkback"])
    read = (lambda x: x["thinkback"]) if key == "percentiles" else np.log
    up = np.array([read(row[key]) for row in ranked])
    across = np.log([row["norm2"] for row in ranked])
    for drawn, numbers, sign in ((places[:, 0], across, 1), (places[:, 1], up, -1)):
        assert sign * np.corrcoef(drawn, numbers)[0, 1] > 1 - 1e-6
    box = page.locator(".tb-explorer > svg").bounding_box()
    size = page.locator(".tb-card").bounding_box()
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 99 * np.eye(len(places))
    alone = np.flatnonzero(distance.min(1) > 3)
    assert len(alone) > 60
    for i in alone[:: len(alone) // 6]:
        page.mouse.move(box["x"] + places[i, 0] + 1, box["y"] + places[i, 1])
        assert card(page) == ranked[i]
        assert page.locator(".tb-card").bounding_box() == size, "the card must not move the page"
        seen = page.locator(".tb-card .tb-tile").bounding_box()
        assert 0 <= seen["x"] <= seen["x"] + seen["width"] <= 360


def test_examples_show_the_picture(show: Open) -> None:
    page = show(FIGURE, explorers.examples(BROWSED, "fig-x").data)
    sprite = np.asarray(Image.open(GALLERY / "sprite.png"))
    for key in ("Home", "PageUp", "PageUp"):
        page.get_by_role("slider").press(key)
        page.wait_for_load_state("networkidle")
        row, tile = card(page), page.locator(".tb-card .tb-tile")
        label = f"{TITLES[row['set']]}, image {row['index']}: {row['true']}"
        assert tile.get_attribute("aria-label") == label
        y, x = (32 * place for place in divmod(row["tile"], BROWSED["columns"]))
        expected = sprite[y : y + 32, x : x + 32].repeat(4, 0).repeat(4, 1)
        # On whole pixels.
        tile.evaluate("e => Object.assign(e.style, { position: 'fixed', top: 0, left: 0 })")
        shot = Image.open(io.BytesIO(tile.screenshot())).convert("RGB")
        np.testing.assert_allclose(np.asarray(shot).astype(int), expected.astype(int), atol=2)


EXPLORERS: dict[str, Callable[[], Any]] = {
    "threshold": lambda: explorers.threshold(PAIRS, "fig-x"),
    "temperature": lambda: explorers.temperature(STEPS, ["first", "second"], "fig-x"),
    "results": results,
    "examples": lambda: explorers.examples(BROWSED, "fig-x"),
}


@fonts.both_font_sets
@pytest.mark.parametrize("kind", EXPLORERS)
def test_narrow_screen_and_small_page(show: Open, kind: str) -> None:
    page = show(FIGURE if kind != "results" else "", EXPLORERS[kind]().data, width=360)
    assert page.locator(".tb-live").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("input, select, button").all():
        name = "e => e.labels?.length ? e.labels[0].textContent : e.textContent"
        assert control.evaluate(name).strip(), "a control without a name"


MOVED = """() => {
    const kinds = ".tb-live, .tb-live :is(input, select, svg[role=img], table, tbody tr)";
    const parts = [...document.querySelectorAll(kinds)];
    const box = (part) => Object.values(part.getBoundingClientRect().toJSON()).join();
    const places = () => parts.map(box);
    const first = places();
    return [...document.querySelectorAll("input[type=range]")].flatMap((slider) =>
        [...Array(Number(slider.max) + 1).keys()].filter((place) => {
            slider.value = place;
            slider.dispatchEvent(new Event("input"));
            return places().some((now, i) => now !== first[i]);
        }));
}"""


@fonts.both_font_sets
@pytest.mark.parametrize("kind", ["threshold", "temperature", "examples"])
def test_a_slider_moves_nothing_of_the_page(show: Open, kind: str) -> None:
    """However long what it shows becomes: the next control stays under the finger."""
    page = show(FIGURE, EXPLORERS[kind]().data, width=360)
    page.wait_for_function("() => document.querySelector('svg[role=img]').childElementCount > 0")
    assert page.evaluate(MOVED) == []


def test_without_a_script(show: Open) -> None:
    parts = [EXPLORERS[kind]().data for kind in ("threshold", "results", "examples")]
    page = show(FIGURE, *parts, script=False)
    assert page.get_by_alt_text("the static figure").count() == 1
    assert page.locator("noscript p:visible").count() == 3
    assert page.locator("table:visible").count() == len(tb.metrics.METRICS)
    assert page.locator("input, select, button").count() == 0
    text = page.locator('table[data-metric="auroc"] tr[data-set="svhn"]').inner_text()
    found = tb.metrics.ood_metrics(SCORES["id"]["energy"], SCORES["svhn"]["energy"])
    assert f"{100 * found['auroc']:.2f}" in text


@pytest.mark.parametrize("script", [True, False])
def test_the_table_of_examples_stays(show: Open, script: bool) -> None:
    text = (ROOT / "results" / "examples.md").read_text(encoding="utf-8")
    raw = re.findall(r"```\{raw\} html\n(.+?)\n```", text, re.DOTALL)
    page = show(FIGURE.replace("fig-x", "fig-examples-plane"), *raw, script=script)
    assert page.get_by_alt_text("the static figure").count() == (not script)
    assert page.locator(".tb-live").count() == script
    page.locator("summary").click()
    assert page.locator("details tbody tr:visible").count() == len(IMAGES)
    picture = "e => getComputedStyle(e).backgroundImage"
    assert page.locator("details .tb-tile").first.evaluate(picture) != "none"


def test_other_pages_are_left_alone(show: Open) -> None:
    page = show(FIGURE, "<table><tr><td>1</td></tr></table>")
    expected = f"{FIGURE}<table><tbody><tr><td>1</td></tr></tbody></table>"
    assert page.locator(".cell_output").inner_html() == expected


def test_outputs_are_small_and_safe() -> None:
    ids, ood = RNG.normal(size=10_000), RNG.normal(1, 1, 5_000)
    assert len(explorers.threshold(dict.fromkeys("abc", (ids, ood)), "fig-x").data) < 20_000
    steps = {T: [np.exp(side) for side in (ids, *[ood] * 6)] for T in range(1, 15)}
    assert len(explorers.temperature(steps, list("abcdef"), "fig-x").data) < 40_000
    inside = re.search(r"<script[^>]*>(.*)</script>", explorers.threshold(PAIRS, "fig-x").data)
    assert inside is not None
    assert "<" not in inside[1]


def test_several_training_seeds_share_a_cell() -> None:
    one, other = (
        {"set": "svhn", "method": "energy", "draws": 10, **dict.fromkeys(tb.metrics.METRICS, v)}
        | {f"{m}_std": 0.01 for m in tb.metrics.METRICS}
        | {"interval95": dict.fromkeys(tb.metrics.METRICS, (v - 0.02, v + 0.01))}
        for v in (0.5, 0.6)
    )
    table = explorers.results([one, other], [], ["svhn"], ["energy"]).data
    assert 'data-here="55.00" data-low="48.00" data-high="61.00"' in table
    assert f"± {np.std([50, 60], ddof=1):.2f} (± 1.00)" in table


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="thinkback: all scores are 1"):
        explorers.threshold({"flat": (np.ones(3), np.ones(2))}, "fig-x")
    message = "thinkback: T = 1 has scores of 2 OOD sets, the titles name 1"
    with pytest.raises(ValueError, match=message):
        explorers.temperature({1.0: [np.ones(3), np.ones(2), np.ones(2)]}, ["one"], "fig-x")
