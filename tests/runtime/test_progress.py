# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A bar where somebody watches, else lines: few of them, the first and the last among them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from pyro_neuralrg.runtime import console as module
from pyro_neuralrg.runtime.console import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(
    stream: io.StringIO, number: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[str, list[int]]:
    """What a run of so many steps shows, and for which of them figures were asked."""
    monkeypatch.setattr("sys.stderr", stream)
    asked: list[int] = []

    def figures(step: int) -> str:
        asked.append(step)
        return f"loss {step}"

    done = options.get("done", 0)
    with Progress(number + done, "warm-up", **options) as progress:
        for step in range(number):
            label = "fit" if step > 0 or done else None
            progress.step(lambda step=step: figures(step), label)  # type: ignore[misc]
    return stream.getvalue(), asked


def test_a_quick_run_is_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text, asked = show(io.StringIO(), 200, monkeypatch)
    assert text.splitlines() == [
        "warm-up: 1/200 (0 %), 00:00 gone, 00:00 left, loss 0",
        "fit: 200/200 (100 %), 00:00 gone, 00:00 left, loss 199",
    ]
    assert asked == [0, 199]


def test_a_slow_run_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", -1.0)
    text, _ = show(io.StringIO(), 5, monkeypatch, done=15)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(16, 21)]
    assert lines[0].startswith("fit: 16/20 (80 %)")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text, asked = show(Terminal(), 200, monkeypatch)
    last = text.rsplit("\r", 1)[1]
    assert "200/200" in last
    assert "loss 199" in last
    assert len(asked) < 20


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nothing_is_shown_nor_computed(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert show(stream, 10, monkeypatch, shown=False) == ("", [])


def test_a_run_without_steps_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(io.StringIO(), 0, monkeypatch) == ("", [])
