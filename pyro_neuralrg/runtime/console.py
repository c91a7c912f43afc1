# SPDX-License-Identifier: Apache-2.0
"""The user of a run: warnings at their line, one progress bar, interrupts that wait."""

from __future__ import annotations

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

from pyro_neuralrg.runtime.notebook import in_notebook

BAR_SECONDS = 0.2
"""Seconds between two new figures of a bar: they may cost as much as a step."""

LINE_SECONDS = 30.0
"""Seconds between two lines."""

LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"

_STAGE: ContextVar[str] = ContextVar("stage", default="")
"""Words before the label of every bar, with a colon."""

HELD = (signal.SIGINT, signal.SIGTERM)
"""Signals that wait for the end of a step, so that a run can be kept as it is then."""


def warn_user(message: str) -> None:
    """Issue a UserWarning that points to the first caller outside this package, Pyro and torch."""
    inside = __name__.partition(".")[0], "pyro", "torch"
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


@contextmanager
def stage(words: str) -> Iterator[None]:
    """Put these words before the names of bars that begin in the block, after outer ones."""
    before = _STAGE.set(f"{_STAGE.get()}{words}: ")
    try:
        yield
    finally:
        _STAGE.reset(before)


class Progress:
    """Progress of a run on stderr: a bar on a terminal or in a notebook, else a line now and then.

    Lines come with the first step, every half a minute, and with the last step. A notebook's bar
    vanishes at the end. Of ``total`` steps, so many are ``done`` before.
    """

    def __init__(self, total: int, label: str, shown: bool = True, done: int = 0) -> None:
        self._figures: Callable[[], str] | None = None
        self._shown_at = self._shown_n = -1.0
        options: dict[str, Any] = {}
        self._interval = BAR_SECONDS
        if not _has_bars():
            options = {"file": _Lines(), "bar_format": LINE, "delay": 1e-9}
            self._interval = LINE_SECONDS
        self._stage = _STAGE.get()
        options |= {"total": total, "initial": done, "desc": self._stage + label}
        self._bar: Any = tqdm(disable=not shown, **options)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._figures is not None and self._shown_n != self._bar.n:
            self._show(self._figures)
        self._bar.leave = _has_bars() and not in_notebook()
        self._bar.close()

    def step(
        self, figures: Callable[[], str], label: str | None = None, done: int | None = None
    ) -> None:
        """Count a step, or say how many are ``done``; ``figures`` is called only to be shown."""
        if self._bar.disable:
            return
        self._bar.n = self._bar.n + 1 if done is None else done
        self._figures = figures
        if label is not None:
            self._bar.set_description_str(self._stage + label, refresh=False)
        if self._shown_n < 0 or time.monotonic() - self._shown_at > self._interval:
            self._show(figures)

    def _show(self, figures: Callable[[], str]) -> None:
        self._shown_at, self._shown_n = time.monotonic(), self._bar.n
        self._bar.set_postfix_str(figures())


def _has_bars() -> bool:
    return in_notebook() or sys.stderr.isatty()


class _Lines:
    """A stream in which a bar becomes lines, one each time that it is shown."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def deferred_interrupts(
    signals: Iterable[signal.Signals] = (signal.SIGINT,),
) -> Iterator[list[int]]:
    """Hold back Ctrl-C, or these signals, inside the block, and list those that came.

    Nothing is raised. Threads other than the main one get no signals.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before: list[tuple[signal.Signals, Any]] = []
    try:
        for name in signals:
            held = signal.signal(name, lambda number, frame: pressed.append(number))
            usual = signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL
            before.append((name, usual if held is None else held))
        yield pressed
    finally:
        for name, handler in before:
            signal.signal(name, handler)
