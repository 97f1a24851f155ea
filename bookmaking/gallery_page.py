"""What a reader sees of the gallery and of the example browser: figures, tables, sentences.

All of it follows from what :mod:`bookmaking.gallery` has counted and drawn, the JSON files of its
folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from experiments import plots
from experiments.evaluation import ID_TEST, NEAR, SET_TITLES
from thinkback_utils import data
from thinkback_utils.methods import TITLES

from . import explorers
from .markup import fill
from .tables import percent

COLUMNS = 20  # of the sprite
WIDTH = 4.1  # of a figure in inches, as a phone shows it
NETWORK = {
    "norm2": "squared length ‖h‖²",
    "residual2": "squared residual ‖r‖²",
    "confidence": "confidence",
}
PIXELS = {
    "brightness": "brightness",
    "contrast": "contrast",
    "edges": "edge energy",
    "detail": "fine detail",
    "size": "compressed size",
}
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # of Eq. 5
MARKS = "osD^vPX"
COLORS = {"thinkback_kronecker": plots.OOD_COLOR, **plots.METHOD_COLORS}
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
CLASSES = {  # of the sets that may be shown
    ID_TEST: tuple(_CIFAR10.split()),
    "svhn": tuple(f"digit {digit}" for digit in range(10)),
    "cifar100": tuple(name.replace("_", " ") for name in _CIFAR100.split()),
}

Facts = dict[str, Any]  # as JSON holds them


def sprite(tiles: Sequence[tuple[str, int]], images: Mapping[str, Tensor]) -> Image.Image:
    """All pictures in one, ``COLUMNS`` a row, in the order of their tiles.

    ``images`` holds uint8 (N, 3, 32, 32) by set.
    """
    pictures = torch.stack([images[name][index] for name, index in tiles])
    empty = pictures.new_zeros(-len(pictures) % COLUMNS, *pictures.shape[1:])
    rows = torch.cat([pictures, empty]).unflatten(0, (-1, COLUMNS))  # (rows, columns, 3, H, W)
    return Image.fromarray(rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy())


def plot_shared(facts: Facts) -> Figure:
    """AUROC of each statistic, wrong side against right: OOD sets above, test images below.

    Of the OOD sets the mean and the range are drawn.
    """
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 8.8), sharex=True)
    titles = {**NETWORK, **PIXELS}
    for ax, inside in zip(axes, (False, True), strict=True):
        for i, (method, mark) in enumerate(zip(facts["methods"], MARKS, strict=False)):
            sides = _sides(facts, method, inside)
            for row, key in enumerate(titles):
                values = [value for value, _ in (side[key] for side in sides)]
                ends = [
                    value + sign * half * inside
                    for value, half in (side[key] for side in sides)
                    for sign in (-1, 1)
                ]
                y = -row + 0.14 * (2 - i)
                ax.plot(
                    [min(ends), max(ends)], [y, y], color=COLORS[method], linewidth=1.2, alpha=0.6
                )
                ax.plot(
                    np.mean(values),
                    y,
                    mark,
                    color=COLORS[method],
                    markersize=4.5,
                    label=TITLES[method],
                )
        ax.axvline(0.5, color=plots.INK, linewidth=0.8, linestyle=":")
        ax.axhline(0.5 - len(NETWORK), color=plots.INK, linewidth=0.5)
        ax.set_yticks([-row for row in range(len(titles))], list(titles.values()))
        ax.set(
            xlim=(-0.02, 1.02),
            title="false alarms against quiet images" if inside else "missed against caught",
        )
        ax.tick_params(axis="y", length=0)
    axes[1].set_xlabel("AUROC: less of it ← 0.5 → more of it")
    _legend(figure, axes[0])
    return figure


def plot_louder(facts: Facts) -> Figure:
    """Share of far images that raise an alarm against the factor of their features."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.8))
    for method, mark in zip(facts["methods"], MARKS, strict=False):
        rate = [100 * value for value in facts["methods"][method]["louder"]]
        ax.plot(
            facts["loudness"],
            rate,
            f"{mark}-",
            markersize=4,
            color=COLORS[method],
            label=TITLES[method],
        )
    ax.axvline(1, color=plots.INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.set(xlabel="features multiplied by", ylabel="far images with an alarm (%)", ylim=(-2, 102))
    _legend(figure, ax)
    return figure


def plot_examples(browsed: Facts) -> Figure:
    """The example browser as it starts: ‖h‖² and ‖r‖² at T = 5, filled where ``START`` alarms."""
    figure, ax = plt.subplots(figsize=(6.4, 4.8))
    for (title, rows), color, mark in zip(
        _by_set(browsed).items(), explorers.SET_COLORS, "o^s", strict=False
    ):
        for raised in (True, False):
            part = [row for row in rows if row["alarms"][explorers.START] == raised]
            x, y = ([row[key] for row in part] for key in ("norm2", "residual2"))
            style = {
                "color": color,
                "markerfacecolor": color if raised else "none",
                "markersize": 5,
            }
            ax.loglog(
                x, y, mark, linestyle="none", label=f"{title}{', an alarm' * raised}", **style
            )
    across, up = (np.geomspace(*ends, 60) for ends in (ax.get_xlim(), ax.get_ylim()))
    lines = ax.contour(
        across,
        up,
        np.outer(up, across),
        LEVELS,
        colors=plots.INK,
        linewidths=0.8,
        linestyles="dotted",
    )
    ax.clabel(lines, fmt="%g")
    ax.set(xlabel=NETWORK["norm2"], ylabel=f"{NETWORK['residual2']}, T = 5")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    _legend(figure, ax)
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, loc="outside lower left", ncols=2)


