# SPDX-License-Identifier: Apache-2.0
"""A solvable target and a small flow that can reach it; the models for autoguides."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from tests.infer.autoguide_models import CASES, Case


class GaussianTarget:
    """pi(x) = exp(-sum (x - 1)^2 / (2 variance)) on a lattice, with its exact ln Z."""

    def __init__(self, shape: tuple[int, ...] = (2, 2), variance: float = 0.5) -> None:
        self.shape = shape
        self.variance = variance

    def energy(self, x: Tensor) -> Tensor:
        return (x - 1.0).square().flatten(-len(self.shape)).sum(-1) / (2.0 * self.variance)

    def model(self) -> None:
        base = dist.Normal(0.0, 1.0).expand(self.shape).to_event(len(self.shape))
        x = pyro.sample("x", base.mask(False))
        pyro.factor("energy_factor", -self.energy(x))

    def heated(self, factor: float) -> GaussianTarget:
        return GaussianTarget(self.shape, self.variance * factor)

    def flow(self) -> Any:
        return ScaleFlow(self.shape)

    def log_partition(self) -> float:
        return 0.5 * math.prod(self.shape) * math.log(2.0 * math.pi * self.variance)


class ScaleFlow(TransformModule):
    """x = loc + exp(log_scale) z per site: contains every GaussianTarget."""

    bijective = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.loc = torch.nn.Parameter(torch.zeros(shape))
        self.log_scale = torch.nn.Parameter(torch.zeros(shape))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return constraints.independent(constraints.real, len(self.shape))

    codomain = domain

    def _call(self, z: Tensor) -> Tensor:
        return self.loc + self.log_scale.exp() * z

    def _inverse(self, x: Tensor) -> Tensor:
        return (x - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(z.shape[: z.dim() - len(self.shape)])

    def set_exact(self, target: GaussianTarget) -> None:
        with torch.no_grad():
            self.loc.fill_(1.0)
            self.log_scale.fill_(0.5 * math.log(target.variance))


def state(flow: Any) -> Tensor:
    """A copy of all parameters, joined."""
    return torch.cat([p.detach().reshape(-1).clone() for p in flow.parameters()])


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def target() -> GaussianTarget:
    return GaussianTarget()


@pytest.fixture
def flow() -> ScaleFlow:
    return ScaleFlow((2, 2))
