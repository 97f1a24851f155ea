"""One network's stored features, scored at many temperatures and floors: chapter 7."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from experiments import evaluation
from experiments.run import Run
from thinkback_utils import data, metrics, scores
from thinkback_utils.features import Bundle, Features
from thinkback_utils.fisher import DiagonalFisher

Arrays = tuple[Tensor, Tensor]  # features (N, D) and logits (N, K), float64


def arrays(part: Features, rows: slice | Tensor = slice(None)) -> Arrays:
    """Features and logits of these rows, float64."""
    return part.features[rows].double(), part.logits[rows].double()


def joined(parts: list[Arrays]) -> Arrays:
    """One after the other."""
    features, logits = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(logits)


def column(metric: str) -> int:
    """Where a metric stands in the tables of :meth:`Sweep.measure`.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in metrics.METRICS:
        raise ValueError(f"thinkback: metric {metric!r} is none of {', '.join(metrics.METRICS)}")
    return metrics.METRICS.index(metric)


class Sweep:
    """The images of one run, divided by what they are for.

    Args:
        run: whose ``bundle.npz`` is read.
        seed: of the choice of validation images.
        n_validation: how many training images are held out of E.

    Attributes:
        fit: features and logits of the other training images: E is fitted on them.
        validation: what a rule without OOD images may look at: held-out training images, and as
            another kind of such data the first half of the test images.
        pool: the test images, then the far OOD sets.
        far: names of these sets.
        H, Z: features (N, D) and logits (N, K) of the pool.

    Raises:
        ValueError: ``n_validation`` leaves no image on one of the sides.
    """

    def __init__(self, run: Run, seed: int = 0, n_validation: int = 5000) -> None:
        self.bundle: Bundle = run.bundle()
        sets = self.bundle.sets
        self.train, self.test = sets[evaluation.ID_TRAIN], sets[evaluation.ID_TEST]
        if not 0 < n_validation < len(self.train):
            raise ValueError(
                f"thinkback: n_validation is from 1 to {len(self.train) - 1}, got {n_validation}"
            )
        other = (evaluation.ID_TRAIN, evaluation.ID_TEST, *evaluation.NEAR)
        far = [name for name in sets if name not in other]
        self.far = list(data.PAPER_SETS) if set(data.PAPER_SETS) <= set(far) else far
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        self.fit = arrays(self.train, order[n_validation:])
        self.half = len(self.test) // 2
        self.validation = {
            "training images": arrays(self.train, order[:n_validation]),
            "test images": arrays(self.test, slice(self.half)),
        }
        self.pool = [self.test, *(sets[name] for name in self.far)]
        self.H, self.Z = joined([arrays(part) for part in self.pool])
        self._fitted: dict[float, Tensor] = {}

    @cached_property
    def titles(self) -> list[str]:
        """What the far sets are called."""
        return [evaluation.SET_TITLES[name] for name in self.far]

    def fisher(self, T: float) -> Tensor:
        """E at that temperature on the images of ``fit``, (K, D)."""
        if T not in self._fitted:
            self._fitted[T] = fisher(T, *self.fit)
        return self._fitted[T]

    def five(self, T: float, images: Arrays | None = None) -> Tensor:
        """Eq. 5 of the pool, or of other images, (N,)."""
        return scores.thinkback(*(images or (self.H, self.Z)), None, T)

    def six(
        self, T: float, eps: float = 1e-16, damping: float = 0.0, images: Arrays | None = None
    ) -> Tensor:
        """Eq. 6 of the pool, or of other images, (N,)."""
        return scores.thinkback(*(images or (self.H, self.Z)), self.fisher(T), T, eps, damping)

    def measure(
        self, values: Tensor, ids: slice = slice(None), parts: list[Features] | None = None
    ) -> NDArray[np.float64]:
        """The four metrics of every far set, (sets, 4), in %.

        Args:
            values: scores of the pool, or of other parts.
            ids: which of the test images count.
            parts: what the scores are of, the in-distribution images first.
        """
        inside, *outside = values.split([len(part) for part in parts or self.pool])
        curves = [metrics.roc(inside[ids], out) for out in outside]
        return 100 * np.array([list(metrics.summary(curve).values()) for curve in curves])

    def criteria(self, Ts: Iterable[float], images: Arrays) -> pd.DataFrame:
        """What three forms of the paper's rule want to be small, a row a T, on these images."""
        rows = {}
        for T in Ts:
            five, six = self.five(T, images), self.six(T, images=images)
            forms = {"std, Eq. 5": five.std(), "std / mean, Eq. 5": five.std() / five.mean()}
            forms["std, Eq. 6"] = six.std()
            rows[T] = {form: float(value) for form, value in forms.items()}
        return pd.DataFrame.from_dict(rows, "index")

    def auroc(self, values: Tensor) -> float:
        """Mean AUROC over the far sets, in %."""
        return float(self.measure(values)[:, column("auroc")].mean())


def fisher(T: float, h: Tensor, z: Tensor) -> Tensor:
    """E at that temperature on these images, (K, D)."""
    return DiagonalFisher(T).update(h, z).compute()


