"""Training of the classifier: resumable after a kill, the same code on a CPU core and on a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from thinkback_utils.commands import Parser, run_main
from thinkback_utils.data import ImageSet, load
from thinkback_utils.devices import has_fast_bfloat16, process_device
from thinkback_utils.features import extract
from thinkback_utils.files import read_json, replacing, write_json
from thinkback_utils.models import WideResNet, last_line, read_tensors
from thinkback_utils.passes import evaluating

from .provenance import describe

Anneal = Literal["cosine", "linear"]
Flip = Literal["random", "alternating", "off"]
Amp = Literal["auto", "off"]
CHOICES = {"anneal": get_args(Anneal), "flip": get_args(Flip), "amp": get_args(Amp)}
# Of each number: in words, and the test that it must pass.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "depth": (
        "must be 6n + 4 with n >= 1 (10, 16, 22, 28, 40)",
        lambda value: value >= 10 and value % 6 == 4,
    ),
    "width": ("must be positive", lambda value: value > 0),
    "dropout": ("is a probability in [0, 1)", lambda value: 0 <= value < 1),
    "epochs": ("must be positive", lambda value: value > 0),
    "batch_size": ("must be positive", lambda value: value > 0),
    "peak_lr": ("must be positive and finite", lambda value: 0 < value < math.inf),
    "warmup": ("is a fraction in [0, 1)", lambda value: 0 <= value < 1),
    "momentum": ("is a fraction in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": ("must be finite and not negative", lambda value: 0 <= value < math.inf),
    # 2**46 times 100,003 is still an int64
    "seed": ("must be in [0, 2**46)", lambda value: 0 <= value < 2**46),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the final weights, saved as JSON beside them.

    The defaults are the ``reference`` recipe. A field's comment gives the reason for its value.
    """

    depth: int = 40  # the paper gives no size; its Softmax row fits Outlier Exposure's WRN-40-2
    width: int = 2
    dropout: float = 0.3  # as in that baseline; 0 in short recipes, which underfit
    epochs: int = 100
    batch_size: int = 128
    peak_lr: float = 0.1
    warmup: float = 0.0  # fraction of all steps in which the rate climbs linearly to its peak
    anneal: Anneal = "cosine"  # to zero, per step
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4
    flip: Flip = "random"  # alternating: mirrored every second epoch; off: digits
    # (first epoch, image side); side 0 is the full size
    resolutions: tuple[tuple[int, int], ...] = ((0, 0),)
    amp: Amp = "auto"  # mixed precision where the hardware has it
    compile: bool = False  # pays on a GPU, and on a CPU that has a C++ compiler
    seed: int = 0

    def __post_init__(self) -> None:
        for name in RANGES:
            _check_number(name, getattr(self, name))
        _check_resolutions(self.resolutions)
        if not isinstance(self.compile, bool):
            raise ValueError(
                f"thinkback: TrainConfig.compile is True or False, got {self.compile!r}"
            )
        starts = [first for first, _ in self.resolutions]
        if not starts or starts[0] != 0 or starts != sorted(starts) or starts[-1] >= self.epochs:
            raise ValueError(
                "thinkback: TrainConfig.resolutions must start at epoch 0, rise, and end before"
                f" epoch {self.epochs}, got {self.resolutions}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"thinkback: TrainConfig.{name} is one of {choices}, got"
                    f" {getattr(self, name)!r}"
                )

    def override(self, **fields: Any) -> TrainConfig:
        """The same recipe with other fields; another number of epochs stretches its stages."""
        if "epochs" in fields:
            _check_number("epochs", fields["epochs"])
            stretch, last = fields["epochs"] / self.epochs, fields["epochs"] - 1
            stretched = tuple(
                (min(round(first * stretch), last), side) for first, side in self.resolutions
            )
            fields.setdefault("resolutions", stretched)
        return dataclasses.replace(self, **fields)

    def side(self, epoch: int, full: int) -> int:
        """Side of the training images in that epoch, in pixels."""
        return [side for first, side in self.resolutions if first <= epoch][-1] or full

    def lr(self, step: int, total: int) -> float:
        """Learning rate of that optimizer step of ``total``."""
        climb = self.warmup * total
        if step < climb:
            return self.peak_lr * (step + 1) / climb
        left = (total - step) / (total - climb)
        share = left if self.anneal == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.peak_lr * share


