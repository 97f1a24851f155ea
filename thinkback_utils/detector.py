"""A score in service: fitted on training data, calibrated to a promised rate of false alarms, saved and loaded."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.stats import binom
from torch import Tensor, nn

from .export import exported, to_onnx
from .features import extract, find_head
from .files import replacing
from .fisher import summed
from .methods import METHODS, Options, State
from .passes import Images, batches, fastest_batch, linears_of

FORMAT = 2  # of the file; a reader refuses any other


class OODDetector:
    """A classifier that also says which inputs it was not made for.

    Images are whatever :func:`features.extract` reads, prepared as for the classifier: one array, an ``ImageSet`` or an
    iterable of batches (``tqdm(loader)`` shows progress). Labels are ignored. Batches stream: what stays is a sum over
    the fit data and one number per calibration image. The model runs where it is, in evaluation mode, and is given back
    as it was; it is hooked meanwhile, so one thread at a time.

    Args:
        model: any classifier whose logits come out of an ``nn.Linear``.
        head: name of that layer; found at the first image when None.
        method: a key of ``methods.METHODS``.
        batch_size: used where images are one array; None: the fastest, as in :func:`features.extract`.
        options: ``temperature``, ``eps``, ``damping``, as far as the method has them; see :mod:`scores`. None: default.

    Raises:
        ValueError: on an unknown method, or an option that is unknown to it or out of range.

    >>> net, x = nn.Linear(4, 4, bias=False), torch.rand(2000, 4) + 9 * torch.eye(4).repeat(500, 1)
    >>> _ = nn.init.eye_(net.weight)  # so that x is both features and logits, each sure of a class
    >>> detector = OODDetector(net).fit(x[:1000]).calibrate(x[1000:], alpha=0.05)
    >>> detector.predict(torch.tensor([[9.5, 0.5, 0.5, 0.5], [3.0] * 4]))
    tensor([False,  True])
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        method: str = "thinkback_averaged",
        batch_size: int | None = None,
        **options: float | None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"thinkback: method must be one of {sorted(METHODS)}, got {method!r}")
        known = METHODS[method].options
        for name, value in options.items():
            if name not in known:
                raise ValueError(f"thinkback: method {method!r} has the options {sorted(known)}, not {name!r}")
            if value is not None and not (0 <= value < math.inf and (value or name != "temperature")):
                raise ValueError(
                    f"thinkback: {name} must be finite and not negative, a temperature positive; got {value}"
                )
        self.model, self.head, self.method, self.batch_size = model, head, method, batch_size
        self.options: Options = {**known, **{name: value for name, value in options.items() if value is not None}}
        self.state: State | None = None if METHODS[method].fisher else ()
        self.calibration: Tensor | None = None  # ascending, float64 (n,)
        self.threshold = math.nan

    def fit(self, images: Images) -> OODDetector:
        """Learn what training data does to the last layer, afresh: any calibration is void.

        Methods without a Fisher have nothing to learn and read nothing.

        Warns:
            UserWarning: if the model never predicts a class, or a feature is always 0, on the fit data. The class's row
                of E then holds only what its small probabilities left there, so inputs that are given the class tend to
                score far out, as no fit data did. What :meth:`calibrate` promises holds all the same.
        """
        method = METHODS[self.method]
        if method.fisher is None:
            return self
        predicted, active = torch.tensor(0), torch.tensor(0)  # images by class; that have the feature

        def watched() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal predicted, active
            for h, z in self._passes(images):
                predicted = predicted + torch.bincount(z.argmax(1), minlength=z.shape[1])
                active = active + (h != 0).sum(0)
                yield h, z

        self.state, self.calibration = method.fit(watched(), **self.options), None
        predicted, active = summed(predicted), summed(active)
        if missing := _listed(predicted == 0):
            text = f"never predicted on the fit data: {missing}; inputs that are given one tend to score far out"
            warnings.warn(f"thinkback: classes {text}. Fit on data of every class", stacklevel=2)
        if self.options["damping"] == 0 and (silent := _listed(active == 0)):
            text = f"0 in all fit data: {silent}; with damping=0 nothing says how unusual other values are"
            warnings.warn(f"thinkback: features that are {text}. Set damping, 1e-3 say", stacklevel=2)
        return self

    def score(self, images: Images) -> Tensor:
        """How far out each image is: float64 (N,), higher = more OOD."""
        method, state = METHODS[self.method], self._fitted()
        return torch.cat([method(h, z, state, **self.options) for h, z in self._passes(images)])

    def calibrate(self, images: Images, alpha: float = 0.05, delta: float | None = None) -> OODDetector:
        """Set the threshold so that in-distribution images raise false alarms at a rate of at most ``alpha``.

        Args:
            images: in-distribution and held out, from neither training nor fit data: a random draw of what is to come.
            alpha, delta: as in :func:`conformal_threshold`, which says what is promised.
        """
        _fractions(alpha=alpha, delta=delta)
        calibration = self.score(images).sort().values
        self.threshold, self.calibration = conformal_threshold(calibration, alpha, delta), calibration
        return self

    def p_value(self, images: Images) -> Tensor:
        """Conformal p-value ``(1 + #{calibration scores >= score}) / (n + 1)``: float64 (N,), *lower* = more OOD.

        In-distribution ``P(p <= u) <= u`` for every u; ``p <= alpha`` is :meth:`predict` calibrated without delta.
        """
        calibration = self._calibrated()
        at_least = len(calibration) - torch.searchsorted(calibration, self.score(images))
        return (1 + at_least).double() / (len(calibration) + 1)

    def predict(self, images: Images) -> Tensor:
        """Whether each image is out-of-distribution, ``score >= threshold``: bool (N,)."""
        self._calibrated()
        return self.score(images) >= self.threshold

    def save(self, path: str | Path) -> None:
        """Write all but the model, as safetensors: fit, calibration, and the head's weight to know the model by."""
        if self.state is None or self.head is None:
            raise ValueError("thinkback: the detector has seen no data, there is nothing to save; fit or calibrate it")
        tensors = {f"state.{i}": part for i, part in enumerate(self.state)}
        tensors["head.weight"] = _head(self.model, self.head).weight.detach()
        if self.calibration is not None:
            tensors["calibration"] = self.calibration
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            save_file(whole, temporary, {"thinkback_detector": json.dumps(self._facts())})

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> OODDetector:
        """A detector from a file that :meth:`save` wrote, around its model, which may be in half precision now.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: on another file or format, or a model whose head has another name, shape or weight.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"thinkback: no detector at {path}; OODDetector.save writes one")
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get("thinkback_detector", '{"format": "of something else"}'))
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except SafetensorError as error:
            raise ValueError(f"thinkback: {path} is no safetensors file, or cut short: {error}") from error
        if facts["format"] != FORMAT:
            raise ValueError(f"thinkback: {path} has format {facts['format']}, this version reads {FORMAT}; fit again")
        _head(model, facts["head"], tensors.pop("head.weight"))
        detector = cls(model, facts["head"], facts["method"], **facts["options"])
        detector.calibration, detector.threshold = tensors.pop("calibration", None), facts.get("threshold", math.nan)
        detector.state = tuple(tensors[f"state.{i}"] for i in range(len(tensors)))
        return detector

    def exported(self, example: Tensor) -> torch.export.ExportedProgram:
        """Classifier, score and, once calibrated, p-value and verdict as one graph; see :class:`export.Graph`.

        ``exported(x).module()(images)`` runs it; ``torch.export.save`` writes it, and nothing of this package reads it.

        Args:
            example: one image or more, prepared as for the classifier, float (N, ...). Any N will do later.
        """
        return exported(self, example)

    def export(self, path: str | Path, example: Tensor) -> None:
        """Write :meth:`exported` as one ONNX file, opset 18: input ``images``, outputs as of :class:`export.Graph`.

        Its metadata, ``thinkback_detector``, says as JSON what :meth:`save` notes, too: method, options, head and more.

        Args:
            path: of the file, below 2 GB.
            example: as for :meth:`exported`.

        Raises:
            ImportError: without the packages of ``pip install 'thinkback-utils[export]'``.
        """
        to_onnx(self, path, example)

    def _passes(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, D) and logits (B, K) of each batch; once the head is known, it alone is hooked."""
        empty, device = True, next((p.device for p in self.model.parameters()), torch.device("cpu"))
        for x, _ in batches(images, self.batch_size or fastest_batch(device)):
            if not len(x):
                continue
            if self.head is None:
                self.head = find_head(self.model, x[:2])
            seen, empty = extract(self.model, [x], self.head), False
            yield seen.features, seen.logits
        if empty:
            raise ValueError("thinkback: there is no image, images is empty; was a generator read before?")

    def _fitted(self) -> State:
        if self.state is None:
            raise ValueError("thinkback: the detector is not fitted; call fit(training_images) first")
        return self.state

    def _facts(self) -> dict[str, Any]:
        facts = {"format": FORMAT, "head": self.head, "method": self.method, "options": dict(self.options)}
        return facts if self.calibration is None else facts | {"threshold": self.threshold}

    def _calibrated(self) -> Tensor:
        if self.calibration is None:
            raise ValueError("thinkback: the detector is not calibrated; call calibrate(held_out_images) after fit")
        return self.calibration


