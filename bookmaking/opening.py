"""The opening figure, an SVG that plays once: two images on their way from pixels to a verdict."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from experiments.evaluation import ID_TEST, ID_TRAIN, SET_TITLES, score_sets
from experiments.plots import ID_COLOR, INK, OOD_COLOR
from experiments.provenance import describe
from experiments.run import Run, program_parser
from thinkback_utils.calibration import conformal_threshold
from thinkback_utils.commands import run_main
from thinkback_utils.data import SIDE
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.fisher import KroneckerFisher
from thinkback_utils.methods import METHODS, TITLES
from thinkback_utils.scores import residual

from .gallery import ALPHA, alarms, percentiles

METHOD, COMPARED = "thinkback_averaged", ("thinkback", "energy")
ROWS = {ID_TEST: ("familiar", ID_COLOR), "svhn": ("strange", OOD_COLOR)}
STEPS = (  # where in the wide drawing, title, what is drawn
    (0, "Image", ""),
    (86, "Features h", "forward pass"),
    (238, "Decision", "probabilities"),
    (344, "Pretend it’s true", "residual r"),
    (472, "Gradient r hᵀ", "against training"),
    (622, "Score", "on the test scale"),
)
TALL = 64  # height of a picture
SCALE = 116  # width of the test scale
STEP = 118  # from step to step in the narrow drawing
WIDE = (740, 232)  # size with the steps side by side
NARROW = (340, 6 * STEP)  # and one below the other
STYLE = f"""
text {{ font: 12.5px system-ui, sans-serif; fill: {INK}; }} \
text.b {{ font-weight: 600; }} text.v {{ font-size: 14px; }}
image {{ image-rendering: pixelated; }}
@media (max-aspect-ratio: 1/1) {{
.all {{ transform: scale({WIDE[0] / NARROW[0]:.4f}); }} .arrow {{ display: none; }}
"""
PLAY = """}
@media screen and (prefers-reduced-motion: no-preference) {
.c { animation: show .5s both; } .x { animation: out .7s both; } .y { animation: up .7s both; }
.m { animation: wipe .8s linear both; }
@keyframes show { from { opacity: 0; } }
@keyframes out { from { transform: scaleX(0); } }
@keyframes up { from { transform: scaleY(0); } }
@keyframes wipe { from { clip-path: inset(0 100% 0 0); } to { clip-path: inset(0); } }
"""

Vector = NDArray[np.floating]


class Row(NamedTuple):
    """One image and what is drawn of it."""

    name: str
    place: int  # in its set
    true: str
    answer: str  # the network's decision
    pixels: Image.Image
    h: Vector  # (D,)
    p: Vector  # (K,), softmax(z)
    r: Vector  # (K,), of the decision, at the score's temperature
    cells: Vector  # (K, D + 1)
    score: float


class Story(NamedTuple):
    """What the figure and its caption are made of."""

    rows: tuple[Row, ...]
    test: Vector  # all CIFAR-10 test scores
    threshold: float  # where an alarm begins
    caught: dict[str, float]  # by method the share of SVHN that raises one


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

    Of each set the picture of the example browser is taken whose score is nearest to the median.
    """
    bundle, gallery = here.bundle(), here.results / "gallery"
    browsed = read_json(gallery / "examples.json")
    method = METHODS[METHOD]
    rows = []
    scored = score_sets(bundle.sets, (METHOD, *COMPARED), ROWS)
    train = bundle.sets[ID_TRAIN]
    T = method.options["temperature"]
    fisher = KroneckerFisher(T, bias=True).update(method.inputs(train.features), train.logits)
    roots = fisher.inverse_root(method.options["damping"])
    sprite = Image.open(gallery / "sprite.png")
    for name in ROWS:
        own = scored[name][METHOD]
        shown = [row for row in browsed["images"] if row["set"] == name]
        pick = shown[int(np.abs(own[[row["index"] for row in shown]] - np.median(own)).argmin())]
        item = bundle.sets[name]
        h, z = item.features[pick["index"]], item.logits[pick["index"]]
        y, x = (SIDE * place for place in divmod(pick["tile"], browsed["columns"]))
        pixels, p = sprite.crop((x, y, x + SIDE, y + SIDE)), z.double().softmax(0).numpy()
        r, weighed = residual(z[None], T)[0].numpy(), cells(method.inputs(h[None])[0], z, roots, T)
        facts = (name, pick["index"], pick["true"], pick["predicted"], pixels)
        rows.append(Row(*facts, h.numpy(), p, r, weighed, float(own[pick["index"]])))
    test = scored[ID_TEST][METHOD]
    caught = {m: float(alarms(scored, "svhn", m).mean()) for m in (METHOD, *COMPARED)}
    return Story(tuple(rows), test, conformal_threshold(torch.as_tensor(test), ALPHA), caught)


def draw(story: Story) -> str:
    """The SVG, complete before it moves; in an upright box its steps lie one below the other."""
    style, play, body = STYLE, PLAY, []
    for i, (left, title, drawn) in enumerate(STEPS):
        style += (
            f".t{i} {{ transform: translate(3px, {13 + STEP * i}px); }} .t{i} .d {{ transform:"
            " translate(130px); }\n"
        )
        play += f".s{i}, .s{i} * {{ animation-delay: {0.7 * i:.1f}s; }}\n"
        words = (
            f'<text class="b">{title}</text><text class="d" transform="translate(0'
            f' 16)">{drawn}</text>'
        )
        body.append(
            f'<g class="t{i}" transform="translate({left} 12)"><g class="c s{i}">{words}</g></g>'
        )
        for j, row in enumerate(story.rows):
            style += f".p{i}{j} {{ transform: translate({3 + 176 * j}px, {22 + STEP * i}px); }}\n"
            arrow = (
                f'<path class="arrow" d="M-15 27l5 5-5 5" fill="none" stroke="{INK}"/>' if i else ""
            )
            inner = f'<g class="c s{i}">{arrow}{_picture(story, row, i)}</g>'
            body.append(
                f'<g class="p{i}{j}" transform="translate({left} {38 + 102 * j})">{inner}</g>'
            )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE[0]} {WIDE[1]}"'
        ' preserveAspectRatio="xMidYMin">'
    )
    return (
        f'{head}\n<style>{style}{play}}}</style>\n<g class="all">\n'
        + "\n".join(body)
        + "\n</g>\n</svg>\n"
    )