def _check_number(name: str, value: object) -> None:
    whole = isinstance(getattr(TrainConfig, name), int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number (int)" if whole else "a number (float)"
        raise ValueError(f"thinkback: TrainConfig.{name} is {kind}, got {value!r}")
    words, inside = RANGES[name]
    if not inside(value):
        raise ValueError(f"thinkback: TrainConfig.{name} {words}, got {value!r}")


def _check_resolutions(stages: object) -> None:
    paired = isinstance(stages, tuple | list) and all(
        isinstance(stage, tuple | list)
        and len(stage) == 2
        and all(isinstance(value, int) for value in stage)
        for stage in stages
    )
    if not paired or any(side < 0 for _, side in stages):  # type: ignore[attr-defined]
        raise ValueError(
            "thinkback: TrainConfig.resolutions is a tuple of pairs (first epoch, image side), no"
            f" side negative; got {stages!r}"
        )


# For two CPU cores. There is no dropout, since so few epochs underfit. The images are small at
# first: an epoch at 16 px costs a quarter of one at full size.
_CPU = TrainConfig(
    epochs=23,
    dropout=0.0,
    peak_lr=0.2,
    warmup=0.2,
    anneal="linear",
    flip="alternating",
    resolutions=((0, 16), (6, 24), (11, 0)),
)
RECIPES: dict[str, TrainConfig] = {
    "reference": TrainConfig(),
    "cpu": _CPU,
    # Shorter, of a smaller network: an hour on one core, for the spread over seeds.
    "cpu-wrn16": dataclasses.replace(_CPU, depth=16, epochs=15),
    # Seconds, on scikit-learn's digits, which a mirror would turn into other signs.
    "smoke": TrainConfig(
        depth=10,
        width=1,
        dropout=0.0,
        epochs=8,
        batch_size=32,
        warmup=0.2,
        anneal="linear",
        flip="off",
        resolutions=((0, 16), (6, 0)),
    ),
}


@dataclass
class History:
    """By epoch: mean loss, accuracy on the augmented batches, seconds."""

    loss: list[float]
    accuracy: list[float]
    seconds: list[float]


def fit(
    model: nn.Module,
    data: ImageSet,
    config: TrainConfig,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    keep_epochs: bool = False,
) -> History:
    """Train ``model`` in place with SGD on cross-entropy; resume from ``checkpoint`` if it exists.

    Shuffling, augmentation and dropout are functions of (seed, epoch), so a run that was killed and
    resumed ends in the same weights as one that was not (bit for bit on one CPU with one thread
    count).

    Args:
        model: maps images in [0, 1], float (N, 3, H, W), to logits (N, K).
        data: uint8 images (N, 3, H, W) and their labels; moved to the device once.
        config: the recipe.
        checkpoint: file written after every epoch, atomically; None keeps nothing.
        device: default is the GPU when there is one.
        progress: show loss, accuracy and time left on standard error.
        stop_after: leave after so many epochs, with the schedule of the whole run; to be continued
            from the checkpoint.
        keep_epochs: keep a copy of each epoch's checkpoint beside it, ``checkpoint-epoch03`` and so
            on, to look at the network as it learns.

    Raises:
        ValueError: if images or labels are not what they must be; if there is a label that the
            model has no logit for; if there is no compiler for ``config.compile``; or if the
            checkpoint is damaged, or belongs to another recipe, network, or set of images and
            labels.
        FloatingPointError: if the loss is no longer finite.
    """
    labels = checked_labels(data)
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"thinkback: stop_after is a number of epochs from 1 on, got {stop_after}")
    device = process_device(device)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_classes(model, data, device)
    model.train()
    optimizer = _optimizer(model, config)
    history, path = History([], [], []), Path(checkpoint) if checkpoint else None
    digest = _digest(data.images, labels) if path else ""
    if path and path.exists():
        history = _load_checkpoint(path, model, optimizer, config, digest)
    forward = _compiled(model, device) if config.compile else model
    labels, images, side = labels.to(device), data.images, -1
    steps = math.ceil(len(labels) / config.batch_size)
    scaler = torch.amp.GradScaler(device.type, enabled=_amp_dtype(config, device) == torch.float16)
    total, done = config.epochs * steps, len(history.loss) * steps
    bar = tqdm(total=total, initial=done, disable=not progress, mininterval=5.0)
    for epoch in range(len(history.loss), min(config.epochs, stop_after or config.epochs)):
        if config.side(epoch, data.images.shape[-1]) != side:
            side = config.side(epoch, data.images.shape[-1])
            images = _resize(data.images, side).to(device)
        batches = augmented_batches(images, labels, config, epoch)
        _epoch(forward, optimizer, scaler, batches, config, epoch, steps, history, bar)
        if path:
            for file in [path, epoch_file(path, epoch + 1)] if keep_epochs else [path]:
                _save_checkpoint(file, model, optimizer, config, history, digest)
    bar.close()
    model.eval()
    return history