def conformal_threshold(calibration: Tensor, alpha: float = 0.05, delta: float | None = None) -> float:
    """The smallest threshold that bounds false alarms, whatever the distribution of the scores is.

    It lies just above the k-th smallest of n calibration scores, ``k = ceil((n + 1) (1 - alpha))``: a tie with that one
    is no alarm. If calibration and new scores are exchangeable, ``P(score >= threshold) <= alpha`` on average over
    calibration sets, and ``> alpha - 1 / (n + 1)`` without ties. Over single sets of independent scores the rate is
    Beta(m, n + 1 - m), m = n + 1 - k: above alpha about every second time. With ``delta``, m is lowered until
    ``P(Beta(m, n + 1 - m) > alpha) = P(Binomial(n, alpha) < m) <= delta``: at most so many sets then break alpha.

    Args:
        calibration: scores of held-out in-distribution samples, float64 (n,).
        alpha: largest rate of false alarms, in (0, 1).
        delta: largest chance that this calibration set breaks it, in (0, 1); None promises the average alone.

    Raises:
        ValueError: if n is too small (the message says how many it takes), alpha or delta is no such fraction, or a
            score is not finite.

    Source: Vovk, "Conditional validity of inductive conformal predictors" (2012).

    >>> conformal_threshold(torch.arange(1.0, 20.0).double(), alpha=0.05) > 19  # beyond the largest of 19
    True
    """
    _fractions(alpha=alpha, delta=delta)
    n, finite = len(calibration), int(calibration.isfinite().sum())
    if finite < n:
        raise ValueError(f"thinkback: {n - finite} of {n} calibration scores are not finite")
    m = int((np.arange(1, n + 1) / (n + 1) <= alpha).sum())  # n + 1 - k, rounded as p_value rounds
    needed, promise = math.ceil((1 - 1e-12) / alpha) - 1, f"alpha={alpha}"  # a rounded 1/49 takes 48, too
    if delta is not None:
        m = min(m, int((binom.cdf(np.arange(n), n, alpha) <= delta).sum()))
        needed = max(needed, math.ceil(math.log(delta) / math.log1p(-alpha)))
        promise += f" with delta={delta}"
    if m == 0:
        raise ValueError(f"thinkback: {promise} takes at least {needed} calibration scores, got {n}")
    return math.nextafter(float(calibration.sort().values[n - m]), math.inf)


def _fractions(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"thinkback: {name} must lie between 0 and 1, got {value}")


def _listed(chosen: Tensor) -> str:
    which = chosen.nonzero().flatten().tolist()
    return ", ".join(map(str, which[:5])) + (f" and {len(which) - 5} more" if len(which) > 5 else "")


def _head(model: nn.Module, name: str, fitted: Tensor | None = None) -> nn.Linear:
    """The layer of that name, if it has the weight that was fitted, give or take the rounding of half precision."""
    linears = linears_of(model)
    if name not in linears:
        raise ValueError(f"thinkback: the model has no head {name!r}, which the detector reads; it has {list(linears)}")
    if fitted is None:
        return linears[name]
    given, fitted = linears[name].weight.detach().float().cpu(), fitted.float()
    if given.shape != fitted.shape or not torch.allclose(given, fitted, 2**-7, 2**-7 * float(fitted.abs().mean())):
        what = "the same shape but other weights" if given.shape == fitted.shape else f"shape {tuple(given.shape)}"
        raise ValueError(
            f"thinkback: the detector was fitted on a head {name!r} of shape (K, D) = {tuple(fitted.shape)}, "
            f"the model's has {what}; load the model it was fitted on, or fit again"
        )
    return linears[name]
