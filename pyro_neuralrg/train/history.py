# SPDX-License-Identifier: Apache-2.0
"""Steps of a training, one by one and as a table, and the best parameters among them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyro_neuralrg.files.format import writing

RUNNING_STEPS = 50
"""Steps of the running mean of the loss: the batch's noise falls by seven, and a divergence is seen
within as many steps."""

LEAST_STEPS = 10
"""Steps before a running mean is compared: a single batch of heavy tails is no divergence."""

DIVERGED_SPREADS = 10.0
"""Standard deviations of one sample's log-weight, as they were at the best, by which the running
mean of a diverged training is above the best one; the noise of a mean is at most a seventh of one.
"""

DIVERGED_NATS = 1.0
"""Least rise of a diverged mean: the spread of a flow that is nearly exact is next to nothing."""


class TrainingStep(NamedTuple):
    """One step of a training, as given to callbacks.

    Attributes:
        step: number of the step, from 0.
        free_energy: loss of this step's samples in nats, a bound of -ln Z at the step's
            temperature.
        free_energy_se: its standard error.
        ess: importance effective sample size of the step's samples, as a fraction.
        temperature_factor: temperature of the step's target over that of the final one.
        learning_rate: of this step.
        seconds: since the training began.
    """

    step: int
    free_energy: float
    free_energy_se: float
    ess: float
    temperature_factor: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, repr=False)
class History:
    """The steps of a training as arrays of equal length, named as in :class:`TrainingStep`."""

    step: npt.NDArray[np.int64]
    free_energy: npt.NDArray[np.float64]
    free_energy_se: npt.NDArray[np.float64]
    ess: npt.NDArray[np.float64]
    temperature_factor: npt.NDArray[np.float64]
    learning_rate: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        last = f", free_energy {self.free_energy[-1]:.6g} nats" if len(self) else ""
        return f"History({len(self)} steps{last})"

    @staticmethod
    def from_steps(steps: list[TrainingStep]) -> History:
        """Turn records into columns."""
        columns = np.array(steps, dtype=np.float64).reshape(-1, len(TrainingStep._fields)).T.copy()
        return History(columns[0].astype(np.int64), *columns[1:])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each step, under the names of the arrays, with every digit.

        Raises:
            OSError: if ``path`` cannot be written; it is what it was.
        """
        columns = self.as_dict()
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        with writing(Path(path)) as stream:
            for row in [columns, *rows]:
                stream.write((",".join(map(str, row)) + "\n").encode())

    def as_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays by name, for a table or a figure."""
        return vars(self).copy()


class Best:
    """The parameters, joined, with the lowest running mean of the loss at one temperature.

    ``loss`` is that mean, infinite before there is one, ``spread`` the mean standard deviation of
    the log-weights there.
    """

    def __init__(
        self, parameters: Tensor, loss: float = math.inf, spread: float = math.inf
    ) -> None:
        self.parameters, self.loss, self.spread = parameters, loss, spread
        self.restart()

    def add(self, loss: float, spread: float, parameters: Callable[[], Tensor]) -> bool:
        """Add a step at this temperature; return whether the training has diverged from the best.

        ``loss`` is finite, ``parameters`` returns a copy of those that it is of.
        """
        self._steps += 1
        weight = 1.0 / min(self._steps, RUNNING_STEPS)
        self._mean += weight * (loss - self._mean)
        self._mean_spread += weight * (spread - self._mean_spread)
        if self._mean < self.loss:
            self.loss, self.spread = self._mean, self._mean_spread
            self.parameters = parameters()
            return False
        allowed = max(DIVERGED_NATS, DIVERGED_SPREADS * self.spread)
        return self._steps >= LEAST_STEPS and self._mean > self.loss + allowed

    def restart(self) -> None:
        """Begin another running mean, from the best parameters."""
        self._mean = self._mean_spread = 0.0
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and numbers."""
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another record was."""
        like = self.parameters
        vars(self).update(state)
        self.parameters = self.parameters.to(like, copy=True)
