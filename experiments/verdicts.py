"""A verdict on every claim of the paper: what it says, what was measured, which number decides.

A difference of two scores is *beyond chance* when it is so over images, for one network: the paired
bootstrap over the images gives its standard error, a normal law its p-value, and Holm's rule makes
that hold for all differences of one claim together, at 5 %. What another network would give is
another question, which the verdicts answer by naming every network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import norm

from thinkback_utils import scores
from thinkback_utils.commands import run_main
from thinkback_utils.data import PAPER_SETS
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.gradients import READINGS
from thinkback_utils.methods import TITLES
from thinkback_utils.metrics import METRICS
from thinkback_utils.metrics import TITLES as METRIC_TITLES

from . import ablations, networks
from .benchmark import Benchmark
from .evaluation import (
    BASELINES,
    ID_TRAIN,
    NEAR,
    SET_TITLES,
    Record,
    Scores,
    evenly,
    find,
    paper_table,
)
from .provenance import label
from .run import Run, program_parser

YES = "reproduced"
NO = "not reproduced"
OPEN = "inconclusive"
UNTESTED = "cannot be tested here"
LOWER_IS_BETTER = ("fpr95",)
LEVEL = 0.05  # of a claim as a whole
WIDTH = 2 * norm.ppf(0.975)  # of a 95 % interval, in standard errors
COLUMNS = {metric: METRIC_TITLES[metric][:-2] for metric in METRICS}  # without their arrows


def gains(
    records: Iterable[Record], name: str, baseline: str, metric: str, method: str = "thinkback"
) -> list[tuple[float, float, float]]:
    """Thinkback minus a baseline on one set: (value, low, high) for each training seed.

    The interval is the paired one. All lie in [-1, 1] and are turned so that positive means better,
    also for FPR95.
    """
    table, sign, out = list(records), -1 if metric in LOWER_IS_BETTER else 1, []
    for own in (r for r in table if r["set"] == name and r["method"] == method):
        same_run = {key: own[key] for key in ("network", "seed") if key in own}
        other = find(table, set=name, method=baseline, **same_run)
        if other is not None:
            ends = sorted(sign * end for end in own[f"minus_{baseline}"][metric])
            out.append((sign * (own[metric] - other[metric]), ends[0], ends[1]))
    return out


def p_value(value: float, low: float, high: float) -> float:
    """Of "no difference", two-sided: a normal law whose standard error is that of the interval.

    Args:
        value: the difference.
        low, high: its 95 % interval from the paired bootstrap.

    >>> round(p_value(1.96, 0.0, 3.92), 3), p_value(0.0, 0.0, 0.0)
    (0.05, 1.0)
    """
    if value == 0:
        return 1.0
    return float(2 * norm.sf(WIDTH * abs(value) / max(high - low, 1e-12)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that all below 5 % are true together at 5 % (Holm 1979).

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    order, out, least = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = least
    return out


Gain = tuple[float, float, float]


def judged(
    measured: Mapping[Any, Sequence[Gain]], expected: Mapping[Any, float] | None = None
) -> dict[Any, dict[str, Any]]:
    """A family of differences, each with its verdict; see the head of this module.

    Reproduced: on every network the sign is the expected one, beyond chance. Not reproduced: on
    some network it is the other one, beyond chance. Inconclusive: neither, or the expected
    difference is smaller than half of an interval, so that nobody could see it on these images.

    Args:
        measured: ``(value, low, high)`` for each network by difference; an empty list where none
            was measured.
        expected: the printed differences; default: a gain of any size.

    Returns:
        ``{measured, interval, p, signs, verdict}`` by difference: the mean over networks, an
        interval that holds those of all, the largest adjusted p, and of each network 1 (gain), -1
        (loss) or 0.
    """
    flat = [(key, i, gain) for key, gains in measured.items() for i, gain in enumerate(gains)]
    adjusted = holm([p_value(*gain) for _, _, gain in flat])
    p_of = {(key, i): p for (key, i, _), p in zip(flat, adjusted, strict=True)}
    out: dict[Any, dict[str, Any]] = {}
    for key, gains in measured.items():
        if not gains:
            out[key] = {"measured": None, "interval": None, "verdict": UNTESTED}
            continue
        values, low, high = zip(*gains, strict=True)
        p = [p_of[key, i] for i in range(len(gains))]
        signs = [int(np.sign(v)) * (q < LEVEL) for v, q in zip(values, p, strict=True)]
        asked = 1.0 if expected is None else expected[key]
        half = max(b - a for _, a, b in gains) / 2
        want = int(np.sign(asked)) if expected is None or abs(asked) >= half else 0
        verdict = NO if want and -want in signs else OPEN
        if want and all(sign == want for sign in signs):
            verdict = YES
        out[key] = {"measured": float(np.mean(values)), "interval": [min(low), max(high)]}
        out[key] |= {"p": max(p), "signs": signs, "verdict": verdict}
    return out


def deltas(records: Sequence[Record], paper: Sequence[Record]) -> list[dict[str, Any]]:
    """Each difference of Table 1, Thinkback (reading A) against a baseline, and its verdict.

    It cannot be tested where the set was not measured, nor, for the mean, unless all five sets
    were. The differences that can be are one family of :func:`judged`.

    Returns: Records ``{set, baseline, metric, printed, measured, interval, verdict}``, positive =
        Thinkback is better.
    """
    mean_sets = [set(record["sets"]) for record in records if record["set"] == "mean"]
    same_mean = all(sets == set(PAPER_SETS) for sets in mean_sets)
    printed: dict[Any, float] = {}
    for baseline, name, metric in product(BASELINES, (*PAPER_SETS, "mean"), METRICS):
        own, other = (_printed(paper, name, method)[metric] for method in ("thinkback", baseline))
        gap = other - own if metric in LOWER_IS_BETTER else own - other
        printed[name, baseline, metric] = round(gap, 4)
    measured = {  # a mean of other sets is another number
        key: gains(records, *key) if same_mean or key[0] != "mean" else [] for key in printed
    }
    return [
        dict(zip(("set", "baseline", "metric"), key, strict=True))
        | {"printed": printed[key]}
        | {k: v for k, v in row.items() if k != "signs"}
        for key, row in judged(measured, printed).items()
    ]


def _printed(paper: Sequence[Record], name: str, method: str) -> Record:
    """The row of the paper's table."""
    return next(row for row in paper if (row["set"], row["method"]) == (name, method))


