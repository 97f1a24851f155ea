"""Where the scores fail: the numbers of the page on limits, its gallery of misses and false alarms, images to browse.

Images of three sets may be shown, as few small pictures: CIFAR-10, CIFAR-100 and SVHN. Of all others only numbers are.
"""

from __future__ import annotations

import argparse
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from . import data, plots, scores
from .ablations import digest
from .detector import conformal_threshold
from .evaluation import ID_TEST, ID_TRAIN, NEAR, SET_TITLES, Scores, evenly, score_sets
from .features import Bundle, Features
from .files import read_json, replacing, write_json
from .methods import TITLES
from .metrics import mean_auroc
from .provenance import describe

METHODS = ("msp", "energy", "thinkback", "thinkback_kronecker", "thinkback_averaged")
BROWSED = ("msp", "energy", "thinkback")  # the scores of the example browser
SHOWN = {"svhn": 6, "cifar100": 6}  # misses of each method with a picture
COUNT = 12  # false alarms of each method; lowest OOD images of each
EXAMPLES = {ID_TEST: 90, "svhn": 45, "cifar100": 45}
MOST_IMAGES = 300  # pictures in all
ALPHA = 0.05  # false alarms at the threshold that tells missed from caught
SURE = 0.99  # a confidence
FEWEST = 20  # images in a group that is described
LOUDNESS = tuple(2.0 ** (k / 2) for k in range(-4, 9))
COLUMNS = 20  # of the sprite
NETWORK = {"norm2": "squared length ‖h‖²", "residual2": "squared residual ‖r‖²", "confidence": "confidence"}
PIXELS = {
    "brightness": "brightness",
    "contrast": "contrast",
    "edges": "edge energy",
    "detail": "fine detail",
    "size": "compressed size",
}
MARKS = "osD^vPX"
COLORS = {"thinkback_kronecker": plots.OOD_COLOR, **plots.METHOD_COLORS}
_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
CLASSES = {  # of the sets that may be shown
    ID_TEST: ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "svhn": tuple(f"digit {digit}" for digit in range(10)),
    "cifar100": tuple(name.replace("_", " ") for name in _CIFAR100.split()),
}

Facts = dict[str, Any]  # as JSON holds them
Vector = NDArray[np.float64]
Statistics = Mapping[str, Mapping[str, Vector]]  # set -> statistic -> (N,)


def percentiles(id_scores: NDArray[Any], values: NDArray[Any]) -> Vector:
    """How many of 100 in-distribution test scores lie below each value.

    For an image from elsewhere ``1 - percentile / 100`` is the conformal p-value, but for one image in n + 1.

    >>> percentiles(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.5, 4.0]))
    array([ 0., 50., 75.])
    """
    return 100 * np.searchsorted(np.sort(id_scores), values) / len(id_scores)


def alarms(scored: Scores, name: str, method: str) -> NDArray[np.bool_]:
    """Which images of a set raise an alarm at the threshold where ``ALPHA`` of the test images do, bool (N,)."""
    limit = conformal_threshold(torch.as_tensor(scored[ID_TEST][method]).double(), ALPHA)
    return np.asarray(scored[name][method] >= limit)


def outliers(scored: Scores, near: bool = True) -> list[str]:
    """Names of the OOD sets, those near the training set included or not."""
    return [name for name in scored if name != ID_TEST and (near or name not in NEAR)]


def described(bundle: Bundle, scored: Scores, method: str, name: str, index: int) -> Facts:
    """Set, index in ``data.load(set)``, the network's answer, the true class where it has a name, the percentile."""
    item = bundle.sets[name]
    true = None if name not in CLASSES or item.labels is None else CLASSES[name][int(item.labels[index])]
    answer = CLASSES[ID_TEST][int(item.logits[index].argmax())]
    place = percentiles(scored[ID_TEST][method], scored[name][method][[index]])[0]
    return {"set": name, "index": index, "predicted": answer, "true": true, "percentile": _short(place)}


