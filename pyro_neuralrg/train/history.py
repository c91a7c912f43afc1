# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a training did, step by step."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_neuralrg.files.atomic import writing


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


@dataclass(frozen=True)
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

    @staticmethod
    def from_steps(steps: list[TrainingStep]) -> History:
        """Turn records into columns."""
        columns = list(zip(*steps, strict=True)) or [()] * len(TrainingStep._fields)
        return History(
            np.array(columns[0], dtype=np.int64),
            *(np.array(column, dtype=np.float64) for column in columns[1:]),
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each step, under the names of the arrays, with every digit.

        Raises:
            OSError: if ``path`` cannot be written; it is what it was.
        """
        columns = self.as_dict()
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        table.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        with writing(Path(path)) as stream:
            stream.write(text.getvalue().encode())

    def as_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays by name, for a table or a figure."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
