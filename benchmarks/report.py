"""From the JSON files to the tables of the chapter on cost, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import thinkback_utils as tb

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
                f"benchmarks: no {group}-{self.device}.json in {self.folder}; `{command}` in the"
                " repository measures it"
            )
        found: list[Record] = self.groups[group]["records"]
        return [r for r in found if facts.items() <= r.items() and ("skipped" in r) == skipped]

    def named(self, group: str, **facts: Any) -> dict[str, Record]:
        """The same by what was measured."""
        return {record["what"]: record for record in self.records(group, **facts)}

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


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all but the first column aligned to the right."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
        lines.append(
            goal(f"adds to f(x), batch {batch}", 100 * at["thinkback"]["ratio"], limit, "%")
        )
    faster = at_ratio(runs.named("score", place="network", batch=large), "backward, batch 1")
    lines.append(
        goal(
            f"faster than full backward passes one by one, batch {large}",
            faster,
            SPEED,
            "times",
            True,
        )
    )
    largest = {(K, D): batch for K, D, batch in runs.heads() if batch <= large}
    for (K, D), batch in largest.items():
        at, text = (
            runs.named("score", place="head", K=K, D=D, batch=batch),
            f"K = {K:,}, D = {D:,}, batch {batch}",
        )
        lines.append(
            goal(f"last layer and score, {text}", at["thinkback"]["ratio"], UNITS, "times Energy's")
        )
        faster = at_ratio(at, "autograd, head")
        lines.append(
            goal(
                f"faster than autograd on the last layer one by one, {text}",
                faster,
                SPEED,
                "times",
                True,
            )
        )
    share = 100 * runs.named("fit")["update, diagonal"]["ratio"]
    return [*lines, goal("the fit's update adds to the forward pass", share, FIT, "%")]


def at_ratio(records: Mapping[str, Record], slower: str) -> float:
    """How many times Thinkback is faster, by the medians of ratios to their common reference."""
    return float(records[slower]["ratio"] / records["thinkback"]["ratio"])


def heads(runs: Runs) -> str:
    """Times from the features on, in units of Energy's: smallest and largest batch of each head."""
    shapes = {
        (K, D): [b for k, d, b in runs.heads() if (k, d) == (K, D)] for K, D, _ in runs.heads()
    }
    chosen = [
        (K, D, b) for (K, D), found in shapes.items() for b in dict.fromkeys((found[0], found[-1]))
    ]
    columns = {
        f"K = {K:,}, batch {b}": runs.named("score", place="head", K=K, D=D, batch=b)
        for K, D, b in chosen
    }
    names = dict.fromkeys(what for found in columns.values() for what in found)
    cells = [
        (
            TITLES.get(name, name),
            *(number(c[name]["ratio"]) if name in c else "–" for c in columns.values()),
        )
        for name in names
    ]
    reasons: dict[str, dict[str, None]] = {}
    for record in runs.records("score", skipped=True, place="head"):
        reasons.setdefault(record["skipped"], {})[record["what"]] = None
    text = "".join(
        f" Not timed everywhere: {', '.join(left)} ({reason})." for reason, left in reasons.items()
    )
    everything = runs.records("score", place="head")
    parts, banks = [r for r in everything if r["share"] < 1], {f"{r['bank']:,}" for r in everything}
    text += (
        f" {len(parts)} of {len(everything)} measurements timed a part of the batch and were"
        " scaled up."
    )
    return (
        table(("method", *columns), cells)
        + f"\n\nKNN searches {', '.join(banks)} features here.{text}"
    )


def model_check(runs: Runs, machine: Machine) -> str:
    """The model of the cost against the measured heads."""
    lines = []
    for K, D, batch in runs.heads():
        found = runs.named("score", place="head", K=K, D=D, batch=batch)["thinkback"]["seconds"]
        model = machine.score(batch, K, D) + machine.head(batch, K, D)
        limit = "memory" if batch < machine.crossing() else "arithmetic"
        numbers = f"{number(1e3 * model)} ms", f"{number(1e3 * found)} ms", number(found / model)
        lines.append((f"K = {K:,}, D = {D:,}, batch {batch}", limit, *numbers))
    return table(
        ("last layer and score", "waits for", "model", "measured", "measured / model"), lines
    )


