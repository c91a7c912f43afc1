# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures that the progress bar of a run shows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import Kernel, StepInfo

#: R-hat splits chains and needs two draws of each half.
MIN_DRAWS = 4
#: Seconds between two R-hats, which cost as much as several steps of a small model.
RHAT_SECONDS = 2.0


class Figures:
    """Acceptance, step sizes, and the worst R-hat so far, as text.

    Args:
        series: returns the figures ``(chains, draws)`` of the draws so far.
    """

    def __init__(self, series: Callable[[], Mapping[str, Tensor]]) -> None:
        self._series = series
        self._rhat = math.nan
        self._looked = time.monotonic()

    def of(self, kernel: Kernel, info: StepInfo) -> str:
        """Figures of one step, and of the draws before it."""
        shown = {"acceptance": f"{float(info.acceptance_rate.mean()):.2f}"}
        for name, member in kernel.members.items():
            if member.step_size is not None:
                shown[f"step size {name}"] = f"{member.step_size:.3g}"
        now = time.monotonic()
        if now - self._looked > RHAT_SECONDS:
            self._rhat, self._looked = worst_rhat(self._series()), now
        if not math.isnan(self._rhat):
            shown["R-hat"] = f"{self._rhat:.3f}"
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def worst_rhat(series: Mapping[str, Tensor]) -> float:
    """Largest split R-hat (Gelman & Rubin) of series ``(chains, draws)``; NaN if none has one."""
    found = [
        float(split_gelman_rubin(values.double(), 0, 1))
        for values in series.values()
        if values.dim() == 2 and values.shape[1] >= MIN_DRAWS
    ]
    finite = [value for value in found if math.isfinite(value)]
    return max(finite, default=math.nan)
