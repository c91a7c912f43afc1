# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C is held back, told, and comes through again afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

from pyro_neuralrg.runtime.console import deferred_interrupts


def test_held_back_as_often_as_it_comes() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupts() as pressed:
        assert not pressed
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert len(pressed) == 3
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_handler_comes_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), deferred_interrupts():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_use_it() -> None:
    seen: list[int] = []

    def work() -> None:
        with deferred_interrupts() as pressed:
            seen.append(len(pressed))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_other_signals_are_held_back_on_request() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with deferred_interrupts(numbers) as pressed:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert pressed == [signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in numbers] == before


def test_nothing_is_held_back_of_no_signals() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts(()):
        signal.raise_signal(signal.SIGINT)
