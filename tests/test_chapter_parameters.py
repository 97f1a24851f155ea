"""Every parameter of every chapter, given another value as `papermill -p` gives it.

The page changes, or one line says what is wrong. The slow part runs whole chapters:
``pytest -m slow tests/test_chapter_parameters.py``.
"""

import re
import shutil
from functools import cache
from math import nan
from pathlib import Path

import papermill
import pytest

from bookmaking import chapters, hints, profiles
from bookmaking.sources import slug, tagged

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {slug(path): path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}

DECLARED = {chapter: profiles.declared(path) for chapter, path in NOTEBOOKS.items()}

# {parameter: (values that make another page, values that are refused)}, in every chapter but for
# those that have their own.
# No value downloads, trains for long, or needs a GPU.
USUAL = {
    "profile": ([], ["smokes", ""]),  # full trains and downloads
    "seed": ([1], [-1, "one"]),
    "run_seed": ([], [-1, 99]),  # the committed results hold one run
    "device": ([], ["gpu", "cuda:99"]),  # nothing but the speed changes
    "data_dir": ([], ["nowhere", "../README.md"]),  # the same images in another place
    "results_dir": ([], ["no/where", "../nowhere"]),
    "prevalence": ([0.5], [0.0, 1.0, nan]),
}
OWN = {
    "problem": {"n_points": ([90], [59, -1])},
    "metrics": {},
    "fisher_ewc": {"n_samples": ([30], [29, 60.0])},
    "from_ewc_to_score": {
        "eps": ([1e-6], [-1.0, nan]),
        "weighting": (["none"], ["power"]),
    },
    "closed_form": {
        "temperature": ([1.0], [0.0, nan]),
    },
    "train_wrn": {
        "recipe": ([], ["fast", ""]),  # the others take hours
        "dataset": ([], ["digit", "letters"]),  # letters have no labels
        "depth": ([16], [-1, 11]),
        "width": ([2], [-1, "wide"]),
        "epochs": ([2], [-1, 1.5]),
        "amp": ([], ["on", ""]),  # off is what auto is on a CPU
        "out": ([], ["../README.md", "../README.md/out"]),
    },
    "temperature_eps": {
        "metric": (["fpr95"], ["accuracy"]),
        "temperatures": ([[2.0]], [[], [0.0], "1"]),
        "epsilons": ([[1e-8]], [[], [-1.0]]),
        "dampings": ([[0.5]], [[], [nan]]),
        "n_validation": ([1000], [0, 50_000]),
    },
    "five_datasets": {
        "methods": ([["energy", "thinkback"], ["thinkback"]], [[], ["softmax"]]),
        "datasets": ([["svhn"]], [["shvn"], "svhn"]),
        "n_ood": ([500], [0, -1]),
        "draws": ([3], [0, -1]),
        "resamples": ([50], [0, -1]),
    },
    "audit": {"n_ood": ([500], [0, -1])},
    "which_layer": {
        "seed": ([], [-1, "one"]),  # of a network in checks, no number shows it
        "layers": ([["A", "E"]], [[], ["F"]]),
    },
    "cost": {
        "seed": ([], [-1, "one"]),  # random features only have to agree, no number shows them
        "benchmarks_dir": ([], ["nowhere", "../results"]),
        "batch_sizes": ([[4]], [[], [0]]),
        "live_seconds": ([], [0.0, nan]),  # how long to measure, not what
        "workers": ([4], [0, -1]),
        "images_per_second": ([100.0], [-1.0, nan]),
    },
    "beyond": {
        "methods": ([["msp", "thinkback_averaged"]], [[], ["softmax"]]),
    },
    "your_model": {
        "model": (["mobilenet_v3_small"], ["resnet19", ""]),
        "method": (["energy"], ["softmax"]),
        "alpha": ([0.1], [0.0, 1.5, 1e-6]),
        "delta": ([0.5], [0.0, nan]),
        "splits": ([100], [0, -1]),
    },
}
VALUES = {
    chapter: {name: (USUAL | OWN[chapter]).get(name, ([], [])) for name in declared}
    for chapter, declared in DECLARED.items()
}
KINDS = ("other", "wrong")
CASES = [
    pytest.param(chapter, name, value, kind, id=f"{chapter}-{name}-{value!r}-{kind}")
    for chapter, table in VALUES.items()
    for name, both in table.items()
    for kind, values in zip(KINDS, both, strict=True)
    for value in values
]
DIGITS = re.compile(r"\d[\d.,]*")


def test_no_parameter_is_left_out():
    assert OWN.keys() == DECLARED.keys()
    for chapter, table in VALUES.items():
        assert OWN[chapter].keys() <= table.keys()
        for name, (other, wrong) in table.items():
            assert len(other) + len(wrong) >= 2, f"{chapter}: {name}"
            assert all(hints.fits(value, DECLARED[chapter][name]) for value in other), name


def executed(chapter, folder, **parameters):
    """The outputs of each code cell, by its place, without the reproducibility box."""
    chapters.use_own_kernel()
    path = NOTEBOOKS[chapter]
    notebook = papermill.execute_notebook(
        str(path),
        str(folder / "out.ipynb"),
        parameters=parameters,
        kernel_name="python3",
        cwd=str(path.parent),
        progress_bar=False,
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    own = [cell for cell in code if not tagged(cell, "injected-parameters")]
    return [what(cell.outputs) for cell in own if cell.source.strip() != "page"]


def what(outputs):
    """What a reader sees of a cell: text, figures and pages of HTML."""
    kinds = ("text/html", "image/svg+xml", "image/png", "text/markdown", "text/plain")
    seen = []
    for output in outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        seen.append(next((data[kind] for kind in kinds if kind in data), ""))
    return seen


def masked(seen):
    """The same without numbers, which differ from run to run where something is timed."""
    return [DIGITS.sub("#", text) for text in seen]


@cache
def by_default(chapter, folder):
    """The outputs of two runs: what differs between them says nothing."""
    return [executed(chapter, folder) for _ in range(2)]


def differs(page, twice):
    """Whether a page differs from the default one in more than what is timed."""
    assert len(page) == len(twice[0]) == len(twice[1])
    for mine, one, two in zip(page, *twice, strict=True):
        if (one == two and mine != one) or (
            masked(one) == masked(two) and masked(mine) != masked(one)
        ):
            return True
    return False


def test_what_is_timed_is_no_difference():
    twice = [["table 1", "12 s"], ["fig A"]], [["table 1", "13 s"], ["fig B"]]
    assert not differs([["table 1", "14 s"], ["fig C"]], twice)
    assert differs([["table 1", "14 s", "15 s"], ["fig C"]], twice)
    twice = [["table 1"]], [["table 1"]]
    assert differs([["table 2"]], twice)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapters")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("chapter", "name", "value", "kind"), CASES)
def test_a_parameter_changes_the_page_or_is_refused(
    chapter, name, value, kind, scratch, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if kind == "other":
        assert differs(executed(chapter, scratch, **{name: value}), by_default(chapter, scratch))
        return
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        executed(chapter, scratch, **{name: value})
    said = caught.value.evalue
    assert said.startswith("thinkback: "), said
    assert "\n" not in said, said
    parts = value if isinstance(value, list) else [value]
    assert any(str(part) in said for part in (name, *parts)), said
