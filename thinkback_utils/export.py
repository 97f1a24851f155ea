"""Classifier, score and verdict as one graph, to run without this package: torch.export, ONNX."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batches import as_tensor, batches, dtype_of, unwrapped
from .calibration import Calibration, counted_p_value
from .files import replacing
from .heads import Head, watching
from .methods import METHODS
from .passes import Reader, evaluating

if TYPE_CHECKING:
    from .detector import OODDetector

# onnxruntime 1.14 of 2023 and its web build read these two, and all that came after
OPSET = 18
IR_VERSION = 8
OUTPUTS = ("logits", "score", "p_value", "rejected")


class Graph(nn.Module):
    """A detector as one module, from images, prepared as for the classifier, to its outputs.

    - ``logits`` (N, K), the classifier's own;
    - ``score`` float64 (N,), higher = more OOD, that of :meth:`OODDetector.score`;
    - if the detector is calibrated, ``p_value`` float64 (N,), *lower* = more OOD, and ``rejected``
      bool (N,), those of :meth:`OODDetector.p_value` and :meth:`OODDetector.predict`.

    The model is copied, and evaluates. Scores stay in float64, since the weights of a Fisher span
    many magnitudes. They are not checked: images that are not finite give a score that is none. A
    given mean and std are part of the graph.

    Args:
        detector: fitted.
        head: as a pass of the model found it.
    """

    calibration: Tensor | None
    mean: Tensor | None
    std: Tensor | None

    def __init__(self, detector: OODDetector, head: Head) -> None:
        super().__init__()
        if detector.state is None or detector.model is None:
            raise ValueError(
                "thinkback: a graph is of a model and a fitted detector; call fit(training_images)"
                " first"
            )
        model = copy.deepcopy(unwrapped(detector.model)).eval().requires_grad_(False)
        self.model, self.head, self.layers = model, head, dict(model.named_modules())
        self.method, self.options = detector.method, detector.options
        self.threshold = detector.threshold
        self.kind = METHODS[detector.method].kind
        self.state = nn.ParameterList(
            nn.Parameter(part, requires_grad=False) for part in detector.state
        )
        known = detector.calibration
        if known is not None and not isinstance(known, Calibration):
            raise ValueError(
                "thinkback: a graph has one threshold, and the detector was calibrated by group;"
                " calibrate anew"
            )
        self.calibrated = known is not None
        self.register_buffer(
            "calibration", known.scores if known is not None and len(known.scores) else None
        )
        for name in ("mean", "std"):
            values = getattr(detector.pixels, name)
            self.register_buffer(
                name, None if values is None else torch.tensor(values)[:, None, None]
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        if self.mean is not None and self.std is not None:
            images = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        with watching({name: self.layers[name] for name in self.head.names}) as runs:
            returned = self.model(images)
        h, z = self.head.read(runs, returned, self.layers, check=False)
        if h.ndim != 2:
            raise ValueError(
                "thinkback: a graph scores whole images, and this model classifies tokens or"
                f" pixels: its features are {tuple(h.shape)}; score them with the detector"
            )
        state = self.kind(*self.state)
        score = METHODS[self.method].unchecked(h.float(), z.float(), state, **self.options)
        out = {"logits": z, "score": score}
        if self.calibration is not None:
            out["p_value"] = counted_p_value(self.calibration, score)
        return out | {"rejected": score >= self.threshold} if self.calibrated else out


def _outputs(detector: OODDetector) -> list[str]:
    known = detector.calibration
    if known is None:
        return ["logits", "score"]
    counted = len(getattr(known, "scores", ()))  # none where the threshold was set by hand
    return [name for name in OUTPUTS if counted or name != "p_value"]


def exported(detector: OODDetector, example: Tensor | NDArray[Any]) -> torch.export.ExportedProgram:
    """:class:`Graph`, captured for any number of images; see ``OODDetector.exported``.

    Images are like ``example``, float (N, ...).

    >>> from thinkback_utils.detector import OODDetector
    >>> program = exported(OODDetector(nn.Linear(4, 2), method="energy"), torch.rand(1, 4))
    >>> {name: tuple(output.shape) for name, output in program.module()(torch.rand(7, 4)).items()}
    {'logits': (7, 2), 'score': (7,)}
    """
    example = as_tensor(example)
    if not example.is_floating_point():
        raise ValueError(
            f"thinkback: a graph reads what the classifier reads, float images; got {example.dtype}"
        )
    if detector.forward is not None:
        raise ValueError(
            "thinkback: a graph calls the model as model(x), and the detector has a forward hook"
        )
    if detector.model is None:
        raise ValueError(
            "thinkback: a graph holds the model, and the detector has none; fit one around the"
            " model"
        )
    reader = Reader(detector.model, detector.head)
    with torch.no_grad(), evaluating(reader.model):
        head = reader.find(next(batches(example[:2], reader.model, pixels=detector.pixels)))
    detector.head = head.name
    pair = example[:1].expand(2, *example.shape[1:])  # of one image, N would become a constant
    return torch.export.export(
        Graph(detector, head), (pair,), dynamic_shapes={"images": {0: torch.export.Dim("N")}}
    )


def to_onnx(detector: OODDetector, path: str | Path, example: Tensor | NDArray[Any]) -> None:
    """Write :func:`exported` as ONNX; see ``OODDetector.export``."""
    try:
        from onnxscript import optimizer
    except ImportError as error:
        raise ImportError(
            "thinkback: ONNX needs more packages; pip install 'thinkback-utils[export]'"
        ) from error
    model = detector.model
    if model is not None and dtype_of(model) == torch.bfloat16:  # runtimes lack operators for it
        detector, example = copy.copy(detector), as_tensor(example).float()
        detector.model = copy.deepcopy(unwrapped(model)).float()
    program = exported(detector, example)
    # Not optimized, which would fold norms into the convolutions before them: runtimes do so when
    # they load, and weights whose values fit in float16 keep them, and compress.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
        made: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=_outputs(detector),
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
    made.model.metadata_props["thinkback_detector"] = json.dumps(
        detector.facts() | {"opset": OPSET}
    )
    with replacing(path) as temporary:
        made.save(temporary)
