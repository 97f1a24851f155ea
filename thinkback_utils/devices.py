"""The device that a process computes on, alone or as one of many on a machine."""

from __future__ import annotations

import os
from typing import Any

import torch


def process_device(name: str | torch.device | None = None) -> torch.device:
    """The device named; without a name the GPU of this process when there is one, else the CPU.

    "cuda" without a number is, among several processes on a machine, the GPU with the number of
    this process there: ``LOCAL_RANK`` of torchrun, else ``SLURM_LOCALID``. More processes than GPUs
    share them. A GPU that is chosen so, or named by its number, becomes torch's current device, on
    which ``torch.distributed`` works under NCCL.

    Raises:
        ValueError: if there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(
            f"thinkback: there is no kind of device {name!r}; give cpu, cuda, cuda:0 or mps"
        ) from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            f"thinkback: device {name!r} is asked for, and torch sees no Apple GPU; give cpu"
        )
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ValueError(
            f"thinkback: device {name!r} is asked for, and torch sees {count} CUDA GPUs; give"
            " another"
        )
    if device.index is None and (number := _number_on_machine()) is not None:
        device = torch.device("cuda", number % count)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def has_fast_bfloat16() -> bool:
    """Whether this CPU is expected to compute in bfloat16 faster than in float32.

    Instructions for it (AVX-512 BF16) are not enough: on an Intel Xeon that has them, and no AMX,
    the network takes longer so (``results/benchmarks/inference-cpu.json``); on one with AMX it does
    not (``results/benchmarks/amx``). So an Intel CPU must have AMX too. An AMD CPU needs the
    instructions alone, which has not been measured for this package. False where torch is too old
    to say.
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not known.get("avx512_bf16"):
        return False
    return "Intel" not in known.get("cpu_name", "") or bool(known.get("amx_bf16"))


def _number_on_machine() -> int | None:
    """Which of the machine's processes this is; None where nothing says that there are several."""
    for variable in ("LOCAL_RANK", "SLURM_LOCALID"):
        if text := os.environ.get(variable):
            if not text.isdecimal():
                raise ValueError(
                    f"thinkback: {variable} is the number of a process on its machine, got {text!r}"
                )
            return int(text)
    return None
