# SPDX-License-Identifier: Apache-2.0
"""Energies that fail at some positions: the guilty chain rejects, the run goes on."""

from __future__ import annotations

import math
import warnings
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


def gaussian_process() -> None:
    """6 x 8 points, an RBF kernel for each axis, lengths for which float32 is not enough."""
    single: Any = {"dtype": torch.float32}
    lengths = pyro.sample("lengths", dist.LogNormal(torch.zeros(2, **single), 3.0).to_event(1))
    eta = pyro.sample("eta", dist.Normal(torch.zeros(6, 8, **single), 1.0).to_event(2))
    roots = []
    for size, length in zip((6, 8), lengths, strict=True):
        x = torch.linspace(0.0, 1.0, size, **single)
        covariance = torch.exp(-0.5 * ((x[:, None] - x) / length).square())
        roots.append(torch.linalg.cholesky(covariance + 1e-7 * torch.eye(size, **single)))
    y = torch.linspace(-1.0, 1.0, 48, **single).reshape(6, 8)
    pyro.sample("y", dist.Normal(roots[0] @ eta @ roots[1].mT, 0.3).to_event(2), obs=y)


@pytest.mark.parametrize(("seed", "start"), [(0, None), (3, "prior")])
@pytest.mark.filterwarnings("ignore:.* chains started where the energy is not finite")
def test_a_gaussian_process_of_unknown_lengths_runs_to_the_end(seed: int, start: Any) -> None:
    options: Any = {"warmup_steps": 40, "num_chains": 32, "initial_params": start}
    mcmc = run(HMC(gaussian_process, num_steps=5), 10, seed=seed, **options)
    assert "cholesky" in str(mcmc.kernel.target.failure)
    assert bool(mcmc.warmup_stats["diverging"].any())
    assert bool(torch.isfinite(mcmc.sample_stats["lp"]).all())


def fail_beyond_one(x: Tensor, error: str) -> Tensor:
    """Standard normals, whose energy fails of the whole batch where one is beyond 1."""
    if error == "singular":
        torch.linalg.cholesky(torch.diag_embed(1.0 - x))
    elif error == "invalid":
        dist.Normal(0.0, (1.0 - x).sqrt(), validate_args=True)
    elif bool((x >= 1.0).any()):
        raise ArithmeticError("beyond")
    return normal(x)


def undefined_beyond_one(x: Tensor) -> Tensor:
    return normal(x) + torch.where((x >= 1.0).any(-1), math.nan, 0.0)


@pytest.mark.parametrize("error", ["singular", "invalid", "told to Pyro"])
@pytest.mark.parametrize("name", ["hmc", "walk", "jump"])
def test_only_the_guilty_chain_rejects(
    name: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others move as if the energy were NaN there."""
    monkeypatch.setitem(_EXCEPTION_HANDLERS, "test", lambda e: isinstance(e, ArithmeticError))
    flow, ends = ToyFlow((2,)), []
    for energy in (lambda x: fail_beyond_one(x, error), undefined_beyond_one):
        target = as_target(energy, shape=(2,))
        kernel = {
            "hmc": HMC(target, step_size=0.8, num_steps=1),
            "walk": RandomWalkMetropolis(target, step_size=0.8),
            "jump": IndependenceMetropolis(flow, target),
        }[name]
        state = kernel.init(torch.full((40, 2), 0.5))
        state, info = kernel.step(state, torch.Generator().manual_seed(0))
        assert 0 < int(info.diverging.sum()) < 40
        assert bool((info.acceptance_rate[info.diverging] == 0).all())
        ends.append(torch.cat([state.position, info.diverging.unsqueeze(-1)], -1))
    assert torch.equal(*ends)


def failing_model() -> None:
    fail_beyond_one(pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1)), "singular")


@pytest.mark.parametrize("made", ["energy", "model"])
def test_where_all_chains_fail_the_model_is_heard(made: str) -> None:
    of_energy = as_target(lambda x: fail_beyond_one(x, "singular"), shape=(2,))
    kernel = HMC(failing_model if made == "model" else of_energy, step_size=1e3, num_steps=1)
    with pytest.raises(ValueError, match=r"of 6 of 6 chains is not finite.*says.*cholesky"):
        run(kernel, initial_params={"x": torch.full((6, 2), 3.0)})
    with pytest.warns(UserWarning, match=r"of 5 draws no chain could move on.*says.*cholesky"):
        run(kernel, 5, warmup_steps=0, initial_params={"x": torch.zeros(6, 2)})
    seldom = kernel.tuned(step_size=1.0)  # of a single chain no failed proposal is worth a warning
    mcmc = run(seldom, 30, warmup_steps=0, num_chains=1, initial_params={"x": torch.zeros(1, 2)})
    assert 0 < int(mcmc.sample_stats["diverging"].sum()) < 15


def test_other_errors_end_the_run() -> None:
    with pytest.raises(ArithmeticError, match="beyond"):
        as_target(lambda x: fail_beyond_one(x, "unknown"), shape=(2,))


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
@pytest.mark.parametrize("branches", [False, True])
def test_a_model_may_fail_at_zero(branches: bool) -> None:
    """By vmap, and chain by chain where vmap refuses it."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        if branches:
            float(x.sum().detach())
        torch.linalg.cholesky(torch.diag_embed(x.square()))

    target = ModelTarget(model)
    if not branches:
        warnings.simplefilter("error")
    energy = target.setup().energy(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    assert energy.isnan().tolist() == [False, True]
