# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How often a run is written down, and what happens if it cannot be."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.files.format import one_line

__all__ = ["EVERY", "Interval", "attempt"]

EVERY = 60.0
"""Seconds, if nothing else is said."""


class Interval:
    """From one time that a training is written down to the next.

    Args:
        every: in seconds; None: 60.
        every_steps: in steps, instead.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> [step for step in range(1, 10) if Interval(every_steps=4).is_over(step)]
        [4, 8]
    """

    def __init__(self, every: float | None = None, every_steps: int | None = None) -> None:
        if every is not None and every_steps is not None:
            raise ValueError(
                f"every is {every!r} and every_steps is {every_steps!r}; accepted: one of them"
            )
        self.every = check_number(
            "every", EVERY if every is None else every, "a number of seconds >= 0", least=0
        )
        if every_steps is not None:
            every_steps = check_integer("every_steps", every_steps, 1)
        self.every_steps = every_steps
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._last = time.monotonic()

    def is_over(self, step: int) -> bool:
        """Whether it is, with ``step`` steps taken."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        return time.monotonic() - self._last >= self.every


def attempt(write: Callable[[], object], path: Path, run: str, quiet: bool) -> str | None:
    """Write a file without which a run can go on.

    Args:
        write: does it.
        path: the file, for the message.
        run: what goes on without it.
        quiet: that it cannot be written has been said already, or is for others to say.

    Returns:
        Why it could not be written; None if it could.

    Warns:
        UserWarning: if it could not be, unless ``quiet``.
    """
    try:
        write()
    except OSError as error:
        reason = f"{path} cannot be written ({one_line(error)})"
        if not quiet:
            warnings.warn(f"{reason}; {run} goes on without it", stacklevel=3)
        return reason
    return None
