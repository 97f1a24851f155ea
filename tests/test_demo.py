"""The live demo: its graph against PyTorch, its runtime, its page in a real browser."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import browsing
import fonts
import numpy as np
import pytest
import torch
from filelock import FileLock

from bookmaking import demo
from experiments.run import Run
from thinkback_utils.features import extract

ROOT = Path(__file__).parents[1]
RESULTS, RUNTIME = ROOT / "results", (ROOT / demo.RUNTIME).parent


@pytest.fixture(scope="module")
def said():
    return demo.detector(RESULTS)


@pytest.fixture(scope="module")
def images():
    return demo.load_pictures(RESULTS)[0].float() / 255


@pytest.fixture(scope="module")
def made(tmp_path_factory, worker_id, said):
    """What the build of the book makes for the demo: once, by the first of all workers."""
    pytest.importorskip("onnx", reason="no onnx: pip install -e .[export]")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patched:
        if not (folder / "results" / "demo.md").exists():  # the last of its files
            patched.setattr(demo, "detector", lambda results: said)  # which this worker has
            demo.assets(folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    """The demo's page with what it loads, laid out as on the site, without the book around it."""
    html = tmp_path_factory.mktemp("html")
    shutil.copytree(ROOT / "book" / "extra", html, dirs_exist_ok=True)
    shutil.copytree(made / "book" / "extra", html, dirs_exist_ok=True)
    shutil.copytree(RUNTIME, html / RUNTIME.name)
    (html / "_static").mkdir()
    shutil.copyfile(ROOT / "book" / "_static" / "dom.js", html / "_static" / "dom.js")
    parts = (made / "results" / "demo.md").read_text("utf-8")

    def included(match):
        return re.search(rf"{match[1]}\s(.+?)<!-- end -->", parts, re.DOTALL)[1]

    include = r'```\{include\} \.\./results/demo\.md\n:start-after: "(.+?)"\n:end-before: .+\n```'
    page = re.sub(include, included, (ROOT / "book" / "demo.md").read_text("utf-8"))
    raw = re.findall(r"```\{raw\} html\n(.+?)\n```", page, re.DOTALL)
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width"><title>Demo</title><link rel="icon" href="data:,"><script'
        ' src="../_static/dom.js"></script>'
    )
    (html / "book").mkdir()
    (html / "book" / "demo.html").write_text(f"{head}<main>{''.join(raw)}</main>", encoding="utf-8")
    return html


@pytest.fixture(scope="module")
def served(site):
    with browsing.served(site) as address:
        yield address


@pytest.fixture(scope="module", params=[fonts.FIRST])
def browser(request, tmp_path_factory):
    with browsing.launched(request.param, tmp_path_factory.mktemp("fonts")) as browser:
        yield browser


@pytest.fixture
def page(browser, served):
    """The page on a phone; at the end nothing has failed and nothing came from elsewhere."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.set_default_timeout(120_000)  # a busy machine is no fault of the page
    faults = browsing.complaints(page)
    page.on("response", lambda reply: reply.status >= 400 and faults.append(reply.url))
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(served + "book/demo.html")
    yield page
    own = (served, "data:", f"blob:{served}")
    foreign = [url for url in page.requested if not url.startswith(own)]
    page.close()
    assert faults + foreign == []


def load(page):
    page.get_by_role("button", name="Load the model").press("Enter")
    page.wait_for_selector(".tb-answer[data-score]")


def answer(page, act):
    """What the graph said after an action: it must be another picture's."""
    before = page.locator(".tb-answer").get_attribute("data-score")
    act()
    page.wait_for_function(
        "before => document.querySelector('.tb-answer').dataset.score !== before", arg=before
    )
    found = page.locator(".tb-answer").evaluate("node => ({ ...node.dataset })")
    return {name: json.loads(value) for name, value in found.items()}


def test_runtime_is_the_released_one():
    """SOURCE.txt names the release and what its files were, unpacked."""
    source = (RUNTIME / "SOURCE.txt").read_text(encoding="utf-8")
    wasm = gzip.decompress((ROOT / demo.RUNTIME).read_bytes())
    assert wasm[:4] == b"\0asm"
    for content in (wasm, (RUNTIME / "ort.wasm-core.min.js").read_bytes()):
        assert hashlib.sha256(content).hexdigest() in source
    assert "MIT License" in (RUNTIME / "LICENSE").read_text(encoding="utf-8")
    assert "Eigen" in (RUNTIME / "ThirdPartyNotices.txt").read_text("utf-8")


def test_pictures_and_detector_are_those_of_the_full_run(said, images):
    """The features kept at a picture's index are the picture's; calibration has others."""
    sets = Run.at(RESULTS).bundle().sets
    pictures = demo.load_pictures(RESULTS)[1]
    assert len(images) == len(pictures) == demo.COUNT * len(demo.FIRST)
    kept = torch.stack([sets[picture["set"]].features[picture["index"]] for picture in pictures])
    seen = extract(said.model, images).features
    np.testing.assert_allclose(seen, kept, rtol=2e-3, atol=2e-3)  # float16
    shown = [picture["index"] for picture in pictures if picture["set"] == demo.ID_TEST]
    assert min(shown) >= demo.N_CALIBRATION
    others = sets[demo.ID_TEST]
    h, z = others.features[demo.N_CALIBRATION :], others.logits[demo.N_CALIBRATION :]
    scores = demo.METHODS[said.method](h, z, said.state, **said.options)
    assert abs(float((scores >= said.threshold).double().mean()) - demo.ALPHA) < 0.02


