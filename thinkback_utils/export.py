"""Classifier, score and verdict as one graph, to run where this package is not: ``torch.export`` and ONNX."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .features import find_head
from .files import replacing
from .methods import METHODS
from .passes import seeing

if TYPE_CHECKING:
    from .detector import OODDetector

OPSET, IR_VERSION = 18, 8  # onnxruntime 1.14 of 2023 and its web build read them, and all that came after
OUTPUTS = ("logits", "score", "p_value", "rejected")


class Graph(nn.Module):
    """A detector in one forward pass: of images, prepared as for the classifier, to what is said about each.

    - ``logits`` (N, K), the classifier's own;
    - ``score`` float64 (N,), higher = more OOD, that of :meth:`OODDetector.score`;
    - if the detector is calibrated, ``p_value`` float64 (N,), *lower* = more OOD, and ``rejected`` bool (N,), those of
      :meth:`OODDetector.p_value` and :meth:`OODDetector.predict`.

    The model is copied, and evaluates. Scores stay in float64, since the weights of a Fisher span many magnitudes. They
    are not checked: images that are not finite give a score that is none.

    Args:
        detector: fitted, its head known.
    """

    calibration: Tensor | None

    def __init__(self, detector: OODDetector) -> None:
        super().__init__()
        self.model, self.head = copy.deepcopy(detector.model).eval().requires_grad_(False), detector.head or ""
        self.method, self.options, self.threshold = detector.method, detector.options, detector.threshold
        self.state = nn.ParameterList(nn.Parameter(part, requires_grad=False) for part in detector._fitted())
        self.register_buffer("calibration", detector.calibration)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        with seeing({"head": self.model.get_submodule(self.head)}) as seen:
            self.model(images)
        h, z = seen["head"]
        with _Unchecked():
            score = METHODS[self.method](h.float(), z.float(), tuple(self.state), **self.options)
        if self.calibration is None:
            return {"logits": z, "score": score}
        at_least = (self.calibration >= score[:, None]).sum(1)
        p = (1 + at_least).double() / (len(self.calibration) + 1)
        return {"logits": z, "score": score, "p_value": p, "rejected": score >= self.threshold}


class _Unchecked(TorchFunctionMode):
    """What a graph cannot ask about, values and the size of a batch: no check finds a fault, all fits in one chunk."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in (Tensor.__bool__, Tensor.item):
            return False
        if function is Tensor.split:
            return (args[0],)
        if function is Tensor.__len__ and not isinstance(args[0].shape[0], int):
            return 1
        return function(*args, **(kwargs or {}))


def exported(detector: OODDetector, example: Tensor) -> torch.export.ExportedProgram:
    """:class:`Graph`, captured for any number of images like ``example``, float (N, ...); see ``OODDetector.exported``.

    >>> from thinkback_utils.detector import OODDetector
    >>> program = exported(OODDetector(nn.Linear(4, 2), method="energy"), torch.rand(1, 4))
    >>> {name: tuple(output.shape) for name, output in program.module()(torch.rand(7, 4)).items()}
    {'logits': (7, 2), 'score': (7,)}
    """
    if not example.is_floating_point():
        raise ValueError(f"thinkback: a graph reads what the classifier reads, float images; got {example.dtype}")
    if detector.head is None:
        detector.head = find_head(detector.model, example[:2])
    pair = example[:1].expand(2, *example.shape[1:])  # of one image, N would become a constant
    return torch.export.export(Graph(detector), (pair,), dynamic_shapes={"images": {0: torch.export.Dim("N")}})


def to_onnx(detector: OODDetector, path: str | Path, example: Tensor) -> None:
    """Write :func:`exported` as ONNX; see ``OODDetector.export``."""
    try:
        from onnxscript import optimizer
    except ImportError as error:
        raise ImportError("thinkback: ONNX needs more packages; pip install 'thinkback-utils[export]'") from error
    program = exported(detector, example)
    # Not optimized, which melts norms into convolutions: runtimes do so when they load, and weights that are float16
    # at heart stay so, and compress.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
        made: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=OUTPUTS[: len(program.graph_signature.user_outputs)],
            dynamic_shapes={"images": {0: "N"}},  # its name in the file
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    optimizer.fold_constants(made.model)
    optimizer.remove_unused_nodes(made.model)
    made.model.ir_version = IR_VERSION
    made.model.metadata_props["thinkback_detector"] = json.dumps(detector._facts() | {"opset": OPSET})
    with replacing(path) as temporary:
        made.save(temporary)
