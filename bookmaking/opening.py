"""The opening of the book: six pictures on their way to two scores, what was found, the verdicts.

``results/opening.md`` holds all of it as parts that the front page includes, drawn and worded by
:mod:`bookmaking.opening_page`. Two images go with it, the card that other sites show of the book,
and the six pictures alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments import ablations, plots, verdicts
from experiments.evaluation import ID_TEST, ID_TRAIN, NEAR, SET_TITLES, Scores, score_sets
from experiments.provenance import describe
from experiments.run import Run, program_parser
from thinkback_utils.calibration import conformal_threshold
from thinkback_utils.commands import run_main
from thinkback_utils.data import SIDE
from thinkback_utils.features import Features
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.fisher import KroneckerFisher
from thinkback_utils.methods import METHODS
from thinkback_utils.metrics import mean_auroc
from thinkback_utils.scores import residual

from .gallery import ALPHA, alarms, network_statistics, percentiles
from .opening_page import (
    GROUPS,
    LANES,
    NAMES,
    PAPER,
    REPAIRED,
    Lane,
    Pick,
    Story,
    Vector,
    as_markdown,
)
from .tables import percent


def cells(
    features: Tensor, logits: Tensor, roots: Sequence[Tensor], temperature: float
) -> NDArray[np.float64]:
    """The summands of :func:`scores.thinkback_averaged` for one image, by class and feature.

    ``sum_y p_y (A^-1/2 r_y)_k^2 (B^-1/2 h)_d^2``: squared gradients in units of what training data
    cause, in the mean over the labels. The symmetric root mixes classes and features least.

    Args:
        features: h as the method reads it, float (D,).
        logits: z, float (K,).
        roots: those of the score, of A (K, R) and of B (D, R') or, with the bias, (D + 1, R').
        temperature: T.

    Returns:
        float64 (K, D) or (K, D + 1), non-negative; their sum is the score.

    >>> roots = (torch.eye(2).double(), torch.eye(2).double())
    >>> cells(torch.tensor([3.0, 4.0]), torch.zeros(2), roots, 1.0)
    array([[2.25, 4.  ],
           [2.25, 4.  ]])
    """
    p = (logits.double() / temperature).softmax(0)
    r = residual(logits.expand(len(p), -1), temperature, torch.arange(len(p)))  # (labels, K)
    A, B = (
        u * s @ u.T for u, s, _ in (torch.linalg.svd(root, full_matrices=False) for root in roots)
    )
    h = F.pad(features.double(), (0, len(B) - len(features)), value=1.0)
    return torch.outer(p @ (r @ A).square(), (h @ B).square()).numpy()


def tell(here: Run) -> Story:
    """Compute what is drawn.

    Nobody chose the pictures. Each set has two, of those in the example browser: one with an alarm
    by the repaired score and one without, each nearest to the median score of all such images.

    Raises:
        ValueError: if the example browser lacks such a picture.
    """
    bundle, browsed = here.bundle(), read_json(here.results / "gallery" / "examples.json")
    sprite = Image.open(here.results / "gallery" / "sprite.png")
    scored = score_sets(bundle.sets, LANES, GROUPS)
    summands = _summands(bundle.sets[ID_TRAIN])
    seen = {name: network_statistics(bundle.sets[name]) for name in GROUPS}
    picks = []
    for name, index in chosen(scored, browsed["images"]):
        row = next(r for r in browsed["images"] if (r["set"], r["index"]) == (name, index))
        h, z = (item[index] for item in (bundle.sets[name].features, bundle.sets[name].logits))
        outcome = {lane: alarms(scored, name, lane) for lane in LANES}
        same = np.all([outcome[lane] == outcome[lane][index] for lane in LANES], axis=0)
        lanes = {}
        for lane, parts in summands(h, z).items():
            place = percentiles(scored[ID_TEST][lane], scored[name][lane][[index]])[0]
            own = float(scored[name][lane][index])
            lanes[lane] = Lane(own, float(place), bool(outcome[lane][index]), parts)
        doubt, length = (
            float(percentiles(seen[ID_TEST][key], seen[name][key][[index]])[0])
            for key in ("residual2", "norm2")
        )
        y, x = (SIDE * place for place in divmod(row["tile"], browsed["columns"]))
        pixels, p = sprite.crop((x, y, x + SIDE, y + SIDE)), z.double().softmax(0).numpy()
        facts = (name, index, row["true"], row["predicted"], pixels, h.double().numpy(), p)
        picks.append(Pick(*facts, doubt, length, lanes, float(same.mean())))
    test = {lane: scored[ID_TEST][lane] for lane in LANES}
    cut = {lane: conformal_threshold(torch.as_tensor(test[lane]), ALPHA) for lane in LANES}
    return Story(tuple(picks), test, cut)


def _summands(train: Features) -> Callable[[Tensor, Tensor], dict[str, Vector]]:
    """Of one image's h and z, what each score adds up: fitted on training data."""
    paper, method = (METHODS[name] for name in LANES)
    inverse = paper.fit([(train.features, train.logits)]).inverse  # type: ignore[union-attr]
    T = method.options["temperature"]
    fisher = KroneckerFisher(T, bias=True).update(method.inputs(train.features), train.logits)
    roots = fisher.inverse_root(method.options["damping"])

    def of(h: Tensor, z: Tensor) -> dict[str, Vector]:
        r = residual(z[None], paper.options["temperature"])[0]
        diagonal = torch.outer(r.square(), h.double().square()) * inverse
        return {
            PAPER: diagonal.numpy(),
            REPAIRED: cells(method.inputs(h[None])[0], z, roots, T),
        }

    return of


