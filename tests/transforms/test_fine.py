# SPDX-License-Identifier: Apache-2.0
"""Fine fields given a coarse one: draws that keep it, their density, and the target's marginal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_neuralrg import estimate, expectations
from pyro_neuralrg.analysis import pyramid
from pyro_neuralrg.distributions import FlowDistribution, TwoModes
from pyro_neuralrg.transforms import FineGivenCoarse, HierarchicalFlow, hierarchical_flow
from pyro_neuralrg.transforms.scales import sites_of_scale
from tests.analysis.linear import any_matrix, gaussian, jacobian, linear_flow
from tests.transforms.registry import perturb


def bent(shape: tuple[int, ...], **options: Any) -> HierarchicalFlow:
    return perturb(hierarchical_flow(shape, base=TwoModes(2.0), **options), 0.1)


def coarse_gaussian(flow: HierarchicalFlow, covariance: Tensor, scale: int) -> MultivariateNormal:
    """The field of a scale of a linear flow, for fields of this covariance."""
    inverse = torch.linalg.inv(jacobian(flow.up_to_scale(scale)))
    rows = inverse[sites_of_scale(flow.circuit, scale).flatten()]
    return MultivariateNormal(torch.zeros(len(rows)), rows @ covariance @ rows.T)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_draws_keep_the_coarse_field_and_the_density_is_conditional(scale: int) -> None:
    """q(x) = q(coarse) q(x | coarse), of a Gaussian whose marginal is known."""
    flow = linear_flow((4, 4), any_matrix, "mera")
    covariance = jacobian(flow) @ jacobian(flow).T
    marginal = coarse_gaussian(flow, covariance, scale)
    coarse = marginal.sample((2, 3)).unflatten(-1, sites_of_scale(flow.circuit, scale).shape)
    fine = flow.conditional(coarse, scale)
    x = fine.rsample((5,))
    kept = pyramid(flow, x)[scale] if scale else flow.up_to_scale(0).inv(x)
    torch.testing.assert_close(kept, coarse.expand(5, *coarse.shape))
    expected = FlowDistribution(flow).log_prob(x) - marginal.log_prob(coarse.flatten(2))
    torch.testing.assert_close(fine.log_prob(x), expected)  # of fresh draws
    torch.testing.assert_close(fine.log_prob(x.clone()), expected)
    torch.testing.assert_close(fine.expand((5, 2, 3)).log_prob(x.clone()), expected)
    other = fine.log_prob(x[:, :1, :1].flip(0) + torch.randn(4, 4))
    assert bool((other == -math.inf).all())


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (6,)])
def test_conditional_density_of_any_flow(shape: tuple[int, ...]) -> None:
    """The coarsest field is the first latent, whose density is that of the base."""
    flow = bent(shape)
    top = len(pyramid(flow, torch.zeros(shape))) - 1
    z = flow.base.sample((6, *shape), len(shape))
    x, _ = flow.forward_and_ladj(z)
    coarse = pyramid(flow, x.detach())[top]
    first = flow.base.log_prob(coarse.flatten(1), 1)
    found = flow.conditional(coarse, top).log_prob(x)
    torch.testing.assert_close(first + found, FlowDistribution(flow).log_prob(x.clone()))
    draws = flow.conditional(coarse[:1].expand(5000, *coarse.shape[1:]), top).sample()
    latents = flow.inv(draws).flatten(1)[:, 1:]
    assert latents.mean(0).abs().max() < 5 / math.sqrt(5000)
    assert (latents.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 5000)


def test_mean_weight_is_the_marginal_of_the_target(seed: int) -> None:
    """Of another Gaussian than that of the flow."""
    flow = linear_flow((4, 4), any_matrix, "mera")
    precision = torch.linalg.inv(jacobian(flow) @ jacobian(flow).T) + 0.2 * torch.eye(16)
    marginal = coarse_gaussian(flow, torch.linalg.inv(precision), 1)
    log_partition = 8 * math.log(2 * math.pi) - 0.5 * float(torch.logdet(precision))
    for coarse in marginal.sample((3,)):
        fine = flow.conditional(coarse.reshape(2, 2), 1)
        found = estimate(gaussian(precision), fine, 4000)
        exact = -float(marginal.log_prob(coarse)) - log_partition
        assert abs(found.importance - exact) < 4 * found.importance_se
        assert 0 < found.importance_se < 0.1
        assert found.variational > exact - 4 * found.variational_se
    covariance = torch.linalg.inv(precision)
    rows = torch.linalg.inv(jacobian(flow.up_to_scale(1)))[[0, 2, 8, 10]]
    given = covariance @ rows.T @ torch.linalg.solve(marginal.covariance_matrix, coarse)
    mean = expectations(gaussian(precision), fine, {"x": lambda x: x.flatten(1)}, 4000)
    off = (mean.observables["x"].value - given).abs()
    assert (off < 5 * mean.observables["x"].standard_error).all()
    assert float(given.abs().max()) > 20 * float(mean.observables["x"].standard_error.max())


def test_draws_are_differentiable_in_the_coarse_field() -> None:
    flow = bent((4, 4))
    coarse = torch.randn(2, 2, requires_grad=True)

    def draw(given: Tensor) -> Tensor:
        torch.manual_seed(0)
        return flow.conditional(given, 1).rsample()

    assert torch.autograd.gradcheck(draw, (coarse,))


@pytest.mark.parametrize(
    ("coarse", "scale", "error", "match"),
    [
        (torch.zeros(3, 3, dtype=torch.float64), 1, ValueError, r"coarse has shape \(3, 3\)"),
        (torch.zeros(2, 2), 1, TypeError, "coarse is torch.float32 on cpu"),
        (torch.zeros(2, 2).long(), 1, TypeError, "coarse is torch.int64"),
        (torch.full((2, 2), math.nan, dtype=torch.float64), 1, ValueError, "coarse has entries"),
        (torch.zeros(2, 2, dtype=torch.float64), 3, ValueError, "scale is 3"),
        (torch.zeros(2, 2, dtype=torch.float64), 1.0, TypeError, "scale is 1.0"),
    ],
)
def test_bad_arguments(coarse: Any, scale: Any, error: type[Exception], match: str) -> None:
    flow = hierarchical_flow((4, 4))
    with pytest.raises(error, match=f"{match}.*; accepted: "):
        flow.conditional(coarse, scale)
    with pytest.raises(TypeError, match=r"flow is .*; accepted: a HierarchicalFlow"):
        FineGivenCoarse(flow.inv, torch.zeros(2, 2, dtype=torch.float64), 1)
