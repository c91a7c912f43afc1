# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, and other signals, that wait until what is there has been kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPT = (signal.SIGINT,)

HELD = (signal.SIGINT, signal.SIGTERM)
"""Signals that wait for the end of a step, so that a run can be kept as it is then."""


@contextmanager
def deferred_interrupts(signals: Iterable[signal.Signals] = INTERRUPT) -> Iterator[list[int]]:
    """Hold back Ctrl-C inside the block, for short work that must not be torn.

    Args:
        signals: what is held back.

    Yields:
        A list of the numbers of the signals that came, no longer empty once Ctrl-C was pressed.
        Nothing is raised: what an interrupt means is for the caller to say. In threads other than
        the main one, which get no signals, nothing is held back.

    Example:
        >>> with deferred_interrupts() as pressed:
        ...     signal.raise_signal(signal.SIGINT)
        >>> len(pressed)
        1
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
