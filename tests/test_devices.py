"""The device of a process, without any GPU: what torch sees is made up."""

import pytest
import torch
from refusals import refused

from thinkback_utils import devices, fisher


@pytest.fixture
def gpus(monkeypatch):
    """A machine of four GPUs; the list of those that became the current one."""
    chosen = []
    for variable in ("LOCAL_RANK", "SLURM_LOCALID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1].index if chosen else 0)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("environment", "name", "device"),
    [
        ({}, None, "cuda"),
        ({"RANK": "7", "LOCAL_RANK": "3"}, None, "cuda:3"),  # of the second machine
        ({"RANK": "7", "LOCAL_RANK": "3"}, "cuda", "cuda:3"),
        ({"LOCAL_RANK": "3"}, "cuda:1", "cuda:1"),
        ({"LOCAL_RANK": "3"}, torch.device("cuda:0"), "cuda:0"),
        ({"LOCAL_RANK": "3"}, "cpu", "cpu"),
        ({"SLURM_LOCALID": "2"}, None, "cuda:2"),
        ({"SLURM_LOCALID": "0", "LOCAL_RANK": "2"}, None, "cuda:2"),  # torchrun within a SLURM job
        ({"LOCAL_RANK": "5"}, None, "cuda:1"),  # more processes than GPUs share them
    ],
)
def test_each_process_of_a_machine_has_its_gpu(gpus, monkeypatch, environment, name, device):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert devices.process_device(name) == torch.device(device)
    indexed = torch.device(device).index is not None
    assert gpus == [torch.device(device)] * indexed, "it must become the current device"


def test_a_machine_without_gpu_computes_on_its_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.process_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("gpu", "0", r"no kind of device 'gpu'; give cpu, cuda, cuda:0 or mps"),
        ("cuda:4", "0", r"'cuda:4' is asked for, and torch sees 4 CUDA GPUs"),
        (None, "one", r"LOCAL_RANK is the number of a process on its machine, got 'one'"),
        (None, "-1", r"LOCAL_RANK is the number of a process on its machine, got '-1'"),
    ],
)
def test_devices_that_are_not_there_are_named(gpus, monkeypatch, name, rank, message):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with refused(f"{message}"):
        devices.process_device(name)


@pytest.mark.parametrize(("name", "sees"), [("cuda", "0 CUDA GPUs"), ("mps", "no Apple GPU")])
def test_a_gpu_that_torch_does_not_see_is_named(monkeypatch, name, sees):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with refused(f"^thinkback: device '{name}' is asked for, and torch sees {sees}"):
        devices.process_device(name)


@pytest.mark.parametrize(
    ("local", "current", "device"),
    [("2", None, "cuda:2"), ("2", 1, "cuda:1"), (None, None, "cuda"), (None, 3, "cuda:3")],
)
def test_under_nccl_sums_go_to_the_gpu_of_the_process(gpus, monkeypatch, local, current, device):
    """That of LOCAL_RANK unless the process chose another; never all to cuda:0."""
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    if current is not None:
        torch.cuda.set_device(torch.device("cuda", current))
    assert fisher._common_device(torch.zeros(2)) == torch.device(device)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    assert fisher._common_device(torch.zeros(2)) == torch.device("cpu")
