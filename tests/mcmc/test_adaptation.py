# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Warm-up by its parts: what it sums, where it starts, how little it makes of few steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, VectorizedMCMC
from pyro_neuralrg.mcmc import Adaptation
from pyro_neuralrg.mcmc.adaptation import rough_step_size
from pyro_neuralrg.mcmc.learning import PooledCovariance
from pyro_neuralrg.runtime.processes import Processes


def normal(step_size: float = 0.1) -> HMC:
    """HMC on ten standard normals, which a step of about one suits."""
    return HMC(lambda x: 0.5 * x.square().sum(-1), shape=(10,), step_size=step_size, num_steps=3)


@pytest.mark.parametrize("is_dense", [False, True])
def test_covariance_over_batches_of_different_means(is_dense: bool) -> None:
    batches = [torch.randn(n, 3) * 2.0 + shift for n, shift in ((4, 0.0), (7, 5.0), (5, -3.0))]
    pooled = PooledCovariance(is_dense)
    for batch in batches:
        pooled.update(batch)
    together = torch.cat(batches)
    prior, expected = 5e-3 * torch.eye(3), together.T.cov()
    if not is_dense:
        prior, expected = prior.diagonal(), expected.diagonal()
    found = pooled.regularised()
    assert found is not None
    torch.testing.assert_close(found, (len(together) * expected + prior) / (len(together) + 5))


def test_few_values_have_no_variance() -> None:
    pooled = PooledCovariance()
    assert pooled.regularised() is None
    pooled.update(torch.zeros(1, 2))
    assert pooled.regularised() is None


@pytest.mark.parametrize("start", [1e-4, 0.03, 0.7, 5.0, 1e3])
def test_the_rough_step_size_is_the_largest_that_is_accepted(start: float) -> None:
    kernel = normal(start)
    state = kernel.init(torch.randn(200, 10))
    generator = torch.Generator().manual_seed(0)
    size, evaluations = rough_step_size(kernel, state, generator, 0.8, Processes())
    assert 0.2 < size < 1.5
    assert evaluations % 3 == 0
    for factor, enough in ((0.9, True), (2.2, False)):
        _, info = kernel.tuned(step_size=factor * size).step(
            state, torch.Generator().manual_seed(1)
        )
        assert (float(info.acceptance_rate.mean()) > 0.8) == enough


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("start", [1e-4, 1e3])
def test_a_short_warm_up_keeps_the_rough_step(steps: int, start: float) -> None:
    mcmc = VectorizedMCMC(normal(start), 5, steps, num_chains=100, seed=0, progress=False)
    mcmc.run()
    assert mcmc.kernel.step_size is not None
    assert 0.2 < mcmc.kernel.step_size < 1.5
    assert float(mcmc.sample_stats["acceptance_rate"].mean()) > 0.6


@pytest.mark.parametrize("steps", [2, 20, 24, 40])
@pytest.mark.parametrize("chains", [1, 3])
def test_a_short_warm_up_never_gives_a_mass_that_is_no_mass(steps: int, chains: int) -> None:
    warmup = Adaptation(mass="diagonal", steps=steps)
    mcmc = VectorizedMCMC(normal(), 2, warmup, num_chains=chains, seed=0, progress=False)
    mcmc.run()
    mass = mcmc.kernel.members["hmc"].inverse_mass
    assert (mass is None) == (steps < 24)
    assert mass is None or bool((torch.isfinite(mass) & (mass > 0)).all())


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("a", TypeError),
        (True, TypeError),
        (0, ValueError),
        (1, ValueError),
        (math.nan, ValueError),
    ],
)
def test_bad_targets(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"target_acceptance is {bad!r}; accepted"):
        Adaptation(target_acceptance=bad)


def energy_rows(rows: list[int]) -> Any:
    def energy(x: Tensor) -> Tensor:
        rows.append(len(x))
        return 0.5 * x.square().sum(-1)

    return energy


@pytest.mark.parametrize("adapt", [True, False])
def test_the_cost_of_the_warm_up_is_what_was_evaluated(adapt: bool) -> None:
    rows: list[int] = []
    kernel = HMC(energy_rows(rows), shape=(4,), num_steps=3)
    warmup = Adaptation(step_size=adapt, steps=12)
    mcmc = VectorizedMCMC(kernel, 7, warmup, num_chains=5, seed=0, progress=False)
    mcmc.run()
    cost = mcmc.gradient_evaluations
    assert cost.draws == 7 * 3 * 5
    assert cost.total == sum(rows)
    if not adapt:
        assert cost.warmup == (1 + 12 * 3) * 5


@pytest.mark.parametrize("name", ["step_size", "trajectory_length"])
def test_what_is_adapted_is_yes_or_no(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is a float; accepted: True or False"):
        Adaptation(**{name: 0.1})  # type: ignore[arg-type]


def test_a_dense_mass_is_adapted() -> None:
    kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,), num_steps=2)
    warmup = Adaptation(mass="dense", steps=60)
    mcmc = VectorizedMCMC(kernel, 2, warmup, 8, seed=0, progress=False)
    mcmc.run()
    assert mcmc.adapted["hmc"]["inverse_mass"].shape == (3, 3)