def extremes(bundle: Bundle, scored: Scores, method: str) -> Facts:
    """The images that one score gets most wrong; among equals those that come first.

    Returns:
        ``lowest``: the ``COUNT`` lowest of all OOD images; ``pictured``: the lowest of each set in ``SHOWN``;
        ``alarms``: the ``COUNT`` highest of the test images. Each a list of what :func:`described` says.
    """

    def first(name: str, count: int, sign: int = 1) -> list[Facts]:
        rows = np.argsort(sign * scored[name][method], kind="stable")[:count].tolist()
        return [described(bundle, scored, method, name, row) for row in rows]

    candidates = [row for name in outliers(scored) for row in first(name, COUNT)]
    return {
        "lowest": sorted(candidates, key=lambda row: float(scored[row["set"]][method][row["index"]]))[:COUNT],
        "pictured": {name: first(name, count) for name, count in SHOWN.items()},
        "alarms": first(ID_TEST, COUNT, -1),
    }


def examples(bundle: Bundle, scored: Scores, counts: Mapping[str, int], seed: int = 0) -> list[Facts]:
    """Images to browse, spread evenly over the range of each score in ``BROWSED``.

    Each score gets an equal part of a set's count: it ranks the images that are not drawn yet, cuts the list into as
    many pieces of equal length, and one image is drawn from each.

    Returns:
        What :func:`described` says, without one percentile but with ``norm2``, ``residual2`` (T = 5), ``residual2_T1``
        and, by method, ``scores`` and ``percentiles``; in the order of sets and indices.
    """
    generator, out = np.random.default_rng(seed), []
    for name, count in counts.items():
        item, drawn = bundle.sets[name], np.zeros(len(bundle.sets[name]), dtype=bool)
        for method in BROWSED:
            ranked = np.argsort(scored[name][method], kind="stable")
            pieces = np.array_split(ranked[~drawn[ranked]], count // len(BROWSED))
            drawn[[generator.choice(piece) for piece in pieces]] = True
        seen, sharp = network_statistics(item), scores.residual(item.logits, 1.0).square().sum(1)
        for index in np.flatnonzero(drawn).tolist():
            facts = described(bundle, scored, BROWSED[0], name, index)
            del facts["percentile"]
            facts |= {key: _short(seen[key][index]) for key in ("norm2", "residual2")}
            facts["residual2_T1"] = _short(sharp[index])
            own = {m: scored[name][m][index] for m in BROWSED}
            facts["scores"] = {m: _short(value) for m, value in own.items()}
            facts["percentiles"] = {m: _short(percentiles(scored[ID_TEST][m], own[m])) for m in BROWSED}
            out.append(facts)
    return out


def network_statistics(item: Features) -> dict[str, Vector]:
    """What a score may read of each image: ``‖h‖²``, ``‖r‖²`` at the paper's T = 5, and the confidence."""
    return {
        "norm2": item.features.double().square().sum(1).numpy(),
        "residual2": scores.residual(item.logits, 5.0).square().sum(1).numpy(),
        "confidence": -scores.msp(item.logits).numpy(),
    }


def pixel_statistics(images: Tensor) -> dict[str, Vector]:
    """What an eye sees of each image, uint8 (N, 3, H, W), as gray levels in [0, 1].

    ``brightness`` is their mean, ``contrast`` their standard deviation, ``edges`` the root mean square difference of
    neighbors, ``detail`` the share of the spectrum's power above 1/4 cycle a pixel (0 for a flat image), and ``size``
    the bytes of the colored pixels after zlib.
    """
    gray = images.double().mean(1) / 255  # (N, H, W)
    down, right = (gray.diff(dim=axis).square().mean((1, 2)) for axis in (1, 2))
    power = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(side) for side in gray.shape[1:])
    fine = power[:, (rows[:, None].square() + columns.square()).sqrt() > 0.25].sum(1)
    return {
        "brightness": gray.mean((1, 2)).numpy(),
        "contrast": gray.std((1, 2), correction=0).numpy(),
        "edges": ((down + right) / 2).sqrt().numpy(),
        "detail": (fine / power.sum((1, 2)).clamp_min(1e-12)).numpy(),
        "size": np.array([len(zlib.compress(image.numpy().tobytes(), 9)) for image in images], dtype=np.float64),
    }


