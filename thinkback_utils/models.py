"""The classifier f(x): a pre-activation Wide Residual Network, its last layer by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import DAMAGED, replacing

CIFAR10_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR10_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


class _Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv and a shortcut (Zagoruyko & Komodakis 2016, Fig. 1d)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.dropout = dropout
        same = in_channels == out_channels and stride == 1
        self.shortcut = (
            None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(a)))
        if self.dropout:
            residual = F.dropout(residual, self.dropout, self.training)
        # The projection reads the activated input, the identity the raw one, as the authors' code.
        output: Tensor = self.conv2(residual) + (x if self.shortcut is None else self.shortcut(a))
        return output


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width for 32x32 images (any size divisible by 4 works).

    The network normalises its own input, so the weights file holds everything that turns pixels
    into logits.

    Args:
        depth: number of convolutions plus one; depth - 4 must be divisible by 6.
        width: widening factor of the three stages (16, 32 and 64 channels times width).
        num_classes: K, the number of logits.
        dropout: probability inside each block, active in training mode only.
        mean, std: per-channel statistics of the training images, in [0, 1].

    Raises:
        ValueError: if there is no such network: naming the argument, its value and its range.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (2016).

    >>> net = WideResNet(depth=10, width=1)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, net.get_classifier().in_features
    (torch.Size([2, 10]), 64)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int = 40,
        width: int = 2,
        num_classes: int = 10,
        dropout: float = 0.3,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        super().__init__()
        if not _whole(depth, 10) or (depth - 4) % 6:
            raise ValueError(
                "thinkback: WideResNet depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, 40), got"
                f" {depth}"
            )
        _check(width, num_classes, dropout, mean, std)
        self.config = {
            "depth": int(depth),
            "width": int(width),
            "num_classes": int(num_classes),
            "dropout": dropout,
        }
        blocks, channels = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                _Block(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1, dropout)
                for c_in, c_out, stride in zip(channels[:-1], channels[1:], (1, 2, 2), strict=True)
                for i in range(blocks)
            )
        )
        self.bn = nn.BatchNorm2d(channels[-1])
        self.fc = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Penultimate features h, shape (N, D), of images in [0, 1], shape (N, 3, H, W)."""
        x = self.stem((x - self.mean) / self.std)
        x = F.relu(self.bn(self.stages(x)))
        return x.mean(dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits z = h W^T + b, shape (N, K)."""
        logits: Tensor = self.fc(features)
        return logits

    def get_classifier(self) -> nn.Linear:
        """The last linear layer, whose weight the score is about."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K), of images in [0, 1], shape (N, 3, H, W)."""
        return self.forward_head(self.forward_features(x))

    def save(self, path: str | Path) -> None:
        """Write the weights as float16 safetensors, the constructor's arguments in its header.

        Raises:
            ValueError: if a weight is not finite, or too large for float16.
        """
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        if lost := _not_finite(state):
            raise ValueError(
                f"thinkback: {lost} holds values that float16 cannot; {path} is not written"
            )
        tensors = {k: v.contiguous().cpu() for k, v in state.items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"config": json.dumps(self.config)})

    @classmethod
    def load(cls, path: str | Path) -> WideResNet:
        """A network in evaluation mode, float32, from a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: naming the file and the command that makes it.
            ValueError: if the file is damaged or holds something else, naming it and what to do.
        """
        if not Path(path).exists():
            raise FileNotFoundError(
                f"thinkback: no weights at {path}; train some with `python -m experiments.training`"
            )
        tensors, metadata = read_tensors(path, "fetch it anew, or train the network again")
        if "config" not in metadata:
            raise ValueError(
                f"thinkback: {path} does not name its network; only files written by"
                " WideResNet.save do"
            )
        try:
            model = cls(**json.loads(metadata["config"]))
            model.load_state_dict(tensors)
            if lost := _not_finite(tensors):
                raise ValueError(f"{lost} holds values that are not finite")
        except (TypeError, ValueError, RuntimeError) as error:  # of the configuration or tensors
            raise ValueError(
                f"thinkback: {path} holds no weights of the network that it names,"
                f" {metadata['config']} ({last_line(error)}); fetch it anew, or train the network"
                " again"
            ) from error
        return model.eval()


def read_tensors(path: str | Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file.

    Raises:
        ValueError: if the file is cut short or of another kind, naming it and the remedy.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, *DAMAGED) as error:
        raise ValueError(
            f"thinkback: {path} is cut short or no safetensors file ({error}); {remedy}"
        ) from error


def _check(
    width: int, num_classes: int, dropout: float, mean: Sequence[float], std: Sequence[float]
) -> None:
    for name, value in (("width", width), ("num_classes", num_classes)):
        if not _whole(value, 1):
            raise ValueError(
                f"thinkback: WideResNet {name} must be an integer from 1 on, got {value!r}"
            )
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"thinkback: WideResNet dropout must be in [0, 1), got {dropout!r}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(
            math.isfinite(v) and (v > 0 or name == "mean") for v in values
        ):
            what = "three finite numbers" + (" above 0" if name == "std" else "")
            raise ValueError(
                f"thinkback: WideResNet {name} must be {what}, one a channel, got {values!r}"
            )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a value that is not finite."""
    return next(
        (name for name, values in tensors.items() if not torch.isfinite(values).all()), None
    )


def last_line(error: Exception) -> str:
    """The last line of an error: of torch's on a state dictionary, one tensor that does not fit."""
    return str(error).strip().splitlines()[-1].strip()
