# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How long a run will take, from its first steps."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from pyro_neuralrg.runtime.progress import Progress

__all__ = ["Forecast", "duration"]

FORECAST_STEPS = 6
"""After which a run can say how long it takes; the first one warms up."""

FORECAST_SECONDS = 60.0
"""Left, from which on it does."""


class Forecast:
    """Says once, after a few steps of a run, how long the rest takes, if that is over a minute.

    Args:
        progress: what shows it, if anything is shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._marks: list[float] = []

    def step(self, left: int, words: str = "") -> None:
        """Count a step.

        Args:
            left: steps that are left.
            words: what there is to be said of a forecast.
        """
        if not self._progress.shown or len(self._marks) >= FORECAST_STEPS:
            return
        self._marks.append(time.perf_counter())
        if len(self._marks) < FORECAST_STEPS:
            return
        step = statistics.median(b - a for a, b in pairwise(self._marks))
        if left * step <= FORECAST_SECONDS:
            return
        rest = duration(left * step)
        self._progress.note(f"about {rest} left, {duration(step)} a step now{words}")


def duration(seconds: float) -> str:
    """For a reader.

    >>> [duration(seconds) for seconds in (0.0012, 0.12, 40.0, 400.0, 40000.0)]
    ['1.2 ms', '120 ms', '40 s', '7 min', '11.1 h']
    """
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