def fits(stored: Sweep, augmented: Features, seed: int = 0) -> pd.DataFrame:
    """Mean AUROC over the far sets, by the images that E is fitted on.

    Args:
        stored: what is judged.
        augmented: some of the training images, evenly taken, cropped and mirrored.
        seed: of the draws of few images.

    Returns: A row a fit: how many features are ``silent``, zero on all of its images; the AUROC in
        % at T = 1 and 5, and with several draws its standard deviation over them.
    """
    generator, train, test = torch.Generator().manual_seed(seed), stored.train, stored.test
    same = evaluation.evenly(len(train), len(augmented))
    cases: dict[str, list[Arrays]] = {}
    for n, draws in ((100, 10), (1_000, 5), (10_000, 3)):
        drawn = [torch.randperm(len(train), generator=generator)[:n] for _ in range(draws)]
        cases[f"{n:,} training images, {draws} draws"] = [arrays(train, rows) for rows in drawn]
    cases["all training images"] = [arrays(train)]
    cases["all training images; judged on half of test"] = [arrays(train)]
    cases["other half of test; judged on half of test"] = [arrays(test, slice(stored.half))]
    cases[f"{len(same):,} training images"] = [arrays(train, same)]
    cases["the same, cropped and mirrored"] = [arrays(augmented)]
    rows: dict[str, dict[str, float]] = {}
    for title, each in cases.items():
        ids = slice(stored.half if "judged" in title else 0, None)
        row: dict[str, float] = {}
        for T in (1.0, 5.0):
            fitted = [fisher(T, *images) for images in each]
            found = [scores.thinkback(stored.H, stored.Z, E, T) for E in fitted]
            values = [stored.measure(g, ids)[:, column("auroc")].mean() for g in found]
            row["silent"] = max(int((E == 0).all(0).sum()) for E in fitted)
            row[f"AUROC, T = {T:g}"] = float(np.mean(values))
            row[f"std, T = {T:g}"] = float(np.std(values)) if len(values) > 1 else math.nan
        rows[title] = row
    frame = pd.DataFrame.from_dict(rows, "index").rename_axis("E fitted on")
    return frame.astype({"silent": int})


def naive(z: Tensor, T: float, dtype: torch.dtype) -> Tensor:
    """The residual as one would write it: softmax minus one-hot, in that arithmetic, (N, K)."""
    decided = F.one_hot(z.argmax(1), z.shape[1]).to(dtype)
    return (((z.to(dtype) / T).softmax(1) - decided) / T).float()


def precision(stored: Sweep, extra: Bundle) -> pd.DataFrame:
    """What other arithmetic than float64 does to Eq. 6; E is computed in the same arithmetic.

    Args:
        stored: what is judged.
        extra: with the sets ``<set>@bfloat16``, some images of each, evenly taken, whose features
            the network computed in bfloat16.

    Returns: A row a case: number of ``images``; of test images the share whose residual is exactly
        0 at the decision; change of the mean AUROC in points on the same images; at T = 1 and 5.
    """
    low = [extra.sets[f"{name}@bfloat16"] for name in (evaluation.ID_TEST, *stored.far)]
    pairs = list(zip(stored.pool, low, strict=True))
    same = [arrays(x, evaluation.evenly(len(x), len(y))) for x, y in pairs]
    here, exact, coarse = (stored.H, stored.Z), joined(same), joined([arrays(y) for y in low])
    weight, bias = stored.bundle.weight.bfloat16(), stored.bundle.bias.bfloat16()
    all_low = (coarse[0], coarse[0].bfloat16() @ weight.T + bias)
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    cases: dict[str, tuple[Arrays, Arrays, torch.dtype | None]] = {
        f"p − 1 in {str(kind).removeprefix('torch.')}": (here, here, kind) for kind in kinds
    }
    cases["network in bfloat16"] = (coarse, exact, None)
    cases["network and p − 1 in bfloat16"] = (all_low, exact, torch.bfloat16)
    H_fit, Z_fit = stored.fit
    rows = {}
    for title, ((h, z), right, kind) in cases.items():
        parts, row = stored.pool if h is stored.H else low, {"images": float(len(h))}
        for T in (1.0, 5.0):
            of = scores.residual if kind is None else partial(naive, dtype=kind)
            r_fit, r = of(Z_fit, T), of(z, T)
            E = 1e-16 + r_fit.square().T @ H_fit.to(r.dtype).square() / len(r_fit)
            g = ((r.square() @ (1 / E)) * h.to(r.dtype).square()).sum(1)
            exactly = scores.thinkback(*right, stored.fisher(T), T)
            moved = stored.measure(g, parts=parts) - stored.measure(exactly, parts=parts)
            zero = r.gather(1, z.argmax(1, True))[: len(parts[0])] == 0
            row[f"zeros, T = {T:g}"] = float(zero.double().mean())
            row[f"AUROC, T = {T:g}"] = float(moved[:, column("auroc")].mean())
        rows[title] = row
    frame = pd.DataFrame.from_dict(rows, "index").rename_axis("in place of float64")
    return frame.astype({"images": int})