def _picture(story: Story, row: Row, step: int) -> str:
    """One step of one row, with the words below it."""
    color, thick = ROWS[row.name][1], TALL / len(row.p)
    longest = {key: max(abs(getattr(other, key)).max() for other in story.rows) for key in "hr"}
    if step == 0:
        return _embed(row.pixels, TALL) + _words(ROWS[row.name][0], color)
    if step == 1:
        lines = "".join(f"M{d + 0.5} 0v{-TALL * x / longest['h']:.1f}" for d, x in enumerate(row.h))
        shape = f'<path class="y" d="{lines}" stroke="{color}"/>'
        return f'<g transform="translate(0 {TALL})">{shape}</g>' + _words(f"{len(row.h)} values")
    if step == 2:
        return _bars(72 * row.p, thick, color) + _words(
            f"{row.answer} {100 * row.p.max():.1f}\u00a0%"
        )
    if step == 3:
        zero = f'<path d="M0 0v{TALL}" stroke="{INK}" stroke-opacity=".6"/>'
        bars = _bars(72 * row.r / longest["r"], thick, color)
        return f'<g transform="translate(74 0)">{zero}{bars}</g>' + _words(
            f"‖r‖ = {np.linalg.norm(row.r):.2f}"
        )
    if step == 4:
        top = np.quantile([np.sqrt(other.cells) for other in story.rows], 0.99)
        alpha = np.rint(255 * (np.sqrt(row.cells) / top).clip(0, 1)).astype(np.uint8)[..., None]
        solid = np.broadcast_to(np.array(ImageColor.getrgb(color), np.uint8), (*row.cells.shape, 3))
        heat = _embed(Image.fromarray(np.concatenate([solid, alpha], 2)), row.cells.shape[1])
        frame = (
            f'<path d="M0 0H{row.cells.shape[1]}V{TALL}H0z" fill="none" stroke="{INK}"'
            ' stroke-opacity=".5"/>'
        )
        return f'<g class="m">{heat}</g>{frame}' + _words(f"adds up to {row.score:,.0f}")
    return _scale(story, row, color)


def _scale(story: Story, row: Row, color: str) -> str:
    """The row's score as a bar under the histogram of the test scores, and the verdict."""
    unit = SCALE / (
        1.1 * max(float(np.quantile(story.test, 0.999)), *(other.score for other in story.rows))
    )
    counts = np.histogram(story.test, 32, (0, SCALE / unit))[0]
    hill = "".join(f"V{46 - 44 * n / counts.max():.1f}h{SCALE / 32:.2f}" for n in counts)
    cut = f"{unit * story.threshold:.1f}"
    verdict = _verdict(story, row, "out: an alarm", "in: no alarm")
    return (
        f'<path d="M0 46{hill}V46z" fill="{INK}" fill-opacity=".35"/>'
        f'<path class="x" d="M0 50h{unit * row.score:.1f}v10H0z" fill="{color}"/>'
        f'<path d="M{cut} 0V{TALL}" stroke="{INK}" stroke-dasharray="4 3"/>'
        f'<text transform="translate({cut} 11)" dx="5">{100 * (1 - ALPHA):.0f}\u00a0%</text>'
        + _words(verdict, color)
    )


