# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Memory that a training step takes, before it is tried, and what there is for this process."""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_neuralrg.runtime.processes import processes_here

__all__ = [
    "MemoryLimitError",
    "PeakMemory",
    "available_memory",
    "check_fits",
    "check_memory",
    "host_memory",
    "kept_bytes",
    "peak_memory",
]

MEASURED_SITES = 2**14
"""In the smaller batch of those that are measured."""

SLACK = 1.3
"""Of resident memory over that of tensors: 1.2 at 16 x 16, batch 256, with glibc's allocator."""


USUAL_BYTES = 5000
"""Of a step for each site of a sample: twice what the default flow takes in float32."""


ROOT = Path("/")


class CgroupFiles(NamedTuple):
    """Names of the files of a memory cgroup, and of the cached files in its ``memory.stat``."""

    limit: str
    used: str
    cached: str


CGROUP_1 = CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_2 = CgroupFiles("memory.max", "memory.current", "inactive_file")


class MemoryLimitError(ValueError):
    """What was asked for cannot fit into memory."""


class PeakMemory(TorchDispatchMode):
    """Inside the block, the largest number of bytes of tensors that were made in it.

    Attributes:
        peak: Of those that lived at the same time.

    Example:
        >>> with PeakMemory() as memory:
        ...     for _ in range(3):
        ...         x = torch.zeros(1000, dtype=torch.float32)
        >>> memory.peak  # the last one, while the one before is still there
        8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and see what it made."""
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


class Line(NamedTuple):
    """Bytes as a line in the batch: of the whole, and for each sample."""

    whole: float
    each: float

    def __call__(self, batch: int) -> float:
        """Bytes of so many samples."""
        return self.whole + self.each * batch


def peak_memory(step: Callable[[int], Any], sites: int, dry: bool = False) -> Line:
    """How many bytes ``step(batch)`` makes, as the line through two small batches.

    Args:
        step: is called twice, with few samples.
        sites: of a sample.
        dry: with tensors that have shapes but no memory, which is slow but always fits.
    """
    small = _small(sites)
    found = []
    for batch in (small, 2 * small):
        tensors = FakeTensorMode(allow_non_fake_inputs=True) if dry else contextlib.nullcontext()
        with tensors, PeakMemory() as memory:
            step(batch)
        found.append(memory.peak)
    each = max(0.0, (found[1] - found[0]) / small)
    return Line(found[0] - each * small, each)


def _small(sites: int) -> int:
    """Samples enough for their own memory to be more than that of parameters."""
    return max(2, math.ceil(MEASURED_SITES / sites))


def check_memory(
    step: Callable[[int], Any],
    batch: int,
    sites: int,
    device: torch.device,
    processes: int = 1,
) -> None:
    """Refuse a batch whose step cannot fit into what is available.

    Args:
        step: a step of so many samples, of this process; it is tried with few.
        batch: samples, of all processes.
        sites: of a sample.
        device: where.
        processes: that have equal parts of the batch.

    Raises:
        MemoryLimitError: naming the largest batch, of all processes, that would fit.
    """
    there = available_memory(device)
    dry = 2 * _small(sites) * sites * USUAL_BYTES > there
    try:
        peak = peak_memory(step, sites, dry)
    except Exception:
        if dry:  # not every operation is known without memory
            return
        raise
    own, several = batch // processes, processes > 1
    needed = SLACK * peak(own)
    if needed <= there:
        return
    most = math.floor((there / SLACK - peak.whole) / peak.each) if peak.each else 0
    fits = f"a batch of at most {most * processes}" if most >= 2 else "a smaller lattice or flow"
    each = f" ({own} on each of {processes} processes)" if several else ""
    raise MemoryLimitError(
        f"batch is {batch}{each}, of which a training step takes about {readable(needed)}"
        f"{' on each' if several else ''}; accepted: what fits into the {readable(there)} "
        f"available {'to each' if several else 'here'}, {fits}"
    )


def kept_bytes(size: float, processes: int) -> float:
    """Bytes on each process of draws that take ``size`` in all.

    Of several, each has its own, and in the end those of all while they are joined.

    >>> kept_bytes(1000.0, 1), kept_bytes(1000.0, 2)
    (1000.0, 2500.0)
    """
    return size if processes == 1 else (2 + 1 / processes) * size


def check_fits(settings: str, size: float, device: torch.device, otherwise: str = "") -> None:
    """Refuse what takes ``size`` bytes on this process, if there is less.

    Args:
        settings: what was asked for, for the message: "shape is (8, 8)".
        size: of what is kept, in bytes.
        device: where.
        otherwise: what is accepted too.

    Raises:
        MemoryLimitError: naming the settings.
    """
    there = available_memory(device)
    if size > there:
        raise MemoryLimitError(
            f"{settings}: that takes {readable(size)} of memory; accepted: what fits into the "
            f"{readable(there)} available here{otherwise}"
        )


def available_memory(device: torch.device) -> float:
    """Bytes that this process can have, infinite where the system does not tell.

    Processes that share the memory of a device have equal parts of it.
    """
    sharing = processes_here()
    if device.type == "cuda":
        there = float(torch.cuda.mem_get_info(device)[0])
        return there if torch.cuda.device_count() >= sharing else there / sharing
    return host_memory() / sharing


def host_memory(root: Path = ROOT) -> float:
    """Bytes of memory that a process can have: what is free, within the limits of its cgroups.

    Args:
        root: of the file system.
    """
    return min(_free_memory(root), *_cgroup_memory(root))


def _free_memory(root: Path) -> float:
    """What the kernel can give, infinite where it does not tell."""
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _cgroup_memory(root: Path) -> Iterator[float]:
    """What is left in each cgroup with a limit, of version 2 or 1, around this process.

    Inside a container the path of the process is that of the host, and what is seen of the groups
    begins at its own: so the top is looked at in any case.
    """
    yield math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, kind = root / "sys/fs/cgroup/memory", CGROUP_1
        elif number == "0" and not controllers:
            top, kind = root / "sys/fs/cgroup", CGROUP_2
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield _left_in(top / group, kind)


def _left_in(group: Path, kind: CgroupFiles) -> float:
    """Bytes left in one cgroup; files that are cached count as free, since they make room."""
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in kind[:2])
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
        cached = dict(zip(stat[::2], stat[1::2], strict=True)).get(kind.cached, "0")
        return max(0.0, float(limit - used + int(cached)))
    except (OSError, ValueError):  # no such group here, or no limit: "max"
        return math.inf


def readable(size: float) -> str:
    """Bytes for a reader.

    >>> readable(1.5e9), readable(3.46e8), readable(2e6)
    ('1.5 GB', '350 MB', '2 MB')
    """
    number, unit = (size / 1e9, "GB") if size >= 1e9 else (size / 1e6, "MB")
    return f"{float(f'{number:.2g}'):g} {unit}"
