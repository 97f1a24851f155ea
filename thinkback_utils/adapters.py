"""The detector with the interfaces of pytorch-ood, OpenOOD and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import minimum_scores
from .checks import FitData
from .commands import warn
from .data import import_torchvision
from .detector import OODDetector, checked_options
from .methods import METHODS, State

try:
    import_torchvision()  # pytorch-ood would import it plainly
    from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
except ImportError:  # the other two do without it
    FeaturesDetector = object


class ThinkbackDetector(FeaturesDetector):  # type: ignore[misc]
    """For pytorch-ood: an :class:`OODDetector` with the interface of its detectors.

    Its benchmark, metrics and ``GridSearch`` take it. Of any classifier,
    ``ThinkbackDetector(model)`` finds the head itself. Beside it stands the form of that library's
    own detectors of features, ``ThinkbackDetector(encoder, head)``, where its tools run the encoder
    once for several detectors. As there, scores are higher = more OOD and samples with labels < 0
    are not fitted on. A whole classifier runs in evaluation mode; an encoder runs as it is, so call
    ``model.eval()`` first.

    Args:
        encoder: without ``head``, the whole classifier; with it, what makes features (B, D) of
            images, as ``model.features`` does; None where features alone come in.
        head: the last layer, from features to logits (B, K); or its name in the whole classifier;
            found when None.
        method, options: as in :class:`OODDetector`.

    Raises:
        ImportError: without pytorch-ood.
        ModelNotSetException: of that library, a ValueError, without both encoder and head.
        ValueError: if there is no head and the encoder is no ``nn.Module``; on an unknown method or
            option, as :class:`OODDetector` does.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    >>> _ = nn.init.eye_(model[1].weight)  # so that each class is predicted
    >>> x = torch.rand(999, 2, 2) + 9 * torch.eye(4).repeat(250, 1)[:999].view(-1, 2, 2)
    >>> loader = [(x, x.flatten(1).argmax(1))]
    >>> ThinkbackDetector(model, damping=1.0).fit(loader)(torch.rand(5, 2, 2)).shape
    torch.Size([5])
    >>> encoder, head = model
    >>> ThinkbackDetector(encoder, head, damping=1.0).fit(loader)(torch.rand(5, 2, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor] | None,
        head: nn.Module | str | None = None,
        method: str = "thinkback_averaged",
        **options: Any,
    ) -> None:
        if FeaturesDetector is object:
            raise ImportError(
                "thinkback: ThinkbackDetector needs pytorch-ood; pip install"
                " 'thinkback-utils[peers]'"
            )
        super().__init__()
        # the library moves these to a device, and may run the encoder once for several detectors
        self.model: nn.Module | None = None
        self.encoder: Callable[[Tensor], Tensor] | None = None
        self.head: nn.Module | None = None
        if isinstance(head, nn.Module):
            self.encoder, self.head = encoder, head
            self._new = partial(OODDetector, head, method=method, **options)
        elif encoder is None:
            raise ModelNotSetException(
                "thinkback: there is neither encoder nor head; pass a classifier, or its head"
            )
        elif isinstance(encoder, nn.Module):
            self.model = encoder
            self._new = partial(OODDetector, encoder, head, method=method, **options)
        else:
            raise ValueError(
                "thinkback: without its head, a whole classifier is needed, an nn.Module; got"
                f" {type(encoder).__name__}. Pass the layer that makes logits of its features, too"
            )
        self.detector = self._new()
        self.requires_fit = self.detector.state is None
        if "temperature" in self.detector.options:
            self.hyperparameter_space = {"temperature": [0.5, 1.0, 2.0, 3.0, 5.0, 10.0]}

    def fit(
        self, data_loader: Iterable[tuple[Any, Tensor]], device: str | None = None
    ) -> ThinkbackDetector:
        """Fit on batches (images, labels), which stream.

        ``device``: where the networks go first, if given. Where labels are maps, of pixels, an
        image with a label < 0 in it is left out.
        """
        if device is not None:
            self.to(device)
        self.detector.fit(_known(data_loader, self._encode if self.model is None else None))
        return self

    def fit_features(self, x: Tensor, y: Tensor) -> ThinkbackDetector:
        """Fit on features (N, D) and labels (N,), in the form (encoder, head)."""
        self._needs_head()
        self.detector.fit(_known([(x.detach(), y)]))
        return self

    def predict(self, x: Any) -> Tensor:
        """Scores of images, float64 (B,), or (B, H, W) where logits are maps; higher = more OOD."""
        if self.model is None:
            return self.predict_features(self._encode(x))
        return self._score(x)

    def predict_features(self, x: Tensor) -> Tensor:
        """Scores of features (B, D), float64 (B,), higher = more OOD: the form (encoder, head)."""
        self._needs_head()
        return self._score(x.detach())

    def get_hyperparameters(self) -> dict[str, Any]:
        """Values of the options in ``hyperparameter_space``."""
        return {name: self.detector.options[name] for name in self.hyperparameter_space}

    def set_hyperparameters(self, **options: Any) -> ThinkbackDetector:
        """Change options; the detector has to be fitted again."""
        new = partial(self._new, **options)
        self.detector, self._new = new(), new
        return self

    def _score(self, x: Any) -> Tensor:
        if self.detector.state is None:
            raise RequiresFittingException(
                "thinkback: the detector is not fitted; call fit or fit_features first"
            )
        return self.detector.score(x).to(getattr(x, "device", "cpu"))

    def _needs_head(self) -> None:
        if self.head is None:
            raise ModelNotSetException(
                "thinkback: for features alone, make it as ThinkbackDetector(None, head)"
            )

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        if self.encoder is None:
            raise ModelNotSetException(
                "thinkback: there is no encoder; call fit_features and predict_features"
            )
        h = self.encoder(x.to(self.device))
        wanted = getattr(self.head, "in_features", None)
        if wanted is not None and h.flatten(1).shape[1] != wanted:
            raise ValueError(
                f"thinkback: the encoder gives {tuple(h.shape)}, the head reads {wanted} features"
                " of each image; pool them in the encoder, or pass the whole classifier alone:"
                " ThinkbackDetector(model)"
            )
        return h.flatten(1)


