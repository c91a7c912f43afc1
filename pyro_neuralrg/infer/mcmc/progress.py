# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The one progress bar of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pyro.ops.stats import split_gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_neuralrg.infer.mcmc.base import Kernel, StepInfo

__all__ = ["MIN_DRAWS", "ProgressBar", "worst_rhat"]

#: R-hat splits chains and needs two draws of each half.
MIN_DRAWS = 4
#: Seconds between two R-hats, which cost as much as several steps of a small model.
RHAT_SECONDS = 2.0


class ProgressBar:
    """Phase, acceptance, step sizes, and the worst R-hat so far.

    Args:
        total: steps.
        shown: whether there is a bar at all.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Any = tqdm(total=total, disable=not shown, leave=True)
        self._rhat = math.nan
        self._looked = time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def done(self, steps: int) -> None:
        """Count steps that were made before."""
        self._bar.update(steps)

    def step(
        self,
        phase: str,
        kernel: Kernel,
        info: StepInfo,
        series: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Show one step; ``series`` returns the figures ``(chains, draws)`` of the draws so far."""
        if self._bar.disable:
            return
        self._bar.set_description(phase, refresh=False)
        shown = {"acceptance": f"{float(info.acceptance_rate.mean()):.2f}"}
        for name, member in kernel.members.items():
            if member.step_size is not None:
                shown[f"step size {name}"] = f"{member.step_size:.3g}"
        now = time.monotonic()
        if series is not None and now - self._looked > RHAT_SECONDS:
            self._rhat, self._looked = worst_rhat(series()), now
        if not math.isnan(self._rhat):
            shown["R-hat"] = f"{self._rhat:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()


def worst_rhat(series: Mapping[str, Tensor]) -> float:
    """Largest split R-hat (Gelman & Rubin) of series ``(chains, draws)``; NaN if none has one."""
    found = [
        float(split_gelman_rubin(values.double(), 0, 1))
        for values in series.values()
        if values.dim() == 2 and values.shape[1] >= MIN_DRAWS
    ]
    finite = [value for value in found if math.isfinite(value)]
    return max(finite, default=math.nan)
