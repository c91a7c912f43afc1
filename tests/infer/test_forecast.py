# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""After a few steps a run can say how long it takes, and looking ahead changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC, fit
from pyro_neuralrg.infer import FitResult, forecast
from pyro_neuralrg.infer.forecast import Forecast
from pyro_neuralrg.infer.training import Training
from pyro_neuralrg.progress import Progress


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
    def more(seconds: float) -> tuple[float, str]:
        pytest.fail("tried out")

    assert told(100, 0.5, monkeypatch, capsys, more=more) == []
    assert told(1006, 0.5, monkeypatch, capsys, shown=False, more=more) == []


def test_steps_that_will_take_longer_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(
        1006, 0.5, monkeypatch, capsys, more=lambda seconds: (1000 * seconds, ", then 1.5 s")
    )
    assert found == ["fit: about 17 min left, 500 ms a step now, then 1.5 s"]


def trained(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Training:
    """A training before its first step."""
    caught: list[Training] = []
    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", lambda self, *_: caught.append(self))
        fit(IsingDual((2, 2)), batch=4, seed=0, progress=False, **options)
    return caught[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 1000}, (150.0, ", 700 ms with path gradients later")),
        ({"steps": 1000, "start_step": 200}, (150.0, ", 700 ms with path gradients later")),
        ({"steps": 90}, (0.0, "; path gradients will take longer")),
        ({"steps": 1000, "anneal": None}, (0.0, "")),
        ({"steps": 1000, "path_gradient": True}, (0.0, "")),
        ({"steps": 1000, "path_gradient": False}, (0.0, "")),
    ],
)
def test_path_gradients_of_later_steps_are_in_it(
    options: dict[str, Any], expected: tuple[float, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After cooling, in 750 of 1000 steps, here for 0.2 s more."""
    training = trained(monkeypatch, **options)
    training.elbo.path_gradient = training.elbo.path_gradient or training.anneal is None
    monkeypatch.setattr(Training, "_seconds_of_gradient", lambda _, path: 0.3 if path else 0.1)
    seconds, words = training._longer(0.5)
    assert (pytest.approx(seconds), words) == expected


def test_trying_them_out_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"steps": 30, "batch": 4, "average": 0.5}
    tried: list[bool] = []
    kind = Training.try_step

    def watched(self: Training, batch: int, path_gradient: bool | None = None) -> None:
        tried.append(bool(path_gradient))
        kind(self, batch, path_gradient)

    def result(progress: bool) -> tuple[FitResult, torch.Tensor]:
        torch.manual_seed(3)
        found = fit(IsingDual((2, 2)), progress=progress, **options)
        return found, torch.random.get_rng_state()

    plain, state = result(False)
    monkeypatch.setattr(forecast, "FORECAST_SECONDS", -1.0)
    monkeypatch.setattr("pyro_neuralrg.infer.training.TRIED_STEPS", 0)
    monkeypatch.setattr(Training, "try_step", watched)
    found, other = result(True)
    assert tried == [True, True, False, False]
    assert "with path gradients later" in capsys.readouterr().err
    assert torch.equal(state, other)
    for name, values in plain.history.as_dict().items():
        if name != "seconds":
            np.testing.assert_array_equal(values, getattr(found.history, name))
    for one, another in zip(plain.flow.parameters(), found.flow.parameters(), strict=True):
        assert torch.equal(one, another)


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
