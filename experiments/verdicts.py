"""A verdict on every claim of the paper: what it says, what was measured, which number decides."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

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

from . import ablations
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
UNTESTED = "cannot be tested here"
LOWER_IS_BETTER = ("fpr95",)
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


def deltas(records: Sequence[Record], paper: Sequence[Record]) -> list[dict[str, Any]]:
    """Each difference of Table 1, Thinkback against a baseline, and its verdict.

    A printed difference is reproduced when ours has its sign on every training seed, with a 95 %
    paired interval that leaves out 0. It cannot be tested where the set was not measured, nor, for
    the mean, unless all five sets were.

    Returns: Records ``{set, baseline, metric, printed, measured, interval, verdict}``, positive =
        Thinkback is better.
    """
    mean_sets = [set(record["sets"]) for record in records if record["set"] == "mean"]
    same_mean = all(sets == set(PAPER_SETS) for sets in mean_sets)
    out = []
    for baseline, name, metric in product(BASELINES, (*PAPER_SETS, "mean"), METRICS):
        own, other = (_printed(paper, name, method)[metric] for method in ("thinkback", baseline))
        gap = other - own if metric in LOWER_IS_BETTER else own - other
        # A mean of other sets is another number.
        measured = gains(records, name, baseline, metric) if same_mean or name != "mean" else []
        row = {"set": name, "baseline": baseline, "metric": metric, "printed": round(gap, 4)}
        out.append(row | _decided(measured, np.sign(gap)))
    return out


def _printed(paper: Sequence[Record], name: str, method: str) -> Record:
    """The row of the paper's table."""
    return next(row for row in paper if (row["set"], row["method"]) == (name, method))


def _decided(measured: Sequence[tuple[float, float, float]], sign: float) -> dict[str, Any]:
    if not measured:
        return {"measured": None, "interval": None, "verdict": UNTESTED}
    values, low, high = zip(*measured, strict=True)
    interval = [min(low), max(high)]  # of all seeds: the claim must hold on each
    verdict = YES if (interval[0] > 0 if sign > 0 else interval[1] < 0) else NO
    return {"measured": float(np.mean(values)), "interval": interval, "verdict": verdict}


def _claim(claim: str, printed: str, measured: str, holds: bool) -> dict[str, str]:
    verdict = YES if holds else NO
    return {"claim": claim, "printed": printed, "measured": measured, "verdict": verdict}