def has_compiler() -> bool:
    """Whether there is a C++ compiler: ``torch.compile`` needs one on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _compiled(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu" and not has_compiler():
        raise ValueError(
            "thinkback: TrainConfig.compile is True, and a CPU needs a C++ compiler for it, g++ or"
            " the one that CXX names; install it, or train with --no-compile"
        )
    # a program for each shape of the input is faster than one for all shapes
    program: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return program


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        lr=config.peak_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


def checked_labels(data: ImageSet) -> Tensor:
    """The labels of a set that can be trained on, int64 (N,).

    Raises:
        ValueError: naming what is wrong with the images or the labels.
    """
    images, labels = data.images, data.labels
    where = f"the set {data.name!r}"
    if labels is None:
        raise ValueError(f"thinkback: training needs labels and {where} has none")
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, Tensor):
            raise ValueError(
                f"thinkback: {name} of {where} must be a torch tensor, got {type(values).__name__}"
            )
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"thinkback: training needs square images, uint8 (N, C, H, H), and {where} has"
            f" {images.dtype} {tuple(images.shape)}"
        )
    if not images.numel():
        raise ValueError(
            f"thinkback: {where} has no image to train on, its shape is {tuple(images.shape)}"
        )
    if (
        labels.shape != images.shape[:1]
        or labels.dtype.is_floating_point
        or labels.dtype.is_complex
    ):
        raise ValueError(
            f"thinkback: labels of {where} must be integers of shape ({len(images)},), one for each"
            f" image, got {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise ValueError(
            f"thinkback: labels of {where} must not be negative, got {int(labels.min())}"
        )
    return labels.long()


@torch.no_grad()
def _check_classes(model: nn.Module, data: ImageSet, device: torch.device) -> None:
    with evaluating(model):
        logits = model(data.images[:1].to(device).float().div_(255))
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(
            f"thinkback: the model gives {tuple(logits.shape)} for one image, training needs (1, K)"
        )
    top = int(data.labels.max())  # type: ignore[union-attr]
    if top >= logits.shape[1]:
        raise ValueError(
            f"thinkback: the set {data.name!r} has label {top}, and the model has logits for labels"
            f" 0 to {logits.shape[1] - 1} only"
        )


def _digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the images and labels of a training set, and of their shapes."""
    found = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        found.update(tensor.cpu().contiguous().numpy().data)
    return found.hexdigest()