def shared(bundle: Bundle, scored: Scores, statistics: Statistics, method: str) -> Facts:
    """What images on the wrong side of the threshold share, against the others of their set.

    Wrong is no alarm for an OOD image and an alarm for a test image.

    Returns:
        For each set, unless a side has fewer than ``FEWEST`` images: AUROC and half-width of its 95 % interval for each
        statistic (0.5: no difference; 1: each image on the wrong side has more of it); under ``answer`` the network's
        answer that is most overrepresented on the wrong side, with its share there and on the right side; for test
        images under ``errors`` the share of wrong answers on both sides.
    """
    out: Facts = {}
    for name, columns in statistics.items():
        wrong = alarms(scored, name, method) == (name == ID_TEST)
        if min(wrong.sum(), (~wrong).sum()) < FEWEST:
            continue
        out[name] = {key: [_short(v) for v in mean_auroc(x[~wrong], [x[wrong]])] for key, x in columns.items()}
        item, classes = bundle.sets[name], len(CLASSES[ID_TEST])
        answers = item.logits.argmax(1).numpy()
        here, there = (np.bincount(answers[side], minlength=classes) / side.sum() for side in (wrong, ~wrong))
        top = int((here - there).argmax())
        out[name]["answer"] = [CLASSES[ID_TEST][top], _short(here[top]), _short(there[top])]
        if name == ID_TEST and item.labels is not None:
            errors = answers != item.labels.numpy()
            out[name]["errors"] = [_short(errors[side].mean()) for side in (wrong, ~wrong)]
    return out


def louder(bundle: Bundle, names: Iterable[str], count: int = 200) -> dict[str, Features]:
    """Images of each set with the features multiplied by each of ``LOUDNESS``, and what the head says to that."""
    out: dict[str, Features] = {}
    for name in names:
        h = bundle.sets[name].features[evenly(len(bundle.sets[name]), count)]
        out |= {f"{name}*{c:g}": Features(c * h, c * h @ bundle.weight.T + bundle.bias) for c in LOUDNESS}
    return out


def confident(bundle: Bundle, scored: Scores) -> Facts:
    """How many images a set has, in how many the confidence reaches ``SURE``, and how many of these raise an alarm."""
    out: Facts = {}
    for name in scored:
        sure = network_statistics(bundle.sets[name])["confidence"] >= SURE
        out[name] = {"images": len(sure), "sure": int(sure.sum())}
        out[name] |= {method: int(alarms(scored, name, method)[sure].sum()) for method in METHODS}
    return out


def lengths(bundle: Bundle, scored: Scores) -> Facts:
    """Of each OOD set: the AUROC of ``‖h‖²``, of ``‖r‖²``, of their product (Eq. 5) and of Eq. 6 as a score."""
    columns: Scores = {}
    for name in scored:
        seen = network_statistics(bundle.sets[name])
        h, r = seen["norm2"], seen["residual2"]
        columns[name] = {"norm2": h, "residual2": r, "product": h * r, "thinkback": scored[name]["thinkback"]}
    return {name: {key: _auroc(columns, name, key) for key in columns[name]} for name in outliers(scored)}


def rates(bundle: Bundle, scored: Scores, loud: Scores, method: str) -> Facts:
    """What one method does at the threshold.

    Returns:
        ``auroc`` and ``caught``, the share of alarms, of each OOD set; ``classes`` and ``near``, the share of alarms in
        each class of the test images and of CIFAR-100; ``louder``, the share of alarms at each of ``LOUDNESS``, in the
        mean over the far sets.
    """
    raised = {name: alarms(scored, name, method) for name in scored}
    at = {name: alarms({**loud, ID_TEST: scored[ID_TEST]}, name, method).mean() for name in loud}
    far = outliers(scored, near=False)

    def by_class(name: str) -> list[float]:
        labels = np.asarray(bundle.sets[name].labels)
        return [_short(raised[name][labels == c].mean()) for c in range(len(CLASSES[name]))]

    return {
        "auroc": {name: _auroc(scored, name, method) for name in outliers(scored)},
        "caught": {name: _short(raised[name].mean()) for name in outliers(scored)},
        "classes": by_class(ID_TEST),
        "near": by_class(NEAR[0]),
        "louder": [_short(np.mean([at[f"{name}*{c:g}"] for name in far])) for c in LOUDNESS],
    }


def gather(bundle: Bundle) -> tuple[Facts, Facts, Scores]:
    """What a bundle alone says of ``limits.json`` and ``examples.json``, all but :func:`shared`; and the scores."""
    far = [name for name in bundle.sets if name not in (ID_TRAIN, ID_TEST, *NEAR)]
    extra = louder(bundle, far)
    scored = score_sets({**bundle.sets, **extra}, METHODS)
    loud = {name: scored.pop(name) for name in extra}
    facts: Facts = {"alpha": ALPHA, "sure": SURE, "loudness": [_short(factor) for factor in LOUDNESS]}
    facts |= {"confident": confident(bundle, scored), "lengths": lengths(bundle, scored)}
    facts["methods"] = {m: rates(bundle, scored, loud, m) | extremes(bundle, scored, m) for m in METHODS}
    browsed = {"methods": {m: TITLES[m] for m in BROWSED}, "images": examples(bundle, scored, EXAMPLES)}
    return facts, browsed, scored


