"""Which model a file belongs to: digests of all its weights.

A model is known again in half precision, and where its weights have other names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn

from .batches import unwrapped

Identity = dict[str, list[str]]  # shape and digests of each tensor, by name
IGNORED = "num_batches_tracked"  # of BatchNorm: it changes nothing in evaluation mode


def identity(model: nn.Module) -> Identity:
    """Shape and digests of each parameter and buffer, also as float16 and as bfloat16."""
    model, out = unwrapped(model), {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not name.endswith(IGNORED):
            kinds = (
                (torch.float32, torch.float16, torch.bfloat16)
                if value.is_floating_point()
                else (value.dtype,)
            )
            out[name] = [str(list(value.shape)), *(_digest(value, kind) for kind in kinds)]
    return out


def difference(saved: Identity, model: nn.Module) -> str | None:
    """What distinguishes the model from the saved one, in words; None where nothing does.

    A model in half precision is the same, and so is one that other modules are wrapped around: a
    prefix that all names share does not count.
    """
    found = identity(model)
    saved, found = (_without(prefix_of(names), names) for names in (saved, found))
    if missing := sorted(saved.keys() ^ found.keys()):
        name, where = missing[0], "" if missing[0] in found else "not "
        return (
            f"{len(missing)} of its tensors are not in both, {name!r} is {where}in the given model"
        )
    for name, (shape, *digests) in saved.items():
        other, *others = found[name]
        if shape != other:
            return f"{name!r} has shape {other}, not {shape}"
        if digests[0] not in others and others[0] not in digests:
            return f"{name!r} has other values"
    return None


def prefix_of(names: Mapping[str, object]) -> str:
    """The prefix that all names share, in whole parts.

    Of ``model.fc.weight`` and ``model.fc.bias`` it is ``"model.fc."``.
    """
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, parts)
    return ".".join([*(column[0] for column in shared), ""])


def _without(prefix: str, names: Identity) -> Identity:
    return {name.removeprefix(prefix): value for name, value in names.items()}


def _digest(value: Tensor, kind: torch.dtype) -> str:
    """Digest of the values in one precision, read as float32 so that equal numbers agree."""
    values = value.detach().cpu().to(kind)
    values = values.float() if values.is_floating_point() else values
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]