def _epoch(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    batches: Iterator[tuple[Tensor, Tensor]],
    config: TrainConfig,
    epoch: int,
    steps: int,
    history: History,
    bar: tqdm[Any],
) -> None:
    start, seen = time.perf_counter(), 0
    device = optimizer.param_groups[0]["params"][0].device
    home = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    sums = torch.zeros(2, dtype=torch.float64, device=home)  # loss, correct
    dtype = _amp_dtype(config, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed * 100_003 + epoch)  # dropout
        for step, (x, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = config.lr(epoch * steps + step, config.epochs * steps)
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = forward(x)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            both = torch.stack([loss.detach() * len(y), (logits.argmax(1) == y).sum()])
            sums += both.to(home).double()
            seen += len(y)
            bar.update()
            if step % 20 == 0 or step == steps - 1:
                mean_loss, accuracy = (sums / seen).tolist()
                at = f"epoch {epoch + 1}/{config.epochs}"
                bar.set_postfix_str(f"{at} loss {mean_loss:.3f} acc {accuracy:.3f}", False)
                _check_loss(mean_loss, f"epoch {epoch + 1}, step {step}", config)
    history.loss.append(mean_loss)
    history.accuracy.append(accuracy)
    history.seconds.append(time.perf_counter() - start)


def _check_loss(loss: float, place: str, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"thinkback: the training loss is {loss} in {place}; lower peak_lr (now"
            f" {config.peak_lr})"
        )


def augmented_batches(
    images: Tensor, labels: Tensor, config: TrainConfig, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches in a new order: float (B, 3, s, s) in [0, 1], channels last, and labels."""
    n, side, device = len(labels), images.shape[-1], images.device
    pad = side // 8  # 4 pixels at 32
    padded = F.pad(images, [pad] * 4).permute(0, 2, 3, 1).contiguous()  # (N, s + 2p, s + 2p, 3)
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(n, generator=generator).to(device)
    top, left = (torch.randint(2 * pad + 1, (n,), generator=generator).to(device) for _ in range(2))
    mirrored = torch.randint(2, (n,), generator=generator).to(device).bool()
    if config.flip == "alternating":
        first = torch.Generator().manual_seed(config.seed)
        coin = torch.randint(2, (n,), generator=first).to(device)
        mirrored = (coin + epoch) % 2 == 1
    elif config.flip == "off":
        mirrored = torch.zeros_like(mirrored)
    span = torch.arange(side, device=device)
    for index in order.split(config.batch_size):
        rows = (top[index, None] + span)[:, :, None]  # (B, s, 1)
        columns = torch.where(mirrored[index, None], span.flip(0), span) + left[index, None]
        crop = padded[index[:, None, None], rows, columns[:, None, :]]  # (B, s, s, 3)
        yield crop.permute(0, 3, 1, 2).float().div_(255), labels[index]


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    parts = (
        F.interpolate(part.float(), (side, side), mode="bilinear", antialias=True)
        for part in images.split(1000)
    )
    return torch.cat([part.round_().clamp_(0, 255).byte() for part in parts])


def _amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware is fast in it, float16 on older GPUs, None (float32) on other
    CPUs.
    """
    if config.amp == "off":
        return None
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if recent else torch.float16
    return torch.bfloat16 if has_fast_bfloat16() else None


def accuracy(model: nn.Module, data: ImageSet) -> float:
    """Fraction of images whose largest logit is their label; evaluation mode."""
    return extract(model, data, precision="float32").accuracy()


def _save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    config: TrainConfig,
    history: History,
    digest: str,
) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        held = optimizer.state[parameter].get("momentum_buffer")
        if held is not None:  # there is none without momentum
            tensors[f"momentum.{name}"] = held.contiguous()
    metadata = {
        "config": json.dumps(asdict(config)),
        "history": json.dumps(asdict(history)),
        "data_sha256": digest,
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def epoch_file(checkpoint: Path, epoch: int) -> Path:
    """Where ``fit(keep_epochs=True)`` keeps the network after ``epoch`` epochs, counted from 1."""
    return checkpoint.with_stem(f"{checkpoint.stem}-epoch{epoch:02d}")


def kept_network(checkpoint: Path) -> WideResNet:
    """The network in a checkpoint of :func:`train_network`, on the CPU, in evaluation mode.

    Raises:
        ValueError: the file is damaged or of something else, naming it.
    """
    remedy = "train again with --keep-epochs"
    tensors, metadata = read_tensors(checkpoint, remedy)
    state = _of_model(tensors)
    try:
        config = json.loads(metadata["config"])
        sizes = {name: config[name] for name in ("depth", "width", "dropout")}
        model = WideResNet(**sizes, num_classes=len(state["fc.weight"]))
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"thinkback: {checkpoint} holds no WideResNet in training ({last_line(error)});"
            f" {remedy}"
        ) from error
    return model.eval()


def _of_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}


