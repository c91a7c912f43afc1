# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The history of a training as a file that grows with it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from pyro_neuralrg.infer.files import one_line
from pyro_neuralrg.infer.history import History
from pyro_neuralrg.infer.interval import Interval
from pyro_neuralrg.infer.training import Training

__all__ = ["HistoryFile"]


class HistoryFile:
    """A table of all steps so far, written anew now and then, whole or not at all.

    With several processes the first one writes.

    Args:
        path: of the table, see :meth:`~pyro_neuralrg.infer.history.History.to_csv`.
        interval: from one time to the next.

    Attributes:
        unsaved: why the newest steps could not be written; None if they could.

    Raises:
        ValueError, TypeError: if ``path`` is not a file in a folder that exists.
    """

    def __init__(self, path: str | os.PathLike[str], interval: Interval) -> None:
        accepted = "accepted: a file in a folder that exists"
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"history is {path!r}; {accepted}")
        self.path = Path(path)
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise ValueError(f"history is {self.path}; {accepted}")
        self.interval = interval
        self.unsaved: str | None = None
        self._written = -1  # steps

    def is_due(self, step: int) -> bool:
        """Whether it is time to write the table, with ``step`` steps taken."""
        return self.interval.is_over(step)

    def keep(self, training: Training) -> None:
        """Write the table of the steps so far.

        Warns:
            UserWarning: if it cannot be written, once until it can; the training can go on all the
                same.
        """
        if training.world.is_first and self._written != len(training.records):
            try:
                History.from_steps(training.records).to_csv(self.path)
            except OSError as error:
                failed_before = self.unsaved is not None
                self.unsaved = f"{self.path} cannot be written ({one_line(error)})"
                if not failed_before:
                    warnings.warn(f"{self.unsaved}; the training goes on without it", stacklevel=2)
            else:
                self.unsaved, self._written = None, len(training.records)
        self.interval.begin()