def scale(
    sizes: Mapping[str, tuple[int, int, int, float]],
    machine: Machine,
    rates: Mapping[str, float],
    workers: int,
) -> str:
    """Costs at other sizes, by arithmetic.

    Args:
        sizes: N, K, D and the operations of one f(x), by name.
        machine: whose memory and products the score is reckoned on.
        rates: operations a second of f(x), by who runs the fit.
        workers: that share one fit.
    """
    lines: dict[str, list[str]] = {}
    for N, K, D, F in sizes.values():
        column = {
            "images $N$": f"{N:,}",
            "$K$ and $D$": f"{K:,} and {D:,}",
            "operations of f(x)": f"{F / 1e9:.3g} G",
            "score: % of these": f"{200 * K * D / F:.2g}",
            "score: % of f(x)'s time, batch 200": (
                f"{machine.score(200, K, D) / (2 * F / machine.network):.2g}"
            ),
            "kept: diagonal": size(kept_bytes("diagonal", N, K, D)),
            "kept: Kronecker": size(kept_bytes("Kronecker", N, K, D)),
            "kept: KNN": size(kept_bytes("KNN", N, K, D)),
            f"sent, once, by each of {workers}": size(sent_bytes(workers, K, D)),
        }
        whole = N * (F + 2 * K * D * machine.network / machine.float64)  # in operations of f(x)
        column |= {f"**fit: {who}**": duration(whole / rate) for who, rate in rates.items()}
        for name, cell in column.items():
            lines.setdefault(name, []).append(cell)
    return table(("", *sizes), [(name, *cells) for name, cells in lines.items()])


def fit(runs: Runs) -> str:
    """What an update, a closing step and a whole fit take."""
    lines = []
    for what, record in runs.named("fit").items():
        kind, _, name = what.partition(", ")
        if kind == "update":
            lines.append(
                (
                    f"{name}: a batch of {record['batch']}",
                    milliseconds(record),
                    f"{span(record, scale=100)} %",
                )
            )
        elif kind == "finish":
            lines.append((f"{name}: closing step, once", milliseconds(record), ""))
        elif kind == "fit":
            lines.append((f"{name}: {record['samples']:,} kept features", milliseconds(record), ""))
    return table(("fit", "time", "of f(x) of the batch"), lines)


def job(runs: Runs) -> str:
    """Images in, scores out: by library and method, images a second and memory."""
    found, lines = runs.named("job"), []
    for what, record in found.items():
        if "seconds" in record:
            rate = number(2 * record["images"] / record["seconds"])
            lines.append((what, rate, span(record), size(found[f"memory, {what}"]["peak_bytes"])))
    left = "".join(f" {r['what']}: {r['skipped']}." for r in runs.records("job", skipped=True))
    first = next(iter(found.values()))
    head = (
        "fit and score",
        "images a second",
        f"time, of {first['reference']}",
        "memory at the peak",
    )
    return (
        f"{table(head, lines)}\n\n{first['images']:,} images to fit on and as many to score.{left}"
    )


def layers(runs: Runs) -> str:
    """Eq. 6 by reading, in forward passes, and its memory."""
    found, lines = runs.named("layers"), []
    for what, record in found.items():
        if "seconds" in record:
            grown = found.get(f"memory, {what}")
            lines.append(
                (TITLES.get(what, what), span(record), size(grown["peak_bytes"]) if grown else "–")
            )
    return table(("reading", "forward passes", "memory at the peak"), lines)


def inference(runs: Runs) -> str:
    """Set-ups of the forward pass."""
    found = runs.named("inference")
    lines = []
    for what, r in found.items():
        moved = f"{r['score_change']:.0e}", f"{r['decisions_changed']:.1%}"
        lines.append((what, milliseconds(r, r["images"]), span(r), *moved))
    left = [f"{r['what']}: {r['skipped']}" for r in runs.records("inference", skipped=True)]
    usual = found.get("channels last, batch 64")
    best = min(found.values(), key=lambda r: r["ratio"])
    text = (
        f"Fastest: {best['what']}, {1 / best['ratio']:.2f} times as fast as plain float32 at batch"
        " 128. "
    )
    single, graph = (
        found.get(f"{what}, batch 1") for what in ("plain float32", "ONNX graph, score included")
    )
    if single and graph:
        text += (
            "For one image at a time, f(x) and g(x) in one exported graph (`OODDetector.export`)"
            " take "
        )
        text += f"{graph['ratio'] / single['ratio']:.2f} times what f(x) alone takes in PyTorch. "
    if usual and runs.device == "cpu":
        text += (
            f"`extract` and `OODDetector` run {usual['what']}: {1 / usual['ratio']:.2f} times as"
            " fast. "
        )
    text += f"Left out: {'; '.join(left)}." if left else ""
    head = (
        "f(x)",
        "an image",
        "of plain float32, batch 128",
        "scores move by",
        "decisions that change",
    )
    return f"{table(head, lines)}\n\n{text}"