def _load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.SGD, config: TrainConfig, digest: str
) -> History:
    again = "delete it to start again"
    tensors, metadata = read_tensors(path, again)
    try:
        saved, history = json.loads(metadata["config"]), History(**json.loads(metadata["history"]))
        epochs = {len(series) for series in (history.loss, history.accuracy, history.seconds)}
        if len(epochs) != 1 or not isinstance(saved, dict):
            raise ValueError("its history has columns of different lengths, or its recipe is none")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"thinkback: {path} is no checkpoint of a training ({error}); {again}"
        ) from error
    _same_recipe(saved, config, path)
    if (held := metadata.get("data_sha256")) != digest:
        what = (
            "does not say what it was trained on"
            if held is None
            else "was trained on other images or labels"
        )
        raise ValueError(
            f"thinkback: {path} {what}; give it its own set, choose another folder, or {again}"
        )
    try:
        model.load_state_dict(_of_model(tensors))
        for name, parameter in model.named_parameters():
            if (momentum := tensors.get(f"momentum.{name}")) is not None:
                optimizer.state[parameter]["momentum_buffer"] = momentum.view(parameter.shape).to(
                    parameter
                )
    except RuntimeError as error:
        raise ValueError(
            f"thinkback: {path} is of another network ({last_line(error)}); {again}"
        ) from error
    return history


def _same_recipe(saved: dict[str, Any], config: TrainConfig, where: Path) -> None:
    wanted = json.loads(json.dumps(asdict(config)))
    different = [
        f"{key} {saved.get(key)} != {value}"
        for key, value in wanted.items()
        if saved.get(key) != value
    ]
    if different:
        raise ValueError(
            f"thinkback: {where} belongs to another recipe ({'; '.join(different)}); "
            "train with its recipe, choose another folder, or delete it to start again"
        )


def train_network(
    config: TrainConfig,
    dataset: str | ImageSet,
    folder: Path,
    device: str | None = None,
    progress: bool = True,
    keep_epochs: bool = False,
) -> tuple[WideResNet, dict[str, Any]]:
    """Train a WideResNet; keep ``weights.safetensors`` and ``training.json`` in ``folder``.

    A run that was killed goes on from its checkpoint; weights that are there already are read, not
    trained again. ``keep_epochs`` keeps the network of every epoch, see :func:`fit`.

    Returns: The network as read back from its float16 weights file, in evaluation mode, and the
        training record; of a set that is named it holds the accuracy on the test split.

    Raises:
        ValueError: if the folder holds a run of another recipe or set.
    """
    weights, record_path = folder / "weights.safetensors", folder / "training.json"
    chosen = process_device(device)
    record = _begun(config, dataset if isinstance(dataset, str) else dataset.name, folder, chosen)
    if not weights.exists():
        train = load(dataset, "train") if isinstance(dataset, str) else dataset
        classes = int(checked_labels(train).max()) + 1
        write_json(record_path, record)  # the first start describes the run, resumptions keep it
        torch.manual_seed(config.seed)  # initial weights
        model = WideResNet(config.depth, config.width, classes, config.dropout)
        checkpoint = folder / "checkpoint.safetensors"
        history = fit(model, train, config, checkpoint, chosen, progress, keep_epochs=keep_epochs)
        record["history"] = asdict(history)
        write_json(record_path, record)
        model.save(weights)
    kept = WideResNet.load(weights).to(chosen)
    if isinstance(dataset, str) and "accuracy" not in record:
        record["recipe"] = recipe_name(config)
        record["accuracy"] = {f"{dataset}-test": accuracy(kept, load(dataset, "test"))}
        write_json(record_path, record)
    return kept, record


