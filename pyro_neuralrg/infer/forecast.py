# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How long a training will take, from its first steps."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise

import torch

from pyro_neuralrg.infer.history import TrainingStep
from pyro_neuralrg.infer.memory import readable

__all__ = ["Forecast"]

FORECAST_STEPS = 6
"""After which a training can say how long it takes; the first ones warm up."""

FORECAST_SECONDS = 60.0
"""Left, from which on it does."""


class Forecast:
    """A callback of a training that says after a few steps what time and memory it takes.

    Args:
        steps: Length of the training.
        batch: Samples per step.
        device: Where.
        tell: Called once, if more than ``FORECAST_SECONDS`` are left.
    """

    def __init__(
        self, steps: int, batch: int, device: torch.device, tell: Callable[[str], object]
    ) -> None:
        self._steps, self._batch, self._device, self._tell = steps, batch, device, tell
        self._marks: list[float] = []

    def __call__(self, record: TrainingStep) -> None:
        """Look at one step."""
        if len(self._marks) >= FORECAST_STEPS:
            return
        self._marks.append(record.seconds)
        if len(self._marks) < FORECAST_STEPS:
            return
        step = statistics.median(b - a for a, b in pairwise(self._marks))
        left = step * (self._steps - record.step - 1)
        if left <= FORECAST_SECONDS:
            return
        used = _used(self._device)
        memory = "" if used is None else f"; {readable(used)} of memory so far"
        self._tell(
            f"training takes about {_duration(left)} more, {1000 * step:.0f} ms for each step of "
            f"{self._batch} samples{memory}"
        )


def _duration(seconds: float) -> str:
    """For a reader.

    >>> _duration(40.0), _duration(400.0), _duration(40000.0)
    ('40 s', '7 min', '11.1 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _used(device: torch.device) -> float | None:
    """Bytes of memory at the worst moment so far; None if the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        resource = import_module("resource")
    except ImportError:  # of Unix only
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