def limits(facts: Facts) -> str:
    """What the page on limits includes, ``results/gallery.md``."""
    return parts(
        {
            "network": _network_text(facts),
            "confident": _confident_text(facts),
            "lengths": _lengths_text(facts),
            "louder": _louder_text(facts),
            "classes": _classes_text(facts),
            "near": _near_text(facts),
            "gallery": _gallery_text(facts),
            "shared": _shared_text(facts),
        }
    )


def browser(browsed: Facts) -> str:
    """What the page of the example browser includes, ``results/examples.md``."""
    return parts(
        {
            "network": _browsed_text(browsed),
            "plane": _plane(browsed),
            "table": _browsed_table(browsed),
        }
    )


def parts(texts: Mapping[str, str]) -> str:
    """What a page includes: each text between a comment that names it and ``<!-- end -->``."""
    return "".join(f"<!-- {name} -->\n\n{text}\n\n<!-- end -->\n\n" for name, text in texts.items())


def _network_text(facts: Facts) -> str:
    network, runs = facts["network"], len(facts["runs"])
    paper = [name for name in data.PAPER_SETS if name in facts["lengths"]]
    return (
        "The numbers on this page are of"
        f" {f'one of {runs} training runs' if runs > 1 else 'the only training run'}: recipe"
        f" `{network['recipe']}`, seed {network['seed']}, {percent(network['accuracy'])} of the"
        f" CIFAR-10 test images correct. Of the paper's {len(data.PAPER_SETS)} sets it was tested"
        f" on {len(paper)}: {', '.join(SET_TITLES[name] for name in paper) or 'none'}. A score's"
        f" threshold is where {percent(facts['alpha'], 0)} of the CIFAR-10 test images raise an"
        " alarm; an OOD image below it is *missed*, any other *caught*."
    )


def _confident_text(facts: Facts) -> str:
    rows, sure = facts["confident"], percent(facts["sure"], 0)
    inside, total = rows[ID_TEST], Counter[str]()
    for name in facts["lengths"]:
        total.update(rows[name])
    caught = _by_method(facts, lambda m: percent(total[m] / max(total["sure"], 1)))
    text = (
        f"The network is at least {sure} sure of {percent(inside['sure'] / inside['images'])} of"
        f" the CIFAR-10 test images and of {total['sure']:,} of the {total['images']:,} OOD images."
        f" Of the latter {total['sure']:,}, each score catches: {caught}. By set, how many it is"
        " sure of and how many of those are caught:\n\n"
    )
    body = [
        [SET_TITLES[name], *(f"{rows[name][key]:,}" for key in ("sure", *facts["methods"]))]
        for name in facts["lengths"]
    ]
    return text + _table(["", f"{sure} sure", *(TITLES[m] for m in facts["methods"])], body)


