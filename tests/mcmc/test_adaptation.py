# SPDX-License-Identifier: Apache-2.0
"""Warm-up by its parts: what it sums, where it starts, how little it makes of few steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC
from pyro_neuralrg.mcmc import Adaptation
from pyro_neuralrg.mcmc.adaptation import rough_step_size
from pyro_neuralrg.mcmc.kernel import is_covariance
from pyro_neuralrg.mcmc.learning import PooledCovariance
from pyro_neuralrg.runtime.processes import Processes
from tests.mcmc.registry import run


def normal(step_size: float = 0.1) -> HMC:
    """HMC on ten standard normals, which a step of about one suits."""
    return HMC(
        lambda x: 0.5 * x.square().sum(-1),
        shape=(10,),
        step_size=step_size,
        num_steps=3,
        jitter=0.0,
    )


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
    mcmc = run(normal(start), 5, warmup_steps=steps, num_chains=100)
    assert mcmc.kernel.step_size is not None
    assert 0.2 < mcmc.kernel.step_size < 1.5
    assert float(mcmc.sample_stats["acceptance_rate"].mean()) > 0.6


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
@pytest.mark.parametrize(("steps", "chains"), [(2, 3), (20, 3), (24, 1), (40, 3)])
def test_a_short_warm_up_never_gives_a_mass_that_is_no_mass(
    steps: int, chains: int, mass: str
) -> None:
    warmup = Adaptation(mass=mass, steps=steps)
    mcmc = run(normal(), 2, warmup_steps=warmup, num_chains=chains)
    inverse = mcmc.adapted["hmc"]["inverse_mass"]
    assert (inverse is None) == (steps < 24)
    if inverse is not None:
        assert inverse.shape == ((10,) if mass == "diagonal" else (10, 10))
        assert is_covariance(inverse)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"target_acceptance": "a"}, TypeError),
        ({"target_acceptance": 1}, ValueError),
        ({"target_acceptance": math.nan}, ValueError),
        ({"step_size": 0.1}, TypeError),
        ({"trajectory_length": 0.1}, TypeError),
        ({"mass": "full"}, ValueError),
    ],
)
def test_bad_adaptations(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{next(iter(options))} is .*; accepted"):
        Adaptation(**options)


@pytest.mark.parametrize("adapt", [True, False])
def test_the_cost_of_the_warm_up_is_what_was_evaluated(adapt: bool) -> None:
    rows: list[int] = []

    def energy(x: Tensor) -> Tensor:
        rows.append(len(x))
        return 0.5 * x.square().sum(-1)

    kernel = HMC(energy, shape=(4,), num_steps=3, jitter=0.0)
    rows.clear()  # of the trial when it was made
    warmup = Adaptation(step_size=adapt, steps=12)
    mcmc = run(kernel, 7, warmup_steps=warmup, num_chains=5)
    cost = mcmc.gradient_evaluations
    assert cost.draws == 7 * 3 * 5
    assert cost.total == sum(rows)
    if not adapt:
        assert cost.warmup == (1 + 12 * 3) * 5


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_small_steps_do_not_count_for_the_step_size(share: float) -> None:
    """Full steps are accepted as often as was asked for."""
    energy = lambda x: 0.5 * x.square().sum(-1)  # noqa: E731
    options: Any = {"num_steps": 5, "small_steps": share}
    mcmc = run(HMC(energy, shape=(50,), **options), 20, warmup_steps=200, num_chains=64)
    plain = HMC(energy, shape=(50,), num_steps=5, step_size=mcmc.kernel.step_size)
    rates = run(plain, 20, warmup_steps=0, num_chains=64).sample_stats["acceptance_rate"]
    assert float(rates.mean()) == pytest.approx(0.8, abs=0.1)