def number(facts: Facts, browsed: Facts) -> list[tuple[str, int]]:
    """Give each picture its ``tile``, a place in the sprite by set and index; returns what lies on each.

    Raises:
        ValueError: if there are more than ``MOST_IMAGES``, or one of a set that may not be shown.
    """
    rows = [*browsed["images"]]
    for own in facts["methods"].values():
        rows += [*own["alarms"], *(row for part in own["pictured"].values() for row in part)]
    tiles = sorted({(row["set"], row["index"]) for row in rows})
    if len(tiles) > MOST_IMAGES or {name for name, _ in tiles} - set(CLASSES):
        names = ", ".join(sorted({name for name, _ in tiles}))
        raise ValueError(
            f"thinkback: {len(tiles)} pictures from {names}: at most {MOST_IMAGES} from {', '.join(CLASSES)} may be "
            "kept; lower gallery.EXAMPLES or gallery.SHOWN"
        )
    for row in rows:
        row["tile"] = tiles.index((row["set"], row["index"]))
    return tiles


def sprite(tiles: Sequence[tuple[str, int]], images: Mapping[str, Tensor]) -> Image.Image:
    """All pictures in one, ``COLUMNS`` a row, in the order of their tiles; images uint8 (N, 3, 32, 32) by set."""
    pictures = torch.stack([images[name][index] for name, index in tiles])
    empty = pictures.new_zeros(-len(pictures) % COLUMNS, *pictures.shape[1:])
    rows = torch.cat([pictures, empty]).unflatten(0, (-1, COLUMNS))  # (rows, columns, 3, H, W)
    return Image.fromarray(rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy())


def plot_shared(facts: Facts) -> Figure:
    """AUROC of each statistic, wrong side against right: OOD sets (mean and range) above, test images below."""
    figure, axes = plt.subplots(2, 1, figsize=(4.8, 8.8), sharex=True)
    titles = {**NETWORK, **PIXELS}
    for ax, inside in zip(axes, (False, True), strict=True):
        for i, (method, mark) in enumerate(zip(METHODS, MARKS, strict=False)):
            sides = _sides(facts, method, inside)
            for row, key in enumerate(titles):
                values = [value for value, _ in (side[key] for side in sides)]
                ends = [
                    value + sign * half * inside for value, half in (side[key] for side in sides) for sign in (-1, 1)
                ]
                y = -row + 0.14 * (2 - i)
                ax.plot([min(ends), max(ends)], [y, y], color=COLORS[method], linewidth=1.2, alpha=0.6)
                ax.plot(np.mean(values), y, mark, color=COLORS[method], markersize=4.5, label=TITLES[method])
        ax.axvline(0.5, color=plots.INK, linewidth=0.8, linestyle=":")
        ax.axhline(0.5 - len(NETWORK), color=plots.INK, linewidth=0.5)
        ax.set_yticks([-row for row in range(len(titles))], list(titles.values()))
        ax.set(xlim=(-0.02, 1.02), title="false alarms against quiet images" if inside else "missed against caught")
        ax.tick_params(axis="y", length=0)
    axes[1].set_xlabel("AUROC: less of it ← 0.5 → more of it")
    _legend(figure, axes[0])
    return figure


def plot_louder(facts: Facts) -> Figure:
    """Share of far images that raise an alarm against the factor of their features."""
    figure, ax = plt.subplots(figsize=(4.8, 3.8))
    for method, mark in zip(METHODS, MARKS, strict=False):
        rate = [100 * value for value in facts["methods"][method]["louder"]]
        ax.plot(facts["loudness"], rate, f"{mark}-", markersize=4, color=COLORS[method], label=TITLES[method])
    ax.axvline(1, color=plots.INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.set(xlabel="features multiplied by", ylabel="far images with an alarm (%)", ylim=(-2, 102))
    _legend(figure, ax)
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, loc="outside lower left", ncols=2)


