# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""After a few steps a run can say how long it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_neuralrg import HMC, VectorizedMCMC
from pyro_neuralrg.runtime import forecast
from pyro_neuralrg.runtime.forecast import Forecast
from pyro_neuralrg.runtime.progress import Progress


class Clock:
    """Seconds that a test counts itself."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def told(
    steps: int,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: bool = True,
    **options: Any,
) -> list[str]:
    """Of a run whose first step took a minute, and each of the others so many seconds."""
    clock = Clock()
    monkeypatch.setattr(forecast, "time", clock)
    progress = Progress(steps, "fit", shown)
    found = Forecast(progress)
    for number in range(20):
        clock.now += 60.0 if number == 0 else seconds
        found.step(steps - number - 1, **options)
    return capsys.readouterr().err.splitlines()


def test_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(1006, 0.5, monkeypatch, capsys, words=", in all")
    assert found == ["fit: about 8 min left, 500 ms a step now, in all"]


@pytest.mark.parametrize(("steps", "words"), [(136, "65 s"), (36006, "5.0 h")])
def test_in_other_units(
    steps: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"about {words} left" in told(steps, 0.5, monkeypatch, capsys)[0]


def test_what_is_over_soon_is_not_spoken_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(100, 0.5, monkeypatch, capsys) == []
    assert told(1006, 0.5, monkeypatch, capsys, shown=False) == []


def test_a_sampling_run_says_it_of_warm_up_and_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
    options: dict[str, Any] = {"num_samples": 10, "warmup_steps": 10, "num_chains": 4, "seed": 0}
    plain = VectorizedMCMC(kernel, progress=False, **options)
    plain.run()
    monkeypatch.setattr(forecast, "FORECAST_SECONDS", -1.0)
    told = VectorizedMCMC(kernel, **options)
    told.run()
    found = [line for line in capsys.readouterr().err.splitlines() if "a step now" in line]
    assert [line.split(":")[0] for line in found] == ["warm-up", "draws"]
    assert found[0].endswith("a step now, while steps adapt")
    assert torch.equal(plain.get_samples()["x"], told.get_samples()["x"])
