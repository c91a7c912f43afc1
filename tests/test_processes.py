# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors are sent from where a group takes them: gloo from CPUs, NCCL from GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_neuralrg.processes import Processes, joined
from tests.infer.processes import together

TAKEN = {"nccl": {"cuda"}, "gloo": {"cpu"}, "cpu:gloo,cuda:nccl": {"cpu", "cuda"}}


@pytest.fixture(params=TAKEN)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A group whose backend refuses tensors of other devices, as the real ones do."""
    taken = TAKEN[request.param]

    def check(value: Tensor) -> None:
        if value.device.type not in taken:
            raise RuntimeError(f"No backend type associated with device type {value.device.type}")

    def gather(parts: list[Tensor], value: Tensor) -> None:
        check(value)

    monkeypatch.setattr(distributed, "get_backend", lambda: request.param)
    monkeypatch.setattr(distributed, "all_reduce", check)
    monkeypatch.setattr(distributed, "all_gather", gather)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return str(request.param)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", [Processes.mean, Processes.gather], ids=["mean", "gather"])
def test_every_group_takes_tensors_of_every_device(
    method: Callable[[Processes, Tensor], Tensor],
    device: str,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    back: list[str] = []  # devices from which something was copied into what was given
    with FakeTensorMode():  # so that there are GPUs, which cannot be copied to in place
        value = torch.ones(3, 2, device=device)
        monkeypatch.setattr(Tensor, "copy_", lambda _, sent: back.append(sent.device.type))
        found = method(Processes(0, 2), value)
    assert found.device.type == device
    if method is Processes.mean:
        assert found is value
        assert back == sorted(TAKEN[backend] if device not in TAKEN[backend] else ())


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "cpu:gloo,cuda:nccl")])
def test_the_device_of_a_job_decides(
    gpus: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes: a job on CPUs talks by gloo, with GPUs about too."""
    made: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", made.append)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    with joined():
        assert made == ([1, backend] if gpus == 2 else [backend])


def test_a_group_by_device_does_all(tmp_path: Path) -> None:
    """As the one with NCCL for GPUs, without them."""
    found = together(
        tmp_path,
        "from pyro_neuralrg.processes import processes",
        """
        world, own = processes(), torch.arange(6.0).view(2, 3).mT + rank  # not contiguous
        assert world.gather(own).shape == (6, 2)
        assert world.mean(own) is own
        assert own.tolist() == [[0.5, 3.5], [1.5, 4.5], [2.5, 5.5]]
        assert world.any(rank == 1, False) == (True, False)
        assert world.first(rank + 7) == 7
        assert world.together(lambda: rank) == rank
        assert world.from_first(lambda: rank + 1) == 1
        """,
        backend="cpu:gloo",
    )
    assert found.stdout == "[0, 0]\n", found.stderr
