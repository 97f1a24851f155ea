"""What a score g(x) adds to the pass f(x) that makes its inputs, and what autograd takes.

Two places. ``network``: the reference is f(x) itself; the scores of features and logits start from
those two, the detectors that need a graph from the image. ``head``: all start from the features and
include the last layer's product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thinkback_utils as tb
from experiments import evaluation
from experiments.peers import PEERS

from .context import Context, pytorch_ood, skipped
from .rounds import Call, Record

T, EPS = 5.0, 1e-16
BATCHES = (1, 16, 200, 1000)
HEADS = {
    (10, 128): BATCHES,
    (1000, 2048): BATCHES[:3],
    (21_841, 2048): (1, 200),
}  # (K, D): batch sizes
ENTRIES = (
    1 << 26
    # of per-sample gradients held at once, 256 MB; it bounds the part of a batch that loops work
    # through
)
BACKWARDS = 8  # images of a batch that go through the network one by one

PEER = ", pytorch-ood"
MOST_CLASSES = {
    "knn": 10**6,
    "vim": 1000,
    "mahalanobis": 100,
}  # an SVD of the head; D^2 products a class and sample

Rows = dict[str, Callable[[], object] | Call]
Roots = tuple[Tensor, Tensor]


def loss_of(logits: Tensor) -> Tensor:
    """``-log softmax(z / T)`` of the network's own decision, for one sample."""
    return (logits / T).logsumexp(-1) - logits.amax(-1) / T


def one_by_one(features: Tensor, weight: Tensor, bias: Tensor, importance: Tensor) -> Tensor:
    """The score by autograd on the last layer, one backward pass a sample; importance is
    ``1 / (eps + E)``, (K, D).
    """
    weight, scores = weight.detach().requires_grad_(), []
    for h in features:
        (gradient,) = torch.autograd.grad(loss_of(F.linear(h, weight, bias)), weight)
        scores.append((gradient.square() * importance).sum())
    return torch.stack(scores)


def vectorized(features: Tensor, weight: Tensor, bias: Tensor, importance: Tensor) -> Tensor:
    """The same by ``torch.func.vmap(grad)``: all gradients of the batch at once."""

    def loss(w: Tensor, h: Tensor) -> Tensor:
        return loss_of(F.linear(h, w, bias))

    gradients: Tensor = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight.detach(), features)
    return gradients.square_().mul_(importance).sum((1, 2))


def backward(model: nn.Module, head: nn.Linear, images: Tensor, importance: Tensor) -> Tensor:
    """The same as published gradient detectors run: image by image, all the way back."""
    scores = []
    for x in images:
        model.zero_grad()
        loss_of(model(x[None])[0]).backward()
        assert head.weight.grad is not None
        scores.append((head.weight.grad.square() * importance).sum())
    return torch.stack(scores)


def closed_forms(
    h: Tensor, z: Tensor | None, head: nn.Linear, inverse: Tensor, roots: Roots | None
) -> Rows:
    """Scores of features and logits; where no logits are given, each call computes its own."""

    def logits() -> Tensor:
        return head(h) if z is None else z

    rows: Rows = {
        "msp": lambda: tb.scores.msp(logits()),
        "energy": lambda: tb.scores.energy(logits()),
        "thinkback": lambda: tb.scores.thinkback_diagonal(h, logits(), inverse, T),
    }
    if roots is not None:
        rows["kronecker"] = lambda: tb.scores.thinkback_kronecker(h, logits(), roots, T)
        distances = tb.scores.label_distances(roots[0])
        rows["averaged"] = lambda: tb.scores.thinkback_averaged(
            F.normalize(h), logits(), (distances, roots[1]), T
        )
    return rows