def test_graph_in_onnxruntime_on_real_images(site, said, images):
    reason = "no onnxruntime: pip install -e .[test]"
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    model = gzip.decompress((site / "demo" / "model.onnx.gz").read_bytes())
    session = onnxruntime.InferenceSession(model)
    for batch in (images[:1], images[:7], images[7:8], images[11:]):
        logits, score, p, rejected = session.run(None, {"images": batch.numpy()})
        expected = extract(said.model, batch).logits.numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(score, said.score(batch), rtol=1e-4)
        np.testing.assert_allclose(p, said.p_value(batch), atol=3 / (demo.N_CALIBRATION + 1))
        assert (rejected == (p <= demo.ALPHA)).all()


def test_nothing_heavy_is_loaded_unasked(page):
    page.wait_for_load_state("networkidle")
    assert [url for url in page.requested if re.search(r"wasm|onnx", url)] == []
    assert page.locator("fieldset input").first.is_disabled()
    assert page.locator(".tb-answer").is_hidden()


def test_page_says_what_pytorch_says(page, said, images):
    load(page)
    radios = page.locator("fieldset input[type=radio]")
    assert radios.count() == len(images)
    for i in (1, 8, 17):  # of each set one
        got = answer(page, lambda i=i: radios.nth(i).check())
        expected = extract(said.model, images[i : i + 1]).logits[0].numpy()
        score, p = (float(ask(images[i : i + 1])) for ask in (said.score, said.p_value))
        close = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(got["logits"], expected, rtol=1e-4, atol=close)
        np.testing.assert_allclose(got["score"], score, rtol=1e-4)
        np.testing.assert_allclose(got["p"], p, atol=3 / (demo.N_CALIBRATION + 1))
        shown = page.locator(".tb-classes td:last-child").all_inner_texts()
        shares = [float(text.rstrip(" %")) for text in shown]
        assert shares[int(expected.argmax())] == max(shares)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@fonts.both_font_sets
def test_answers_fit_a_phone(page):
    load(page)
    for tile in page.locator("fieldset input[type=radio]").all():
        answer(page, tile.check) if not tile.is_checked() else None
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_verdict_follows_the_slider(page, said, images):
    """A p-value between two places of the slider: accepted at the lower, refused at the higher."""
    p = said.p_value(images).numpy()
    i = next(i for i in range(len(p)) if demo.ALPHAS[2] < p[i] < demo.ALPHAS[-3])
    place = int(np.searchsorted(demo.ALPHAS, p[i]))  # the first alpha that is not below
    load(page)
    page.locator("fieldset input[type=radio]").nth(i).check()
    page.wait_for_function(
        "p => Math.abs(document.querySelector('.tb-answer').dataset.p - p) < 1e-3", arg=float(p[i])
    )
    slider, verdict = page.get_by_role("slider"), page.locator(".tb-verdict")
    expected = {place - 2: "Accepted", place + 2: "Refused", 0: "Accepted"}
    for at, word in (expected | {len(demo.ALPHAS) - 1: "Refused"}).items():
        slider.fill(str(at))
        assert verdict.inner_text().startswith(word)
        shown = page.locator(".tb-slider").inner_text()
        assert f"α = {100 * demo.ALPHAS[at]:g}\N{NO-BREAK SPACE}%" in shown
    slider.fill(str(place + 1))
    for _ in range(3):
        slider.press("ArrowLeft")
    assert verdict.inner_text().startswith("Accepted")


def test_keyboard_walks_the_pictures(page, said, images):
    load(page)
    got = answer(page, lambda: page.keyboard.press("ArrowRight"))  # the first one had the focus
    np.testing.assert_allclose(got["score"], said.score(images[1:2]).item(), rtol=1e-4)


def test_own_picture_is_cut_to_its_middle_square(page, said, images, tmp_path):
    """A wide picture of 64 by 32, the middle of which is one of the pictures: the same score."""
    wide = torch.cat([torch.rand(3, 32, 16), images[14], torch.rand(3, 32, 16)], 2)
    file = tmp_path / "wide.png"
    demo.Image.fromarray((255 * wide).round().byte().permute(1, 2, 0).numpy()).save(file)
    load(page)
    got = answer(page, lambda: page.set_input_files("input[type=file]", file))
    np.testing.assert_allclose(got["score"], said.score(images[14:15]).item(), rtol=1e-4)
    assert "Your picture" in page.locator(".tb-seen").inner_text()
    assert page.locator("fieldset input:checked").count() == 0
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.set_input_files("input[type=file]", tmp_path / "none.png")
    page.get_by_text("none.png is no picture that this browser can read").wait_for()


def test_without_javascript_the_table_stands(browser, served, said, images):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(served + "book/demo.html")
    rows = page.locator("details tbody tr")
    assert rows.count() == len(images)
    assert rows.first.is_visible()
    assert page.locator("noscript p").is_visible()
    verdicts = [row.rsplit("\t", 1)[-1].strip() for row in rows.all_inner_texts()]
    assert [verdict == "refused" for verdict in verdicts] == said.predict(images).tolist()
    context.close()
