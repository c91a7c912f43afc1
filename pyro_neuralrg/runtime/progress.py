# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The one progress bar of a run; lines of text where nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

BAR_SECONDS = 0.2
"""A bar shows new figures this often: they may cost as much as a step."""

LINE_SECONDS = 30.0
"""Between two lines."""

TENTH_SECONDS = 3.0
"""Between two lines if a tenth of the run has gone by in the meantime."""


class Progress:
    """How far a run is, on stderr: a bar on a terminal or in a notebook, else a line now and then.

    Lines come with the first step, after every tenth of the run, but seconds apart at least, every
    half a minute, and with the last step.

    Args:
        total: steps.
        label: what the steps are of.
        shown: whether anything is.
        done: steps that were made before.

    Example:
        >>> import contextlib, io
        >>> with contextlib.redirect_stderr(io.StringIO()) as out, Progress(20, "fit") as progress:
        ...     for loss in range(20):
        ...         progress.step(lambda: f"F {loss}")
        >>> [line.split(",")[0] + line[-4:] for line in out.getvalue().splitlines()]
        ['fit: 1/20 (5 %) F 0', 'fit: 20/20 (100 %)F 19']
    """

    def __init__(self, total: int, label: str, shown: bool = True, done: int = 0) -> None:
        self.total, self.label, self.shown = total, label, shown
        self._first, self._done = done, done
        self._figures: Callable[[], str] | None = None
        self._began = time.monotonic()
        self._written = self._written_at = -1.0
        self._bar: Any = None
        if shown and _is_watched():
            self._bar = tqdm(total=total, initial=done, desc=label)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last figures."""
        if self._bar is not None:
            if self._figures is not None:
                self._bar.set_postfix_str(self._figures())
            self._bar.close()
        elif self.shown and self._figures is not None and self._written != self._done:
            self._write(time.monotonic())

    def step(self, figures: Callable[[], str], label: str | None = None) -> None:
        """Count a step.

        Args:
            figures: returns what is to be shown of it; called only if it is shown.
            label: of it, if it is another one from here on.
        """
        self._done += 1
        if not self.shown:
            return
        self._figures = figures
        now = time.monotonic()
        if label is not None and label != self.label:
            self.label = label
            if self._bar is not None:
                self._bar.set_description(label, refresh=False)
        if self._bar is None:
            if self._is_due(now):
                self._write(now)
            return
        if now - self._written_at > BAR_SECONDS:
            self._written_at = now
            self._bar.set_postfix_str(figures(), refresh=False)
        self._bar.update()

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if not self.shown:
            return
        line = f"{self.label}: {text}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def _is_due(self, now: float) -> bool:
        elapsed = now - self._written_at
        tenth = 10 * self._done // self.total > 10 * self._written // self.total
        return self._written < 0 or elapsed > LINE_SECONDS or (tenth and elapsed > TENTH_SECONDS)

    def _write(self, now: float) -> None:
        """One line."""
        assert self._figures is not None
        made, left = self._done - self._first, self.total - self._done
        seconds = now - self._began
        times = f"{tqdm.format_interval(seconds)} gone"
        if left > 0 and made > 1:
            times += f", {tqdm.format_interval(seconds / made * left)} left"
        share = f"{100 * self._done // self.total} %"
        sys.stderr.write(
            f"{self.label}: {self._done}/{self.total} ({share}), {times}, {self._figures()}\n"
        )
        sys.stderr.flush()
        self._written, self._written_at = self._done, now


def _is_watched() -> bool:
    """Whether stderr is a terminal, or this is a notebook, where bars are widgets."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()