def _begun(config: TrainConfig, dataset: str, folder: Path, device: torch.device) -> dict[str, Any]:
    """The record of the run in that folder, or of one that begins; see :func:`train_network`."""
    path = folder / "training.json"
    record = _record(path) if path.exists() else describe(device) | {"dataset": dataset}
    if record["dataset"] != dataset:
        raise ValueError(
            f"thinkback: {folder} holds a network of {record['dataset']!r}, not of {dataset!r}"
        )
    _same_recipe(
        record.setdefault("config", json.loads(json.dumps(asdict(config)))), config, folder
    )
    if (weights := folder / "weights.safetensors").exists() and "history" not in record:
        raise ValueError(
            f"thinkback: {weights} has no training.json beside it that tells its recipe; move it"
            " away"
        )
    return record


def _record(path: Path) -> dict[str, Any]:
    """What ``training.json`` says."""
    record: dict[str, Any] = read_json(path)
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("config"), dict)
        or "dataset" not in record
    ):
        raise ValueError(
            f"thinkback: {path} is no record of a training; fetch it anew, or choose another folder"
        )
    return record


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--recipe`` and an option for each field of :class:`TrainConfig`."""
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), help="default: that of the folder, else reference"
    )
    for field in dataclasses.fields(TrainConfig):
        option, choices = f"--{field.name.replace('_', '-')}", CHOICES.get(field.name)
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif field.name != "resolutions":
            parser.add_argument(option, type=type(field.default), choices=choices)


def config_from(options: argparse.Namespace, folder: Path | None = None) -> TrainConfig:
    """The recipe that is named, else the folder's, else the reference, with fields as given."""
    named = {
        field.name: getattr(options, field.name, None) for field in dataclasses.fields(TrainConfig)
    }
    fields = {name: value for name, value in named.items() if value is not None}
    if folder and options.recipe is None and (folder / "training.json").exists():
        saved = dict(_record(folder / "training.json")["config"])
        if saved.get("restarts") == []:  # of an older version, with one cycle as now
            del saved["restarts"]
        try:
            stages = tuple(map(tuple, saved["resolutions"]))
            config = TrainConfig(**(saved | {"resolutions": stages}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"thinkback: {folder / 'training.json'} holds no recipe of this version ({error});"
                " name one by --recipe"
            ) from error
    else:
        config = RECIPES[options.recipe or "reference"]
    return config.override(**fields)


def recipe_name(config: TrainConfig) -> str:
    """The recipe of that configuration whatever the seed, compiled or not, or ``custom``."""
    same = {"seed": config.seed, "compile": config.compile}
    return next(
        (name for name, recipe in RECIPES.items() if recipe.override(**same) == config), "custom"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train a network: a recipe, any field of it, and the folder that keeps the result."""
    parser = Parser(prog="python -m experiments.training", description=main.__doc__)
    add_config_arguments(parser)
    parser.add_argument("--dataset", default="cifar10", help="a set with a train and a test split")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoint, weights and training record"
    )
    parser.add_argument("--device", help="cpu, cuda, …; default: the GPU when there is one")
    parser.add_argument(
        "--keep-epochs", action="store_true", help="keep the network of every epoch in the folder"
    )
    options = parser.parse_args(arguments)
    config = config_from(options, options.out)
    load(options.dataset, "test")  # a set that is missing is found before hours of training
    _, record = train_network(
        config, options.dataset, options.out, options.device, keep_epochs=options.keep_epochs
    )
    minutes = sum(record["history"]["seconds"]) / 60
    right = record["accuracy"][f"{options.dataset}-test"]
    print(f"test accuracy {right:.4f} after {minutes:.1f} minutes")


if __name__ == "__main__":
    sys.exit(run_main(main))
