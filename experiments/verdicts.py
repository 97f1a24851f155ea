"""A verdict on every claim of the paper: what it says, what was measured here, and the number that
decides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinkback_utils import scores
from thinkback_utils.commands import Parser, run_main
from thinkback_utils.data import PAPER_SETS
from thinkback_utils.evaluation import (
    BASELINES,
    ID_TRAIN,
    NEAR,
    Record,
    Scores,
    evenly,
    find,
    load_scores,
    means,
    paper_table,
    table,
    with_intervals,
)
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.gradients import READINGS
from thinkback_utils.methods import TITLES
from thinkback_utils.metrics import METRICS
from thinkback_utils.metrics import TITLES as METRIC_TITLES
from thinkback_utils.provenance import label

from . import ablations

YES, NO, UNTESTED = "reproduced", "not reproduced", "cannot be tested here"
LOWER_IS_BETTER = ("fpr95",)


def gains(
    records: Iterable[Record], name: str, baseline: str, metric: str, method: str = "thinkback"
) -> list[tuple[float, float, float]]:
    """Thinkback minus a baseline on one set: (value, low, high) for each training seed, with the
    paired interval.

    All in [-1, 1] and turned so that positive means better, also for FPR95.
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
    out = []
    for baseline in BASELINES:
        for name in (*PAPER_SETS, "mean"):
            for metric in METRICS:
                printed = [
                    find(paper, set=name, method=method) for method in ("thinkback", baseline)
                ]
                gap = (-1 if metric in LOWER_IS_BETTER else 1) * (
                    printed[0][metric] - printed[1][metric]
                )  # type: ignore[index]
                row = {
                    "set": name,
                    "baseline": baseline,
                    "metric": metric,
                    "printed": round(gap, 4),
                }
                same = name != "mean" or all(
                    set(r["sets"]) == set(PAPER_SETS) for r in records if r["set"] == "mean"
                )  # a mean of other sets is another number
                out.append(
                    row
                    | _decided(gains(records, name, baseline, metric) if same else [], np.sign(gap))
                )
    return out


def _decided(measured: Sequence[tuple[float, float, float]], sign: float) -> dict[str, Any]:
    if not measured:
        return {"measured": None, "interval": None, "verdict": UNTESTED}
    values, low, high = zip(*measured, strict=True)
    holds = all(bottom > 0 for bottom in low) if sign > 0 else all(top < 0 for top in high)
    interval = [min(low), max(high)]
    return {
        "measured": float(np.mean(values)),
        "interval": interval,
        "verdict": YES if holds else NO,
    }


def rule_temperature(
    train: Features, validation: Features, temperatures: Sequence[float], fisher: bool = True
) -> tuple[float, list[float]]:
    """The paper's rule: the T whose scores on in-distribution validation data have the smallest
    standard deviation.

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
    """The claims of the paper's text, each as ``{claim, printed, measured, verdict}`` for a table."""
    sets = list(
        dict.fromkeys(r["set"] for r in records if r["set"] not in ("mean", "lsun_crop", *NEAR))
    )
    each = {
        (name, baseline, metric): _decided(gains(records, name, baseline, metric), 1)
        for name in [*sets, "mean"]
        for baseline in BASELINES
        for metric in METRICS
    }
    by_set = [row for (name, _, _), row in each.items() if name != "mean"]
    won, lost = (sum(_beyond(row, side) for row in by_set) for side in (1, -1))
    in_mean = {
        (baseline, metric): row for (name, baseline, metric), row in each.items() if name == "mean"
    }
    ahead = sum(_beyond(row, 1) for row in in_mean.values())
    worst = min(in_mean, key=lambda key: in_mean[key]["measured"])
    prevalence = next(r["prevalence"] for r in records if "prevalence" in r)
    printed = {key: find(paper, set="mean", method=key)["aupr"] for key in ("thinkback", "msp")}  # type: ignore[index]
    gap = printed["thinkback"] - printed["msp"]
    return [
        {
            "claim": "Consistent gains over Softmax and Energy, but on LSUN-Crop",
            "printed": "every set, every metric",
            "measured": (
                f"{won} of {len(by_set)} differences are gains beyond chance, {lost} are losses"
                f" beyond chance ({len(sets)} far sets, two baselines, four metrics)"
            ),
            "verdict": YES if won == len(by_set) else NO,
        },
        {
            "claim": "Significantly more accurate than the state of the art",
            "printed": "better in the mean of all four metrics",
            "measured": (
                f"better beyond chance in {ahead} of {len(in_mean)} differences of means; the"
                f" furthest, {METRIC_TITLES[worst[1]][:-2]} against {TITLES[worst[0]]}:"
                f" {_points(in_mean[worst])}"
            ),
            "verdict": YES if all(row["verdict"] == YES for row in in_mean.values()) else NO,
        },
        {
            "claim": f"AUPR {100 * gap:+.2f} points over Softmax",
            "printed": f"{100 * printed['msp']:.2f} → {100 * printed['thinkback']:.2f}",
            "measured": (
                f"{_points(in_mean['msp', 'aupr'])} at one prevalence of {prevalence:.3f} for both"
            ),
            "verdict": (
                YES
                if all(high >= gap for _, _, high in gains(records, "mean", "msp", "aupr"))
                else NO
            ),
        },
        *_temperature_claims(bundle),
    ]


