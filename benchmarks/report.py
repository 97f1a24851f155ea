"""From the JSON files to the tables of the chapter on cost.

Cells are numbers, or text with its unit. A function whose table needs a sentence returns both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import thinkback_utils as tb
from experiments.evaluation import ID_TEST, Scores

from .costs import Machine, duration, kept_bytes, number, sent_bytes, size
from .rounds import Record

TITLES = tb.methods.TITLES | {
    "kronecker": "Thinkback, Kronecker",
    "averaged": "Thinkback, averaged",
    "forward": "f(x) itself",
    "backward, batch 1": "full backward, one by one",
    "autograd, head": "autograd, last layer, one by one",
    "vmap(grad), head": "vmap(grad), last layer",
}
# the goals
COST = 0.1  # % of f(x) at batch 200
SMALL = 1.0  # % at batch 1
SPEED = 100.0  # times faster than full backward passes
UNITS = 3.0  # times Energy
FIT = 1.0  # % of f(x)


class Runs:
    """All files of a folder of measurements, one device at a time.

    Args:
        folder: what ``python -m benchmarks`` wrote.
        device: "cpu" or "cuda".

    Raises:
        FileNotFoundError: if a group was not measured there; the message names it and the command.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        files = sorted(Path(folder).glob(f"*-{device}.json"))
        self.groups = {
            file.stem.removesuffix(f"-{device}"): tb.files.read_json(file) for file in files
        }
        self.folder, self.device = folder, device

    def records(self, group: str, skipped: bool = False, **facts: Any) -> list[Record]:
        """What a group measured with these facts; with ``skipped``, what it left out, and why."""
        if group not in self.groups:
            command = "make bench" + "-gpu" * (self.device == "cuda")
            raise FileNotFoundError(
                f"thinkback: no {group}-{self.device}.json in {self.folder}; `{command}` in the"
                " repository measures it"
            )
        found: list[Record] = self.groups[group]["records"]
        return [r for r in found if facts.items() <= r.items() and ("skipped" in r) == skipped]

    def named(self, group: str, **facts: Any) -> dict[str, Record]:
        """The same by what was measured."""
        return {record["what"]: record for record in self.records(group, **facts)}

    def left_out(self, group: str, **facts: Any) -> str:
        """What was not measured, by its reason: "ViM, KNN (too slow)"."""
        reasons: dict[str, dict[str, None]] = {}
        for record in self.records(group, skipped=True, **facts):
            reasons.setdefault(record["skipped"], {})[record["what"]] = None
        return "; ".join(f"{', '.join(left)} ({reason})" for reason, left in reasons.items())

    def where(self) -> str:
        """Machines and versions, and a warning where a run was quick."""
        runs = self.groups.values()
        places = dict.fromkeys(
            f"{run['device']}, PyTorch {run['versions']['torch']}" for run in runs
        )
        quick = [name for name, run in self.groups.items() if run["quick"]]
        warning = (
            f"; **from quick runs, which only show that everything works: {', '.join(quick)}**"
            if quick
            else ""
        )
        return "; ".join(places) + warning

    def batches(self) -> tuple[int, int]:
        """The smallest batch on the network, and 200 or else the largest."""
        sizes = sorted({record["batch"] for record in self.records("score", place="network")})
        return sizes[0], 200 if 200 in sizes else sizes[-1]

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Batch sizes and milliseconds a sample of everything that was timed on the network."""
        found: dict[str, list[tuple[int, float]]] = {}
        for record in self.records("score", place="network"):
            found.setdefault(record["what"], []).append(
                (record["batch"], 1e3 * record["seconds"] / record["batch"])
            )
        return found

    def heads(self) -> list[tuple[int, int, int]]:
        """K, D and batch of every head, the smallest head first."""
        return sorted({(r["K"], r["D"], r["batch"]) for r in self.records("score", place="head")})

    def machine(self, forward: float) -> Machine:
        """Rates, from the operations of one forward pass of the WRN-40-2."""
        m, batch = self.named("machine"), self.batches()[1]
        product = {
            n: m[f"product {n}"]["operations"] / m[f"product {n}"]["seconds"]
            for n in ("float64", "float32")
        }
        passed = self.named("score", place="network", batch=batch)["forward"]["seconds"]
        memory = m["copy"]["bytes"] / m["copy"]["seconds"]
        return Machine(**product, memory=memory, network=batch * forward / passed)


def span(record: Mapping[str, Any], key: str = "ratio", scale: float = 1.0) -> str:
    """Median and, in brackets, both quartiles.

    >>> span({"ratio": 0.5, "ratio_q25": 0.25, "ratio_q75": 1.0}, scale=100)
    '50 (25 to 100)'
    """
    middle, low, high = (number(scale * record[key + end]) for end in ("", "_q25", "_q75"))
    return f"{middle} ({low} to {high})"


def milliseconds(record: Mapping[str, Any], of: int = 1) -> str:
    """Its median in milliseconds, shared by so many."""
    return f"{number(1e3 * record['seconds'] / of)} ms"


def goal(
    text: str, value: float, limit: float, unit: str, least: bool = False
) -> tuple[str, str, str, str]:
    """A line on a goal that was set before the measurement.

    >>> goal("adds", 0.05, 0.1, "%"), goal("faster", 80, 100, "times", least=True)[3]
    (('adds', 'at most 0.1 %', '0.05 %', 'kept'), '**missed**')
    """
    kept = value >= limit if least else value <= limit
    limits = f"{'at least' if least else 'at most'} {limit:g} {unit}"
    return text, limits, f"{number(value)} {unit}", "kept" if kept else "**missed**"


def goals(runs: Runs) -> list[tuple[str, str, str, str]]:
    """All goals for the closed form, with the medians that decide them."""
    (small, large), lines = runs.batches(), []
    for batch, limit in ((large, COST), (small, SMALL)):
        at = runs.named("score", place="network", batch=batch)
        share = 100 * at["thinkback"]["ratio"]
        lines.append(goal(f"adds to f(x), batch {batch}", share, limit, "%"))
    faster = at_ratio(runs.named("score", place="network", batch=large), "backward, batch 1")
    text = f"faster than full backward passes one by one, batch {large}"
    lines.append(goal(text, faster, SPEED, "times", True))
    largest = {(K, D): batch for K, D, batch in runs.heads() if batch <= large}
    for (K, D), batch in largest.items():
        at = runs.named("score", place="head", K=K, D=D, batch=batch)
        where = f"K = {K:,}, D = {D:,}, batch {batch}"
        text = f"last layer and score, {where}"
        lines.append(goal(text, at["thinkback"]["ratio"], UNITS, "times Energy's"))
        text = f"faster than autograd on the last layer one by one, {where}"
        lines.append(goal(text, at_ratio(at, "autograd, head"), SPEED, "times", True))
    share = 100 * runs.named("fit")["update, diagonal"]["ratio"]
    return [*lines, goal("the fit's update adds to the forward pass", share, FIT, "%")]


def at_ratio(records: Mapping[str, Record], slower: str) -> float:
    """How many times Thinkback is faster, by the medians of ratios to their common reference."""
    return float(records[slower]["ratio"] / records["thinkback"]["ratio"])


def heads(runs: Runs) -> tuple[pd.DataFrame, str]:
    """Times from the features on, in units of Energy's: smallest and largest batch of each head."""
    batches: dict[tuple[int, int], list[int]] = {}
    for K, D, batch in runs.heads():
        batches.setdefault((K, D), []).append(batch)
    columns = {}
    for (K, D), found in batches.items():
        for batch in dict.fromkeys((found[0], found[-1])):
            at = runs.named("score", place="head", K=K, D=D, batch=batch)
            ratios = {TITLES.get(what, what): r["ratio"] for what, r in at.items()}
            columns[f"K = {K:,}, batch {batch}"] = ratios
    timed = runs.records("score", place="head")
    banks = ", ".join(sorted({f"{r['bank']:,}" for r in timed}))
    text = f"KNN searches {banks} features here. "
    if left := runs.left_out("score", place="head"):
        text += f"Not timed everywhere: {left}. "
    parts = sum(r["share"] < 1 for r in timed)
    text += f"{parts} of {len(timed)} measurements timed a part of the batch and were scaled up."
    return pd.DataFrame(columns).rename_axis("method"), text


