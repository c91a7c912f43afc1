# SPDX-License-Identifier: Apache-2.0
"""Laws of base densities, and that flows carry them."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import biject_to

from pyro_neuralrg import FreeField, IsingDual
from pyro_neuralrg.bases import BaseDistribution, StandardNormal, TwoModes, base_from_config
from pyro_neuralrg.free_energy.importance import log_weights
from pyro_neuralrg.transforms import hierarchical_flow

BASES = [StandardNormal(), TwoModes(0.1), TwoModes(1.0), TwoModes(3.0), TwoModes(4.0)]
every_base = pytest.mark.parametrize("base", BASES, ids=str)


@every_base
def test_density_integrates_to_one(base: StandardNormal) -> None:
    grid = torch.linspace(-14.0, 14.0, 4001).unsqueeze(-1)
    assert float(torch.trapezoid(base.log_prob(grid, 1).exp(), grid[:, 0])) == pytest.approx(1.0)


@every_base
def test_score_is_the_gradient(base: StandardNormal) -> None:
    z = (3 * torch.randn(50, 2, 3)).requires_grad_()
    (expected,) = torch.autograd.grad(base.log_prob(z, 2).sum(), z)
    torch.testing.assert_close(base.score(z.detach(), 2), expected)
    one_by_one = torch.func.vmap(lambda one: base.log_prob(one, 2))(z)
    torch.testing.assert_close(one_by_one, base.log_prob(z, 2))


@every_base
def test_draws_and_images_of_normals_have_the_density(base: StandardNormal, seed: int) -> None:
    """By their distribution functions, of the first variable (Kolmogorov, 1 in 10^5)."""
    generator = torch.Generator().manual_seed(seed)
    number, grid = 4000, torch.linspace(-14.0, 14.0, 20001)
    density = base.log_prob(grid.unsqueeze(-1), 1).exp()
    cdf = torch.cumulative_trapezoid(density, grid)
    drawn = base.sample((number, 2), 1, generator=generator)
    mapped, _ = base.from_normal(torch.randn(number, 2, generator=generator), 1)
    for z in (drawn, mapped):
        places = torch.searchsorted(grid, z[:, 0].sort().values).clamp(1, len(cdf))
        steps = torch.arange(1, number + 1) / number
        assert float((cdf[places - 1] - steps).abs().max()) < 2.47 / math.sqrt(number)
        assert abs(float(z[:, 1].square().mean()) - 1) < 5 * math.sqrt(2 / number)


@every_base
def test_from_normal_and_back_from_the_middle_to_far_out(base: StandardNormal) -> None:
    u = torch.cat([torch.logspace(-9, 0, 100), torch.linspace(0.0, 40.0, 100)]).unsqueeze(-1)
    u = torch.cat([u, -u]).requires_grad_()
    z, ladj = base.from_normal(u, 1)
    back, same = base.to_normal(z, 1)
    torch.testing.assert_close(back, u, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(same, ladj, rtol=1e-9, atol=1e-9)
    normal = StandardNormal().log_prob(u, 1)
    torch.testing.assert_close(base.log_prob(z, 1) + ladj, normal, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(z.sum(), u)
    torch.testing.assert_close(slope.squeeze(-1).log(), ladj.detach(), rtol=1e-6, atol=1e-6)


@every_base
def test_as_a_distribution_and_in_unconstrained_space(base: StandardNormal) -> None:
    assert base_from_config(base.config) == base
    q = BaseDistribution(base, (2, 3), from_normal=True)
    assert q.expand((4, 1)).rsample((5,)).shape == (5, 4, 1, 2, 3)
    z = q.sample((7,))
    torch.testing.assert_close(q.log_prob(z), base.log_prob(z, 2))
    assert q.expand((2,)).log_prob(z[0]).shape == (2,)
    with pytest.raises(ValueError, match=r"value has shape \(3, 2\); accepted"):
        q.log_prob(torch.zeros(3, 2))
    transform = biject_to(q.support)
    u = torch.randn(5, 2, 3)
    latent = transform(u)
    ladj = transform.log_abs_det_jacobian(u, latent)
    found = base.log_prob(latent, 2) + ladj.reshape(5, -1).sum(-1)
    torch.testing.assert_close(found, StandardNormal().log_prob(u, 2))
    potential = initialize_model(lambda: pyro.sample("z", q), initial_params={})[1]
    torch.testing.assert_close(potential({"z": u}), -StandardNormal().log_prob(u, 2).sum())


def test_bad_bases() -> None:
    for separation in (0.0, -1.0, 4.5, float("nan")):
        with pytest.raises(ValueError, match=r"separation is .*; accepted: a number in \(0, 4\]"):
            TwoModes(separation)
    with pytest.raises(TypeError, match=r"base is a float; accepted: StandardNormal\(\) or"):
        hierarchical_flow((4, 4), base=3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="base is 'Cauchy'; accepted"):
        base_from_config({"name": "Cauchy"})


@pytest.mark.parametrize(
    ("options", "two"),
    [
        ({}, True),
        ({"circuit": "tree"}, True),
        ({"depth": 1}, False),
        ({"circuit": "brickwork"}, False),
    ],
)
def test_two_modes_only_of_a_single_coarsest_variable(options: dict[str, Any], two: bool) -> None:
    flow = hierarchical_flow((4, 4), base=TwoModes(3.0), **options)
    assert flow.base == (TwoModes(3.0) if two else StandardNormal())


def test_only_for_targets_that_may_have_two_phases() -> None:
    """A free field is even too, but its untrained flow is its exact sampler already."""
    assert IsingDual((4, 4)).flow().base == TwoModes(3.0)
    target = FreeField((4, 4))
    flow = target.flow(bijector="realnvp")
    assert flow.base == StandardNormal()
    assert float(log_weights(target, flow, 500).std()) < 0.2
