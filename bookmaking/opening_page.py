"""What a reader sees of the opening: figure, cards, verdicts, as the parts of ``opening.md``.

All of it follows from what :mod:`bookmaking.opening` has computed. The figure needs no script: the
browser shows the panel of the picture that is picked.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from experiments import verdicts
from experiments.evaluation import ID_TEST, SET_TITLES

from .gallery import ALPHA
from .gallery_page import CLASSES, parts
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


MARKS = {verdicts.YES: ("yes", "✓"), verdicts.NO: ("no", "✗")}
# By the key of a claim of experiments.verdicts: the claim in plain words, what was found on the
# network of the book, and on each other network
PLAIN = {
    "gains": (
        "It beats Softmax and Energy on every set of pictures, by every metric (but for one set).",
        "Of {count} comparisons it wins {won} and loses {lost}; the rest could be chance.",
        "{network}: {won} won, {lost} lost of {count}.",
    ),
    "means": (
        "On average it is clearly more accurate than both.",
        "Of {count} averages it wins {won} and loses {lost}; the rest could be chance.",
        "{network}: {won} won, {lost} lost of {count}.",
    ),
    "reading": (
        "The same, if “the penultimate layer” means another layer.",
        "Best is reading {reading}, the {layer}: AUROC {points} points against Energy.",
        "{network}: {points} points for {reading}.",
    ),
    "aupr": (
        "Its AUPR is far above that of Softmax.",
        "With the same mix of pictures for both, the difference is {points} points.",
        "{network}: {points} points.",
    ),
    "rule": (
        "A rule without strange pictures finds the best temperature, T\u00a0=\u00a05.",
        "In the range that the paper tries, the rule says T\u00a0=\u00a0{T:.4g}.",
        "",
    ),
    "tuning": (
        "Nothing has to be tuned.",
        "In a wider range, up to {upper:,.0f}, the same rule says T\u00a0=\u00a0{T:.4g}.",
        "",
    ),
}


def plain(row: Mapping[str, Any]) -> tuple[str, str]:
    """A claim of ``verdicts.json`` and what was measured, in plain words, without intervals.

    >>> facts = [{"network": "", "gain": -0.135}, {"network": "A net", "gain": 0.02}]
    >>> plain({"key": "aupr", "facts": facts})[1]
    'With the same mix of pictures for both, the difference is −13.50 points. A net: +2.00 points.'
    """
    claim, *words = PLAIN[row["key"]]
    said: list[str] = []
    for facts in row["facts"]:
        points = signed(100 * facts.get("gain", 0), 2)
        said.append(words[len(said) > 0].format(**facts, points=points))
    return claim, " ".join(said)


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


def as_markdown(story: Story, facts: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """The parts of the front page."""
    texts = {
        "found": "{.op-lead}\n" + summary(facts),
        "figure": _raw(figure(story)),
        "cards": _raw(cards(facts)),
        "verdicts": _raw(fill("opening_verdicts", rows=judged(kept))),
    }
    return parts(texts)


def _raw(html: Markup) -> str:
    return f"```{{raw}} html\n{html.strip()}\n```"
