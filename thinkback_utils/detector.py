"""A fitted score with a calibrated rate of false alarms: the detector, its file and its graph."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from .batches import Forward, Images, Pixels, unwrapped
from .calibration import (
    Calibration,
    GroupedCalibration,
    conformal_threshold,
    from_tensors,
    minimum_scores,
    mostly_rejected,
)
from .checks import FitData, first_norm
from .commands import warn
from .export import exported, to_onnx
from .features import Features
from .files import replacing
from .fisher import distributed
from .heads import Name
from .identity import difference, identity, prefix_of
from .methods import METHODS, Options, State
from .models import read_tensors
from .passes import Precision, Reader, settled, stream

__all__ = ["OODDetector", "Verdicts", "checked_options", "conformal_threshold"]

FORMAT = 3  # of the file; a reader refuses any other
Groups = Tensor | NDArray[Any] | Sequence[int | str]


class Verdicts(NamedTuple):
    """What a detector says of each input, (N,); of a model that classifies places, (N, ...)."""

    score: Tensor  # float64, higher = more OOD
    predicted: Tensor  # int64, the class that the model decides for
    p_value: Tensor | None = None  # float64, lower = more OOD; None without calibration scores
    rejected: Tensor | None = None  # bool, called OOD; None without a threshold


class OODDetector:
    """A classifier that also says which inputs it was not made for.

    Images are arrays, data sets or batches, as :mod:`batches` says, prepared as for the classifier
    (``tqdm(loader)`` shows progress). Labels are ignored. Batches stream: what stays is a sum over
    the fit data and one number per calibration image. The model runs where it is, in evaluation
    mode, and is given back as it was; it is hooked meanwhile, so one thread at a time.

    The scores are about the softmax of the logits: one class of K is true. A network with an
    independent sigmoid for each class needs ``method="joint_energy"``; :meth:`fit` warns where it
    sees one.

    Args:
        model: any classifier with a last layer that :mod:`heads` can find; None: images are pairs
            (features, logits) of arrays, (N, D) and (N, K), or batches of such pairs.
        head: name of that layer; found at the first image when None.
        method: a key of ``methods.METHODS``.
        batch_size: where images are not in batches yet; None: the fastest, as in
            :func:`features.extract`.
        mean, std: of each channel of pixels in [0, 1], as the model was trained on: most networks
            need them. None: those of the model's own configuration (timm), else 0 and 1. See
            :class:`batches.Pixels`.
        forward: ``forward(model, batch)``, where the model is not called as ``model(x)``.
        precision: of all but the last layer, in fit, calibration and scoring alike; ``"auto"`` is
            settled here, for good, and saved. See :func:`passes.settled`.
        options: ``temperature``, ``eps``, ``damping``, as far as the method has them; see
            :mod:`scores`. None: not given, the method's default.

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
        model: nn.Module | None = None,
        head: str | Sequence[str] | None = None,
        method: str = "thinkback_averaged",
        batch_size: int | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        forward: Forward | None = None,
        precision: Precision = "auto",
        **options: float | None,
    ) -> None:
        self.options: Options = checked_options(method, options)
        self.model, self.method, self.batch_size, self.forward = model, method, batch_size, forward
        self.head: Name | None = head if head is None or isinstance(head, str) else tuple(head)
        self.pixels = Pixels(mean, std)  # type: ignore[arg-type]
        self.precision: Precision = settled(precision, unwrapped(model or nn.Identity()))
        self.state: State | None = (
            None if METHODS[method].fisher else METHODS[method].state(None, {})
        )
        self.calibration: Calibration | GroupedCalibration | None = None
        self.by_class = False  # whether groups are the predicted classes

    def fit(self, images: Images) -> OODDetector:
        """Learn what training data does to the last layer, afresh: any calibration is void.

        Methods without a Fisher have nothing to learn and read nothing.

        Warns:
            UserWarning: if the fit data look wrong for the model: a class is never or hardly ever
                predicted, a feature is always 0, the model is hardly ever sure or right (were
                images prepared as in its training?), or several classes are sure at once
                (independent sigmoids?). See :class:`checks.FitData`.
        """
        method = METHODS[self.method]
        if method.fisher is None:
            return self
        seen = FitData()

        def watched() -> Iterator[tuple[Tensor, Tensor]]:
            for h, z, labels in self._passes(images):
                h, z = h.flatten(0, -2), z.flatten(0, -2)
                seen.update(h, z, labels)
                yield h, z

        with first_norm(self.model) as remarks:
            self.state, self.calibration = method.fit(watched(), **self.options), None
        warn(seen.all_reduce().remarks(silent=self.options["damping"] == 0) + remarks)
        return self

    def score(self, images: Images) -> Tensor:
        """How far out each image is: float64 (N,), higher = more OOD.

        Of a model that classifies each token or pixel: of each place, (N, ...).
        """
        return self._score(images)[0]

    def calibrate(
        self,
        images: Images,
        alpha: float = 0.05,
        delta: float | None = None,
        by: Literal["predicted"] | Groups | None = None,
        few: str = "error",
    ) -> OODDetector:
        """Set the threshold: in-distribution images are false alarms at a rate of at most alpha.

        Args:
            images: in-distribution and held out, from neither training nor fit data: a random draw
                of what is to come.
            alpha, delta: as in :func:`calibration.conformal_threshold`, which says what is
                promised.
            by: None: the promise is about all images together. ``"predicted"``: about those of each
                predicted class. A label for each image, integers or strings (n,): about those of
                each group, named again in :meth:`predict`.
            few: what happens to a group with too few images; see
                :class:`calibration.GroupedCalibration`.

        Warns:
            UserWarning: if most images of a predicted class are rejected, though the promise holds
                on average; or if scores are those of many places of an image, which are no
                independent draws.
        """
        if not isinstance(alpha, Real):
            raise ValueError(
                f"thinkback: alpha is a rate of false alarms, got {type(alpha).__name__}; labels"
                " are not needed here, and by=labels calibrates by group"
            )
        minimum_scores(alpha, delta)  # which checks both before any image is read
        scores, classes = self._score(images)
        if scores.ndim > 1:
            alike = "scores of places in one image are alike"
            warn([f"{alike}; what is promised is the average over many images"])
        scores, classes = scores.flatten(), classes.flatten()
        self.by_class = isinstance(by, str) and by == "predicted"
        if by is None:
            self.calibration = Calibration.of(scores, alpha, delta)
            warn(_rejected_classes(scores, classes, self.calibration))
        else:
            groups = classes if self.by_class else by
            self.calibration = GroupedCalibration.of(scores, groups, alpha, delta, few)
        return self

    def recalibrate(self, alpha: float, delta: float | None = None) -> OODDetector:
        """Another promise from the calibration scores that are kept; no image is needed."""
        self.calibration = self._calibrated().at(alpha, delta)
        return self

    @property
    def threshold(self) -> float:
        """Scores from it on are alarms; NaN before there is one, or where each group has its own.

        It can be set by hand, which promises nothing; p-values stay those of the calibration
        scores.
        """
        return self.calibration.threshold if isinstance(self.calibration, Calibration) else math.nan

    @threshold.setter
    def threshold(self, value: float) -> None:
        known = self.calibration.scores if isinstance(self.calibration, Calibration) else ()
        self.calibration = Calibration.by_hand(value, known)

    def assess(self, images: Images, groups: Groups | None = None) -> Verdicts:
        """Score, predicted class and, once calibrated, p-value and verdict, in one pass.

        Args:
            images: to be judged.
            groups: label of each, where the calibration is by groups other than predicted classes.
        """
        score, predicted = self._score(images)
        if self.calibration is None:
            return Verdicts(score, predicted)
        asked = self._groups(predicted, groups)
        known = isinstance(self.calibration, GroupedCalibration) or len(self.calibration.scores)
        p_value = self.calibration.p_value(score, *asked) if known else None
        return Verdicts(score, predicted, p_value, self.calibration.rejects(score, *asked))

    def p_value(self, images: Images, groups: Groups | None = None) -> Tensor:
        """Conformal p-value of each image, float64 (N,), *lower* = more OOD.

        It is ``(1 + #{calibration scores >= score}) / (n + 1)``. In-distribution ``P(p <= u) <= u``
        for every u; ``p <= alpha`` is :meth:`predict` calibrated without delta.
        """
        calibration = self._calibrated()
        score, predicted = self._score(images)
        p_value: Tensor = calibration.p_value(score, *self._groups(predicted, groups))
        return p_value

    def predict(self, images: Images, groups: Groups | None = None) -> Tensor:
        """Whether each image is out-of-distribution, ``score >= threshold``: bool (N,)."""
        calibration = self._calibrated()
        score, predicted = self._score(images)
        rejected: Tensor = calibration.rejects(score, *self._groups(predicted, groups))
        return rejected

    def save(self, path: str | Path) -> None:
        """Write all but the model, as safetensors: fit, calibration, and digests of its weights.

        By these, :meth:`load` knows the model. A ``forward`` hook is code and not written: give it
        to :meth:`load` again.
        """
        state = self._fitted()
        tensors = {f"state.{name}": part for name, part in state._asdict().items()}
        facts = self.facts()
        if self.calibration is not None:
            tensors |= self.calibration.to_tensors()[0]
        if self.model is not None:
            facts["model"] = identity(self.model)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            save_file(whole, temporary, {"thinkback_detector": json.dumps(facts)})

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module | None = None, forward: Forward | None = None
    ) -> OODDetector:
        """A detector from a file that :meth:`save` wrote, around its model.

        The model is known by all its weights. It may be in half precision now, and inside
        ``torch.compile``, ``DataParallel`` or another module.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: on another file or format, a damaged one, or a model with another weight; it
                names the file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"thinkback: no detector at {path}; OODDetector.save writes one"
            )
        tensors, metadata = read_tensors(path, "fit again")
        try:
            return cls._from(_read_facts(metadata), tensors, model, forward)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"thinkback: {path} is damaged, {error!r}; fit again") from error
        except ValueError as error:
            why = str(error).removeprefix("thinkback: ")
            raise ValueError(f"thinkback: {path}: {why}") from error

    @classmethod
    def _from(
        cls,
        facts: dict[str, Any],
        tensors: dict[str, Tensor],
        model: nn.Module | None,
        forward: Forward | None,
    ) -> OODDetector:
        detector = cls(
            model,
            _head_of(facts, model),
            facts["method"],
            mean=facts["mean"],
            std=facts["std"],
            forward=forward,
            precision=facts.get("precision", "float32"),
            **facts["options"],
        )
        kind = METHODS[detector.method].kind
        parts = {name: tensors.pop(f"state.{name}") for name in kind._fields}
        for name, part in parts.items():
            if not (part.is_floating_point() and part.ndim == 2 and bool(part.isfinite().all())):
                raise ValueError(f"state.{name} is no finite matrix; fit again")
        detector.state = kind(**parts)
        if more := sorted(set(tensors) - {"calibration"}):
            raise ValueError(f"it holds {', '.join(more)}, of which nothing is known; fit again")
        if tensors or "by_class" in facts:
            detector.calibration = from_tensors(tensors, facts)
            detector.by_class = facts["by_class"]
        return detector

    def exported(self, example: Tensor | NDArray[Any]) -> torch.export.ExportedProgram:
        """Classifier, score and, once calibrated, p-value and verdict: :class:`export.Graph`.

        ``exported(x).module()(images)`` runs it; ``torch.export.save`` writes it, and nothing of
        this package reads it.

        Args:
            example: one image or more, prepared as for the classifier, float (N, ...). Any N will
                do later.

        Raises:
            ValueError: if the detector computes in bfloat16, which a graph does not.
        """
        self._check_graph()
        return exported(self, example)

    def export(self, path: str | Path, example: Tensor | NDArray[Any]) -> None:
        """Write :meth:`exported` as one ONNX file, opset 18.

        Its input is ``images``, its outputs are those of :class:`export.Graph`. Its metadata,
        ``thinkback_detector``, say as JSON what :meth:`save` notes, too: method, options, head. A
        bfloat16 model is written in float32, since runtimes lack operators for it.

        Args:
            path: of the file, below 2 GB.
            example: as for :meth:`exported`.

        Raises:
            ImportError: without the packages of ``pip install 'thinkback-utils[export]'``.
        """
        self._check_graph()
        to_onnx(self, path, example)

    def _check_graph(self) -> None:
        if self.precision != "float32":
            raise ValueError(
                f"thinkback: the detector was fitted in {self.precision}, and a graph computes in"
                " float32; fit and calibrate one with precision='float32'"
            )

    def facts(self) -> dict[str, Any]:
        """Format, method, options, head, mean and std, and the calibration's promise, for JSON."""
        facts: dict[str, Any] = {"format": FORMAT, "head": self.head, "method": self.method}
        facts["options"] = dict(self.options)
        facts |= {"mean": self.pixels.mean, "std": self.pixels.std, "precision": self.precision}
        if self.calibration is None:
            return facts
        return facts | self.calibration.to_tensors()[1] | {"by_class": self.by_class}

    def _passes(self, images: Images) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Features (B, ..., D), logits (B, ..., K) and labels (B,) of each batch."""
        empty = not distributed()  # where other processes may have what this one lacks
        if self.model is None:
            for h, z in _pairs(images):
                empty = False
                yield h, z, None
        else:
            for item in stream(
                self.model,
                images,
                self.head,
                self.batch_size,
                self.pixels,
                self.forward,
                self.precision,
            ):
                self.head, empty = item.head, False
                yield item.features.float().cpu(), item.logits.float().cpu(), item.labels
        if empty:
            raise ValueError(
                "thinkback: there is no image, images is empty; was a generator read before?"
            )

    def _score(self, images: Images) -> tuple[Tensor, Tensor]:
        """Scores float64 and predicted classes int64, (N, ...) each."""
        method, state, parts = METHODS[self.method], self._fitted(), []
        for h, z, _ in self._passes(images):
            score = method(h.flatten(0, -2), z.flatten(0, -2), state, **self.options)
            parts.append((score.view(z.shape[:-1]), z.argmax(-1)))
        scores, classes = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(classes)

    def _groups(self, predicted: Tensor, groups: Groups | None) -> tuple[Any, ...]:
        """What the calibration asks for beside scores."""
        if isinstance(self.calibration, GroupedCalibration):
            if groups is None and not self.by_class:
                raise ValueError(
                    "thinkback: the detector was calibrated by group; pass the groups of these"
                    " images"
                )
            return (predicted if self.by_class else groups,)
        if groups is not None:
            raise ValueError(
                "thinkback: the detector was not calibrated by group; calibrate(images, by=groups)"
                " does so"
            )
        return ()

    def _fitted(self) -> State:
        if self.state is None:
            raise ValueError(
                "thinkback: the detector is not fitted; call fit(training_images) first"
            )
        return self.state

    def _calibrated(self) -> Any:
        if self.calibration is None:
            raise ValueError(
                "thinkback: the detector is not calibrated; call calibrate(held_out_images)"
                " after fit"
            )
        return self.calibration


def _read_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What :meth:`OODDetector.facts` gave, from the metadata of a file."""
    try:
        facts = json.loads(metadata.get("thinkback_detector", '{"format": "of something else"}'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its facts are no JSON ({error}); fit again") from error
    found = facts.get("format") if isinstance(facts, dict) else "unknown"
    if found != FORMAT:
        raise ValueError(f"it has format {found}, this version reads {FORMAT}; fit again")
    return dict(facts)


def checked_options(method: str, options: Mapping[str, float | None]) -> dict[str, Any]:
    """All options of a method, the given ones in place of its defaults; None is not given.

    Raises:
        ValueError: on an unknown method, or an option that is unknown to it or out of range.
    """
    if method not in METHODS:
        raise ValueError(f"thinkback: method must be one of {sorted(METHODS)}, got {method!r}")
    known = METHODS[method].options
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"thinkback: method {method!r} has the options {sorted(known)}, not {name!r}"
            )
        if value is not None and not (
            isinstance(value, Real) and 0 <= value < math.inf and (value or name != "temperature")
        ):
            raise ValueError(
                f"thinkback: {name} must be finite and not negative, a temperature positive; got"
                f" {value}"
            )
    return {**known, **{name: value for name, value in options.items() if value is not None}}


def _pairs(images: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and logits of a detector without a model."""
    if isinstance(images, Features):
        images = (images.features, images.logits)
    given = [images] if isinstance(images, tuple) else images
    if isinstance(given, Tensor | np.ndarray) or not hasattr(given, "__iter__"):
        raise ValueError(
            "thinkback: without a model, give a pair (features, logits), got"
            f" {type(images).__name__}"
        )
    for pair in given:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError("thinkback: without a model, a batch is a pair (features, logits)")
        h, z = (torch.as_tensor(part) for part in pair)
        if z.ndim < 2 or h.shape[:-1] != z.shape[:-1]:
            raise ValueError(
                f"thinkback: features {tuple(h.shape)} and logits {tuple(z.shape)} disagree on N"
            )
        if len(z):
            yield h, torch.cat([torch.zeros_like(z), z], -1) if z.shape[-1] == 1 else z


def _rejected_classes(scores: Tensor, classes: Tensor, calibration: Calibration) -> list[str]:
    named = mostly_rejected(scores, classes, calibration.threshold)
    if not named:
        return []
    text = ", ".join(f"{name} ({count} of {size})" for name, (count, size) in named.items())
    return [
        "the promise holds on average, but most calibration images that the model takes for class "
        f'{text} are rejected; by="predicted" calibrates each class by itself'
    ]


def _head_of(facts: Mapping[str, Any], model: nn.Module | None) -> Any:
    """The name of the saved head in this model, which must be the one of the fit."""
    head, saved = facts["head"], facts.get("model")
    if (saved is None) != (model is None):
        raise ValueError(
            "the detector was fitted on arrays, without a model; load it without one"
            if saved is None
            else "the detector was fitted on a model; load(path, model) takes it"
        )
    if saved is not None and model is not None:
        if (what := difference(saved, model)) is not None:
            raise ValueError(
                f"the model is not the one it was fitted on: {what}; load that one, or fit again"
            )
        names = [head] if isinstance(head, str) else head or []
        old, new = prefix_of(saved), prefix_of(identity(model))
        renamed = [_renamed(name, old, new) for name in names]
        head = renamed[0] if isinstance(head, str) else renamed or None
        Reader(model, head)  # which says if there is no such layer
    return head


def _renamed(name: str, old: str, new: str) -> str:
    """The name of a layer under another prefix."""
    inner = f"{name}.".removeprefix(old)
    return f"{new}{inner}".removesuffix(".")
