"""The opening of the book: six pictures on their way to two scores, what was found, the verdicts.

``results/opening.md`` holds all of it as parts that the front page includes. The figure needs no
script: the browser shows the panel of the picture that is picked. Two images go with it, the card
that other sites show of the book, and the six pictures alone.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
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
from .gallery_page import CLASSES
from .markup import fill
from .tables import percent, signed

PAPER, REPAIRED = LANES = ("thinkback", "thinkback_averaged")
NAMES = {
    "msp": "Softmax",
    "energy": "Energy",
    PAPER: "The paper’s score",
    REPAIRED: "The repaired score",
}
GROUPS = {  # of pictures: what they are to the network
    ID_TEST: ("Familiar", "its ten kinds"),
    "svhn": ("Strange", "house numbers"),
    "cifar100": ("Strange", "but similar"),
}
START = 2  # place of the picture that is shown first
BINS = 40  # of the histogram of test scores
STRIP = 40  # height of the drawing of the features
LEVELS = 32  # of strength in the picture of a gradient
HIDDEN = (25.0, 75.0)  # percentiles: shorter than this, and more doubt than this

Vector = NDArray[np.floating]


class Lane(NamedTuple):
    """What one score makes of one picture."""

    score: float
    place: float  # how many of 100 test images score lower
    alarm: bool
    cells: Vector  # (K, D) or (K, D + 1), the summands of the score


@dataclass(frozen=True)
class Pick:
    """One picture and what is drawn of it."""

    name: str  # of its set
    number: int  # of the image in its set
    true: str
    answer: str  # the network's decision
    pixels: Image.Image
    h: Vector  # (D,)
    p: Vector  # (K,), softmax(z)
    doubt: float  # how many of 100 test images have a shorter residual, at the paper's T
    length: float  # and how many have shorter features
    lanes: dict[str, Lane]
    share: float  # of its set with the same two outcomes


class Story(NamedTuple):
    """What the figure is made of."""

    picks: tuple[Pick, ...]
    test: dict[str, Vector]  # by score, of all test images
    threshold: dict[str, float]  # by score, where an alarm begins


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
        the AUROC of Eq. 6 on the last convolution, None where it was not measured, and on how many
        images a set; ``tested``, ``reproduced`` and ``printed`` differences of the paper's table.
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


def _reading(here: Run, name: str = "E") -> tuple[float | None, int]:
    """AUROC of Eq. 6 under that reading, in the mean over far sets, and images a set at most."""
    try:
        arrays, record = ablations.load(here.folder)
    except FileNotFoundError:
        return None, 0
    sizes = record["readings"][name]["images"]
    far = [key for key in sizes if key not in (ID_TEST, ID_TRAIN, *NEAR)]
    outside = [arrays[f"{key}.{name}_eq6"] for key in far]
    value = mean_auroc(arrays[f"{ID_TEST}.{name}_eq6"], outside)[0]
    return float(value), max(sizes[key] for key in far)


# The figure


def figure(story: Story) -> Markup:
    """All six panels as HTML, the first picture picked."""
    first = story.picks[0]
    return fill(
        "opening",
        panels=[_panel(story, pick) for pick in story.picks],
        groups=list(GROUPS.values()),
        start=START,
        features=len(first.h),
        weights=f"{len(first.h) * len(first.p):,}",
        images=f"{len(story.test[PAPER]):,}",
        alpha=percent(ALPHA, 0),
    )


def _panel(story: Story, pick: Pick) -> dict[str, Any]:
    """What is drawn of one picture."""
    answers = zip(CLASSES[ID_TEST], pick.p, strict=True)
    meters = {"Doubt": pick.doubt, "Length of the features": pick.length}
    return {
        "familiar": pick.name == ID_TEST,
        "name": pick.true,
        "label": _label(pick),
        "picture": embedded(pick.pixels),
        "strip": _strip(pick.h, max(other.h.max() for other in story.picks)),
        "answers": [(n, f"{100 * share:.1f}%", n == pick.answer) for n, share in answers],
        "meters": [(name, f"{value:.1f}%", _place(value)) for name, value in meters.items()],
        "lanes": [_lane(story, pick, lane) for lane in LANES],
        "text": explained(pick),
    }


def _lane(story: Story, pick: Pick, lane: str) -> dict[str, Any]:
    """What is drawn of one score, on axes that all pictures share."""
    own, familiar, top = pick.lanes[lane], pick.name == ID_TEST, _top(story, lane)
    roots = [np.sqrt(other.lanes[lane].cells) for other in story.picks]
    return {
        "kind": lane.replace("_", "-"),
        "title": NAMES[lane],
        "heat": embedded(heat(own.cells, float(np.quantile(roots, 0.99)))),
        "hill": _hill(story.test[lane], top),
        "cut": f"{100 * story.threshold[lane] / top:.2f}%",
        "width": f"{100 * own.score / top:.2f}%",
        "place": _place(own.place),
        "good": own.alarm != familiar,
        "outcome": _outcome(own.alarm, familiar),
    }


def explained(pick: Pick) -> str:
    """What happens to this picture, in plain words, each from its numbers."""
    familiar = pick.name == ID_TEST
    words = [f"The network says {pick.answer} ({percent(pick.p.max(), 0)})."]
    if familiar:
        right = pick.true == pick.answer
        words.append("That is right." if right else f"In truth it is a picture of: {pick.true}.")
    else:
        words.append(f"In truth: {pick.true}, which is none of its ten answers.")
    words.append(
        f"It leaves more doubt than {_place(pick.doubt)} of the familiar pictures; its features are"
        f" longer than those of {_place(pick.length)}."
    )
    paper, repaired = (pick.lanes[lane].alarm for lane in LANES)
    if familiar and (paper or repaired):
        who = "Both scores raise" if paper and repaired else f"{NAMES[LANES[repaired]]} raises"
        words.append(
            f"{who} a false alarm: a threshold allows that for {percent(ALPHA, 0)} of the familiar"
            " pictures."
        )
    elif familiar:
        words.append("Both scores stay below their thresholds, as they should.")
    elif paper and repaired:
        words.append("Both scores raise the alarm.")
    elif paper:
        words.append("Only the paper’s score raises the alarm.")
    elif repaired:
        if pick.length < HIDDEN[0] and pick.doubt > HIDDEN[1]:
            words.append(
                "The paper’s score multiplies the two: short features hide the doubt. The repaired"
                " score does not read the length, and raises the alarm."
            )
        else:
            words.append("Only the repaired score raises the alarm.")
    else:
        words.append("Both scores miss it.")
    words.append(f"{_place(100 * pick.share)} of the {_title(pick.name)} images end like this.")
    return " ".join(words)


def _label(pick: Pick) -> str:
    paper, repaired = (_outcome(pick.lanes[m].alarm, pick.name == ID_TEST) for m in LANES)
    return f"{pick.true}. Paper’s score: {paper}. Repaired score: {repaired}"


def _title(name: str) -> str:
    return SET_TITLES[name.removesuffix("-test")] + " test" * (name == ID_TEST)


def _outcome(alarm: bool, familiar: bool) -> str:
    """What an alarm, or none, means for a picture.

    >>> _outcome(True, True), _outcome(False, True), _outcome(True, False), _outcome(False, False)
    ('false alarm', 'no alarm', 'alarm', 'missed')
    """
    if familiar:
        return "false alarm" if alarm else "no alarm"
    return "alarm" if alarm else "missed"


def _place(value: float) -> str:
    """A percentile, near its ends with a digit more.

    >>> _place(0.09), _place(54.06), _place(99.65)
    ('0.1\\xa0%', '54\\xa0%', '99.7\\xa0%')
    """
    return percent(value / 100, 0 if 1 <= value <= 99 else 1)


def _top(story: Story, lane: str) -> float:
    """The right end of a score's axis."""
    most = max(pick.lanes[lane].score for pick in story.picks)
    return 1.08 * max(float(np.quantile(story.test[lane], 0.998)), most)


