# SPDX-License-Identifier: Apache-2.0
"""Tensors are sent from where a group takes them, and work is divided into equal parts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC, fit
from pyro_neuralrg.runtime.processes import LET_GO, Processes, joined, processes_here
from tests.train.processes import together

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
    ended: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", made.append)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: ended.append("group"))
    monkeypatch.setattr(time, "sleep", ended.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    with joined():
        assert made == ([1, backend] if gpus == 2 else [backend])
        assert not ended
    assert ended == ["group", LET_GO]  # else gloo's threads may meet a Python that is ending


@pytest.mark.parametrize("number", [2, 5, 64, 100])
@pytest.mark.parametrize("size", [3, 8, 48])
def test_what_cannot_be_divided_names_a_number_that_can(size: int, number: int) -> None:
    """And with that number, the processes have equal parts, which are all of it."""
    worlds, fitting = [Processes(rank, size) for rank in range(size)], number
    if number % size:
        expected = rf"^batch is {number} over {size} processes; .* of {size}, such as (\d+)$"
        with pytest.raises(ValueError, match=expected) as refused:
            worlds[0].share("batch", number)
        fitting = int(str(refused.value).rsplit(" ", 1)[1])
        assert abs(fitting - number) < size
    rows = [world.rows(fitting) for world in worlds]
    assert [i for part in rows for i in range(fitting)[part]] == list(range(fitting))
    assert {part.stop - part.start for part in rows} == {worlds[0].share("batch", fitting)}


def test_batches_and_chains_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("train.training", "mcmc.runner"):
        where = sys.modules[f"pyro_neuralrg.{module}"]
        monkeypatch.setattr(where, "processes", lambda: Processes(1, 3))
    target = IsingDual((2, 2), temperature=3.0)
    with pytest.raises(ValueError, match="batch is 64 over 3 processes; accepted: a multiple"):
        fit(target, target.flow(), batch=64, seed=0)
    with pytest.raises(ValueError, match="num_chains is 64 over 3 processes; accepted: a mult"):
        VectorizedMCMC(HMC(target), 1, num_chains=64)


@pytest.mark.slow
def test_a_group_by_device_does_all(tmp_path: Path) -> None:
    """As the one with NCCL for GPUs, without them."""
    found = together(
        tmp_path,
        "from pyro_neuralrg.runtime.processes import processes",
        """
        world, own = processes(), torch.arange(6.0).view(2, 3).mT + rank  # not contiguous
        assert world.gather(own).shape == (6, 2)
        assert world.mean(own) is own
        assert own.tolist() == [[0.5, 3.5], [1.5, 4.5], [2.5, 5.5]]
        assert world.any_process(rank == 1, False) == (True, False)
        assert world.first(rank + 7) == 7
        assert world.run_on_all(lambda: rank) == rank
        assert world.broadcast_from_first(lambda: rank + 1) == 1
        """,
        backend="cpu:gloo",
    )
    assert found.stdout == "[0, 0]\n", found.stderr


@pytest.mark.parametrize(("given", "number"), [("", 1), ("two", 1), ("0", 1), ("3", 3)])
def test_another_launcher_may_name_no_number_of_processes(
    given: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
    assert processes_here() == number