def part_of(batch: int, head: nn.Linear) -> int:
    """How many samples of a batch the methods that hold per-sample gradients work through.

    >>> part_of(200, nn.Linear(2048, 1000)), part_of(200, nn.Linear(128, 10))
    (32, 200)
    """
    return min(batch, max(1, ENTRIES // head.weight.numel()))


def by_autograd(h: Tensor, head: nn.Linear, inverse: Tensor) -> Rows:
    """The score by autograd of the last layer, on a part of the batch if gradients are large."""
    part = h[: part_of(len(h), head)]
    given = (part, head.weight.detach(), head.bias.detach(), inverse.float())
    share = len(part) / len(h)
    return {
        "vmap(grad), head": Call(lambda: vectorized(*given), share),
        "autograd, head": Call(lambda: one_by_one(*given), share),
    }


def gradnorm(model: nn.Module, x: Tensor, name: str, most: int) -> Rows:
    """pytorch-ood's GradNorm of the parameter ``name``, on a part of the batch; {} without it."""
    library, few = pytorch_ood(), x[:most]
    if isinstance(library, str):
        return {}
    detector = library.detector.GradNorm(model, param_filter=lambda parameter: parameter == name)
    return {f"GradNorm{PEER}": Call(partial(detector.predict, few), len(few) / len(x))}


def of_features(
    head: nn.Linear, bank: Tensor, labels: Tensor
) -> dict[str, Callable[[tb.features.Features], Tensor]]:
    """pytorch-ood's detectors of features, fitted on the bank, where that takes no minutes."""
    if isinstance(pytorch_ood(), str):
        return {}
    names = [name for name, most in MOST_CLASSES.items() if head.out_features <= most]
    train = tb.features.Features(bank, bank[:, :2], labels)  # none of these reads the logits
    return {f"{PEERS[n].title}{PEER}": partial(PEERS[n], PEERS[n].fit(head, train)) for n in names}


def missing(rows: Rows, **facts: Any) -> list[Record]:
    """Why a peer that belongs in the table is not there."""
    library = pytorch_ood()
    reason = (
        library if isinstance(library, str) else "fitting or scoring so many classes takes minutes"
    )
    titles = [f"{PEERS[name].title}{PEER}" for name in ("gradnorm", *MOST_CLASSES)]
    return [skipped(title, reason, **facts) for title in titles if title not in rows]


def on_network(context: Context) -> list[Record]:
    """Every score beside f(x) of the WRN-40-2."""
    model, bundle, records = context.network(), context.bundle(), []
    head, train = (
        model.get_classifier(),
        None if bundle is None else bundle.sets[evaluation.ID_TRAIN],
    )
    if train is None or train.labels is None:
        train = tb.features.Features(
            torch.rand(50_000, 128), torch.randn(50_000, 10), torch.arange(50_000) % 10
        )
    assert train.labels is not None
    expected = tb.fisher.DiagonalFisher(T).update(train.features, train.logits).compute()
    inverse = tb.scores.inverse_diagonal(expected, EPS).to(context.device)
    roots = tb.fisher.KroneckerFisher(T).update(train.features, train.logits).inverse_root()
    detectors = of_features(head, train.features, train.labels)
    for batch in BATCHES[:1] if context.quick else BATCHES:
        x = context.images(batch)
        with torch.no_grad():
            h = model.forward_features(x)
            z = head(h)
        few = x[:BACKWARDS]
        facts: dict[str, Any] = {"place": "network", "batch": batch, "K": 10, "D": 128}
        rows: Rows = {"forward": torch.no_grad()(partial(model, x))}
        rows |= closed_forms(h, z, head, inverse, roots) | by_autograd(h, head, inverse)
        rows["backward, batch 1"] = Call(
            partial(backward, model, head, few, inverse.float()), len(few) / batch
        )
        rows |= gradnorm(model, x, "fc.weight", 64)
        rows |= {
            name: partial(score, tb.features.Features(h, h)) for name, score in detectors.items()
        }
        records += context.measure(rows, "forward", **facts) + missing(rows, **facts)
    return records


def on_head(context: Context, K: int, D: int, batches: tuple[int, ...]) -> list[Record]:
    """Every score from synthetic features on, the last layer's product included."""
    generator, device = torch.Generator().manual_seed(0), context.device
    head = nn.Linear(D, K).requires_grad_(False).to(device)
    inverse = torch.rand(K, D, generator=generator, dtype=torch.float64).to(device)
    roots = None
    if K <= 1000:  # random ones: a score's time depends on their shape alone
        A, B = (
            torch.rand(n, n, generator=generator, dtype=torch.float64).to(device) for n in (K, D)
        )
        roots = A, B
    bank = torch.rand(10_000, D, generator=generator)
    detectors, records = of_features(head, bank, torch.arange(len(bank)) % K), []
    for batch in batches:
        h = torch.rand(batch, D, generator=generator).to(device)
        facts: dict[str, Any] = {"place": "head", "batch": batch, "K": K, "D": D, "bank": len(bank)}
        rows = closed_forms(h, None, head, inverse, roots) | by_autograd(h, head, inverse)
        rows |= gradnorm(head, h, "weight", part_of(batch, head))
        rows |= {
            name: partial(score, tb.features.Features(h, h)) for name, score in detectors.items()
        }
        records += context.measure(rows, "energy", least=5 if K <= 1000 else 3, **facts) + missing(
            rows, **facts
        )
    return records


def run(context: Context) -> list[Record]:
    """Both places."""
    records = on_network(context)
    for (K, D), batches in HEADS.items():
        if not context.quick or K <= 1000:
            records += on_head(context, K, D, batches[:2] if context.quick else batches)
    return records