def _verdict(story: Story, row: Row, above: str, below: str) -> str:
    return above if row.score >= story.threshold else below


def _bars(lengths: Vector, thick: float, color: str) -> str:
    shape = "".join(
        f"M0 {thick * k + 0.7:.1f}h{x:.1f}v{thick - 1.4:.1f}H0z" for k, x in enumerate(lengths)
    )
    return f'<path class="x" d="{shape}" fill="{color}"/>'


def _embed(picture: Image.Image, width: int) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<image width="{width}" height="{TALL}" preserveAspectRatio="none" href="{source}"/>'


def _words(text: str, color: str = "") -> str:
    look = f' class="b v" style="fill: {color}"' if color else ""
    return f'<text{look} transform="translate(0 {TALL + 17})">{text}</text>'


def as_markdown(story: Story) -> str:
    """The figure as the book's first page includes it, with its text and its caption."""
    alt, shown, place = [], [], []
    for row in story.rows:
        shown.append(f"{SET_TITLES['cifar10' if row.name == ID_TEST else row.name]}, {row.true}")
        place.append(f"{percentiles(story.test, np.array([row.score]))[0]:.0f}\u00a0%")
        alt.append(
            f"A {ROWS[row.name][0]} image ({shown[-1]}): the network says {row.answer},"
            f" {100 * row.p.max():.1f} %. Pretending that this is true leaves a residual of length"
            f" {np.linalg.norm(row.r):.2f}. The gradient adds up to {row.score:,.0f},"
            f" {_verdict(story, row, 'above', 'below')} the threshold, {story.threshold:,.0f}:"
            f" {_verdict(story, row, 'out', 'in')}."
        )
    rate = {m: f"{100 * share:.0f}\u00a0%" for m, share in story.caught.items()}
    T = METHODS[METHOD].options["temperature"]
    caption = (
        f"A familiar image ({shown[0]}) and a strange one ({shown[1]}) on their way through the"
        " network of this book. *Decision*: ten classes, a bar each. *Pretend it’s true*: how far"
        f" each class then is off, at the score’s T = {T:g}. *Gradient*: the weights of the last"
        " layer, class by feature, the stronger the color the larger, in units of what training"
        " images cause. Here and in the score the length of h is left out, and all ten answers are"
        " pretended in turn and averaged by their probability. *Score*: the squares, added up."
        f" {place[0]} and {place[1]} of the CIFAR-10 test images (gray) lie lower; the dashed line"
        f" leaves {100 * ALPHA:.0f}\u00a0% above. The images follow a rule: of the pictures in this"
        " book, those with the scores nearest to the medians of their sets. The score is"
        f" *{TITLES[METHOD]}*. It raises an alarm for {rate[METHOD]} of SVHN, {TITLES['energy']}"
        f" for {rate['energy']}, the paper’s Eq. 6 for {rate['thinkback']}."
    )
    options = f":name: fig-opening\n:class: tb-opening\n:alt: {' '.join(alt)}"
    return f"```{{figure}} /book/_static/gallery/opening.svg\n{options}\n\n{caption}\n```\n"


def run(here: Run) -> Path:
    """Write ``opening.md`` and ``gallery/opening.svg`` with its provenance; returns its path."""
    provenance, story = describe(), tell(here)
    path = here.results / "gallery" / "opening.svg"
    picks: dict[str, Any] = {
        row.name: {"index": row.place, "score": round(row.score, 2)} for row in story.rows
    }
    for file, text in ((path, draw(story)), (here.results / "opening.md", as_markdown(story))):
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    facts = {"weights_sha256": here.digest(), "method": METHOD, "images": picks}
    write_json(path.with_suffix(".json"), provenance | facts)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Draw the opening figure of the book from one run's features and the gallery's pictures."""
    parser = program_parser("bookmaking.opening", main.__doc__, "results")
    print(f"wrote {run(Run.at(parser.parse_args(arguments).results))}")


if __name__ == "__main__":
    sys.exit(run_main(main))
