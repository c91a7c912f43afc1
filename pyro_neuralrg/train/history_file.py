# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The history of a training as a file that grows with it."""

from __future__ import annotations

import glob
import os
from functools import partial
from pathlib import Path

from pyro_neuralrg.files.atomic import remove_leftovers
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.files.interval import Interval, attempt
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.train.history import History
from pyro_neuralrg.train.loop import Training

__all__ = ["HistoryFile"]

ACCEPTED = "accepted: a file in a folder that exists or can be made"


class HistoryFile:
    """A table of all steps so far, written anew now and then, whole or not at all.

    With several processes the first one writes.

    Args:
        path: of the table, see :meth:`~pyro_neuralrg.train.history.History.to_csv`.
        interval: from one time to the next.

    Attributes:
        unsaved: why the newest steps could not be written; None if they could.

    Raises:
        ValueError, TypeError: if ``path`` is a folder, or in one that cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], interval: Interval) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"history is {path!r}; {ACCEPTED}")
        self.path = Path(path)
        there = next(folder for folder in self.path.absolute().parents if folder.exists())
        if self.path.is_dir() or not there.is_dir():
            raise ValueError(f"history is {self.path}; {ACCEPTED}")
        self.interval = interval
        self.unsaved: str | None = None
        self._written = -1  # steps

    def begin(self, world: Processes) -> None:
        """Make the folder, and remove what killed trainings left of the same table in it.

        Raises:
            ValueError: if it cannot be made.
        """
        world.from_first(self._prepare)
        self.interval.begin()

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
            table, quiet = History.from_steps(training.records), self.unsaved is not None
            write = partial(table.to_csv, self.path)
            self.unsaved = attempt(write, self.path, "the training", quiet)
            if self.unsaved is None:
                self._written = len(table)
        self.interval.begin()

    def _prepare(self) -> None:
        folder = self.path.absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder, glob.escape(self.path.name))
        except OSError as error:
            raise ValueError(f"history is {self.path} ({one_line(error)}); {ACCEPTED}") from None