def reading_claim(folder: Path) -> dict[str, str]:
    """Whether any other reading of "the penultimate layer" makes the claim true, from a run's
    ``ablations.npz``.

    Each reading is compared with the baselines on the images that it was scored on.
    """
    kept, (arrays, record) = load_scores(folder), ablations.load(folder)
    against: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    together: dict[
        tuple[tuple[str, int], ...], list[str]
    ] = {}  # readings of the same images share the baselines
    for reading, facts in record["readings"].items():
        together.setdefault(tuple(facts["images"].items()), []).append(reading)
    for images, readings in together.items():
        scored: Scores = {}
        for name, size in images:
            index = evenly(len(kept[name]["msp"]), size).numpy()
            scored[name] = {m: kept[name][m][index] for m in BASELINES}
            scored[name] |= {reading: arrays[f"{name}.{reading}_eq6"] for reading in readings}
        records = means(table(scored, draws=1, n_ood=max(size for _, size in images)))
        records = with_intervals(records, scored)
        for reading in readings:
            against[reading] = {
                (b, m): _decided(gains(records, "mean", b, m, reading), 1)
                for b in BASELINES
                for m in METRICS
            }
    best = max(
        record["readings"], key=lambda reading: against[reading]["energy", "auroc"]["measured"]
    )
    better = [
        name
        for name in record["readings"]
        if all(row["verdict"] == YES for row in against[name].values())
    ]
    gaps = [f"{METRIC_TITLES[m][:-2]} {_points(against[best]['energy', m])}" for m in METRICS]
    return {
        "claim": 'The same, under another reading of "the penultimate layer"',
        "printed": "does not say which layer",
        "measured": (
            f"of {', '.join(record['readings'])}, better beyond chance in all four metrics than"
            f" both: {', '.join(better) or 'none'}. The best, {best} ({READINGS[best]}), gains on"
            f" Energy: {', '.join(gaps)}"
        ),
        "verdict": YES if better else NO,
    }


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
    return [
        {
            "claim": "The rule for T lands on 5",
            "printed": "smallest standard deviation, T in [1, 5]",
            "measured": f"Eq. 5: {picks[0]}; Eq. 6: {picks[1]}",
            "verdict": YES if chosen[6, "[1, 5]"] == 5 else NO,
        },
        {
            "claim": "No tuning is needed",
            "printed": "T follows from in-distribution data",
            "measured": (
                "the choice stays when the range grows"
                if stays
                else "the choice follows the range it is given"
            ),
            "verdict": YES if stays else NO,
        },
    ]


def _split(train: Features) -> tuple[Features, Features]:
    """Nine tenths of the training images for E, every tenth as in-distribution validation data."""
    held = np.arange(len(train)) % 10 == 0
    return tuple(Features(train.features[part], train.logits[part]) for part in (~held, held))  # type: ignore[return-value]