def model_check(runs: Runs, machine: Machine) -> pd.DataFrame:
    """The model of the cost against the measured heads."""
    rows = []
    for K, D, batch in runs.heads():
        found = runs.named("score", place="head", K=K, D=D, batch=batch)["thinkback"]["seconds"]
        model = machine.score(batch, K, D) + machine.head(batch, K, D)
        row = {"last layer and score": f"K = {K:,}, D = {D:,}, batch {batch}"}
        row["waits for"] = "memory" if batch < machine.crossing() else "arithmetic"
        row["model"] = f"{number(1e3 * model)} ms"
        row["measured"] = f"{number(1e3 * found)} ms"
        row["measured / model"] = number(found / model)
        rows.append(row)
    return pd.DataFrame(rows)


def scale(
    sizes: Mapping[str, tuple[int, int, int, float]],
    machine: Machine,
    rates: Mapping[str, float],
    workers: int,
) -> pd.DataFrame:
    """Costs at other sizes, by arithmetic: one column a size.

    Args:
        sizes: N, K, D and the operations of one f(x), by name.
        machine: whose memory and products the score is reckoned on.
        rates: operations a second of f(x), by who runs the fit.
        workers: that share one fit.
    """
    columns = {}
    for title, (N, K, D, F) in sizes.items():
        share = machine.score(200, K, D) / (2 * F / machine.network)  # in %, of 200 passes
        whole = N * (F + 2 * K * D * machine.network / machine.float64)  # in operations of f(x)
        columns[title] = {
            "images $N$": f"{N:,}",
            "$K$ and $D$": f"{K:,} and {D:,}",
            "operations of f(x)": f"{F / 1e9:.3g} G",
            "score: % of these": f"{200 * K * D / F:.2g}",
            "score: % of f(x)'s time, batch 200": f"{share:.2g}",
            "kept: diagonal": size(kept_bytes("diagonal", N, K, D)),
            "kept: Kronecker": size(kept_bytes("Kronecker", N, K, D)),
            "kept: KNN": size(kept_bytes("KNN", N, K, D)),
            f"sent, once, by each of {workers}": size(sent_bytes(workers, K, D)),
        } | {f"**fit: {who}**": duration(whole / rate) for who, rate in rates.items()}
    return pd.DataFrame(columns)


