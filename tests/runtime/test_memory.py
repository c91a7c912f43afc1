# SPDX-License-Identifier: Apache-2.0
"""What was asked for is compared with the memory that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.runtime import memory
from pyro_neuralrg.runtime.memory import MemoryLimitError

CPU = torch.device("cpu")


def test_a_training_that_cannot_fit_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: 2e6)
    flow, state = IsingDual((4, 4)).flow(), torch.random.get_rng_state()
    with pytest.raises(
        MemoryLimitError, match=r"batch is 8192: that takes .*; accepted: what fits"
    ):
        fit(IsingDual((4, 4)), flow, batch=8192, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)


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
    assert 1e6 < memory.available_memory(CPU) < 1e15
