"""The detector in the clothes of other libraries: pytorch-ood, OpenOOD and scikit-learn call it as one of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import conformal_threshold
from .data import import_torchvision
from .detector import OODDetector
from .methods import METHODS, Options, State

try:
    import_torchvision()  # pytorch-ood would import it plainly
    from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
except ImportError:  # the other two do without it
    FeaturesDetector = object


class ThinkbackDetector(FeaturesDetector):  # type: ignore[misc]
    """For pytorch-ood: an :class:`OODDetector` whose model is the head alone, behind that library's encoder.

    As there, scores are higher = more OOD, samples with labels < 0 are not fitted on, and the encoder runs as it is:
    call ``model.eval()`` first. ``GridSearch`` can try values of the options.

    Args:
        encoder: images to features (B, D); None where features alone come in.
        head: the ``nn.Linear`` from features to logits (B, K).
        method, options: as in :class:`OODDetector`.

    Raises:
        ImportError: without pytorch-ood.
        ValueError: on an unknown method or option, as :class:`OODDetector` does.

    >>> head = nn.Linear(4, 4, bias=False)
    >>> _ = nn.init.eye_(head.weight)  # so that features are logits
    >>> detector = ThinkbackDetector(nn.Flatten(), head).fit_features(torch.rand(999, 4), torch.zeros(999))
    >>> detector(torch.rand(5, 2, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor] | None,
        head: nn.Module,
        method: str = "thinkback_averaged",
        **options: Any,
    ) -> None:
        if FeaturesDetector is object:
            raise ImportError("thinkback: ThinkbackDetector needs pytorch-ood; pip install 'thinkback-utils[peers]'")
        super().__init__()
        self.encoder, self.head = encoder, head  # where the library looks for what it moves and caches
        self.detector = OODDetector(head, method=method, **options)
        self.requires_fit = self.detector.state is None

    def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]], device: str | None = None) -> ThinkbackDetector:
        """Fit on batches (images, labels), which stream; ``device``: where encoder and head go first, if given."""
        if device is not None:
            self.to(device)
        self.detector.fit(self._encode(x[y >= 0]) for x, y in data_loader if (y >= 0).any())
        return self

    def fit_features(self, x: Tensor, y: Tensor) -> ThinkbackDetector:
        """Fit on features (N, D) and labels (N,)."""
        self.detector.fit(x.detach()[(y >= 0).to(x.device)])
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Scores of images, float64 (B,), higher = more OOD."""
        return self.predict_features(self._encode(x))

    def predict_features(self, x: Tensor) -> Tensor:
        """Scores of features (B, D), float64 (B,), higher = more OOD."""
        if self.detector.state is None:
            raise RequiresFittingException("thinkback: the detector is not fitted; call fit or fit_features first")
        return self.detector.score(x.detach()).to(x.device)

    def get_hyperparameters(self) -> dict[str, Any]:
        """Values of the options in ``hyperparameter_space``."""
        return {name: self.detector.options[name] for name in self.hyperparameter_space}

    def set_hyperparameters(self, **options: Any) -> ThinkbackDetector:
        """Change options; the detector has to be fitted again."""
        old = self.detector
        self.detector = OODDetector(self.head, method=old.method, **{**old.options, **options})
        return self

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        if self.encoder is None:
            raise ModelNotSetException("thinkback: there is no encoder; call fit_features and predict_features")
        return self.encoder(x.to(self.device)).flatten(1)


class ThinkbackPostprocessor:
    """For OpenOOD: what :class:`OODDetector` does, on the logits and features that an OpenOOD network returns.

    Its ``OODEvaluator`` takes any class of this shape. Its ``Evaluator`` asks for OpenOOD's own base class as well:
    ``class Thinkback(ThinkbackPostprocessor, BasePostprocessor): pass``.

    Args:
        config: OpenOOD's; ``config.postprocessor.postprocessor_args`` holds ``method`` and its options, or nothing.

    Raises:
        ValueError: on an unknown method or option, as :class:`OODDetector` does.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(postprocessor=SimpleNamespace(postprocessor_args={"method": "energy"}))
    >>> net = nn.Linear(2, 2)
    >>> net.forward = lambda x, return_feature=False: (x, x)
    >>> ThinkbackPostprocessor(config).postprocess(net, torch.tensor([[0.0, 9.0]]))  # class 1, confidence = -score
    (tensor([1]), tensor([9.0001], dtype=torch.float64))
    """

    APS_mode = False  # OpenOOD's automatic parameter search

    def __init__(self, config: Any) -> None:
        self.config = config
        chosen = OODDetector(nn.Identity(), **(config.postprocessor.postprocessor_args or {}))
        self.method, self.options, self.state = METHODS[chosen.method], chosen.options, chosen.state

    def setup(self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]) -> None:
        """Fit on ``id_loader_dict["train"]``, batches of which stream; OOD data are not looked at."""
        net.eval()
        self.state = self.method.fit((_pass(net, batch["data"]) for batch in id_loader_dict["train"]), **self.options)

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes int64 (B,) and confidences float64 (B,): minus the score, *lower* = more OOD."""
        if self.state is None:
            raise ValueError("thinkback: the post-processor is not fitted; call setup(net, id_loader_dict, ...) first")
        features, logits = _pass(net, data)
        return logits.argmax(1), -self.method(features, logits, self.state, **self.options)

    def inference(
        self, net: nn.Module, data_loader: Iterable[Mapping[str, Tensor]], progress: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Classes, confidences and labels of all batches, (N,) each."""
        batches = tqdm(data_loader, disable=not progress)
        rows = [(*self.postprocess(net, batch["data"]), batch["label"]) for batch in batches]
        preds, confs, labels = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
        return preds, confs, labels


@torch.no_grad()
def _pass(net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
    logits, features = net(data.to(next(net.parameters()).device), return_feature=True)
    return features, logits


class ThinkbackEstimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """For scikit-learn: what :class:`OODDetector` does, on a matrix instead of images.

    A row is ``np.hstack([features, logits])``. One random half of X is fitted on, the other calibrates, so rows like
    those of X are called outliers at a rate of at most ``alpha``: the promise of :func:`conformal_threshold`. It is
    about new data only if the network was not trained on X.

    Args:
        n_classes: the last so many columns are logits; 1 is the logit z of a sigmoid, which counts as logits (0, z).
        method: a key of ``methods.METHODS``.
        alpha: largest rate of false alarms, in (0, 1).
        temperature, eps, damping: options of the method; its defaults when None.

    Attributes:
        offset_: rows with ``score_samples < offset_`` are outliers; the same as ``-score_samples >=`` the threshold.

    Raises:
        ValueError: of scikit-learn on a bad X; on no n_classes, an unknown method or option; on too few rows for alpha.

    >>> logits = np.random.default_rng(0).normal(size=(402, 3)) + 9 * np.tile(np.eye(3), (134, 1))
    >>> estimator = ThinkbackEstimator(n_classes=3, alpha=0.1).fit(np.hstack([logits, logits]))
    >>> estimator.predict([[9, 0, 0, 9, 0, 0], [3, 3, 3, 3, 3, 3]])  # 1: inlier, -1: outlier
    array([ 1, -1])
    """

    def __init__(
        self,
        n_classes: int = 0,
        method: str = "thinkback_averaged",
        alpha: float = 0.05,
        temperature: float | None = None,
        eps: float | None = None,
        damping: float | None = None,
    ) -> None:
        self.n_classes, self.method, self.alpha = n_classes, method, alpha
        self.temperature, self.eps, self.damping = temperature, eps, damping

    def fit(self, X: Any, y: Any = None) -> ThinkbackEstimator:
        """Fit on half of the in-distribution rows X (N, D + n_classes), calibrate on the other; y is ignored."""
        if self.n_classes < 1:
            raise ValueError(f"thinkback: n_classes says how many of the last columns are logits; got {self.n_classes}")
        options: Options = {"temperature": self.temperature, "eps": self.eps, "damping": self.damping}
        given = {name: value for name, value in options.items() if value is not None}
        self.options_: Options = OODDetector(nn.Identity(), method=self.method, **given).options
        rows = validate_data(self, X, dtype=np.float64, ensure_min_features=self.n_classes + 1, ensure_min_samples=2)
        fitted, held_out = train_test_split(rows, test_size=0.5, random_state=0)
        self.state_: State = METHODS[self.method].fit([self._split(fitted)], **self.options_)
        threshold = conformal_threshold(self._score(held_out), self.alpha)
        self.offset_: float = -math.nextafter(threshold, -math.inf)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Minus the score of each row, float64 (N,), *lower* = more OOD."""
        check_is_fitted(self)
        return -self._score(validate_data(self, X, dtype=np.float64, reset=False)).numpy()

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - offset_``, negative = outlier."""
        decision: NDArray[np.float64] = self.score_samples(X) - self.offset_
        return decision

    def predict(self, X: Any) -> NDArray[np.int64]:
        """1 for inliers and -1 for outliers, int64 (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _split(self, rows: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        h, z = torch.tensor(rows).tensor_split([-self.n_classes], 1)
        return h, torch.cat([torch.zeros_like(z), z], 1) if self.n_classes == 1 else z

    def _score(self, rows: NDArray[np.float64]) -> Tensor:
        return METHODS[self.method](*self._split(rows), self.state_, **self.options_)
