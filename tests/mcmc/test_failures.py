# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Energies that fail at some positions: the guilty chain rejects, the run goes on."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.integrator import _EXCEPTION_HANDLERS
from torch import Tensor

from pyro_neuralrg import HMC, IndependenceMetropolis
from pyro_neuralrg.mcmc import ModelTarget, RandomWalkMetropolis, as_target
from tests.mcmc.registry import ToyFlow, normal, run

SINGLE = {"dtype": torch.float32}


def root(size: int, length: Tensor) -> Tensor:
    """Of an RBF kernel's covariance; in float32 this jitter is too little for some lengths."""
    x = torch.linspace(0.0, 1.0, size, **SINGLE)
    covariance = torch.exp(-0.5 * ((x[:, None] - x) / length).square())
    return torch.linalg.cholesky(covariance + 1e-6 * torch.eye(size, **SINGLE))


def gaussian_process() -> None:
    """6 x 8 points, a kernel for each axis, vague priors of the lengths."""
    y = torch.sin(4 * torch.linspace(0.0, 1.0, 6, **SINGLE))[:, None].expand(6, 8)
    lengths = pyro.sample("lengths", dist.LogNormal(torch.zeros(2, **SINGLE), 3.0).to_event(1))
    eta = pyro.sample("eta", dist.Normal(torch.zeros(6, 8, **SINGLE), 1.0).to_event(2))
    field = root(6, lengths[0]) @ eta @ root(8, lengths[1]).mT
    pyro.sample("y", dist.Normal(field, 0.3).to_event(2), obs=y)


@pytest.mark.parametrize("seed", range(3))
def test_a_gaussian_process_of_unknown_lengths_runs_to_the_end(seed: int) -> None:
    mcmc = run(HMC(gaussian_process, num_steps=5), 40, warmup_steps=40, num_chains=8, seed=seed)
    assert "cholesky" in str(mcmc.kernel.target.failure)
    assert bool(mcmc.warmup_stats["diverging"].any())
    assert bool(torch.isfinite(mcmc.sample_stats["lp"]).all())


def singular(x: Tensor) -> None:
    torch.linalg.cholesky(torch.diag_embed(1.0 - x))


def invalid(x: Tensor) -> None:
    dist.Normal(0.0, (1.0 - x).sqrt(), validate_args=True)


def told_to_pyro(x: Tensor) -> None:
    if bool((x >= 1.0).any()):
        raise ArithmeticError("beyond")


def failing(check: Any) -> Any:
    """Standard normals, with an energy that fails of the whole batch where one is beyond 1."""

    def energy(x: Tensor) -> Tensor:
        check(x)
        return normal(x)

    return energy


def failing_model() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    singular(x)


@pytest.mark.parametrize("check", [singular, invalid, told_to_pyro])
@pytest.mark.parametrize("name", ["hmc", "walk", "jump"])
def test_only_the_guilty_chain_rejects(
    name: str, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others move as if the energy were NaN there."""
    monkeypatch.setitem(_EXCEPTION_HANDLERS, "test", lambda e: isinstance(e, ArithmeticError))

    def undefined(x: Tensor) -> Tensor:
        return normal(x) + torch.where((x >= 1.0).any(-1), math.nan, 0.0)

    flow, ends = ToyFlow((2,)), []
    for energy in (failing(check), undefined):
        target = as_target(energy, shape=(2,))
        kernel = {
            "hmc": HMC(target, step_size=0.8, num_steps=1),
            "walk": RandomWalkMetropolis(target, step_size=0.8),
            "jump": IndependenceMetropolis(flow, target),
        }[name]
        state = kernel.init(torch.full((40, 2), 0.5))
        ends.append(kernel.step(state, torch.Generator().manual_seed(0)))
        info = ends[-1][1]
        assert 0 < int(info.diverging.sum()) < 40
        assert bool((info.acceptance_rate[info.diverging] == 0).all())
    assert torch.equal(ends[0][0].position, ends[1][0].position)
    assert torch.equal(ends[0][1].diverging, ends[1][1].diverging)


@pytest.mark.parametrize("made", ["energy", "model"])
def test_where_all_chains_fail_the_model_is_heard(made: str) -> None:
    kernel = HMC(failing_model) if made == "model" else HMC(failing(singular), shape=(2,))
    beyond = {"x": torch.full((6, 2), 3.0)}
    with pytest.raises(ValueError, match=r"of 6 of 6 chains is not finite.*says.*cholesky"):
        run(kernel, initial_params=beyond)
    wild = HMC(kernel.target, step_size=1e3, num_steps=1)
    with pytest.warns(UserWarning, match=r"of 5 draws no chain could move on.*says.*cholesky"):
        run(wild, 5, warmup_steps=0, initial_params={"x": torch.zeros(6, 2)})


def test_other_errors_end_the_run() -> None:
    def energy(x: Tensor) -> Tensor:
        if bool((x > 4.0).any()):
            raise ValueError("a fault of the program")
        return normal(x)

    target = as_target(energy, shape=(2,))
    with pytest.raises(ValueError, match="a fault"):
        target.energy(torch.full((3, 2), 5.0))


def test_a_model_that_fails_at_zero_is_vectorised_all_the_same() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        torch.linalg.cholesky(torch.diag_embed(x.square()))

    energy = ModelTarget(model).setup().energy(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    assert energy.isnan().tolist() == [False, True]