def _known(
    batches: Iterable[tuple[Any, Tensor]], encode: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Any]:
    """Batches without the samples that are marked as OOD, by a label < 0.

    Inputs of the model and, where there is one each, labels.
    """
    for x, y in batches:
        labels = torch.as_tensor(y)
        known = (labels >= 0).reshape(len(labels), -1).all(1)
        if not known.any():
            continue
        if not known.all():
            x, labels = x[known.to(x.device)], labels[known]
        read = x if encode is None else encode(x)
        yield (read, labels) if isinstance(read, Tensor) and labels.ndim == 1 else read


class ThinkbackPostprocessor:
    """For OpenOOD: what :class:`OODDetector` does, as a post-processor.

    It works on the logits and features that an OpenOOD network returns. It has all that OpenOOD 1.5
    asks of a post-processor: ``setup``, ``postprocess`` and ``inference`` with the arguments of
    ``BasePostprocessor``, and ``APS_mode``, ``args_dict``, ``set_hyperparam``, ``get_hyperparam``
    and ``hyperparam_search_done`` for the automatic parameter search. Its ``OODEvaluator`` takes
    any such class. Its ``Evaluator`` asks for OpenOOD's own base class as well; then write
    ``class Thinkback(ThinkbackPostprocessor, BasePostprocessor): pass``.

    Args:
        config: OpenOOD's; None: defaults. In ``config.postprocessor``, ``postprocessor_args`` holds
            ``method`` and its options, or nothing; ``postprocessor_sweep`` lists values of options
            that the search tries, such as ``{"temperature_list": [1, 3, 5]}``; ``APS_mode``
            switches the search on.

    Raises:
        ValueError: on an unknown method or option, as :class:`OODDetector` does; on a search
            without a sweep.

    >>> from types import SimpleNamespace as Config
    >>> config = Config(postprocessor=Config(postprocessor_args={"method": "energy"}))
    >>> net = nn.Linear(2, 2)
    >>> net.forward = lambda x, return_feature=False: (x, x)
    >>> processor = ThinkbackPostprocessor(config)
    >>> processor.postprocess(net, torch.tensor([[0.0, 9.0]]))  # class 1, confidence = -score
    (tensor([1]), tensor([9.0001], dtype=torch.float64))
    """

    hyperparam_search_done = False  # set by OpenOOD

    def __init__(self, config: Any = None) -> None:
        self.config = config
        part = _entry(config, "postprocessor")
        given = {"method": "thinkback_averaged", **(_entry(part, "postprocessor_args") or {})}
        self.method = given.pop("method")
        self.options = checked_options(self.method, given)
        self.state: State | None = None
        self.APS_mode = bool(_entry(part, "APS_mode"))
        self.args_dict: Mapping[str, list[Any]] = _entry(part, "postprocessor_sweep") or {}
        if self.APS_mode and not self.args_dict:
            raise ValueError(
                "thinkback: APS_mode searches the values in postprocessor_sweep, and there are none"
            )
        for name, values in self.args_dict.items():
            for value in values:  # checked now, not after an hour of scoring
                checked_options(self.method, {_option(name): value})
        # by temperature: the other options need no further pass
        self._fishers: dict[float, Any] = {}
        if METHODS[self.method].fisher is None:
            self._choose()

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Fit on ``id_loader_dict["train"]``, batches of which stream; OOD data are not looked at.

        Warns:
            UserWarning: if these data look wrong for the network, as :meth:`OODDetector.fit` does.
        """
        method = METHODS[self.method]
        net.eval()
        if method.fisher is None:
            return
        sweep = {_option(name): values for name, values in self.args_dict.items()}
        temperatures = {self.options["temperature"], *sweep.get("temperature", [])}
        self._fishers = {temperature: method.fisher(temperature) for temperature in temperatures}
        seen = FitData()
        for batch in id_loader_dict["train"]:
            features, logits = _pass(net, batch["data"])
            seen.update(features, logits, batch.get("label"))
            for fisher in self._fishers.values():
                fisher.update(method.inputs(features), logits)
        for fisher in self._fishers.values():
            fisher.all_reduce()
        self._choose()
        warn(seen.all_reduce().remarks(silent=self.options["damping"] == 0))

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Classes int64 (B,) and confidences float64 (B,): minus the score, *lower* = more OOD."""
        if self.state is None:
            raise ValueError(
                "thinkback: the post-processor is not fitted; call setup(net, id_loader_dict, ...)"
                " first"
            )
        features, logits = _pass(net, data)
        return logits.argmax(1), -METHODS[self.method](features, logits, self.state, **self.options)

    def inference(
        self, net: nn.Module, data_loader: Iterable[Mapping[str, Tensor]], progress: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Classes, confidences and labels of all batches, (N,) each."""
        batches = tqdm(data_loader, disable=not progress)
        rows = [(*self.postprocess(net, batch["data"]), batch["label"]) for batch in batches]
        if not rows:
            raise ValueError(
                "thinkback: there is no image, data_loader is empty; was a generator read before?"
            )
        preds, confs, labels = (
            torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True)
        )
        return preds, confs, labels.astype(int)

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Values of the options in ``args_dict``, in its order; what ``setup`` summed stays.

        Raises:
            ValueError: on another number of values.
        """
        if len(hyperparam) != len(self.args_dict):
            raise ValueError(
                f"thinkback: a value is needed for each of {list(self.args_dict)}, got {hyperparam}"
            )
        self.options |= {
            _option(name): value for name, value in zip(self.args_dict, hyperparam, strict=True)
        }
        self._choose()

    def get_hyperparam(self) -> list[Any]:
        """The values that :meth:`set_hyperparam` takes."""
        return [self.options[_option(name)] for name in self.args_dict]

    def _choose(self) -> None:
        method = METHODS[self.method]
        if method.fisher is None:
            self.state = method.state(None, self.options)
            return
        fisher = self._fishers.get(self.options["temperature"])  # None: set up again for it
        self.state = None if fisher is None else method.state(fisher, self.options)


def _option(name: str) -> str:
    """The option that OpenOOD's ``postprocessor_sweep`` calls, by its custom, ``<option>_list``."""
    return name.removesuffix("_list")


def _entry(config: Any, name: str) -> Any:
    """A value of OpenOOD's configuration, which raises KeyError where it lacks one."""
    try:
        return getattr(config, name, None)
    except KeyError:
        return None


@torch.no_grad()
def _pass(net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
    logits, features = net(data.to(next(net.parameters()).device), return_feature=True)
    return features, logits


class ThinkbackEstimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """For scikit-learn: what :class:`OODDetector` does, on a matrix instead of images.

    A row is ``np.hstack([features, logits])``, or the logits alone. One random half of X is fitted
    on, the other calibrates, so rows like those of X are called outliers at a rate of at most
    ``alpha``: the promise of :func:`conformal_threshold`. It is about new data only if the network
    was not trained on X; where it was, :meth:`calibrate` on other rows afterwards. There is no
    ``contamination``, because X is taken as in-distribution: ``alpha`` is a rate of false alarms
    among such rows, not a fraction of outliers in X.

    Args:
        n_classes: the last so many columns are logits; None: all are, and they serve as the
            features, too. One column of logits is the logit z of a sigmoid, which counts as logits
            (0, z).
        method: a key of ``methods.METHODS``.
        alpha: largest rate of false alarms, in (0, 1).
        temperature, eps, damping: options of the method; None: not given, its default.

    Attributes:
        offset_: rows with ``score_samples < offset_`` are outliers; the same as
            ``-score_samples >=`` the threshold. ``-inf`` where there were too few rows for alpha:
            then nothing is an outlier.

    Raises:
        ValueError: of scikit-learn on a bad X; if n_classes leaves no feature; on an unknown method
            or option, or an alpha out of range.

    Warns:
        UserWarning: if there are too few rows for alpha, and how many it takes; and as
            :class:`OODDetector` does, which fits and calibrates.

    >>> logits = np.random.default_rng(0).normal(size=(402, 3)) + 9 * np.tile(np.eye(3), (134, 1))
    >>> estimator = ThinkbackEstimator(n_classes=3, alpha=0.1).fit(np.hstack([logits, logits]))
    >>> estimator.predict([[9, 0, 0, 9, 0, 0], [3, 3, 3, 3, 3, 3]])  # 1: inlier, -1: outlier
    array([ 1, -1])
    >>> ThinkbackEstimator(alpha=0.1).fit(logits).predict([[9, 0, 0], [3, 3, 3]])
    array([ 1, -1])
    """

    def __init__(
        self,
        n_classes: int | None = None,
        method: str = "thinkback_averaged",
        alpha: float = 0.05,
        temperature: float | None = None,
        eps: float | None = None,
        damping: float | None = None,
    ) -> None:
        self.n_classes, self.method, self.alpha = n_classes, method, alpha
        self.temperature, self.eps, self.damping = temperature, eps, damping

    def fit(self, X: Any, y: Any = None) -> ThinkbackEstimator:
        """Fit on half of the in-distribution rows X (N, D + n_classes), calibrate on the other.

        The labels y are ignored.
        """
        if self.n_classes is not None and not (
            isinstance(self.n_classes, Integral) and self.n_classes >= 1
        ):
            raise ValueError(
                "thinkback: n_classes says how many of the last columns are logits, 1 or more, or"
                f" None for all; got {self.n_classes!r}"
            )
        minimum_scores(self.alpha)  # which checks it
        options = {"temperature": self.temperature, "eps": self.eps, "damping": self.damping}
        given: dict[str, Any] = {n: value for n, value in options.items() if value is not None}
        detector = OODDetector(method=self.method, **given)
        least = (self.n_classes or 0) + 1
        rows = validate_data(
            self, X, dtype=np.float64, ensure_min_features=least, ensure_min_samples=2
        )
        fitted, held_out = train_test_split(rows, test_size=0.5, random_state=0)
        self.detector_ = detector.fit(self._split(fitted))
        return self._calibrate(held_out)

    def calibrate(self, X: Any) -> ThinkbackEstimator:
        """Set ``offset_`` by other in-distribution rows X (N, D + n_classes), all of them.

        What was fitted stays.
        """
        check_is_fitted(self)
        return self._calibrate(validate_data(self, X, dtype=np.float64, reset=False))

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Minus the score of each row, float64 (N,), *lower* = more OOD."""
        check_is_fitted(self)
        return -self.detector_.score(
            self._split(validate_data(self, X, dtype=np.float64, reset=False))
        ).numpy()

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - offset_``, negative = outlier."""
        decision: NDArray[np.float64] = self.score_samples(X) - self.offset_
        return decision

    def predict(self, X: Any) -> NDArray[np.int64]:
        """1 for inliers and -1 for outliers, int64 (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _calibrate(self, rows: NDArray[np.float64]) -> ThinkbackEstimator:
        needed = minimum_scores(self.alpha)
        if len(rows) < needed:
            takes = f"alpha={self.alpha} takes at least {needed} rows to calibrate on"
            fit = f"fit, which calibrates on one half, takes {2 * needed - 1}"
            got = f"{takes}, got {len(rows)}; nothing is called an outlier, and {fit}"
            warn([got])
            self.offset_: float = -math.inf
        else:
            self.detector_.calibrate(self._split(rows), self.alpha)
            self.offset_ = -math.nextafter(self.detector_.threshold, -math.inf)
        return self

    def _split(self, rows: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Features and logits; the detector takes a lone logit for that of a sigmoid."""
        whole = torch.tensor(rows)
        if self.n_classes is None:
            return whole, whole
        return whole[:, : -self.n_classes], whole[:, -self.n_classes :]