def _lengths_text(facts: Facts) -> str:
    rows = facts["lengths"]
    below = sum(row["norm2"] < 0.5 for row in rows.values())
    loss = {name: row["residual2"] - row["product"] for name, row in rows.items()}
    most = max(loss, key=lambda name: loss[name])
    low, high = (percent(end(row["norm2"] for row in rows.values())) for end in (min, max))
    text = (
        f"Taken alone as a score, ‖h‖² has AUROCs from {low} to {high}: below one half, the wrong"
        f" way, on {below} of {len(rows)} sets. As a factor of the residual it lowers the AUROC on"
        f" {sum(x > 0 for x in loss.values())} of them. The largest change is on"
        f" {SET_TITLES[most]}, from {percent(rows[most]['residual2'])} to"
        f" {percent(rows[most]['product'])}.\n\n"
    )
    keys = {
        "norm2": "‖h‖²",
        "residual2": "‖r‖²",
        "product": "Eq. 5: ‖r‖² ‖h‖²",
        "thinkback": "Eq. 6",
    }
    body = [[SET_TITLES[name], *(percent(row[key]) for key in keys)] for name, row in rows.items()]
    return text + _table(["AUROC of", *keys.values()], body)


def _louder_text(facts: Facts) -> str:
    at = [facts["loudness"].index(factor) for factor in (0.5, 1.0, 2.0)]
    rate = _by_method(
        facts, lambda m: ", ".join(percent(facts["methods"][m]["louder"][i], 0) for i in at)
    )
    text = f"Far images caught at half, at the same and at twice the length: {rate}."
    caption = (
        "Far images whose features are multiplied by a factor before the last layer reads them: how"
        " many are caught, in the mean over the far sets. At the dotted line stands the network as"
        " it is."
    )
    return f"{_figure('louder', text, caption, 'fig-limits-louder')}\n\n{text}"


def _classes_text(facts: Facts) -> str:
    body = []
    for method in facts["methods"]:
        ranked = sorted(zip(facts["methods"][method]["classes"], CLASSES[ID_TEST], strict=True))
        body.append(
            [
                TITLES[method],
                *(f"{name}: {percent(rate)}" for rate, name in (ranked[0], ranked[-1])),
            ]
        )
    return _table(["", "fewest false alarms", "most false alarms"], body)


def _near_text(facts: Facts) -> str:
    (near,), body = NEAR, []
    for method in facts["methods"]:
        cells = [TITLES[method]]
        for values in (facts["methods"][method][key] for key in ("auroc", "caught")):
            far = [value for name, value in values.items() if name not in NEAR]
            cells += [percent(float(np.mean(far))), percent(values[near])]
        body.append(cells)
    ranked = sorted(zip(facts["methods"]["thinkback"]["near"], CLASSES[near], strict=True))
    low, high = (
        ", ".join(f"{name} ({percent(x, 0)})" for x, name in part)
        for part in (ranked[:5], ranked[:-6:-1])
    )
    title = SET_TITLES[near]
    heads = [
        "",
        "AUROC, mean of the far sets",
        f"AUROC, {title}",
        "caught, mean of the far sets",
        f"caught, {title}",
    ]
    return (
        f"{_table(heads, body)}\n\nOf the classes of {title} Thinkback catches least of {low}, and"
        f" most of {high}."
    )


