# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The densities between start and target: energies, gradients, and what they are at the ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg import IsingDual
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.free_energy.tempered import TemperedTarget
from pyro_neuralrg.mcmc import EnergyTarget, LatentTarget, ModelTarget
from tests.free_energy.solvable_model import DATA, exact, exact_guide, model


def latent() -> LatentTarget:
    """The model at Tc, in the latent space of a flow of two modes."""
    potential = IsingDual((4, 4))
    flow = potential.flow()
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert isinstance(flow.base, TwoModes)
    return LatentTarget(potential, flow)


def behind_a_guide() -> ModelTarget:
    return ModelTarget(NeuTraReparam(exact_guide()).reparam(model)).setup(DATA)


TARGETS: list[Any] = [
    lambda: EnergyTarget(lambda x: 2.0 * x.square().flatten(1).sum(-1), (2, 3)),
    latent, lambda: ModelTarget(model).setup(DATA), behind_a_guide,
]  # fmt: skip


@pytest.mark.parametrize("make", TARGETS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_mixture_of_energies_and_its_gradient(make: Any, beta: float, seed: int) -> None:
    whole = make()
    target = TemperedTarget(whole, beta, batch_size=3)
    y = target.initial(7, torch.Generator().manual_seed(seed))
    energy, gradient = target.energy_and_grad(y)
    torch.testing.assert_close(target.energy(y), energy)
    base = TemperedTarget(whole, 0.0).energy(y)
    torch.testing.assert_close(energy, beta * whole.energy(y) + (1 - beta) * base)
    step = 1e-5 * torch.randn_like(y)
    for name, value in target.physical(y).items():  # in batches
        torch.testing.assert_close(value, whole.physical(y)[name])
    assert target.modules() == whole.modules()
    change = target.energy(y + step) - target.energy(y - step)
    torch.testing.assert_close(change, 2 * (gradient * step).sum(-1), rtol=1e-5, atol=1e-9)


def test_start_is_normalised_and_the_one_that_is_drawn() -> None:
    """Along the first latent its density integrates to one and has two modes."""
    whole = latent()
    target = TemperedTarget(whole, 0.0)
    grid = torch.linspace(-12, 12, 4001)
    y = torch.zeros(len(grid), 16)
    y[:, 0] = grid
    others = -7.5 * math.log(2 * math.pi)  # 15 normals at zero
    density = (-target.energy(y) - others).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    distance = whole.flow.base.separation
    assert abs(float(grid[density.argmax()].abs()) - distance) < 0.1
    drawn = target.initial(4000, torch.Generator().manual_seed(0))[:, 0]
    assert float(drawn.square().mean()) == pytest.approx(1 + distance**2, rel=0.1)


def test_start_of_a_model_behind_a_guide_is_the_guide() -> None:
    """Here the posterior itself: beta makes no difference but for the evidence."""
    start = TemperedTarget(behind_a_guide(), 0.0)
    y = start.initial(5, torch.Generator().manual_seed(0))
    difference = start.at(1.0).energy(y) - start.energy(y)
    torch.testing.assert_close(difference, torch.full((5,), -exact()[0]))
    drawn = start.initial(4000, torch.Generator().manual_seed(0))
    mean, covariance = exact()[1:]
    found = start.physical(drawn)["scale"].log().mean()
    assert abs(float(found - mean[6])) < 4 * (float(covariance[6, 6]) / 4000) ** 0.5