def fit(runs: Runs) -> pd.DataFrame:
    """What an update, a closing step and a whole fit take."""
    rows = []
    for what, r in runs.named("fit").items():
        kind, _, name = what.partition(", ")
        if kind == "update":
            share = f"{span(r, scale=100)} %"
            rows.append((f"{name}: a batch of {r['batch']}", milliseconds(r), share))
        elif kind == "finish":
            rows.append((f"{name}: closing step, once", milliseconds(r), ""))
        elif kind == "fit":
            rows.append((f"{name}: {r['samples']:,} kept features", milliseconds(r), ""))
    return pd.DataFrame(rows, columns=["fit", "time", "of f(x) of the batch"])


def job(runs: Runs) -> tuple[pd.DataFrame, str]:
    """Images in, scores out: by library and method, images a second and memory."""
    found, rows = runs.named("job"), []
    for what, r in found.items():
        if "seconds" in r:
            rate = number(2 * r["images"] / r["seconds"])
            rows.append((what, rate, span(r), size(found[f"memory, {what}"]["peak_bytes"])))
    first = next(iter(found.values()))
    head = ["fit and score", "images a second", f"time, of {first['reference']}"]
    text = f"{first['images']:,} images to fit on and as many to score."
    if left := runs.left_out("job"):
        text += f" Left out: {left}."
    return pd.DataFrame(rows, columns=[*head, "memory at the peak"]), text


def layers(runs: Runs) -> pd.DataFrame:
    """Eq. 6 by reading, in forward passes, and its memory."""
    found, rows = runs.named("layers"), []
    for what, r in found.items():
        if "seconds" in r:
            grown = found.get(f"memory, {what}")
            peak = size(grown["peak_bytes"]) if grown else None
            rows.append((TITLES.get(what, what), span(r), peak))
    return pd.DataFrame(rows, columns=["reading", "forward passes", "memory at the peak"])


def inference(runs: Runs) -> tuple[pd.DataFrame, str]:
    """Set-ups of the forward pass."""
    found, rows = runs.named("inference"), []
    for what, r in found.items():
        row = {"f(x)": what, "an image": milliseconds(r, r["images"])}
        row["of plain float32, batch 128"] = span(r)
        row["scores move by"] = f"{r['score_change']:.0e}"
        row["decisions that change"] = f"{r['decisions_changed']:.1%}"
        rows.append(row)
    times = {what: 1 / r["ratio"] for what, r in found.items()}  # as fast as plain float32
    best = max(times, key=times.__getitem__)
    text = f"Fastest: {best}, {times[best]:.2f} times as fast as plain float32 at batch 128. "
    single, graph = "plain float32, batch 1", "ONNX graph, score included, batch 1"
    if {single, graph} <= set(times):
        text += "For one image at a time, f(x) and g(x) in one exported graph "
        text += f"(`OODDetector.export`) take {times[single] / times[graph]:.2f} times what f(x) "
        text += "alone takes in PyTorch. "
    usual = "channels last, batch 64"
    if usual in times and runs.device == "cpu":
        text += f"`extract` and `OODDetector` run {usual}: {times[usual]:.2f} times as fast. "
    if left := runs.left_out("inference"):
        text += f"Left out: {left}."
    return pd.DataFrame(rows), text