def as_markdown(facts: Facts) -> str:
    """What the page on limits includes: each part stands between a comment that names it and ``<!-- end -->``."""
    parts = {
        "network": _network_text(facts),
        "confident": _confident_text(facts),
        "lengths": _lengths_text(facts),
        "louder": _louder_text(facts),
        "classes": _classes_text(facts),
        "near": _near_text(facts),
        "gallery": _gallery_text(facts),
        "shared": _shared_text(facts),
    }
    return "".join(f"<!-- {name} -->\n\n{text}\n\n<!-- end -->\n\n" for name, text in parts.items())


def _network_text(facts: Facts) -> str:
    network, runs = facts["network"], len(facts["runs"])
    paper = [name for name in data.PAPER_SETS if name in facts["lengths"]]
    return (
        f"The numbers on this page are of {f'one of {runs} training runs' if runs > 1 else 'the only training run'}: "
        f"recipe `{network['recipe']}`, seed {network['seed']}, {_percent(network['accuracy'])} of the CIFAR-10 test "
        f"images correct. Of the paper's {len(data.PAPER_SETS)} sets it was tested on {len(paper)}: "
        f"{', '.join(SET_TITLES[name] for name in paper) or 'none'}. A score's threshold is where "
        f"{_percent(facts['alpha'], 0)} of the CIFAR-10 test images raise an alarm; an OOD image below it is *missed*, "
        "any other *caught*."
    )


def _confident_text(facts: Facts) -> str:
    rows, sure = facts["confident"], _percent(facts["sure"], 0)
    inside, total = rows[ID_TEST], Counter[str]()
    for name in facts["lengths"]:
        total.update(rows[name])
    caught = _by_method(lambda m: _percent(total[m] / max(total["sure"], 1)))
    text = (
        f"The network is at least {sure} sure of {_percent(inside['sure'] / inside['images'])} of the CIFAR-10 test "
        f"images and of {total['sure']:,} of the {total['images']:,} OOD images. Of the latter "
        f"{total['sure']:,}, each score catches: {caught}. By set, how many it is sure of and how many of "
        "those are caught:\n\n"
    )
    body = [[SET_TITLES[name], *(f"{rows[name][key]:,}" for key in ("sure", *METHODS))] for name in facts["lengths"]]
    return text + _table(["", f"{sure} sure", *(TITLES[m] for m in METHODS)], body)


def _lengths_text(facts: Facts) -> str:
    rows = facts["lengths"]
    below = sum(row["norm2"] < 0.5 for row in rows.values())
    loss = {name: row["residual2"] - row["product"] for name, row in rows.items()}
    most = max(loss, key=lambda name: loss[name])
    low, high = (_percent(end(row["norm2"] for row in rows.values())) for end in (min, max))
    text = (
        f"Taken alone as a score, ‖h‖² has AUROCs from {low} to {high}: below one half, the wrong way, on {below} of "
        f"{len(rows)} sets. As a factor of the residual it lowers the AUROC on {sum(x > 0 for x in loss.values())} of "
        f"them. The largest change is on {SET_TITLES[most]}, from {_percent(rows[most]['residual2'])} to "
        f"{_percent(rows[most]['product'])}.\n\n"
    )
    keys = {"norm2": "‖h‖²", "residual2": "‖r‖²", "product": "Eq. 5: ‖r‖² ‖h‖²", "thinkback": "Eq. 6"}
    body = [[SET_TITLES[name], *(_percent(row[key]) for key in keys)] for name, row in rows.items()]
    return text + _table(["AUROC of", *keys.values()], body)


def _louder_text(facts: Facts) -> str:
    at = [facts["loudness"].index(factor) for factor in (0.5, 1.0, 2.0)]
    rate = _by_method(lambda m: ", ".join(_percent(facts["methods"][m]["louder"][i], 0) for i in at))
    text = f"Far images caught at half, at the same and at twice the length: {rate}."
    caption = (
        "Far images whose features are multiplied by a factor before the last layer reads them: how many are caught, "
        "in the mean over the far sets. At the dotted line stands the network as it is."
    )
    return f"{_figure('louder', text, caption)}\n\n{text}"


def _classes_text(facts: Facts) -> str:
    body = []
    for method in METHODS:
        ranked = sorted(zip(facts["methods"][method]["classes"], CLASSES[ID_TEST], strict=True))
        body.append([TITLES[method], *(f"{name}: {_percent(rate)}" for rate, name in (ranked[0], ranked[-1]))])
    return _table(["", "fewest false alarms", "most false alarms"], body)