Facts = dict[str, Any]
Claim = dict[str, Any]


def _claim(
    key: str, claim: str, printed: str, measured: str, verdict: str | bool, facts: Sequence[Facts]
) -> Claim:
    """A row of the verdicts.

    ``facts`` are the numbers of ``measured`` by name, for other words than these: of the network of
    the book, then of each other ``network``.
    """
    if isinstance(verdict, bool):
        verdict = YES if verdict else NO
    row = {"key": key, "claim": claim, "printed": printed, "measured": measured}
    return row | {"verdict": verdict, "facts": list(facts)}


def _all_gains(
    records: Sequence[Record], sets: Iterable[str], method: str = "thinkback"
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every difference to the baselines, by (set, baseline, metric), as if a gain were claimed."""
    keys = product(sets, BASELINES, METRICS)
    return judged({key: gains(records, *key, method) for key in keys})


def _together(rows: Iterable[Mapping[str, Any]]) -> str:
    """The verdict on a claim of many gains: all of them, or one that is a loss."""
    found = {row["verdict"] for row in rows}
    return NO if NO in found else YES if found == {YES} else OPEN


def _count(network: str, rows: Mapping[Any, Mapping[str, Any]]) -> Facts:
    """Gains beyond chance, losses beyond chance, and how many differences there are."""
    verdicts = [row["verdict"] for row in rows.values()]
    counted = {"won": verdicts.count(YES), "lost": verdicts.count(NO), "count": len(verdicts)}
    return {"network": network, **counted}


def _far(records: Iterable[Record]) -> list[str]:
    """The sets that a claim of gains "but on LSUN-Crop" is about."""
    apart = ("mean", "lsun_crop", *NEAR)
    return list(dict.fromkeys(r["set"] for r in records if r["set"] not in apart))


def rule_temperature(
    train: Features, validation: Features, temperatures: Sequence[float], fisher: bool = True
) -> tuple[float, list[float]]:
    """The paper's rule: the T of the smallest standard deviation on in-distribution data.

    Args:
        train: what E is fitted on, at each T.
        validation: in-distribution data that E has not seen.
        temperatures: the candidates; [1, 5] in the paper.
        fisher: for Eq. 6, else for Eq. 5.

    Returns:
        The chosen T and the standard deviation at each candidate.
    """
    spread = []
    for T in temperatures:
        E = DiagonalFisher(T).update(train.features, train.logits).compute() if fisher else None
        score = scores.thinkback(validation.features, validation.logits, E, temperature=T)
        spread.append(float(score.std()))
    return temperatures[int(np.argmin(spread))], spread


def text_claims(
    records: Sequence[Record],
    paper: Sequence[Record],
    bundle: Bundle,
    others: Mapping[str, Sequence[Record]] | None = None,
) -> list[Claim]:
    """The claims of the paper's text under reading A.

    Each is ``{key, claim, printed, measured, verdict, facts}``.

    Args:
        records: of the network of the book, all its training seeds.
        paper: records of the paper's table.
        bundle: of that network, for the claims on T.
        others: records of other networks by their titles; a claim must hold on them too.
    """
    every = {"": records, **(others or {})}
    by_set = {title: _all_gains(rows, _far(rows)) for title, rows in every.items()}
    in_mean = {title: _all_gains(rows, ["mean"]) for title, rows in every.items()}
    each, means = (
        [_count(title, rows) for title, rows in found.items()] for found in (by_set, in_mean)
    )
    worst = min(in_mean[""], key=lambda key: in_mean[""][key]["measured"])
    return [
        _claim(
            "gains",
            "Consistent gains over Softmax and Energy, but on LSUN-Crop",
            "every set, every metric",
            "{won} of {count} differences are gains beyond chance, {lost} are losses beyond"
            " chance".format(**each[0])
            + f" ({len(_far(records))} far sets, two baselines, four metrics){_elsewhere(each)}",
            _together(row for rows in by_set.values() for row in rows.values()),
            each,
        ),
        _claim(
            "means",
            "Significantly more accurate than the state of the art",
            "better in the mean of all four metrics",
            "better beyond chance in {won} of {count} differences of means, worse in {lost}; the"
            " furthest, ".format(**means[0])
            + f"{COLUMNS[worst[2]]} against {TITLES[worst[1]]}: {_points(in_mean[''][worst])}"
            + _elsewhere(means),
            _together(row for rows in in_mean.values() for row in rows.values()),
            means,
        ),
        _aupr_claim(every, paper, in_mean),
        *_temperature_claims(bundle),
    ]


def _elsewhere(counts: Sequence[Facts]) -> str:
    """The counts on the other networks, in words; nothing where there are none."""
    text = "; {network}: better in {won} and worse in {lost} of {count}"
    return "".join(text.format(**facts) for facts in counts[1:])


def _aupr_claim(
    every: Mapping[str, Sequence[Record]],
    paper: Sequence[Record],
    in_mean: Mapping[str, Mapping[Any, Mapping[str, Any]]],
) -> Claim:
    printed = {key: _printed(paper, "mean", key)["aupr"] for key in ("thinkback", "msp")}
    gap, key = printed["thinkback"] - printed["msp"], ("mean", "msp", "aupr")
    prevalence = next(r["prevalence"] for r in every[""] if "prevalence" in r)
    measured = [gain for rows in every.values() for gain in gains(rows, *key)]
    others = "".join(f"; {t}: {_points(r[key])}" for t, r in list(in_mean.items())[1:])
    return _claim(
        "aupr",
        f"AUPR {100 * gap:+.2f} points over Softmax",
        f"{100 * printed['msp']:.2f} → {100 * printed['thinkback']:.2f}",
        f"{_points(in_mean[''][key])} at one prevalence of {prevalence:.3f} for both{others}",
        all(high >= gap for _, _, high in measured),
        [{"network": title, "gain": rows[key]["measured"]} for title, rows in in_mean.items()],
    )


Differences = dict[tuple[str, str, str], dict[str, Any]]


def _gains_of_readings(here: Run) -> dict[str, Differences]:
    """Differences of means of one run's readings, each on the images that it was scored on."""
    kept, (arrays, record) = here.scores(), ablations.load(here.folder)
    together: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for reading, facts in record["readings"].items():
        together.setdefault(tuple(facts["images"].items()), []).append(reading)
    against: dict[str, Differences] = {}
    for images, readings in together.items():  # readings of the same images share the baselines
        scored: Scores = {}
        for name, size in images:
            rows = evenly(len(kept[name]["msp"]), size).numpy()
            scored[name] = {m: kept[name][m][rows] for m in BASELINES}
            scored[name] |= {reading: arrays[f"{name}.{reading}_eq6"] for reading in readings}
        whole = max(size for _, size in images)
        records = Benchmark(draws=1, n_ood=whole).records(scored)
        against |= {reading: _all_gains(records, ["mean"], reading) for reading in readings}
    return against


def reading_claim(here: Run, others: Mapping[str, Sequence[Record]] | None = None) -> Claim:
    """Whether any other reading of "the penultimate layer" makes the claim true, on every network.

    It is inconclusive where a reading does so on some networks and not on all: then the claim
    depends on the reading *and* on the network.
    """
    against = _gains_of_readings(here)
    best = max(against, key=lambda name: against[name]["mean", "energy", "auroc"]["measured"])
    better = {n for n, rows in against.items() if _together(rows.values()) == YES}
    gaps = [f"{COLUMNS[m]} {_points(against[best]['mean', 'energy', m])}" for m in METRICS]
    text = (
        f"of {', '.join(against)}, better beyond chance in all four metrics than both:"
        f" {', '.join(sorted(better)) or 'none'}. The best, {best} ({READINGS[best]}), gains on"
        f" Energy: {', '.join(gaps)}"
    )
    gain = against[best]["mean", "energy", "auroc"]["measured"]
    facts = [{"network": "", "reading": best, "layer": READINGS[best], "gain": gain}]
    everywhere, anywhere = set(better), bool(better)
    for title, records in (others or {}).items():
        rows = {r: _all_gains(records, ["mean"], f"reading_{r}") for r in networks.LAYERS}
        own = {r for r in rows if _together(rows[r].values()) == YES}
        everywhere, anywhere = everywhere & own, anywhere or bool(own)
        counted, gap = _count(title, rows["E"]), rows["E"]["mean", "energy", "auroc"]
        facts.append(counted | {"reading": "E", "gain": gap["measured"]})
        text += (
            f". {title}: {', '.join(sorted(own)) or 'none'}; E is better in {counted['won']}"
            f" and worse in {counted['lost']} of {counted['count']}, AUROC against Energy"
            f" {_points(gap)}"
        )
    return _claim(
        "reading",
        'The same, under another reading of "the penultimate layer"',
        "does not say which layer",
        text,
        YES if everywhere else OPEN if anywhere else NO,
        facts,
    )


def _temperature_claims(bundle: Bundle) -> list[Claim]:
    train, held_out = _split(bundle.sets[ID_TRAIN])
    ranges = {
        "[1, 5]": np.linspace(1, 5, 17).tolist(),
        "[0.1, 1000]": np.geomspace(0.1, 1000, 41).tolist(),
    }
    chosen = {
        (equation, name): rule_temperature(train, held_out, candidates, fisher=equation == 6)[0]
        for equation in (5, 6)
        for name, candidates in ranges.items()
    }
    picks = [", ".join(f"T = {chosen[eq, name]:.4g} in {name}" for name in ranges) for eq in (5, 6)]
    stays = all(chosen[eq, "[1, 5]"] == chosen[eq, "[0.1, 1000]"] for eq in (5, 6))
    grown = "stays when the range grows" if stays else "follows the range it is given"
    return [
        _claim(
            "rule",
            "The rule for T lands on 5",
            "smallest standard deviation, T in [1, 5]",
            f"Eq. 5: {picks[0]}; Eq. 6: {picks[1]}",
            chosen[6, "[1, 5]"] == 5,
            [{"T": chosen[6, "[1, 5]"]}],
        ),
        _claim(
            "tuning",
            "No tuning is needed",
            "T follows from in-distribution data",
            f"the choice {grown}",
            stays,
            [{"T": chosen[6, "[0.1, 1000]"], "upper": ranges["[0.1, 1000]"][-1]}],
        ),
    ]


def _split(train: Features) -> tuple[Features, Features]:
    """Nine tenths of the training images for E, every tenth as in-distribution validation data."""
    held = np.arange(len(train)) % 10 == 0
    return tuple(Features(train.features[part], train.logits[part]) for part in (~held, held))  # type: ignore[return-value]


def points(value: float, low: float, high: float, digits: int = 2) -> str:
    """A difference and its interval in points.

    >>> points(0.0123, -0.01, 0.02)
    '+1.23 [−1.00, +2.00]'
    """
    written = [f"{100 * number:+.{digits}f}" for number in (value, low, high)]
    return "{} [{}, {}]".format(*written).replace("-", "−")


def _points(row: Mapping[str, Any]) -> str:
    return points(row["measured"], *row["interval"])


def write(here: Run) -> list[Claim]:
    """Judge every claim from ``table1.json`` and one run; keep ``verdicts.json`` and ``.md``.

    The table speaks of all training seeds of the network, and of the networks of
    ``networks.json``; a claim must hold on each. The claims on T and on other readings need more
    than the table and are put to that one run.

    Raises:
        FileNotFoundError: if the table or the run is not there, naming the command that makes it.
        ValueError: if the table has no far OOD set of the network.
    """
    path = here.results / "table1.json"
    if not path.exists():
        raise FileNotFoundError(
            f"thinkback: no table at {path}; fetch the repository's results/ folder, or make one"
            " with `python -m experiments.reproduce`"
        )
    records = [record for record in read_json(path) if record.get("network") == here.network]
    if not any(record["set"] == "mean" for record in records):
        raise ValueError(
            f"thinkback: {path} has no far OOD set of network {here.network!r}, and every claim is"
            " about those"
        )
    paper = paper_table()
    rows, differences = claims(records, paper, here), deltas(records, paper)
    write_json(here.results / "verdicts.json", {"claims": rows, "differences": differences})
    made = f"The network: {label(here.folder.parent)}."
    if len({record["seed"] for record in records}) > 1:
        made += f" The rows on T and on other readings are about `{here.folder.name}` alone."
    text = f"{made}{_named(here)}\n\n{as_markdown(rows, differences)}"
    text += of_the_chosen_score(records) + of_other_networks(here)
    with replacing(here.results / "verdicts.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return rows


def claims(records: Sequence[Record], paper: Sequence[Record], here: Run) -> list[Claim]:
    """All claims in the order in which they are shown; see :func:`text_claims`."""
    others = networks.others(here)
    rows = text_claims(records, paper, here.bundle(), others)
    return [*rows[:2], reading_claim(here, others), *rows[2:]]


def _named(here: Run) -> str:
    """The other networks, in a sentence."""
    titles = list(networks.others(here))
    return f" Beside it: {' and '.join(titles)}, named where a number is theirs." if titles else ""


def of_other_networks(here: Run, method: str = "thinkback_averaged") -> str:
    """A sentence on that score against Energy on the other networks; none where there are none."""
    parts = []
    for title, records in networks.others(here).items():
        near = [gain for name in NEAR for gain in gains(records, name, "energy", "auroc", method)]
        far = gains(records, "mean", "energy", "auroc", method)
        kinds = (("far", far), ("near", near))
        said = [f"{kind} {points(*gain[0])}" for kind, gain in kinds if gain]
        parts.append(f"{title} {', '.join(said)}")
    if not parts:
        return ""
    foreign = [
        n.title
        for n in networks.NETWORKS.values()
        if n.published and n.title in networks.others(here)
    ]
    sealed = f" {' and '.join(foreign)} was scored after the choice." if foreign else ""
    return (
        f"\nThe same score minus Energy on the other networks, in points of AUROC:"
        f" {'; '.join(parts)}.{sealed}\n"
    )


def of_the_chosen_score(records: Sequence[Record], method: str = "thinkback_averaged") -> str:
    """A paragraph on the score that was chosen apart from the suite; none if it is not measured."""
    names = (method, *BASELINES, "thinkback")
    measured = {
        kind: {name: _mean_auroc(records, sets, name) for name in names}
        for kind, sets in {"far": ("mean",), "near": NEAR}.items()
    }
    far, near = measured["far"], measured["near"]
    if np.isnan(far[method]):
        return ""
    titles = TITLES | {"thinkback": f"{TITLES['thinkback']} (reading A)"}
    parts = [f"{titles[name]} {100 * far[name]:.1f} %" for name in names]
    text = (
        "Beyond the paper, a relative of the score was chosen apart from these sets. Mean AUROC:"
        f" **{parts[0]}**, {', '.join(parts[1:])}."
    )
    if not np.isnan(near[method]):
        outcome = "ahead of" if near[method] > near["energy"] else "behind"
        title = SET_TITLES[NEAR[0]]
        text += (
            f" On {title}, whose images resemble the training set, it is {outcome} Energy:"
            f" {100 * near[method]:.1f} % and {100 * near['energy']:.1f} %."
        )
    return f"\n{text}\n"


def _mean_auroc(records: Sequence[Record], sets: Sequence[str], method: str) -> float:
    """Over the sets and training seeds; NaN where nothing was measured."""
    values = [r["auroc"] for r in records if r["set"] in sets and r["method"] == method]
    return float(np.mean(values)) if values else float("nan")


def table(
    rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The table of verdicts, a row a claim, with the differences of Table 1 counted in the last."""
    verdicts = [row["verdict"] for row in differences]
    count = {verdict: verdicts.count(verdict) for verdict in (YES, NO, OPEN, UNTESTED)}
    decided = count[YES] + count[NO] + count[OPEN]
    counted = {
        "claim": f"Each of the {len(differences)} differences to Softmax and Energy in Table 1",
        "verdict": UNTESTED if not decided else f"{count[YES]} of {decided} tested",
        "printed": f"{sum(row['printed'] > 0 for row in differences)} gains",
        "measured": ", ".join(f"{n} {verdict}" for verdict, n in count.items()),
    }
    return [
        {
            "claim": row["claim"],
            "verdict": f"**{row['verdict']}**",
            "paper": row["printed"],
            "here": row["measured"],
        }
        for row in (*rows, counted)
    ]


def as_markdown(rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]) -> str:
    """:func:`table` as Markdown."""
    lines = ["| claim | verdict | paper | here |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row.values())} |" for row in table(rows, differences)]
    return "\n".join(lines) + "\n"


def report(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the verdicts, a line a claim."""
    for row in rows:
        print(f"{row['verdict']}: {row['claim']} ({row['measured']})")


def main(arguments: list[str] | None = None) -> None:
    """Write the verdicts that follow from the results.

    The claims on T and on other readings are put to one training seed.
    """
    parser = program_parser("experiments.verdicts", main.__doc__, "results", "network", "seed")
    options = parser.parse_args(arguments)
    report(write(Run.at(options.results, options.network, options.seed)))


if __name__ == "__main__":
    sys.exit(run_main(main))
