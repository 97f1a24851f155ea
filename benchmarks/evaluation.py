"""From stored features to the table: every method on every set, beside pytorch-ood."""

from __future__ import annotations

from typing import Any

import torch

import thinkback_utils as tb
from experiments import evaluation
from experiments.peers import PEERS, last_layer

from .context import Context, pytorch_ood, skipped
from .rounds import Record

SHARED = ("msp", "energy", "max_logit", "gradnorm")  # what both have
DRAWS = 10


def ours(sets: dict[str, tb.features.Features], methods: tuple[str, ...]) -> list[Record]:
    """The package's table: fit, scores, and four metrics of each draw."""
    return evaluation.table(evaluation.score_sets(sets, methods), draws=DRAWS)


def theirs(library: Any, bundle: tb.features.Bundle) -> list[Record]:
    """The shared methods by pytorch-ood's detectors and metrics, on the same arrays and draws."""
    sets, head, records = bundle.sets, last_layer(bundle), []
    for method in SHARED:
        peer = PEERS[method]
        detector = peer.fit(head)
        known = peer(detector, sets[evaluation.ID_TEST])
        for name in [
            name for name in sets if name not in (evaluation.ID_TRAIN, evaluation.ID_TEST)
        ]:
            unknown = peer(detector, sets[name]).numpy()
            for draw in tb.metrics.draws(unknown, count=DRAWS if len(unknown) > 2000 else 1):
                metrics, out = library.metrics.OODMetrics(), torch.from_numpy(draw)
                metrics.update(known, torch.zeros(len(known), dtype=torch.long))
                metrics.update(out, -torch.ones(len(out), dtype=torch.long))
                records.append({"set": name, "method": method, "auroc": metrics.compute()["AUROC"]})
    return records


def run(context: Context) -> list[Record]:
    """All methods, and the shared ones side by side; on the CPU, where the bundle is."""
    bundle, library = context.bundle(), pytorch_ood()
    if bundle is None:
        return [skipped("the table", "no bundle in the results folder")]
    if context.quick:
        few = {
            name: tb.features.Features(f.features[:300], f.logits[:300])
            for name, f in bundle.sets.items()
        }
        bundle = tb.features.Bundle(few, bundle.weight, bundle.bias)
    sizes = {name: len(item) for name, item in bundle.sets.items() if name != evaluation.ID_TRAIN}
    facts = {"sets": len(sizes), "images": sum(sizes.values()), "draws": DRAWS}
    everything = {
        f"all {len(tb.methods.METHODS)} methods": lambda: ours(
            bundle.sets, tuple(tb.methods.METHODS)
        )
    }
    records = context.measure(everything, next(iter(everything)), least=1, **facts)
    calls = {"shared methods": lambda: ours(bundle.sets, SHARED)}
    if isinstance(library, str):
        records.append(skipped("shared methods, pytorch-ood", library))
    else:
        calls["shared methods, pytorch-ood"] = lambda: theirs(library, bundle)
    return records + context.measure(calls, "shared methods", budget=20, **facts)