def _near_text(facts: Facts) -> str:
    (near,), body = NEAR, []
    for method in METHODS:
        cells = [TITLES[method]]
        for values in (facts["methods"][method][key] for key in ("auroc", "caught")):
            far = [value for name, value in values.items() if name not in NEAR]
            cells += [_percent(float(np.mean(far))), _percent(values[near])]
        body.append(cells)
    ranked = sorted(zip(facts["methods"]["thinkback"]["near"], CLASSES[near], strict=True))
    low, high = (", ".join(f"{name} ({_percent(x, 0)})" for x, name in part) for part in (ranked[:5], ranked[:-6:-1]))
    title = SET_TITLES[near]
    heads = ["", "AUROC, mean of the far sets", f"AUROC, {title}", "caught, mean of the far sets", f"caught, {title}"]
    return f"{_table(heads, body)}\n\nOf the classes of {title} Thinkback catches least of {low}, and most of {high}."


def _gallery_text(facts: Facts) -> str:
    tabs = []
    for method in METHODS:
        own = facts["methods"][method]
        missed = ", ".join(f"{SET_TITLES[name]} {_percent(1 - rate, 0)}" for name, rate in own["caught"].items())
        sets = Counter(SET_TITLES[row["set"]] for row in own["lowest"])
        lowest = ", ".join(f"{count} of {title}" for title, count in sets.items())
        text = (
            f"Missed: {missed}. The {len(own['lowest'])} lowest of all OOD images: {lowest}; no more than "
            f"{_percent(max(row['percentile'] for row in own['lowest']) / 100, 2)} of the test images score below any "
            "of them."
        )
        rows = {f"Missed, {SET_TITLES[name]}": rows for name, rows in own["pictured"].items()}
        rows[f"False alarms, {SET_TITLES['cifar10']}"] = own["alarms"]
        lists = [f"**{title}**\n\n{_pictures(part)}" for title, part in rows.items()]
        tabs.append(f":::{{tab-item}} {TITLES[method]}\n\n" + "\n\n".join([text, *lists]) + "\n:::")
    return "::::{tab-set}\n" + "\n\n".join(tabs) + "\n::::"


def _pictures(rows: Sequence[Facts]) -> str:
    items = []
    for row in rows:
        title = SET_TITLES["cifar10" if row["set"] == ID_TEST else row["set"]]
        label, place = f"{title}, image {row['index']}: {row['true']}", divmod(row["tile"], COLUMNS)
        answer = "✓" if row["true"] == row["predicted"] else f"→ {row['predicted']}"
        items.append(
            f'<li><span class="tb-tile" role="img" aria-label="{escape(label)}" style="--x:{place[1]};--y:{place[0]}">'
            f"</span>{escape(row['true'])} {escape(answer)}<br>{_percent(row['percentile'] / 100, 2)}</li>"
        )
    return '<ul class="tb-gallery">\n' + "\n".join(items) + "\n</ul>"


def _shared_text(facts: Facts) -> str:
    tables = []
    for inside, head in ((False, "missed against caught"), (True, "false alarms against quiet")):
        columns = [_means(_sides(facts, method, inside)) for method in METHODS]
        body = [[title, *(f"{mean[key]:.2f}" for mean in columns)] for key, title in {**NETWORK, **PIXELS}.items()]
        tables.append(_table([head, *(TITLES[method] for method in METHODS)], body))
    caption = (
        "How well one statistic tells the images on the wrong side of a threshold from the others of their set. Above, "
        "marks are means over OOD sets and lines reach from the lowest set to the highest; below, lines are 95 % "
        "intervals. At the dotted line the statistic tells nothing."
    )
    alt = "Marks for five scores and eight statistics; the list and the table after the figure say what they show."
    lines = [f"- **{TITLES[method]}.** {_sentence(facts, method)}" for method in METHODS]
    numbers = "````{dropdown} The numbers of the figure: AUROC\n" + "\n\n".join(tables) + "\n````"
    return "\n\n".join([_figure("shared", alt, caption), "\n".join(lines), numbers])


def _sentence(facts: Facts, method: str) -> str:
    """What the images on the wrong side share, in words: the strongest statistic of the network and of the pixels."""

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
        f"What it misses has {strongest(NETWORK, sets)}; in the pixels, {strongest(PIXELS, sets)}. The answer that "
        f"stands out is *{answer}*, on {SET_TITLES[names[int(np.argmax(gap))]]}: {_percent(here, 0)} of the missed and "
        f"{_percent(there, 0)} of the caught get it. Its false alarms have {strongest(NETWORK, [inside])}; in the "
        f"pixels, {strongest(PIXELS, [inside])}. The network is wrong about {_percent(wrong, 0)} of them, and about "
        f"{_percent(right, 0)} of the quiet images."
    )


