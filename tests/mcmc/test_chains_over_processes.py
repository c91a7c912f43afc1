# SPDX-License-Identifier: Apache-2.0
"""Chains shared by two processes, which talk by gloo: one run, wherever it is looked at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_neuralrg import HMC, Record, VectorizedMCMC
from pyro_neuralrg.mcmc import EnergyTarget
from pyro_neuralrg.mcmc.run_state import CHAIN_FORMAT
from tests.train.processes import together

pytestmark = pytest.mark.slow
WIDTHS = (0.5, 1.0, 3.0)

# What both processes know: kernels of a Gaussian, a runner, and what is written of a run.
SETTING = f"""
    import math
    import pyro_neuralrg as rg
    from pyro_neuralrg.mcmc import MALA, Adaptation, Mixture
    widths = torch.tensor({WIDTHS})
    def energy(x):
        return 0.5 * (x / widths).square().sum(-1)
    def make(kernel, num_samples=20, **options):
        settings = dict(warmup_steps=40, num_chains=16, seed=3, progress=False)
        return rg.VectorizedMCMC(kernel, num_samples, **(settings | options))
    def note(mcmc, name="run"):
        torch.save({{
            "x": mcmc.get_samples(group_by_chain=True)["x"], "adapted": mcmc.adapted,
            "stats": mcmc.sample_stats, "warmup": mcmc.warmup_stats,
            "observables": mcmc.observables, "evaluations": list(mcmc.gradient_evaluations),
            "interrupted": mcmc.interrupted, "seed": mcmc.seed,
        }}, folder / f"{{name}}{{rank}}.pt")
"""


def notes(folder: Path, name: str = "run") -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, 0, 0, equal_nan=True)
    return bool(one == other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of ChEES-HMC, one of a mixture, and one in three parts."""
    folder = tmp_path_factory.mktemp("chains")
    found = together(
        folder,
        SETTING,
        """
        chees = make(
            rg.ChEESHMC(energy, shape=(3,)), 60, num_chains=64,
            warmup_steps=Adaptation(mass="diagonal", steps=100),
            observables={"square": lambda x: x.square()},
        )
        chees.run()
        note(chees, "chees")
        arviz = rg.to_arviz(chees, observables={})
        torch.save(torch.tensor(arviz.posterior["x"].values), folder / f"arviz{rank}.pt")

        jumpy = lambda of: rg.HMC(of, shape=(3,), num_steps=8, jitter=0.5)
        mixture = make(Mixture(jumpy(energy), MALA(energy, shape=(3,))), seed=None)
        mixture.run()
        note(mixture, "mixture")

        states, calls, at = folder / "states", [], 0
        def stop(x):
            calls.append(1)
            if rank == 1 and len(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return energy(x)
        first, second = jumpy(stop), jumpy(stop)  # which try the energy
        calls, at = [], 100
        torn = make(first, record=rg.Record(states))
        try:
            torn.run()
        except KeyboardInterrupt:
            os.write(1, f"stopped in step {torn._state.warmed_up} of the warm-up\\n".encode())
        calls, at = [], 300
        later = make(second, record=rg.Record(states, resume=True))
        later.run()
        note(later, "part")
        drawn = later.positions.shape[1]
        for name, draws in (("loaded", drawn), ("rest", 20)):
            last = make(jumpy(energy), draws, record=rg.Record(states, resume=True))
            last.run()
            note(last, name)
        uninterrupted = make(jumpy(energy))
        uninterrupted.run()
        note(uninterrupted, "whole")
        """,
    )
    assert found.stdout.endswith("[0, 0]\n"), found.stderr
    one, other = found.stdout.splitlines()[:-1]
    assert one == other
    return folder


def test_both_find_the_same_of_all_chains(folder: Path) -> None:
    for name in ("chees", "mixture", "part", "loaded", "rest", "whole"):
        first, second = notes(folder, name)
        assert same(first, second), name
        assert len(first["x"][:, -1].unique(dim=0)) == len(first["x"])  # each has its own numbers
    first = notes(folder, "chees")[0]
    assert first["x"].shape == (64, 60, 3)
    assert first["observables"]["square"].shape == (64, 60, 3)
    assert first["warmup"]["step_size"].shape == (64, 100)
    assert torch.equal(first["observables"]["square"], first["x"].square())
    assert torch.equal(torch.load(folder / "arviz1.pt", weights_only=True), first["x"])
    for statistics in (first["stats"], first["warmup"]):  # of every step, on every chain
        for key in ("step_size", "trajectory_length", "n_steps"):
            assert torch.equal(statistics[key], statistics[key][:1].expand_as(statistics[key]))


