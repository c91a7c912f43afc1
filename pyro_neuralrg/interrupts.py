# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that waits until what is there has been kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deferred_interrupts"]


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Hold back Ctrl-C inside the block, for short work that must not be torn.

    Yields:
        A list that is no longer empty once Ctrl-C was pressed. Nothing is raised: what an interrupt
        means is for the caller to say. In threads other than the main one, which get no Ctrl-C,
        nothing is held back.

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
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
