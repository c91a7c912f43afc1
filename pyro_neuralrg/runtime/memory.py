# SPDX-License-Identifier: Apache-2.0
"""One check: does what was asked for fit into the memory that there is for this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from pyro_neuralrg.arguments import see
from pyro_neuralrg.runtime.processes import processes_here

CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
"""Names of a cgroup's limit, of its use and of its cached files, which count as free."""


class MemoryLimitError(ValueError):
    """Something was asked for that cannot fit into memory."""


def check_fits(asked: str, size: float, device: torch.device, otherwise: str = "") -> None:
    """Raise a MemoryLimitError if what was ``asked`` for takes more bytes than ``device`` has.

    Its message says what is accepted ``otherwise``.
    """
    there = available_memory(device)
    if size > there:
        raise MemoryLimitError(
            f"{asked}: that takes {_gigabytes(size)} of memory; accepted: what fits into the "
            f"{_gigabytes(there)} available here{otherwise}{see('error-memory')}"
        )


def _gigabytes(size: float) -> str:
    """Bytes to three digits, without an exponent."""
    number = size / 1e9
    return f"{number:,.0f} GB" if number >= 100 else f"{number:.3g} GB"


def kept_bytes(size: float, processes: int) -> float:
    """Bytes on each process of draws that take ``size`` in all.

    Each of several processes has its own, and in the end those of all while they are joined.

    >>> kept_bytes(1000.0, 1), kept_bytes(1000.0, 2)
    (1000.0, 2500.0)
    """
    return size if processes == 1 else (2 + 1 / processes) * size


def available_memory(device: torch.device) -> float:
    """Bytes that this process can have, its part of a device; infinite where it is not told."""
    sharing = processes_here()
    if device.type == "cuda":
        there = float(torch.cuda.mem_get_info(device)[0])
        return there if torch.cuda.device_count() >= sharing else there / sharing
    return host_memory() / sharing


def host_memory(root: Path = Path("/")) -> float:
    """Bytes that are free below ``root``, the file system, within the limits of the cgroups."""
    return min(_free_memory(root), *_left_in_cgroups(root))


def _free_memory(root: Path) -> float:
    """Bytes that the kernel can give."""
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _left_in_cgroups(root: Path) -> Iterator[float]:
    """Bytes left in the memory cgroups around this process, of version 2 or 1.

    Inside a container its path is that of the host: the top is looked at in any case.
    """
    yield math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield _left_in(top / group, *(CGROUP_V1 if controllers else CGROUP_V2))


def _left_in(group: Path, limit: str, used: str, cached: str) -> float:
    try:
        left = int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii"))
        stat = (group / "memory.stat").read_text("ascii").split()
        return max(0.0, float(left + int(dict(zip(stat[::2], stat[1::2], strict=True))[cached])))
    except (OSError, ValueError, KeyError):  # no such group here, or no limit: "max"
        return math.inf
