"""One epoch of training on a few hundred images: our pipeline beside the usual loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import thinkback_utils as tb
from experiments import training

from .context import Context
from .machine import copy, product
from .rounds import Call, Record

BATCH = 128
RECIPE = training.RECIPES["cpu"]


class Photos(Dataset[tuple[Any, int]]):
    """Images as torchvision's CIFAR10 gives them: PIL, transformed one by one."""

    def __init__(self, images: tb.data.ImageSet, transform: Callable[[Any], Any]) -> None:
        self.arrays, self.transform = images.images.permute(0, 2, 3, 1).numpy(), transform
        assert images.labels is not None
        self.labels = images.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def usual_loop(
    model: nn.Module, images: tb.data.ImageSet, workers: int, device: torch.device
) -> Callable[[], None]:
    """An epoch as tutorials write it: random crop, flip, tensor, normalize, DataLoader, SGD.

    The workers stay from epoch to epoch, so that starting them is not counted.
    """
    tb.data.import_torchvision()
    from torchvision import transforms as t

    steps = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), t.ToTensor()]
    steps.append(t.Normalize(tb.models.CIFAR10_MEAN, tb.models.CIFAR10_STD))
    photos = Photos(images, t.Compose(steps))
    loader = DataLoader(
        photos, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    model = model.to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )

    def epoch() -> None:
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def network(**options: Any) -> tb.models.WideResNet:
    """The recipe's network with fresh weights."""
    torch.manual_seed(0)
    return tb.models.WideResNet(RECIPE.depth, RECIPE.width, 10, RECIPE.dropout, **options)


def our_epoch(images: tb.data.ImageSet, side: int, device: torch.device) -> Callable[[], object]:
    """An epoch of :func:`experiments.training.fit` at that resolution."""
    model, config = network(), RECIPE.override(epochs=1, resolutions=((0, side),))
    return lambda: training.fit(model, images, config, device=device, progress=False)


def operations(images: int) -> dict[str, int]:
    """Floating-point operations of an epoch at full size, forward and whole step, by torch."""
    model, counts = network(), {}
    for what in ("forward", "step"):
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.rand(1, 3, 32, 32))
            if what == "step":
                logits.sum().backward()
        counts[what] = counter.get_total_flops() * images
    return counts


def traffic(images: int) -> int:
    """Bytes that an epoch moves at least: each layer reads and writes its maps, twice backward."""
    model, counts = network(), list[int]()
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda _, inputs, output: counts.append(inputs[0].numel() + output.numel())
            )
    model(torch.rand(1, 3, 32, 32))
    return 3 * 4 * sum(counts) * images


def profile(images: tb.data.ImageSet, device: torch.device) -> dict[str, float]:
    """Shares of a step's time by operation, at full size, of those above one hundredth."""
    epoch = our_epoch(images, images.images.shape[-1], device)
    epoch()
    with torch.profiler.profile() as watched:
        epoch()
    times = {event.key: float(event.self_cpu_time_total) for event in watched.key_averages()}
    if device.type == "cuda":
        times = {event.key: float(event.self_device_time_total) for event in watched.key_averages()}
    largest = sorted(times.items(), key=lambda item: -item[1])
    return {
        name: time / sum(times.values())
        for name, time in largest
        if time >= 0.01 * sum(times.values())
    }


def shares(config: training.TrainConfig = RECIPE, full: int = 32) -> dict[int, float]:
    """Share of the recipe's epochs at each side of the images.

    >>> shares(training.TrainConfig(epochs=4, resolutions=((0, 16), (1, 0))))
    {16: 0.25, 32: 0.75}
    """
    sides = [config.side(epoch, full) for epoch in range(config.epochs)]
    return {side: sides.count(side) / len(sides) for side in dict.fromkeys(sides)}


def run(context: Context) -> list[Record]:
    """Epochs by turns, with a dense product among them as the unit of the floor."""
    digits = tb.data.load("digits", "train")
    count = 16 if context.quick else 2 * BATCH
    assert digits.labels is not None
    images = tb.data.ImageSet(
        digits.images[:count], digits.labels[:count], digits.classes, digits.name
    )
    calls: dict[str, Callable[[], object] | Call] = {}
    for workers in (0, 2):
        plain = network(
            mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )  # the loop's transform normalizes
        calls[f"usual loop, {workers} workers"] = usual_loop(plain, images, workers, context.device)
    for side in shares():
        calls[f"ours, {side} px"] = our_epoch(images, side, context.device)
    matrix, length = (512, 1 << 22) if context.quick else (2048, 1 << 26)
    calls["product float32"], calls["copy"] = (
        product(matrix, context.device),
        copy(length, context.device),
    )
    records = context.measure(
        calls, "usual loop, 0 workers", budget=180, least=3, images=count, batch=BATCH
    )
    counts = operations(count)
    facts: dict[str, dict[str, Any]] = {"product float32": {"operations": 2 * matrix**3}}
    facts["copy"] = {"bytes": 2 * 4 * length}
    facts |= {f"ours, {side} px": {"share_of_recipe": share} for side, share in shares().items()}
    at_full = {
        "operations": counts["step"],
        "forward_operations": counts["forward"],
        "bytes": traffic(count),
    }
    for name in calls:
        if name.startswith("usual") or name == "ours, 32 px":
            facts[name] = facts.get(name, {}) | at_full
    facts["ours, 32 px"]["profile"] = profile(images, context.device)
    return [record | facts.get(record["what"], {}) for record in records]