def precision(exact: Scores, low: Scores, resamples: int = 200) -> pd.DataFrame:
    """What reduced precision does to each metric, beside its 95 % bootstrap interval.

    Args:
        exact, low: set -> method -> scores (N,) of the same images; the in-distribution set is one
            of them.
    """
    ID, rows = ID_TEST, []
    for method in exact[ID]:
        inside, moved = [], []
        for name in [name for name in exact if name != ID]:
            ids, oods = exact[ID][method], exact[name][method]
            sampled = tb.metrics.resampled(ids, oods, resamples=resamples)
            limits = tb.metrics.interval95(sampled)
            before = tb.metrics.ood_metrics(ids, oods)
            after = tb.metrics.ood_metrics(low[ID][method], low[name][method])
            for metric, (least, most) in limits.items():
                moved.append(abs(before[metric] - after[metric]))
                inside.append(least <= after[metric] <= most)
        kept = f"{sum(inside)} of {len(inside)}"
        rows.append((TITLES.get(method, method), 100 * max(moved), kept))
    head = ["bfloat16 backbone", "largest change of a metric (points)"]
    return pd.DataFrame(rows, columns=[*head, "metrics inside their interval in float32"])


def training(runs: Runs) -> tuple[pd.DataFrame, str]:
    """An epoch of the usual loop and of ours, lower bounds, and where the time goes."""
    found = runs.named("training")
    loops = {what: r for what, r in found.items() if what.startswith(("usual", "ours"))}
    rows = [(what, milliseconds(r, r["images"]), span(r)) for what, r in loops.items()]
    full, product, copy = (found[what] for what in ("ours, 32 px", "product float32", "copy"))
    mean = sum(r["share_of_recipe"] * r["ratio"] for r in loops.values() if "share_of_recipe" in r)
    arithmetic = full["operations"] * product["ratio"] / product["operations"]
    memory = full["bytes"] * copy["ratio"] / copy["bytes"]
    each = found[full["reference"]]["seconds"] / full["images"]
    for what, ratio in (
        ("ours, mean over the recipe", mean),
        ("floor: at the speed of a dense product", arithmetic),
        ("floor: at the speed of a copy", memory),
    ):
        rows.append((f"*{what}*", f"{1e3 * ratio * each:,.3g} ms", f"{ratio:.3g}"))
    usual = min(r["ratio"] for what, r in loops.items() if what.startswith("usual"))
    text = f"Ours is {usual / full['ratio']:.2f} times as fast as the better usual loop at full "
    text += f"size and {usual / mean:.2f} times over the recipe. At full size an image takes "
    operations, moved = (full[count] / full["images"] for count in ("operations", "bytes"))
    text += f"{operations / 1e9:.2f} G operations and moves {size(moved)}; the step takes "
    text += f"{full['ratio'] / (arithmetic + memory):.2f} times both floors together. "
    shares = {name.removeprefix("aten::"): share for name, share in full["profile"].items()}
    parts = ", ".join(f"`{name}` {share:.0%}" for name, share in shares.items())
    head = ["training, an epoch", "an image", f"of the {full['reference']}"]
    return pd.DataFrame(rows, columns=head), f"{text}Where its time goes: {parts}."


def evaluation(runs: Runs) -> tuple[pd.DataFrame, str]:
    """From the bundle to the table."""
    rows, text = [], ""
    for what, r in runs.named("evaluation").items():
        ratio = span(r) if r["reference"] == "shared methods" else ""
        rows.append((what, f"{r['seconds']:.3g} s", ratio))
        text = f"{r['sets']} sets, {r['images']:,} images, up to {r['draws']} draws."
    if left := runs.left_out("evaluation"):
        text += f" Left out: {left}."
    head = ["evaluation of kept features", "time", "of ours, shared methods"]
    return pd.DataFrame(rows, columns=head), text