def _hill(test: Vector, top: float) -> str:
    """Outline of the histogram of the test scores, in a box of 100 by 40."""
    counts = np.histogram(test, BINS, (0, top))[0]
    return "M0 40" + "".join(f"V{40 - 38 * n / counts.max():.1f}h{100 / BINS:g}" for n in counts)


def _strip(h: Vector, tallest: float) -> str:
    """A line for each feature, in a box of their number by ``STRIP``."""
    return "".join(f"M{d}.5 {STRIP}v{-STRIP * x / tallest:.1f}" for d, x in enumerate(h))


def heat(values: Vector, top: float) -> Image.Image:
    """The roots of the summands as opacity, a row a class; ``top`` is opaque."""
    level = np.rint((LEVELS - 1) * (np.sqrt(values) / top).clip(0, 1)).astype(np.uint8)
    picture = Image.fromarray(level).convert("P")
    picture.putpalette(bytes(3 * LEVELS))
    picture.info["transparency"] = bytes(round(255 * i / (LEVELS - 1)) for i in range(LEVELS))
    return picture


def embedded(picture: Image.Image) -> str:
    """A picture as an address of its own."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# What was found


def summary(facts: Mapping[str, Any]) -> str:
    """The finding in two sentences, for the first screen."""
    far, near = facts["far"], facts["near"]
    than = "worse" if far[PAPER] < far["energy"] else "better"
    text = (
        f"**What we found.** As printed, the score tells strange pictures from familiar ones {than}"
        f" than Energy, which needs no gradient: {percent(far[PAPER])} against"
        f" {percent(far['energy'])} (AUROC: guessing is {percent(0.5, 0)}). The repaired score"
        f" reaches **{percent(far[REPAIRED])}**."
    )
    order = "loses to" if near[REPAIRED] < near["energy"] else "is ahead of"
    return (
        f"{text} Where strange pictures resemble familiar ones, it {order} Energy:"
        f" {percent(near[REPAIRED])} and {percent(near['energy'])}."
    )


def cards(facts: Mapping[str, Any]) -> Markup:
    """What failed, what works, and why: three cards with their numbers drawn."""
    far, near, alone = facts["far"], facts["near"], facts["alone"]
    two = {"far": "Strange pictures", "near": f"Similar ones ({facts['near_set']})"}
    ranges = {
        "residual2": "Doubt alone",
        "norm2": "Length alone",
        PAPER: "Both, multiplied",
    }
    return fill(
        "opening_cards",
        failed=[_bar(NAMES[m], far[m], m) for m in ("msp", "energy", PAPER)],
        works=[
            (title, [_bar(NAMES[m], facts[key][m], m) for m in ("energy", REPAIRED)])
            for key, title in two.items()
        ],
        why=[
            {
                "title": title,
                "kind": "thinkback" if key == PAPER else "ink",
                "left": f"{100 * alone[key][0]:.1f}%",
                "width": f"{100 * (alone[key][1] - alone[key][0]):.1f}%",
                "value": f"{100 * alone[key][0]:.0f} to {percent(alone[key][1], 0)}",
            }
            for key, title in ranges.items()
        ],
        facts=facts,
        worse=far[PAPER] < min(far["msp"], far["energy"]),
        behind=near[REPAIRED] < near["energy"],
        over_paper=signed(100 * (far[REPAIRED] - far[PAPER])),
        reading=None if facts["reading"] is None else percent(facts["reading"]),
        over_reading=signed(100 * (far[REPAIRED] - (facts["reading"] or 0))),
        images=f"{facts['reading_images']:,}",
    )


def _bar(title: str, value: float, kind: str) -> dict[str, str]:
    """A bar from guessing, 50 %, to perfect."""
    width = f"{max(0.0, 200 * (value - 0.5)):.1f}%"
    return {
        "title": title,
        "kind": kind.replace("_", "-"),
        "left": "0%",
        "width": width,
        "value": percent(value),
    }


# The verdicts

MARKS = {verdicts.YES: ("yes", "✓"), verdicts.NO: ("no", "✗")}
ELSEWHERE = re.compile(r"\s*\[[+−-][^\]]*\]")  # an interval, as chapter 8 shows it
COUNTS = r"; ([^;:]+): (\d+) gains and (\d+) losses of (\d+)"  # on another network


class Plain(NamedTuple):
    """Plain words for a claim of the paper, and for what answers it in "measured"."""

    begins: str  # how the claim of :mod:`experiments.verdicts` begins
    claim: str
    pattern: str
    words: str
    others: str = r"(?!)"  # what answers it on another network
    other_words: str = ""


PLAIN = (
    Plain(
        "Consistent gains",
        "It beats Softmax and Energy on every set of pictures, by every metric (but for one set).",
        r"(\d+) of (\d+) differences are gains.*?(\d+) are losses",
        "Of {1} comparisons it wins {0} and loses {2}; the rest could be chance.",
        COUNTS,
        "{0}: {1} won, {2} lost of {3}.",
    ),
    Plain(
        "Significantly more accurate",
        "On average it is clearly more accurate than both.",
        r"in (\d+) of (\d+) differences of means, worse in (\d+)",
        "Of {1} averages it wins {0} and loses {2}; the rest could be chance.",
        COUNTS,
        "{0}: {1} won, {2} lost of {3}.",
    ),
    Plain(
        "The same, under another reading",
        "The same, if “the penultimate layer” means another layer.",
        r"The best, (\w+) \(([^)]*)\).*?AUROC ([+−]\d+\.\d+)",
        "Best is reading {0}, the {1}: AUROC {2} points against Energy.",
        r"\. ((?!The best)[^.:]+): [^:;]+; E has \d+ gains.*?AUROC against Energy ([+−]\d+\.\d+)",
        "{0}: {1} points for E.",
    ),
    Plain(
        "AUPR",
        "Its AUPR is far above that of Softmax.",
        r"^([+−]\d+\.\d+)",
        "With the same mix of pictures for both, the difference is {0} points.",
        r"; ([^;:]+): ([+−]\d+\.\d+)",
        "{0}: {1} points.",
    ),
    Plain(
        "The rule for T",
        "A rule without strange pictures finds the best temperature, T\u00a0=\u00a05.",
        r"Eq\. 6: T = (\d+) in (\[1, 5\])",
        "In the range that the paper tries, the rule says T\u00a0=\u00a0{0}.",
    ),
    Plain(
        "No tuning",
        "Nothing has to be tuned.",
        r"follows the range",
        "In a wider range the same rule finds another T: it follows the range it is given.",
    ),
)


def plain(row: Mapping[str, str]) -> tuple[str, str]:
    """A claim and what was measured, in plain words where there are some, without intervals.

    >>> plain({"claim": "It is fast", "measured": "+1.0 [+0.5, +1.5] s"})
    ('It is fast', '+1.0 s')
    >>> plain({"claim": "AUPR", "measured": "−13.5 [−15, −12] at 0.167; A net: +2.0 [+1, +3]"})[1]
    'With the same mix of pictures for both, the difference is −13.5 points. A net: +2.0 points.'
    """
    measured = ELSEWHERE.sub("", row["measured"])
    for known in PLAIN:
        answer = re.search(known.pattern, measured)
        if row["claim"].startswith(known.begins) and answer:
            others = re.findall(known.others, measured)
            said = [known.words.format(*answer.groups())]
            return known.claim, " ".join(
                said + [known.other_words.format(*other) for other in others]
            )
    return row["claim"], measured


def judged(kept: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of ``verdicts.json`` as the front page shows them: mark, verdict, claim, finding."""
    rows = []
    for row in kept["claims"]:
        claim, finding = plain(row)
        rows.append(_judged(row["verdict"], claim, finding))
    verdict = [row["verdict"] for row in kept["differences"]]
    tested = [one for one in verdict if one != verdicts.UNTESTED]
    kinds = set(tested)
    whole = kinds.pop() if len(kinds) == 1 else "in parts" if tested else verdicts.UNTESTED
    finding = (
        f"{len(tested)} could be tested, {tested.count(verdicts.YES)} were reproduced. The pictures"
        f" for the other {len(verdict) - len(tested)} could not be had."
    )
    claim = f"Each of the {len(verdict)} differences to Softmax and Energy in its table."
    return [*rows, _judged(whole, claim, finding)]


def _judged(verdict: str, claim: str, finding: str) -> dict[str, str]:
    kind, mark = MARKS.get(verdict, ("open", "?"))
    return {"kind": kind, "mark": mark, "verdict": verdict, "claim": claim, "finding": finding}


# The files


def as_markdown(story: Story, facts: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """The parts of the front page, each between a comment that names it and ``<!-- end -->``."""
    parts = {
        "found": "{.op-lead}\n" + summary(facts),
        "figure": _raw(figure(story)),
        "cards": _raw(cards(facts)),
        "verdicts": _raw(fill("opening_verdicts", rows=judged(kept))),
    }
    return "".join(f"<!-- {name} -->\n\n{text}\n\n<!-- end -->\n\n" for name, text in parts.items())


def _raw(html: Markup) -> str:
    return f"```{{raw}} html\n{html.strip()}\n```"


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
    plain: Any = {"font.family": "DejaVu Sans", "figure.constrained_layout.use": False}
    with replacing(out / "card.png") as temporary, plt.rc_context(plain):
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