def test_moments_and_adaptation_are_those_of_all_chains(folder: Path) -> None:
    """Within four standard errors, also of the chains of each process."""
    found = notes(folder, "chees")[0]
    x, rates = found["x"] / torch.tensor(WIDTHS), found["stats"]["acceptance_rate"]
    ratio = found["adapted"]["chees"]["inverse_mass"] / torch.tensor(WIDTHS).square()
    assert float(ratio.max() / ratio.min()) < 1.5
    for half in (slice(32), slice(32, None)):
        for values, expected in ((x[half], 0.0), (x[half].square(), 1.0)):
            means = values.mean(1)
            error = means.std(0) / math.sqrt(len(means))
            assert bool(((means.mean(0) - expected).abs() < 4 * error).all())
        assert abs(float((1 / (1 / rates[half]).mean(0)).mean()) - 0.651) < 0.15


def test_members_and_lengths_are_chosen_together(folder: Path) -> None:
    stats = notes(folder, "mixture")[0]["stats"]
    moved = ~stats["acceptance_rate_hmc"].isnan()
    assert torch.equal(moved, moved[:1].expand_as(moved))
    assert 0 < int(moved[0].sum()) < moved.shape[1]
    steps = notes(folder, "whole")[0]["stats"]["n_steps"]
    assert torch.equal(steps, steps[:1].expand_as(steps))
    assert len(steps.unique()) > 1


def test_stopped_by_one_and_resumed(folder: Path) -> None:
    """In warm-up and amid the draws, by a signal to one: bit for bit the run that was not."""
    part, rest, whole = (notes(folder, name)[1] for name in ("part", "rest", "whole"))
    draws = part["x"].shape[1]
    assert part["interrupted"]
    assert 0 < draws < 20
    assert torch.equal(part["x"], whole["x"][:, :draws])
    assert same(notes(folder, "loaded")[1], part | {"interrupted": False})
    assert same(rest, whole)


def test_the_file_is_of_both(folder: Path) -> None:
    contents = CHAIN_FORMAT.read(sorted((folder / "states").glob("*.pt"))[-1])
    assert contents["chains"]["position"].shape == (16, 3)
    assert not torch.equal(*contents["random"])
    record = Record(folder / "states", resume=True)
    kernel = HMC(EnergyTarget(lambda x: 0.5 * x.square().sum(-1), (3,)))
    alone = VectorizedMCMC(kernel, 20, 40, num_chains=16, progress=False, record=record)
    with pytest.raises(ValueError, match=r"processes 2 \(here 1\)"):
        alone.run()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'make(rg.HMC(energy, shape=(3,)), num_chains=15)',
            "num_chains is 15 over 2 processes; accepted: a multiple of 2, such as 16",
        ),
        (
            'nan = torch.zeros(16, 3); nan[9] = math.nan\n'
            'make(rg.HMC(energy, shape=(3,)), initial_params={"x": nan}).run()',
            "energy of 1 of 16 chains is not finite (by chain: {9: nan})",
        ),
        (
            'make(rg.HMC(energy, shape=(3,)), record=rg.Record(folder / "a")).run()\n'
            'other = rg.HMC(lambda x: (1 + rank) * energy(x), shape=(3,))\n'
            'make(other, record=rg.Record(folder / "a", resume=True)).run()',
            "of another target: its energies are off by",
        ),
        (
            'make(rg.HMC(energy, shape=(3,)), record=rg.Record("/dev/null/a")).run()',
            "folder is /dev/null/a (NotADirectoryError",
        ),
    ],
)  # fmt: skip
def test_errors_are_those_of_all(body: str, message: str, tmp_path: Path) -> None:
    """What only one process finds, both raise: none waits for the other."""
    found = together(tmp_path, SETTING, body)
    assert found.stdout == "[1, 1]\n", found.stderr
    assert found.stderr.count(message) == 2, found.stderr


def test_a_process_that_dies_ends_the_run(tmp_path: Path) -> None:
    found = together(
        tmp_path,
        SETTING,
        """
        calls = []
        def mortal(x):
            calls.append(1)
            if rank == 1 and len(calls) == 400:
                os.kill(os.getpid(), signal.SIGKILL)
            return energy(x)
        kernel = rg.HMC(mortal, shape=(3,), num_steps=5)
        make(kernel, 10_000, record=rg.Record(folder / "states", every=0)).run()
        """,
    )
    assert found.stdout == "[1, -9]\n"
    (message,) = (line for line in found.stderr.splitlines() if line.startswith("rank"))
    assert message.startswith("rank 0: LostProcessError: another process of this run has ended")
    mark = CHAIN_FORMAT.read(sorted((tmp_path / "states").glob("*.pt"))[-1])["mark"]
    assert mark["warmed_up"] == 40
    assert mark["drawn"] > 10