def _sides(facts: Facts, method: str, inside: bool) -> list[Facts]:
    return [side for name, side in facts["methods"][method]["shared"].items() if (name == ID_TEST) == inside]


def _means(sides: Sequence[Facts]) -> dict[str, float]:
    return {key: float(np.mean([side[key][0] for side in sides])) for key in (*NETWORK, *PIXELS)}


def _figure(name: str, alt: str, caption: str) -> str:
    options = f":name: fig-limits-{name}\n:alt: {alt}"
    return f"```{{figure}} /book/_static/gallery/{name}.svg\n{options}\n\n{caption}\n```"


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    lines = [f"| {' | '.join(line)} |".replace("-", "‑") for line in (heads, *body)]  # hyphens that do not break
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _by_method(text: Callable[[str], str]) -> str:
    return "; ".join(f"{TITLES[method]} {text(method)}" for method in METHODS)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u00a0%"


def _auroc(columns: Scores, name: str, key: str) -> float:
    return _short(mean_auroc(columns[ID_TEST][key], [columns[name][key]])[0])


def _short(value: Any) -> float:
    """To six digits: files stay small and do not depend on the last bit."""
    return float(f"{float(value):.6g}")


def run(results: Path, network: str = "wrn40-2-cifar10", seed: int = 0) -> Path:
    """Write ``results/gallery/`` and ``results/gallery.md`` from one run's bundle and the images; returns the folder.

    Raises:
        ValueError: if an image set is not the one that the bundle was made of.
    """
    folder, out, provenance = results / network / f"seed{seed}", results / "gallery", describe()
    bundle, made_of = Bundle.load(folder / "bundle.npz"), read_json(folder / "provenance.json")
    facts, browsed, scored = gather(bundle)
    images, statistics = {}, {}
    for name in scored:
        images[name] = data.load("cifar10" if name == ID_TEST else name).images
        if hashlib.sha256(images[name].numpy().tobytes()).hexdigest() != made_of["images_sha256"][name]:
            raise ValueError(f"thinkback: the images of {name} in {data.data_root()} are not those of {folder}")
        statistics[name] = network_statistics(bundle.sets[name]) | pixel_statistics(images[name])
    for method, own in facts["methods"].items():
        own["shared"] = shared(bundle, scored, statistics, method)
    seeds = sorted({r["seed"] for r in read_json(results / "table1.json") if r["network"] == network})
    accuracy = made_of["accuracy"][ID_TEST]
    facts |= {"runs": seeds, "network": {"recipe": made_of["recipe"], "seed": seed, "accuracy": accuracy}}
    tiles = number(facts, browsed)
    browsed |= {"columns": COLUMNS, "id_images": len(bundle.sets[ID_TEST])}
    save(out, facts, browsed, sprite(tiles, images))
    write_json(out / "provenance.json", provenance | {"weights_sha256": digest(folder), "pictures": len(tiles)})
    with replacing(results / "gallery.md") as temporary:
        temporary.write_text(as_markdown(facts), encoding="utf-8")
    return out


def save(folder: Path, facts: Facts, browsed: Facts, pictures: Image.Image) -> None:
    """The files of ``results/gallery/`` but its provenance."""
    write_json(folder / "limits.json", facts)
    write_json(folder / "examples.json", browsed)
    with replacing(folder / "sprite.png") as temporary:
        pictures.save(temporary, "PNG", optimize=True)
    plots.use_style()
    for name, plot in (("shared", plot_shared), ("louder", plot_louder)):
        figure = plot(facts)
        with replacing(folder / f"{name}.svg") as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Write the numbers, pictures and figures of the page on limits, and the images of the example browser."""
    parser = argparse.ArgumentParser(prog="python -m thinkback_utils.gallery", description=main.__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the finished runs")
    parser.add_argument("--network", default="wrn40-2-cifar10", help="folder of the network inside it")
    parser.add_argument("--seed", type=int, default=0, help="which training run")
    options = parser.parse_args(arguments)
    print(f"wrote {run(options.results, options.network, options.seed)}")


if __name__ == "__main__":
    main()