def _gallery_text(facts: Facts) -> str:
    tabs = []
    for method in facts["methods"]:
        own = facts["methods"][method]
        missed = ", ".join(
            f"{SET_TITLES[name]} {percent(1 - rate, 0)}" for name, rate in own["caught"].items()
        )
        sets = Counter(SET_TITLES[row["set"]] for row in own["lowest"])
        lowest = ", ".join(f"{count} of {title}" for title, count in sets.items())
        text = (
            f"Missed: {missed}. The {len(own['lowest'])} lowest of all OOD images: {lowest}; no"
            f" more than {percent(max(row['percentile'] for row in own['lowest']) / 100, 2)} of the"
            " test images score below any of them."
        )
        rows = {f"Missed, {SET_TITLES[name]}": rows for name, rows in own["pictured"].items()}
        rows[f"False alarms, {SET_TITLES['cifar10']}"] = own["alarms"]
        lists = [f"**{title}**\n\n{_pictures(part)}" for title, part in rows.items()]
        tabs.append(f":::{{tab-item}} {TITLES[method]}\n\n" + "\n\n".join([text, *lists]) + "\n:::")
    return "::::{tab-set}\n" + "\n\n".join(tabs) + "\n::::"


def _pictures(rows: Sequence[Facts]) -> Markup:
    shown = []
    for row in rows:
        answer = "✓" if row["true"] == row["predicted"] else f"→ {row['predicted']}"
        below = percent(row["percentile"] / 100, 2)
        shown.append(row | {"tile": _tile(row), "answer": answer, "percentile": below})
    return fill("pictures", rows=shown)


def _tile(row: Facts) -> Markup:
    y, x = divmod(row["tile"], COLUMNS)
    return fill("tile", label=f"{_named(row)}: {row['true']}", x=x, y=y)


def _named(row: Facts) -> str:
    return f"{explorers.set_title(row['set'])}, image {row['index']}"


def _by_set(browsed: Facts) -> dict[str, list[Facts]]:
    sets: dict[str, list[Facts]] = {}
    for row in browsed["images"]:
        sets.setdefault(explorers.set_title(row["set"]), []).append(row)
    return sets


def _browsed_text(browsed: Facts) -> str:
    network = browsed["network"]
    counts = ", ".join(f"{len(rows)} of {title}" for title, rows in _by_set(browsed).items())
    return (
        f"The network is that of [Limits](limits.md): recipe `{network['recipe']}`, seed"
        f" {network['seed']}, {percent(network['accuracy'])} of the CIFAR-10 test images correct."
        f" {len(browsed['images'])} test images are here: {counts}. A score raises an alarm where"
        f" it is above its threshold, at which {percent(browsed['alpha'], 0)} of all CIFAR-10 test"
        " images do."
    )


def _plane(browsed: Facts) -> str:
    """The figure, then the numbers for the script that takes the place of its image."""
    caption = (
        "Test images by what the network makes of them. A mark is filled where the score,"
        f" {TITLES[explorers.START]} if no other is chosen, raises an alarm at"
        f" {percent(browsed['alpha'], 0)} false alarms. Along a dotted line ‖r‖² ‖h‖², the score of"
        " Eq. 5, is constant; it grows to the upper right."
    )
    medians = (
        f"{title} at {np.median([row['norm2'] for row in rows]):.3g} and "
        f"{np.median([row['residual2'] for row in rows]):.2g}"
        for title, rows in _by_set(browsed).items()
    )
    alt = (
        "Marks on a plane of squared feature norm and squared residual; medians lie for"
        f" {', for '.join(medians)}."
    )
    html = explorers.examples(browsed, "fig-examples-plane").data
    return (
        f"{_figure('examples', alt, caption, 'fig-examples-plane')}\n\n```{{raw}} html\n{html}\n```"
    )


def _browsed_table(browsed: Facts) -> str:
    methods, rows = browsed["methods"], []
    for row in browsed["images"]:
        cells = [row["true"], row["predicted"], f"{row['norm2']:.3g}", f"{row['residual2']:.2g}"]
        cells += [f"{row['percentiles'][m]:.2f}" + "\u00a0●" * row["alarms"][m] for m in methods]
        title = f"{explorers.set_title(row['set'])}, {row['index']}"
        rows.append({"tile": _tile(row), "title": title, "cells": cells})
    heads = ["", "Image", "Class", "Answer", "‖h‖²", "‖r‖²", *methods.values()]
    return f"```{{raw}} html\n{fill('browsed', heads=heads, rows=rows)}\n```"