def _all_gains(
    records: Sequence[Record], sets: Iterable[str], method: str = "thinkback"
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every difference to the baselines, by (set, baseline, metric), as if a gain were claimed."""
    return {
        (name, baseline, metric): _decided(gains(records, name, baseline, metric, method), 1)
        for name, baseline, metric in product(sets, BASELINES, METRICS)
    }


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
    records: Sequence[Record], paper: Sequence[Record], bundle: Bundle
) -> list[dict[str, str]]:
    """The claims of the paper's text, each ``{claim, printed, measured, verdict}``."""
    sets = dict.fromkeys(r["set"] for r in records if r["set"] not in ("mean", "lsun_crop", *NEAR))
    by_set, in_mean = _all_gains(records, sets), _all_gains(records, ["mean"])
    won = sum(row["interval"][0] > 0 for row in by_set.values())
    lost = sum(row["interval"][1] < 0 for row in by_set.values())
    ahead = sum(row["interval"][0] > 0 for row in in_mean.values())
    worst = min(in_mean, key=lambda key: in_mean[key]["measured"])
    prevalence = next(r["prevalence"] for r in records if "prevalence" in r)
    printed = {key: _printed(paper, "mean", key)["aupr"] for key in ("thinkback", "msp")}
    gap = printed["thinkback"] - printed["msp"]
    as_large = all(high >= gap for _, _, high in gains(records, "mean", "msp", "aupr"))
    return [
        _claim(
            "Consistent gains over Softmax and Energy, but on LSUN-Crop",
            "every set, every metric",
            f"{won} of {len(by_set)} differences are gains beyond chance, {lost} are losses beyond"
            f" chance ({len(sets)} far sets, two baselines, four metrics)",
            won == len(by_set),
        ),
        _claim(
            "Significantly more accurate than the state of the art",
            "better in the mean of all four metrics",
            f"better beyond chance in {ahead} of {len(in_mean)} differences of means; the furthest,"
            f" {COLUMNS[worst[2]]} against {TITLES[worst[1]]}: {_points(in_mean[worst])}",
            ahead == len(in_mean),
        ),
        _claim(
            f"AUPR {100 * gap:+.2f} points over Softmax",
            f"{100 * printed['msp']:.2f} → {100 * printed['thinkback']:.2f}",
            f"{_points(in_mean['mean', 'msp', 'aupr'])} at one prevalence of {prevalence:.3f} for"
            " both",
            as_large,
        ),
        *_temperature_claims(bundle),
    ]


def reading_claim(here: Run) -> dict[str, str]:
    """Whether any other reading of "the penultimate layer" makes the claim true, in one run.

    Each reading is compared with the baselines on the images that it was scored on.
    """
    kept, (arrays, record) = here.scores(), ablations.load(here.folder)
    together: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for reading, facts in record["readings"].items():
        together.setdefault(tuple(facts["images"].items()), []).append(reading)
    against: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {}
    for images, readings in together.items():  # readings of the same images share the baselines
        scored: Scores = {}
        for name, size in images:
            rows = evenly(len(kept[name]["msp"]), size).numpy()
            scored[name] = {m: kept[name][m][rows] for m in BASELINES}
            scored[name] |= {reading: arrays[f"{name}.{reading}_eq6"] for reading in readings}
        whole = max(size for _, size in images)
        records = Benchmark(draws=1, n_ood=whole).records(scored)
        against |= {reading: _all_gains(records, ["mean"], reading) for reading in readings}
    best = max(against, key=lambda name: against[name]["mean", "energy", "auroc"]["measured"])
    better = [n for n, rows in against.items() if all(r["verdict"] == YES for r in rows.values())]
    gaps = [f"{COLUMNS[m]} {_points(against[best]['mean', 'energy', m])}" for m in METRICS]
    return _claim(
        'The same, under another reading of "the penultimate layer"',
        "does not say which layer",
        f"of {', '.join(against)}, better beyond chance in all four metrics than both:"
        f" {', '.join(better) or 'none'}. The best, {best} ({READINGS[best]}), gains on Energy:"
        f" {', '.join(gaps)}",
        bool(better),
    )


def _temperature_claims(bundle: Bundle) -> list[dict[str, str]]:
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
            "The rule for T lands on 5",
            "smallest standard deviation, T in [1, 5]",
            f"Eq. 5: {picks[0]}; Eq. 6: {picks[1]}",
            chosen[6, "[1, 5]"] == 5,
        ),
        _claim(
            "No tuning is needed",
            "T follows from in-distribution data",
            f"the choice {grown}",
            stays,
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


def write(here: Run) -> list[dict[str, str]]:
    """Judge every claim from ``table1.json`` and one run; keep ``verdicts.json`` and ``.md``.

    The table speaks of all training seeds of the network, and a claim must hold on each; the claims
    on T and on other readings need more than the table and are put to that one run.

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
    text = f"{made}\n\n{as_markdown(rows, differences)}{of_the_chosen_score(records)}"
    with replacing(here.results / "verdicts.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return rows


def claims(records: Sequence[Record], paper: Sequence[Record], here: Run) -> list[dict[str, str]]:
    """All claims in the order in which they are shown; see :func:`text_claims`."""
    rows = text_claims(records, paper, here.bundle())
    return [*rows[:2], reading_claim(here), *rows[2:]]


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
    rows: Sequence[Mapping[str, str]], differences: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The table of verdicts, a row a claim, with the differences of Table 1 counted in the last."""
    verdicts = [row["verdict"] for row in differences]
    count = {verdict: verdicts.count(verdict) for verdict in (YES, NO, UNTESTED)}
    decided = count[YES] + count[NO]
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


def as_markdown(rows: Sequence[Mapping[str, str]], differences: Sequence[Mapping[str, Any]]) -> str:
    """:func:`table` as Markdown."""
    lines = ["| claim | verdict | paper | here |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row.values())} |" for row in table(rows, differences)]
    return "\n".join(lines) + "\n"


def report(rows: Iterable[Mapping[str, str]]) -> None:
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
