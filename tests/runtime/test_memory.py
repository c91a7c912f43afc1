# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of a step is known before the step: counted, extrapolated, compared with what is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.runtime import memory
from pyro_neuralrg.runtime.memory import MemoryLimitError, PeakMemory, check_memory, peak_memory

CPU = torch.device("cpu")
FIT = sys.modules["pyro_neuralrg.train.training"]  # the function has the name of its module


def test_what_lives_at_the_same_time_counts() -> None:
    kept = []
    with PeakMemory() as found:
        for _ in range(4):
            kept.append(torch.zeros(100))
            del kept[:-1]
        x = kept[0].view(10, 10).mT  # the same memory
        x.add_(1.0)
    assert found.peak == 2 * 800


def test_a_graph_keeps_what_its_gradient_needs() -> None:
    x = torch.ones(100, requires_grad=True)
    with PeakMemory() as found:
        y = x.exp().exp().exp()
    assert found.peak == 3 * 800
    with PeakMemory() as found, torch.no_grad():
        y = y.exp().exp().exp()
    assert found.peak == 2 * 800


@pytest.mark.parametrize("dry", [False, True])
def test_the_line_through_small_batches_reaches_large_ones(dry: bool) -> None:
    """Within a tenth, of a training step of the default flow with path gradients."""
    training = a_training(batch=4)
    peak = peak_memory(training.try_step, 16, dry)
    with PeakMemory() as found:
        training.try_step(8192)
    assert found.peak > 10_000_000
    assert peak(8192) == pytest.approx(found.peak, rel=0.1)


def a_training(batch: int) -> Any:
    """A training as fit makes it, caught before its first step."""
    caught: list[Any] = []

    class StopError(Exception):
        pass

    def catch(training: Any, batch: int, sites: int) -> None:
        caught.append(training)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FIT, "_check_memory", catch)
        with pytest.raises(StopError):
            fit(IsingDual((4, 4)), batch=batch, seed=0, progress=False)
    return caught[0]


@pytest.mark.parametrize(
    ("there", "most"), [(memory.SLACK * 800 * 50.5, 50), (memory.SLACK * 800 * 8.5, 8)]
)
def test_the_largest_batch_that_fits_is_named(
    there: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: there)

    def step(batch: int) -> torch.Tensor:
        return torch.zeros(100 * batch)

    check_memory(step, most, 1, CPU)
    with pytest.raises(MemoryLimitError, match=rf"batch is {most + 1}, .* at most {most}$"):
        check_memory(step, most + 1, 1, CPU)


def test_the_batch_named_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: memory.SLACK * 800 * 50.5)

    def step(batch: int) -> torch.Tensor:
        return torch.zeros(100 * batch)

    check_memory(step, 200, 1, CPU, processes=4)
    expected = (
        r"batch is 204 \(51 on each of 4 processes\), of which a training step takes about "
        r"0.053 MB on each; accepted: .* available to each, a batch of at most 200$"
    )
    with pytest.raises(MemoryLimitError, match=expected):
        check_memory(step, 204, 1, CPU, processes=4)


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even two samples might not, nothing is allocated to find out."""
    monkeypatch.setattr(memory, "available_memory", lambda _: 1e9)
    with pytest.raises(MemoryLimitError, match=r"GB; accepted: .* a smaller lattice or flow$"):
        check_memory(lambda batch: torch.zeros(10**17 * batch) + 1, 1, 10**17, CPU)


def test_a_step_that_cannot_be_tried_dry_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: 1e4)
    check_memory(lambda batch: torch.zeros(batch).numpy().sum(), 10**9, 10**9, CPU)


def test_a_training_that_cannot_fit_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: 2e7)
    target = IsingDual((4, 4))
    flow, state = target.flow(), torch.random.get_rng_state()
    with pytest.raises(MemoryLimitError, match=r"batch is 8192, of which a training step takes ab"):
        fit(target, flow, batch=8192, progress=False, callback=lambda _: pytest.fail("began"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize("there", [1e18, 1e3])
def test_looking_changes_nothing(there: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with memory nor, where there seems to be little, without."""
    options: dict[str, Any] = {"steps": 4, "batch": 4, "seed": 0, "progress": False}
    plain = fit(IsingDual((4, 4)), **options).history
    looked = []

    def look(step: Any, batch: int, sites: int, device: torch.device, processes: int) -> None:
        looked.append((batch, sites))
        peak_memory(step, sites, dry=there < 1e6)

    monkeypatch.setattr(FIT, "LARGE_BATCH", 0)
    monkeypatch.setattr(FIT, "check_memory", look)
    found = fit(IsingDual((4, 4)), **options).history
    assert looked == [(4, 16)]
    np.testing.assert_array_equal(found.free_energy, plain.free_energy)


def test_there_is_some_memory_here() -> None:
    assert 1e6 < memory.available_memory(CPU) < 1e15


def test_processes_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a GPU only if there are fewer of them than processes."""
    monkeypatch.setattr(memory, "host_memory", lambda: 8e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4e9, 5e9))
    assert memory.available_memory(CPU) == 8e9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.available_memory(CPU) == 2e9
    for gpus, there in ((4, 4e9), (1, 1e9)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert memory.available_memory(torch.device("cuda", 0)) == there


MEMINFO = "MemTotal:       16000000 kB\nMemFree:   100 kB\nMemAvailable:   8000000 kB\n"
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
JOB = "/system.slice/job 7:a"


@pytest.mark.parametrize(
    ("of_process", "groups", "expected"),
    [
        (None, {}, 8.192e9),
        (f"0::{JOB}", {}, 8.192e9),  # seen from inside a container
        ("0::/", {"": (V2, 3e9, 1e9, 0)}, 2e9),
        (f"0::{JOB}", {"": (V2, 3e9, 1e9, 0)}, 2e9),
        (f"0::{JOB}", {JOB: (V2, 3e9, 1e9, 5e8)}, 2.5e9),
        (f"0::{JOB}", {JOB: (V2, "max", 1e9, 0), "/system.slice": (V2, 2e9, 15e8, 0)}, 5e8),
        (f"0::{JOB}", {JOB: (V2, 1e9, 2e9, 0)}, 0.0),
        (f"0::{JOB}", {JOB: (V2, 9e15, 1e9, 0)}, 8.192e9),
        (f"0::/\n4:cpu,memory:{JOB}", {f"/memory{JOB}": (V1, 3e9, 1e9, 5e8)}, 2.5e9),
        (f"4:memory:{JOB}\n3:cpu:/", {"/memory": (V1, 3e9, 1e9, 0)}, 2e9),
        (f"4:memory:{JOB}", {f"/memory{JOB}": (V1, 9223372036854771712, 1e9, 0)}, 8.192e9),
        (f"3:cpuset:{JOB}", {f"/memory{JOB}": (V1, 3e9, 1e9, 0)}, 8.192e9),
    ],
)  # fmt: skip
def test_limits_of_cgroups_count(
    of_process: str | None, groups: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    if of_process is not None:
        (tmp_path / "proc/self/cgroup").write_text(f"{of_process}\n")
    for path, ((limit, used, cached), most, now, files) in groups.items():
        group = tmp_path / "sys/fs/cgroup" / path.lstrip("/")
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{most if isinstance(most, str) else int(most)}\n")
        (group / used).write_text(f"{int(now)}\n")
        (group / "memory.stat").write_text(f"anon 5\n{cached} {int(files)}\nfile 7\n")
    assert memory.host_memory(tmp_path) == expected


def test_a_system_without_these_files_has_what_it_has(tmp_path: Path) -> None:
    assert memory.host_memory(tmp_path) > 1e6