def _shared_text(facts: Facts) -> str:
    tables = []
    for inside, head in ((False, "missed against caught"), (True, "false alarms against quiet")):
        columns = [_means(_sides(facts, method, inside)) for method in facts["methods"]]
        body = [
            [title, *(f"{mean[key]:.2f}" for mean in columns)]
            for key, title in {**NETWORK, **PIXELS}.items()
        ]
        tables.append(_table([head, *(TITLES[method] for method in facts["methods"])], body))
    caption = (
        "How well one statistic tells the images on the wrong side of a threshold from the others"
        " of their set. *Missed against caught*: marks are means over OOD sets, and lines reach"
        " from the lowest set to the highest. *False alarms against quiet images*: lines are 95 %"
        " intervals. At the dotted line the statistic tells nothing."
    )
    alt = (
        "Marks for five scores and eight statistics; the list and the table after the figure say"
        " what they show."
    )
    lines = [f"- **{TITLES[method]}.** {_sentence(facts, method)}" for method in facts["methods"]]
    numbers = "````{dropdown} The numbers of the figure: AUROC\n" + "\n\n".join(tables) + "\n````"
    return "\n\n".join(
        [_figure("shared", alt, caption, "fig-limits-shared"), "\n".join(lines), numbers]
    )


def _sentence(facts: Facts, method: str) -> str:
    """What images on the wrong side share: strongest statistic of the network, of the pixels."""

    def strongest(keys: Mapping[str, str], sides: Sequence[Facts]) -> str:
        mean = _means(sides)
        key = max(keys, key=lambda k: abs(mean[k] - 0.5))
        agree = sum((side[key][0] > 0.5) == (mean[key] > 0.5) for side in sides)
        where = f", this way on {agree} of {len(sides)} sets" if len(sides) > 1 else ""
        return f"{'more' if mean[key] > 0.5 else 'less'} {keys[key]} ({mean[key]:.2f}{where})"

    sets, (inside,) = _sides(facts, method, False), _sides(facts, method, True)
    names = [name for name in facts["methods"][method]["shared"] if name != ID_TEST]
    gap = [side["answer"][1] - side["answer"][2] for side in sets]
    answer, here, there = sets[int(np.argmax(gap))]["answer"]
    wrong, right = inside["errors"]
    return (
        f"What it misses has {strongest(NETWORK, sets)}; in the pixels, {strongest(PIXELS, sets)}."
        f" The answer that stands out is *{answer}*, on {SET_TITLES[names[int(np.argmax(gap))]]}:"
        f" {percent(here, 0)} of the missed and {percent(there, 0)} of the caught get it. Its false"
        f" alarms have {strongest(NETWORK, [inside])}; in the pixels,"
        f" {strongest(PIXELS, [inside])}. The network is wrong about {percent(wrong, 0)} of them,"
        f" and about {percent(right, 0)} of the quiet images."
    )


def _sides(facts: Facts, method: str, inside: bool) -> list[Facts]:
    return [
        side
        for name, side in facts["methods"][method]["shared"].items()
        if (name == ID_TEST) == inside
    ]


def _means(sides: Sequence[Facts]) -> dict[str, float]:
    return {key: float(np.mean([side[key][0] for side in sides])) for key in (*NETWORK, *PIXELS)}


def _figure(file: str, alt: str, caption: str, name: str) -> str:
    options = f":name: {name}\n:alt: {alt}"
    return f"```{{figure}} /book/_static/gallery/{file}.svg\n{options}\n\n{caption}\n```"


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    rows = (f"| {' | '.join(line)} |" for line in (heads, *body))
    lines = [row.replace("-", "‑") for row in rows]  # hyphens that do not break
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _by_method(facts: Facts, text: Callable[[str], str]) -> str:
    return "; ".join(f"{TITLES[method]} {text(method)}" for method in facts["methods"])
