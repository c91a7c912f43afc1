# SPDX-License-Identifier: Apache-2.0
"""Trainings that were stopped or killed go on with the numbers of those that were not."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import Cooling, IsingDual, Record, Schedule
from pyro_neuralrg.files import CheckpointError
from pyro_neuralrg.runtime.processes import Processes, random_state, set_random_state
from pyro_neuralrg.train import FitResult, TrainingStep, fit
from tests.infer.conftest import GaussianTarget

AVERAGING = Schedule(average=0.4)
QUICK: dict[str, Any] = {
    "steps": 20, "batch": 8, "lr": 0.05, "progress": False, "schedule": AVERAGING, "seed": 5,
}  # fmt: skip


class KilledError(Exception):
    """The end of the process, as far as the training can tell."""


def at(step: int, act: Callable[[], Any]) -> Callable[[TrainingStep], Any]:
    return lambda record: act() if record.step == step else None


def die() -> None:
    raise KilledError


def killed(target: Any, folder: Path, step: int, **options: Any) -> None:
    record = Record(folder, every_steps=3)
    with pytest.raises(KilledError):
        fit(target, record=record, callback=at(step, die), **{**QUICK, **options})


def resumed(target: Any, folder: Path, *flows: Any, **options: Any) -> FitResult:
    record = Record(folder, every_steps=3, resume=True)
    return fit(target, *flows, record=record, **{**QUICK, **options})


def assert_same(one: FitResult, other: FitResult) -> None:
    for name, values in one.history.as_dict().items():
        if name != "seconds":
            np.testing.assert_array_equal(values, getattr(other.history, name))
    for first, second in zip(one.flow.parameters(), other.flow.parameters(), strict=True):
        assert torch.equal(first, second)
    for name in ("steps", "batch", "stopped", "divergences"):
        assert getattr(one, name) == getattr(other, name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("training-*.pt"))


def step_files(*steps: int) -> list[str]:
    return [f"training-{step:010d}.pt" for step in steps]


class Cliff(GaussianTarget):
    """Its energies are NaN if one field is beyond a height, which some batches reach."""

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return super().energy(x).masked_fill((x > 2.8).any(), math.nan)

    def heated(self, factor: float) -> GaussianTarget:
        return Cliff(self.shape, self.variance * factor)


def ising() -> IsingDual:
    """With path gradients of its flow."""
    return IsingDual((2, 2), temperature=3.0)


def critical() -> IsingDual:
    return IsingDual((2, 2))


@pytest.mark.filterwarnings("ignore:training diverged:UserWarning")
@pytest.mark.parametrize(
    ("make", "steps", "options"),
    [
        (GaussianTarget, [3, 15, 19], {}),
        (ising, [11], {"lr": 0.01}),
        (Cliff, [3, 12, 19], {}),
        # the running mean, its best and the rise of the rate go on where they were
        (GaussianTarget, [20, 50],
         {"steps": 80, "lr": 40.0, "schedule": Schedule(clip=None, average=0.4)}),
        # also of a temperature that ends there
        (critical, [58, 97],
         {"steps": 120, "lr": 2.0, "schedule": Schedule(0, Cooling(4.0, 0.8), None)}),
    ],
    ids=["plain", "path gradients", "not finite", "rate too large", "cooling"],
)  # fmt: skip
def test_killed_and_resumed_is_the_same_as_not_killed(
    make: Callable[[], Any], steps: list[int], options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    whole = fit(make(), **{**QUICK, **options})
    assert whole.stopped is None
    assert (whole.divergences >= 2) == (make is Cliff or "steps" in options)
    for step in steps:
        folder = tmp_path / str(step)
        killed(make(), folder, step, **options)
        assert names(folder)[-1] == step_files(step // 3 * 3)[0]
        rest = resumed(make(), folder, **options)
        assert_same(rest, whole)
        assert (np.diff(rest.history.seconds) >= 0).all()
        assert len(names(folder)) == 3


def test_without_a_seed_the_global_state_goes_on(target: Any, tmp_path: Path) -> None:
    torch.manual_seed(11)
    whole = fit(target, **{**QUICK, "seed": None})
    expected = torch.rand(2)
    torch.manual_seed(11)
    killed(target, tmp_path, 10, seed=None)
    torch.manual_seed(12)
    assert_same(resumed(target, tmp_path, seed=None), whole)
    assert torch.equal(torch.rand(2), expected)


def test_resuming_a_finished_training_takes_no_step(target: Any, tmp_path: Path) -> None:
    whole = fit(target, record=Record(tmp_path), **QUICK)
    assert_same(resumed(target, tmp_path, callback=lambda _: die()), whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_save_first(name: str, target: Any, tmp_path: Path) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    press = at(9, lambda: signal.raise_signal(number))
    stopped = fit(target, record=Record(tmp_path, every=1e9), callback=press, **QUICK)
    assert signal.getsignal(number) is before
    assert stopped.interrupted
    assert stopped.stopped == "interrupted at step 10"
    assert names(tmp_path) == step_files(10)
    rest = resumed(target, tmp_path)
    assert not rest.interrupted
    assert_same(rest, fit(target, **QUICK))


def test_every_setting_that_differs_is_named(target: Any, tmp_path: Path) -> None:
    killed(target, tmp_path, 4)
    schedule = Schedule(warmup=3, cooling=Cooling(2.0), clip=None)
    options = {"steps": 21, "batch": 10, "lr": 0.1, "seed": 6, "path_gradient": True}
    with pytest.raises(CheckpointError, match="is of another run, with") as caught:
        resumed(target, tmp_path, schedule=schedule, **options)
    assert caught.value.differing == {
        "steps": (20, 21), "batch": (8, 10), "learning_rate": (0.05, 0.1), "seed": (5, 6),
        "warmup": (None, 3), "cooling.start": (1.3, 2.0), "clip": (100.0, None),
        "average": (0.4, 0.0), "path_gradient": (False, True),
    }  # fmt: skip


def test_another_flow_or_target_is_named(tmp_path: Path) -> None:
    killed(ising(), tmp_path, 4)
    with pytest.raises(CheckpointError) as caught:
        resumed(IsingDual((4, 2), temperature=2.0), tmp_path)
    for named in (
        "target.shape [2, 2] (here [4, 2])", "target.temperature 3.0 (here 2.0)",
        "flow.shape [2, 2] (here [4, 2])", "parameters",
    ):  # fmt: skip
        assert named in str(caught.value)
    couplings = IsingDual((2, 2), temperature=3.0, couplings=(1.5, 1.5))
    with pytest.raises(CheckpointError, match="of another target: its energies are off by"):
        resumed(couplings, tmp_path, ising().flow())


def test_a_checkpoint_that_cannot_be_written(target: Any, tmp_path: Path) -> None:
    """A full disk, say, does not end days of training."""
    folder = tmp_path / "a"
    record = Record(folder, every_steps=3)
    with pytest.warns(UserWarning, match=r"training-0000000018.pt cannot be written"):
        result = fit(target, record=record, callback=at(16, partial(rmtree, folder)), **QUICK)
    assert f"{folder}/training-0000000020.pt cannot be written" in str(result.unsaved)
    assert result.steps == 20


def test_random_numbers_of_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one."""
    device, states = torch.device("cuda", 1), {torch.device("cuda", 1): torch.arange(3)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": states[device])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device="cuda": states.update({device: state})
    )
    saved = random_state(Processes(), device)
    states[device] = torch.zeros(3)
    set_random_state(saved, Processes(), device)
    assert list(states) == [device]
    assert torch.equal(states[device], torch.arange(3))
