# SPDX-License-Identifier: Apache-2.0
"""A training that diverges goes back, and no training ends worse than it began."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import Record, fit
from pyro_neuralrg.train import Cooling, Schedule, TrainingStep
from pyro_neuralrg.train.history import LEAST_STEPS, RUNNING_STEPS, Best
from pyro_neuralrg.train.loop import MAX_DIVERGENCES
from pyro_neuralrg.train.optimizer import learning_rate_factor
from pyro_neuralrg.train.training import TRAINING_FORMAT
from tests.infer.conftest import GaussianTarget, ScaleFlow, state

QUICK: dict[str, Any] = {"steps": 30, "batch": 16, "lr": 0.05, "progress": False, "seed": 1}


def loss(target: GaussianTarget, flow: ScaleFlow) -> float:
    """Exact: E_q[ln q - ln pi] of two Gaussians."""
    scale, ln_two_pi_e = flow.log_scale.detach(), math.log(2.0 * math.pi * math.e)
    energy = ((flow.loc.detach() - 1.0).square() + (2 * scale).exp()) / (2.0 * target.variance)
    return float((energy - scale - 0.5 * ln_two_pi_e).sum())


def copies(number: float) -> Callable[[], torch.Tensor]:
    return lambda: torch.full((1,), number)


@pytest.mark.parametrize(("spread", "height"), [(0.0, 1.0), (0.05, 1.0), (0.5, 5.0), (20.0, 200.0)])
def test_diverged_is_ten_spreads_above_the_best_and_one_nat_at_least(
    spread: float, height: float
) -> None:
    for value, expected in ((0.99 * height, False), (1.02 * height, True)):
        best = Best(torch.zeros(1))
        assert not best.add(0.0, spread, copies(1))
        found = [best.add(value, 100.0, copies(2)) for _ in range(400)]
        assert found[-1] is expected
        assert not any(found[: LEAST_STEPS - 2])
        assert best.parameters.item() == 1.0


def test_a_divergence_is_seen_after_any_record_and_an_outlier_is_none() -> None:
    best = Best(torch.zeros(1))
    losses = [*500 * [0.0], 400.0, *50 * [0.0]]
    assert not any(best.add(value, 1.0, copies(0)) for value in losses)
    assert any(best.add(100.0, 1.0, copies(0)) for _ in range(RUNNING_STEPS))


class Breaking(GaussianTarget):
    """Its energy is not finite, or its gradient, from one evaluation on, and where the flow was."""

    def __init__(self, flow: Any, sound: int, value: float, kinked: bool = False) -> None:
        super().__init__()
        self.flow_of, self.sound, self.value, self.kinked = flow, sound, value, kinked
        self.states: list[torch.Tensor] = []

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        energy = super().energy(x)
        if len(self.states) < self.sound:
            self.states.append(state(self.flow_of))
            return energy
        if self.kinked:  # of value 0 and infinite slope
            return energy + (x - x.detach()).flatten(-2).sum(-1).abs().sqrt()
        return energy + self.value


@pytest.mark.parametrize(("value", "average"), [(math.nan, 0.0), (math.inf, 1.0), (0.0, 1.0)])
def test_a_target_that_breaks_for_good_ends_the_training(
    flow: Any, value: float, average: float, tmp_path: Path
) -> None:
    """With the best parameters, not with an average that holds those which led there."""
    record = Record(tmp_path, history=True)
    target = Breaking(flow, 1 + 10, value, kinked=value == 0.0)
    schedule = Schedule(cooling=None, average=average)
    what = f"the loss at step 10 is {value}" if value else "the gradient at step 10 is not finite"
    with pytest.warns(UserWarning, match="training") as caught:
        result = fit(target, flow, schedule=schedule, record=record, **QUICK)
    for warning, word in zip(caught, ("diverged", "stopped"), strict=True):
        assert str(warning.message).startswith(f"training {word}: {what}")
    assert result.stopped == f"{what}, after 10 divergences before"
    assert f"10 steps, free_energy {result.history.free_energy[-1]:.6g} nats" in repr(result)
    assert repr(result).endswith(f", stopped: {result.stopped})")
    assert result.divergences == MAX_DIVERGENCES + 1
    assert result.steps == 10
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 10
    assert np.isfinite(result.history.free_energy).all()
    means = np.cumsum(result.history.free_energy) / np.arange(1, 11)
    best = target.states[1 + int(means.argmin())]
    torch.testing.assert_close(state(flow), best, rtol=0, atol=0)


def test_a_first_loss_that_is_not_finite(flow: Any) -> None:
    with pytest.raises(ValueError, match="target or flow gives a loss of nan at the first step"):
        fit(Breaking(flow, 0, math.nan), flow, schedule=Schedule(cooling=None), **QUICK)


class Hole(GaussianTarget):
    """Its energy is NaN at the eleventh step, and seven evaluations later."""

    calls = 0

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().energy(x) + (math.nan if self.calls in (12, 19) else 0.0)


def test_a_target_that_breaks_once_costs_no_step(flow: Any, tmp_path: Path) -> None:
    """The step is tried again, without moments, at half the rate, which rises anew; said once."""
    record = Record(tmp_path, every_steps=12)
    with pytest.warns(UserWarning, match="diverged: the loss at step 10 is nan") as caught:
        result = fit(Hole(), flow, schedule=Schedule(4, cooling=None), record=record, **QUICK)
    assert len(caught) == 1
    assert result.stopped is None
    assert (result.steps, result.divergences) == (30, 2)
    assert list(result.history.step) == list(range(30))
    plain = [0.05 * learning_rate_factor(step, 30, warmup=4) for step in range(30)]
    ratio = result.history.learning_rate / plain
    rise = [0.25, 0.5, 0.75]
    expected = [*10 * [1.0], *(0.5 * r for r in rise), *3 * [0.5], *(0.25 * r for r in rise)]
    np.testing.assert_allclose(ratio, [*expected, *11 * [0.25]])
    contents = TRAINING_FORMAT.read(tmp_path / "training-0000000012.pt")
    assert float(contents["training"]["optimizer"]["state"][0]["step"]) == 2


@pytest.mark.parametrize("cooling", [None, Cooling(1.5, 0.25)])
@pytest.mark.filterwarnings("ignore:training diverged:UserWarning")
def test_a_rate_that_is_far_too_large(target: Any, flow: Any, cooling: Any) -> None:
    """It is lowered until the training learns, also if that ran away while it cooled."""
    before = loss(target, flow)
    options = {**QUICK, "steps": 600, "lr": 40.0}
    result = fit(target, flow, schedule=Schedule(cooling=cooling, clip=None), **options)
    assert result.divergences > 0
    assert loss(target, flow) < before - 1.0
    assert loss(target, flow) - -target.log_partition() < 0.5


@pytest.mark.parametrize("cooling", [None, Cooling(1.5, 0.25)])
@pytest.mark.parametrize("steps", [1, 8])
def test_never_worse_than_the_beginning(target: Any, flow: Any, cooling: Any, steps: int) -> None:
    """Of an exact flow any large step makes a worse one, also the last, whose loss is not seen."""
    flow.set_exact(target)
    exact = state(flow)
    generator = torch.random.get_rng_state()
    options = {**QUICK, "steps": steps, "lr": 5.0}
    with pytest.warns(UserWarning, match="training ended at a loss of .*, it began at"):
        fit(target, flow, schedule=Schedule(cooling=cooling), **options)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert loss(target, flow) < -target.log_partition() + 0.02
    if steps == 1:
        torch.testing.assert_close(state(flow), exact, rtol=0, atol=0)


def test_what_counts_is_the_loss_at_the_final_temperature(target: Any, flow: Any) -> None:
    """Stopped while it cools, the flow is better than at its beginning for the hotter target."""
    flow.set_exact(target)
    exact, heated = state(flow), target.heated(2.0)
    slow: dict[str, Any] = {**QUICK, "steps": 60, "batch": 256, "lr": 0.02}
    before, losses = loss(heated, flow), []

    def stop(record: TrainingStep) -> bool:
        losses.append(loss(heated, flow))
        return record.step == 30

    with pytest.warns(UserWarning, match="the first parameters are kept"):
        fit(target, flow, schedule=Schedule(cooling=Cooling(4.0, 1.0)), callback=stop, **slow)
    assert losses[-1] < before - 0.1
    torch.testing.assert_close(state(flow), exact, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:training ended:UserWarning")
def test_the_beginning_is_that_of_the_training_which_is_resumed(
    target: Any, flow: Any, tmp_path: Path
) -> None:
    flow.set_exact(target)
    exact, other = state(flow), ScaleFlow((2, 2))
    options = {**QUICK, "steps": 8, "lr": 5.0, "schedule": Schedule(cooling=Cooling(1.5, 0.75))}
    fit(target, flow, callback=lambda one: one.step == 3, record=Record(tmp_path), **options)
    assert fit(target, other, record=Record(tmp_path, resume=True), **options).steps == 8
    assert loss(target, other) < -target.log_partition() + 0.02
    assert torch.equal(state(flow), exact)


def test_the_best_of_a_training_whose_last_step_spoils_it(target: Any, flow: Any) -> None:
    """What it has learned before is the result, not its beginning."""
    before = loss(target, flow)

    def spoil(record: TrainingStep) -> None:
        if record.step == 99:
            flow.loc.data.fill_(50.0)

    with pytest.warns(UserWarning, match="the best parameters are kept"):
        fit(target, flow, callback=spoil, **{**QUICK, "steps": 100})
    assert loss(target, flow) < before - 1.0


def test_as_good_as_the_beginning_is_kept(target: Any, flow: Any) -> None:
    """Within the error of what is measured: what was trained is the result, nothing is said."""
    flow.set_exact(target)
    states: list[torch.Tensor] = []
    options = {**QUICK, "lr": 1e-4, "callback": lambda _: states.append(state(flow))}
    fit(target, flow, schedule=Schedule(cooling=None), **options)
    torch.testing.assert_close(state(flow), states[-1], rtol=0, atol=0)