def precision(exact: tb.evaluation.Scores, low: tb.evaluation.Scores, resamples: int = 200) -> str:
    """What reduced precision does to each metric, beside its 95 % bootstrap interval.

    Args:
        exact, low: set -> method -> scores (N,) of the same images; the in-distribution set is one
            of them.
    """
    names, ID = [name for name in exact if name != tb.evaluation.ID_TEST], tb.evaluation.ID_TEST
    lines = []
    for method in exact[ID]:
        inside, moved = [], []
        for name in names:
            sampled = tb.metrics.resampled(
                exact[ID][method], exact[name][method], resamples=resamples
            )
            limits = tb.metrics.interval95(sampled)
            one, two = (
                tb.metrics.ood_metrics(s[ID][method], s[name][method]) for s in (exact, low)
            )
            moved += [abs(one[metric] - two[metric]) for metric in tb.metrics.METRICS]
            inside += [
                limits[metric][0] <= two[metric] <= limits[metric][1]
                for metric in tb.metrics.METRICS
            ]
        lines.append(
            (
                TITLES.get(method, method),
                f"{100 * max(moved):.2f}",
                f"{sum(inside)} of {len(inside)}",
            )
        )
    head = (
        "bfloat16 backbone",
        "largest change of a metric (points)",
        "metrics inside their interval in float32",
    )
    return table(head, lines)


def training(runs: Runs) -> str:
    """An epoch of the usual loop and of ours, lower bounds, and where the time goes."""
    found = runs.named("training")
    loops = {what: r for what, r in found.items() if what.startswith(("usual", "ours"))}
    lines = [(what, milliseconds(r, r["images"]), span(r)) for what, r in loops.items()]
    mean = sum(r["share_of_recipe"] * r["ratio"] for r in loops.values() if "share_of_recipe" in r)
    full = found["ours, 32 px"]
    usual = min(r["ratio"] for what, r in loops.items() if what.startswith("usual"))
    more = {"ours, mean over the recipe": mean}
    for name, unit, count in (
        ("a dense product", "product float32", "operations"),
        ("a copy", "copy", "bytes"),
    ):
        more[f"floor: at the speed of {name}"] = (
            full[count] * found[unit]["ratio"] / found[unit][count]
        )
    each = found[full["reference"]]["seconds"] / full["images"]
    lines += [
        (f"*{what}*", f"{1e3 * ratio * each:,.3g} ms", f"{ratio:.3g}")
        for what, ratio in more.items()
    ]
    text = (
        f"Ours is {usual / full['ratio']:.2f} times as fast as the better usual loop at full size"
        " and "
    )
    text += f"{usual / mean:.2f} times over the recipe. At full size an image takes "
    operations, moved = (full[count] / full["images"] for count in ("operations", "bytes"))
    text += f"{operations / 1e9:.2f} G operations and moves {size(moved)}; "
    arithmetic, memory = list(more.values())[1:]
    both = arithmetic + memory
    text += f"the step takes {full['ratio'] / both:.2f} times both floors together. "
    parts = ", ".join(
        f"`{name.removeprefix('aten::')}` {share:.0%}" for name, share in full["profile"].items()
    )
    text += f"Where its time goes: {parts}."
    return (
        table(("training, an epoch", "an image", f"of the {full['reference']}"), lines)
        + f"\n\n{text}"
    )


def evaluation(runs: Runs) -> str:
    """From the bundle to the table."""
    found = runs.named("evaluation")
    lines = [
        (what, f"{r['seconds']:.3g} s", span(r) if r["reference"] == "shared methods" else "")
        for what, r in found.items()
    ]
    left = "".join(
        f" {r['what']}: {r['skipped']}." for r in runs.records("evaluation", skipped=True)
    )
    facts = next(
        (
            f"{r['sets']} sets, {r['images']:,} images, up to {r['draws']} draws."
            for r in found.values()
        ),
        "",
    )
    head = ("evaluation of kept features", "time", "of ours, shared methods")
    return f"{table(head, lines)}\n\n{facts}{left}"
