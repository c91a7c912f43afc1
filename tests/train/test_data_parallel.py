# SPDX-License-Identifier: Apache-2.0
"""Two processes that train together by gloo do what one does with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual, Record, Schedule
from pyro_neuralrg.files import CheckpointError
from pyro_neuralrg.runtime.processes import Processes, processes
from pyro_neuralrg.train import FitResult, fit
from pyro_neuralrg.train.training import TRAINING_FORMAT
from tests.train.processes import together

PLAIN = Schedule(cooling=None, clip=None)

# What both processes know: a flow of its own on each, a training, and what is written of it.
SETTING = """
    from pyro_neuralrg import IsingDual, Record, Schedule, fit as plain_fit
    PLAIN = Schedule(cooling=None, clip=None)
    target = IsingDual((2, 2), temperature=3.0)
    torch.manual_seed(1 + rank)
    flow, vectors = target.flow(), []
    def vector():
        return torch.cat([p.detach().reshape(-1) for p in flow.parameters()]).clone()
    def look(record):
        vectors.append(vector())
    def fit(callback=look, **options):
        options = dict(batch=8, lr=0.02, seed=5, progress=False) | options
        return plain_fit(target, flow, callback=callback, **options)
    start = vector()
    def note(result):
        torch.save({
            "start": start, "vectors": torch.stack(vectors),
            "loss": torch.tensor(result.history.free_energy),
            "error": torch.tensor(result.history.free_energy_se),
            "divergences": result.divergences,
            "stopped": result.stopped, "steps": result.steps, "batch": result.batch,
        }, folder / f"{rank}.pt")
"""


def alone(**options: Any) -> FitResult:
    """The training of one process, from the flow of the first."""
    torch.manual_seed(1)
    target = IsingDual((2, 2), temperature=3.0)
    options = {"lr": 0.005, "schedule": PLAIN, "seed": 5, "progress": False, **options}
    return fit(target, target.flow(), **options)


def train_both(folder: Path, body: str) -> str:
    """Run the trainings of both processes, which end well; return what they say."""
    found = together(folder, SETTING, body)
    assert found.stdout == "[0, 0]\n", found.stderr
    return found.stderr


def outcomes(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training of one step and one of 60, from the same flow."""
    folder = tmp_path_factory.mktemp("trained")
    train_both(
        folder,
        """
        state = {name: value.clone() for name, value in flow.state_dict().items()}
        one = Record(folder / "one")
        fit(steps=1, batch=64, lr=0.005, schedule=PLAIN, callback=None, record=one)
        flow.load_state_dict(state)
        note(fit(steps=60, batch=64, lr=0.005, schedule=PLAIN))
        """,
    )
    return folder


@pytest.mark.slow
def test_parameters_are_equal_after_every_step(folder: Path) -> None:
    first, second = outcomes(folder)
    assert not torch.equal(first["start"], second["start"])
    assert first["vectors"].shape[0] == 60
    assert torch.equal(first["vectors"], second["vectors"])
    assert (first["vectors"].diff(dim=0).abs().amax(1) > 0).all()
    for name in ("loss", "error"):
        assert torch.equal(first[name], second[name])
    assert first["batch"] == 64


def first_moment(folder: Path) -> torch.Tensor:
    """Of Adam after one step: a tenth of the gradient."""
    state = TRAINING_FORMAT.read(folder / "training-0000000001.pt")["training"]
    return state["optimizer"]["state"][0]["exp_avg"]


@pytest.mark.slow
def test_loss_and_gradient_are_means_over_processes(folder: Path, tmp_path: Path) -> None:
    """Each alone, with its seed and its part of the batch, finds its part of them."""
    losses, moments = [], [first_moment(folder / "one")]
    for rank in range(2):
        seed, record = Processes(rank, 2).seed(5), Record(tmp_path / str(rank))
        one = alone(steps=1, batch=32, seed=seed, record=record)
        losses.append(one.history.free_energy[0])
        moments.append(first_moment(tmp_path / str(rank)))
    assert losses[0] != losses[1]
    found = outcomes(folder)[1]["loss"][0]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)
    torch.testing.assert_close(moments[0], (moments[1] + moments[2]) / 2)


@pytest.mark.slow
def test_what_is_not_finite_on_one_process_sends_both_back(tmp_path: Path) -> None:
    said = train_both(
        tmp_path,
        """
        energy, calls = IsingDual.energy, []
        def breaking(self, x):
            calls.append(1)
            broken = rank == 1 and len(calls) in (17, 25)
            return energy(self, x) + (float("nan") if broken else 0.0)
        IsingDual.energy = breaking
        if rank == 1:
            warnings.simplefilter("error")  # the first process warns, alone
        note(fit(steps=20, lr=0.005))
        """,
    )
    first, second = outcomes(tmp_path)
    assert (first["divergences"], first["steps"], first["stopped"]) == (2, 20, None)
    assert torch.equal(first["vectors"], second["vectors"])
    assert first["vectors"].isfinite().all()
    assert said.count("training diverged") == 1


@pytest.mark.slow
def test_checkpoints_of_two_processes(tmp_path: Path) -> None:
    """Stopped by one of them and resumed, they find what they would have found."""
    train_both(
        tmp_path,
        """
        states = folder / "states"
        stop = lambda record: rank == 1 and record.step == 6
        fit(steps=12, callback=stop, record=Record(states))
        note(fit(steps=12, record=Record(states, resume=True)))
        """,
    )
    stopped = outcomes(tmp_path)
    assert [one["steps"] for one in stopped] == [12, 12]
    train_both(tmp_path, "note(fit(steps=12))")
    for one, other in zip(stopped, outcomes(tmp_path), strict=True):
        assert torch.equal(one["loss"], other["loss"])
        assert torch.equal(one["vectors"][-1], other["vectors"][-1])
    states = sorted((tmp_path / "states").glob("*.pt"))
    assert [path.name for path in states] == ["training-0000000007.pt", "training-0000000012.pt"]
    random = TRAINING_FORMAT.read(states[0])["random"]["cpu"]
    assert random.shape[0] == 2
    assert not torch.equal(random[0], random[1])
    with pytest.raises(CheckpointError, match=r"processes 2 \(here 1\)"):
        alone(steps=12, batch=8, lr=0.02, record=Record(tmp_path / "states", resume=True))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run(tmp_path: Path) -> None:
    found = together(
        tmp_path,
        SETTING,
        """
        def kill(record):
            if rank == 1 and record.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        note(fit(steps=1000, callback=kill, record=Record(folder / "states", every_steps=1)))
        """,
    )
    assert found.stdout == "[1, -9]\n"
    messages = [line for line in found.stderr.splitlines() if line.startswith("rank")]
    assert len(messages) == 1
    assert messages[0].startswith("rank 0: LostProcessError: another process of this run has ended")
    newest = sorted((tmp_path / "states").glob("*.pt"))[-1]
    assert newest.name == "training-0000000005.pt"
    assert TRAINING_FORMAT.read(newest)["training"]["step"] == 5


def test_seeds_of_processes_are_their_own() -> None:
    seeds = [Processes(rank, 4).seed(seed) for rank in range(4) for seed in (0, 1, 2**63 - 1)]
    assert len(set(seeds)) == 12
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    assert Processes(0, 4).seed(3) == 3


def test_one_process_alone() -> None:
    world, value = processes(), torch.ones(3)
    assert world == (0, 1)
    assert world.seed(None) is None
    assert world.mean(value) is world.gather(value) is value
    assert world.any_process(True, False) == (True, False)