def _beyond(row: Mapping[str, Any], side: int) -> bool:
    """Whether the whole interval lies on that side of 0."""
    return bool(row["interval"][0] > 0 if side > 0 else row["interval"][1] < 0)


def _points(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['measured']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]".replace("-", "−")


def write(
    results: Path, network: str = "wrn40-2-cifar10", run: str = "seed0"
) -> list[dict[str, str]]:
    """Judge every claim from ``table1.json`` and one run's folder; keep it as ``verdicts.json`` and
    ``verdicts.md``.

    The table speaks of all training seeds of the network, and a claim must hold on each; the claims
    on T and on other readings need more than the table and are put to that one run.

    Raises:
        FileNotFoundError: if the table or the run is not there, naming the command that makes it.
        ValueError: if the table has no far OOD set of the network.
    """
    path = results / "table1.json"
    if not path.exists():
        raise FileNotFoundError(
            f"thinkback: no table at {path}; fetch the repository's results/ folder, or make one"
            " with `python -m experiments.reproduce`"
        )
    records = [record for record in read_json(path) if record.get("network") == network]
    if not any(record["set"] == "mean" for record in records):
        raise ValueError(
            f"thinkback: {path} has no far OOD set of network {network!r}, and every claim is about"
            " those"
        )
    paper = paper_table()
    folder = results / network / run
    rows = text_claims(records, paper, Bundle.load(folder / "bundle.npz"))
    rows.insert(2, reading_claim(folder))
    differences = deltas(records, paper)
    write_json(results / "verdicts.json", {"claims": rows, "differences": differences})
    made = f"The network: {label(results / network)}."
    if len({record["seed"] for record in records}) > 1:
        made += f" The rows on T and on other readings are about `{run}` alone."
    with replacing(results / "verdicts.md") as temporary:
        temporary.write_text(
            f"{made}\n\n{as_markdown(rows, differences)}{beyond(records)}", encoding="utf-8"
        )
    return rows


def beyond(records: Sequence[Record], method: str = "thinkback_averaged") -> str:
    """A sentence on the score that was chosen apart from the suite; none where it was not measured."""
    names = (method, *BASELINES, "thinkback")
    means = {
        name: [r["auroc"] for r in records if r["set"] == "mean" and r["method"] == name]
        for name in names
    }
    if not means[method]:
        return ""
    own, *others = (
        f"{TITLES[name]} {100 * float(np.mean(values)):.1f} %" for name, values in means.items()
    )
    text = (
        "Beyond the paper, a relative of the score was chosen apart from these sets. Mean AUROC:"
        f" **{own}**"
    )
    return f"\n{text}, {', '.join(others)}.\n"


def as_markdown(rows: Sequence[Mapping[str, str]], differences: Sequence[Mapping[str, Any]]) -> str:
    """The table of verdicts, with the differences of Table 1 counted."""
    count = {
        verdict: sum(row["verdict"] == verdict for row in differences)
        for verdict in (YES, NO, UNTESTED)
    }
    counted = {
        "claim": f"Each of the {len(differences)} differences to Softmax and Energy in Table 1",
        "printed": f"{sum(row['printed'] > 0 for row in differences)} gains",
        "measured": ", ".join(f"{n} {verdict}" for verdict, n in count.items()),
    }
    decided = count[YES] + count[NO]
    counted["verdict"] = UNTESTED if not decided else f"{count[YES]} of {decided} tested"
    lines = ["| claim | verdict | paper | here |", "|---|---|---|---|"]
    for row in [*rows, counted]:
        lines.append(
            f"| {row['claim']} | **{row['verdict']}** | {row['printed']} | {row['measured']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the verdicts that follow from the results."""
    parser = Parser(prog="python -m experiments.verdicts", description=main.__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder with table1.json and the runs"
    )
    for row in write(parser.parse_args(arguments).results):
        print(f"{row['verdict']}: {row['claim']} ({row['measured']})")


if __name__ == "__main__":
    sys.exit(run_main(main))
