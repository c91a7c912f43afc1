# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A bar where somebody watches, else lines: few of them, the first and the last among them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from pyro_neuralrg.runtime import progress as module
from pyro_neuralrg.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that a test counts itself."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def shown(stream: io.StringIO, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    run()
    return stream.getvalue()


def steps(clock: Clock, number: int, seconds: float, **options: Any) -> Callable[[], list[int]]:
    """A run of steps that take so long each; returns for which of them figures were asked."""

    def run() -> list[int]:
        asked: list[int] = []

        def figures(step: int) -> str:
            asked.append(step)
            return f"loss {step}"

        with Progress(number + options.get("done", 0), "fit", **options) as progress:
            for step in range(number):
                clock.now += seconds
                progress.step(lambda step=step: figures(step))  # type: ignore[misc]
        return asked

    return run


def test_a_quick_run_is_two_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(io.StringIO(), steps(clock, 1000, 0.0005), monkeypatch)
    assert text.splitlines() == [
        "fit: 1/1000 (0 %), 00:00 gone, loss 0",
        "fit: 1000/1000 (100 %), 00:00 gone, loss 999",
    ]


def test_lines_by_tenths(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), steps(clock, 1000, 0.0625), monkeypatch).splitlines()
    assert [line.split()[1] for line in lines] == [
        "1/1000", *(f"{100 * tenth}/1000" for tenth in range(1, 11))
    ]  # fmt: skip
    assert lines[5] == "fit: 500/1000 (50 %), 00:31 gone, 00:31 left, loss 499"


def test_lines_by_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), steps(clock, 100, 20.0), monkeypatch).splitlines()
    assert [line.split()[1] for line in lines][:4] == ["1/100", "3/100", "5/100", "7/100"]
    assert 50 <= len(lines) <= 61


def test_steps_made_before_count(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), steps(clock, 20, 10.0, done=80), monkeypatch).splitlines()
    assert lines[0].startswith("fit: 81/100 (81 %), 00:10 gone, loss")
    assert "fit: 90/100 (90 %), 01:40 gone, 01:40 left, loss 9" in lines


def test_a_bar_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), steps(clock, 50, 0.5), monkeypatch)
    assert "\r" in text
    last = text.rsplit("\r", 1)[1]
    assert "50/50" in last
    assert "loss 49" in last


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nothing_is_shown_nor_computed(
    stream: io.StringIO, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    run = steps(clock, 10, 50.0, shown=False)
    assert shown(stream, lambda: asked.extend(run()), monkeypatch) == ""
    assert asked == []


def test_figures_are_asked_for_when_they_are_shown(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    run = steps(clock, 1000, 0.001)
    shown(io.StringIO(), lambda: asked.extend(run()), monkeypatch)
    assert asked == [0, 999]


def test_another_label(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        with Progress(2, "warm-up") as progress:
            progress.step(lambda: "a", "warm-up")
            progress.step(lambda: "b", "draws")

    lines = shown(io.StringIO(), run, monkeypatch).splitlines()
    assert [line.split(":")[0] for line in lines] == ["warm-up", "draws"]


def test_a_run_without_steps_is_silent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), steps(clock, 0, 1.0), monkeypatch) == ""
