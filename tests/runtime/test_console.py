# SPDX-License-Identifier: Apache-2.0
"""A bar where somebody watches, else few lines; interrupts wait, and warnings find the user."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from pyro_neuralrg import Record, fit
from pyro_neuralrg.runtime import console
from pyro_neuralrg.runtime.console import HELD, Progress, deferred_interrupts, stage
from tests.infer.conftest import GaussianTarget, ScaleFlow


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


def test_a_stage_is_named_before_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("latent sampler"):
        text = show(io.StringIO(), 200, monkeypatch)[0]
    assert [line.partition("/")[0] for line in text.splitlines()] == [
        "latent sampler: warm-up: 1", "latent sampler: fit: 200",
    ]  # fmt: skip
    assert show(io.StringIO(), 1, monkeypatch)[0].startswith("warm-up")
    with stage("latent sampler"), stage("trial"):
        assert show(io.StringIO(), 1, monkeypatch)[0].startswith("latent sampler: trial: warm-up")


def test_a_slow_run_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", -1.0)
    lines = show(io.StringIO(), 5, monkeypatch, done=15)[0].splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(16, 21)]


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
    assert show(io.StringIO(), 0, monkeypatch) == ("", [])


@pytest.mark.parametrize("signals", [(signal.SIGINT,), HELD])
def test_signals_are_held_back_and_come_through_again(signals: tuple[signal.Signals, ...]) -> None:
    before = [signal.getsignal(number) for number in signals]
    with deferred_interrupts(signals) as pressed:
        for number in 2 * signals:
            signal.raise_signal(number)
    assert pressed == list(2 * signals)
    with pytest.raises(ZeroDivisionError), deferred_interrupts(signals):
        _ = 1 / 0
    assert [signal.getsignal(number) for number in signals] == before
    with pytest.raises(KeyboardInterrupt), deferred_interrupts(()):
        signal.raise_signal(signal.SIGINT)


def test_other_threads_may_hold_signals_back() -> None:
    seen: list[int] = []

    def work() -> None:
        with deferred_interrupts() as pressed:
            seen.append(len(pressed))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_training_shows_its_figures_and_warns_at_the_line_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"steps": 8, "batch": 16, "lr": 5.0, "seed": 1}
    target, flow = GaussianTarget(), ScaleFlow((2, 2))
    flow.set_exact(target)
    with pytest.warns(UserWarning, match="no checkpoint yet|ended at a loss") as caught:
        fit(target, flow, record=Record(tmp_path, resume=True), **options)
    assert len(caught) == 2
    assert {warning.filename for warning in caught} == {__file__}
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "ESS" in shown
