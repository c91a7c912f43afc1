# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Memory that a training step takes, before it is tried, and what there is."""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MemoryLimitError", "PeakMemory", "available_memory", "check_memory", "peak_memory"]

MEASURED_SITES = 2**12
"""In the smaller batch of those that are measured."""

SLACK = 1.3
"""Of resident memory over that of tensors: 1.2 at 16 x 16, batch 256, with glibc's allocator."""


USUAL_BYTES = 5000
"""Of a step for each site of a sample: twice what the default flow takes in float32."""


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


def check_memory(step: Callable[[int], Any], batch: int, sites: int, device: torch.device) -> None:
    """Refuse a batch whose step cannot fit into what is available.

    Args:
        step: a step of so many samples; it is tried with few.
        batch: samples, of this process.
        sites: of a sample.
        device: where.

    Raises:
        MemoryLimitError: naming the largest batch that would fit.
    """
    there = available_memory(device)
    dry = 2 * _small(sites) * sites * USUAL_BYTES > there
    try:
        peak = peak_memory(step, sites, dry)
    except Exception:
        if dry:  # not every operation is known without memory
            return
        raise
    needed = SLACK * peak(batch)
    if needed > there:
        most = math.floor((there / SLACK - peak.whole) / peak.each) if peak.each else 0
        fits = f"a batch of at most {most}" if most >= 2 else "a smaller lattice or flow"
        raise MemoryLimitError(
            f"batch is {batch}, of which a training step takes about {readable(needed)}; accepted: "
            f"what fits into the {readable(there)} available here, {fits}"
        )


def available_memory(device: torch.device) -> float:
    """Bytes that can be had, infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def readable(size: float) -> str:
    """Bytes for a reader.

    >>> readable(1.5e9), readable(2e6)
    ('1.5 GB', '2 MB')
    """
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{size / 1e6:.2g} MB"