def chosen(scored: Scores, shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Set and index of the pictures, by the rule of :func:`tell`, the usual outcome first."""
    found = []
    for name in GROUPS:
        familiar = name == ID_TEST
        scores, alarm = scored[name][REPAIRED], alarms(scored, name, REPAIRED)
        for side in (not familiar, familiar):
            pool = np.array([r["index"] for r in shown if r["set"] == name], dtype=int)
            pool = pool[alarm[pool] == side]
            if not len(pool):
                raise ValueError(
                    f"thinkback: the example browser has no picture of {name} {'with' * side}"
                    f"{'without' * (not side)} an alarm; run `python -m bookmaking.gallery`"
                )
            away = np.abs(scores[pool] - np.median(scores[alarm == side]))
            found.append((name, int(pool[away.argmin()])))
    return found


def found(here: Run) -> dict[str, Any]:
    """The numbers of the three cards, shares in [0, 1], of the network of this run.

    Returns: ``far`` and ``near``, AUROC by method, over training seeds; ``alone``, lowest and
        highest AUROC over the far sets of the two factors and of the paper's score; ``reading``,
        the AUROC of Eq. 6 on the last convolution, over the same seeds, None where it was not
        measured on each, and on how many images a set; ``tested``, ``reproduced`` and ``printed``
        differences of the paper's table.
    """
    records = [r for r in read_json(here.results / "table1.json") if r["network"] == here.network]

    def auroc(method: str, names: Sequence[str]) -> float:
        own = [r["auroc"] for r in records if r["method"] == method and r["set"] in names]
        return float(np.mean(own))

    limits = read_json(here.results / "gallery" / "limits.json")["lengths"]
    far = [row for name, row in limits.items() if name not in NEAR]
    ends = {
        key: (min(row[key] for row in far), max(row[key] for row in far))
        for key in ("residual2", "norm2", PAPER)
    }
    judged = [row["verdict"] for row in read_json(here.results / "verdicts.json")["differences"]]
    value, images = _reading(here)
    return {
        "sets": len(far),
        "far": {name: auroc(name, ["mean"]) for name in NAMES},
        "near": {name: auroc(name, NEAR) for name in NAMES},
        "near_set": SET_TITLES[NEAR[0]],
        "alone": ends,
        "reading": value,
        "reading_images": images,
        "printed": len(judged),
        "tested": sum(verdict != verdicts.UNTESTED for verdict in judged),
        "reproduced": judged.count(verdicts.YES),
    }


def _reading(here: Run) -> tuple[float | None, int]:
    """Mean AUROC of reading E over far sets and training seeds, and images a set at most."""
    seeds = [_reading_scores(run) for run in (here, *here.siblings())]
    if not all(seeds):
        return None, 0
    far = [name for name in seeds[0] if name not in (ID_TEST, *NEAR)]
    values = [mean_auroc(own[ID_TEST], [own[name] for name in far])[0] for own in seeds]
    return float(np.mean(values)), max(len(seeds[0][name]) for name in far)


def _reading_scores(run: Run) -> dict[str, NDArray[np.floating]]:
    """Eq. 6 under reading E by set, of whichever command has run; empty where none has."""
    if (run.folder / "readings.npz").exists():
        return {name: row["reading_E"] for name, row in run.scores("readings.npz").items()}
    try:
        arrays = ablations.load(run.folder)[0]
    except FileNotFoundError:
        return {}
    end = ".E_eq6"
    return {key.removesuffix(end): row for key, row in arrays.items() if key.endswith(end)}


def six(story: Story) -> Image.Image:
    """The pictures, three a row, the usual outcomes above, framed in the color of their kind."""
    side, edge, gap = 6 * SIDE, 8, 14
    step = side + 2 * edge + gap
    whole = Image.new("RGB", (3 * step - gap, 2 * step - gap), "white")
    for place, pick in enumerate(story.picks):
        color = plots.ID_COLOR if pick.name == ID_TEST else plots.OOD_COLOR
        framed = Image.new("RGB", (side + 2 * edge, side + 2 * edge), color)
        framed.paste(pick.pixels.resize((side, side), Image.Resampling.NEAREST), (edge, edge))
        whole.paste(framed, (place // 2 * step, place % 2 * step))
    return whole


def card(story: Story, facts: Mapping[str, Any]) -> Figure:
    """What other sites show of the book, 1200 by 630 pixels: pictures, title, finding."""
    made = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    dark, far = "#1f2328", facts["far"]
    made.text(0.05, 0.83, "Thinkback", size=46, weight="bold", color=dark)
    made.text(0.05, 0.74, "An executable book on a paper about", size=19, color=dark)
    made.text(0.05, 0.675, "pictures that a network was not trained for", size=19, color=dark)
    ax = made.add_axes((0.05, 0.13, 0.44, 0.46))
    names = ("msp", "energy", *LANES)
    values = [100 * far[name] for name in names]
    ax.barh(range(4), values, 0.62, color=[plots.METHOD_COLORS[name] for name in names])
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        ax.text(51, y, NAMES[name], va="center", size=17, color="white", weight="bold")
        ax.text(value + 0.7, y, percent(value / 100), va="center", size=17, color=dark)
    ax.set(xlim=(50, 102), ylim=(3.5, -0.5), yticks=[], xticks=[])
    ax.spines[:].set_visible(False)
    said = "AUROC, from guessing (50 %) to perfect (100 %), strange against familiar pictures"
    made.text(0.05, 0.06, said, size=13, color=dark)
    right = made.add_axes((0.56, 0.19, 0.40, 0.503))  # of the shape of the pictures
    right.imshow(six(story))
    right.set_axis_off()
    made.text(0.56, 0.715, "familiar", size=18, color=plots.ID_COLOR, weight="bold")
    made.text(0.697, 0.715, "strange", size=18, color=plots.OOD_COLOR, weight="bold")
    return made


def run(here: Run) -> Path:
    """Write ``opening.md`` and, in ``gallery/``, both images and the provenance; returns it."""
    provenance, story, facts = describe(), tell(here), found(here)
    kept = read_json(here.results / "verdicts.json")
    page, out = here.results / "opening.md", here.results / "gallery"
    with replacing(page) as temporary:
        temporary.write_text(as_markdown(story, facts, kept), encoding="utf-8")
    with replacing(out / "pictures.png") as temporary:
        six(story).save(temporary, "PNG", optimize=True)
    style: Any = {"font.family": "DejaVu Sans", "figure.constrained_layout.use": False}
    with replacing(out / "card.png") as temporary, plt.rc_context(style):
        card(story, facts).savefig(temporary, format="png", metadata={"Software": None})
    shown = [
        {"set": pick.name, "index": pick.number}
        | {name: round(lane.score, 2) for name, lane in pick.lanes.items()}
        for pick in story.picks
    ]
    write_json(
        out / "opening.json", provenance | {"weights_sha256": here.digest(), "images": shown}
    )
    return page


def main(arguments: list[str] | None = None) -> None:
    """Write the opening of the book from one run's features and the gallery's pictures."""
    parser = program_parser("bookmaking.opening", main.__doc__, "results")
    print(f"wrote {run(Run.at(parser.parse_args(arguments).results))}")


if __name__ == "__main__":
    sys.exit(run_main(main))
