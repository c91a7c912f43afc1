# SPDX-License-Identifier: Apache-2.0
"""Running couplings against theories whose renormalised energy is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.analysis import (
    OPERATORS,
    RunningCouplings,
    lattice_operators,
    operator_sums,
    running_couplings,
)
from pyro_neuralrg.analysis.couplings import BASIS, least_squares
from pyro_neuralrg.potentials import FreeField, IsingDual
from pyro_neuralrg.transforms import hierarchical_flow
from tests.analysis.linear import haar, linear_flow
from tests.transforms.registry import perturb


def in_units_of_the_field(found: RunningCouplings, scale: int) -> Tensor:
    """Couplings of the field itself, and their errors."""
    degrees = torch.tensor([op.degree for op in OPERATORS if op.name in found.operators])
    return torch.stack([found.values[scale], found.standard_error[scale]]) / (
        found.widths[scale] ** degrees
    )


@pytest.mark.parametrize("shape", [(4, 6), (4, 4, 4)])
def test_couplings_of_a_free_field_are_those_of_its_energy(shape: tuple[int, ...]) -> None:
    target = FreeField(shape, mass=0.7)
    flow = hierarchical_flow(shape)
    operators = [operator for operator in BASIS if operator.fits(shape)]
    x = target.sample_reference(60)
    found = running_couplings(target, flow, x, operators=operators, num_fine=1)
    expected = torch.zeros(len(operators))
    expected[0], expected[1] = -1.0, 0.5 * 0.7**2 + len(shape)
    values, errors = in_units_of_the_field(found, 0)
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-8)
    assert errors.max() < 1e-8
    assert float(found.explained[0]) == pytest.approx(1.0)
    torch.testing.assert_close(found.widths[0], x.square().mean().sqrt())


def test_couplings_of_a_scale_are_those_of_its_own_energy() -> None:
    """A theory that is made of a coarse one and normals, by any flow."""
    flow = perturb(hierarchical_flow((8, 8)), 0.02)
    given = torch.tensor([-0.3, 0.8, 0.2, 0.1, 0.05])
    up = flow.up_to_scale(1)

    def energy(x: Tensor) -> Tensor:
        u, ladj = up.inverse_and_ladj(x)
        coarse = u[..., ::2, ::2]
        fine = 0.5 * (u.square().sum((-1, -2)) - coarse.square().sum((-1, -2)))
        return operator_sums(coarse, (4, 4), BASIS) @ given + fine + ladj

    x = flow.forward_and_ladj(torch.randn(100, 8, 8))[0].detach()
    found = running_couplings(energy, flow, x, num_fine=3)
    values, _ = in_units_of_the_field(found, 1)
    torch.testing.assert_close(values, given)
    torch.testing.assert_close(found.explained[1], torch.tensor(1.0))
    torch.testing.assert_close(found.ess[:2], torch.ones(2))
    assert bool(found.explained[[0, 2]].lt(1 - 1e-6).all())
    assert found.values[3].isnan().tolist() == [True, False, True, False, True]
    assert found.operators == ("nearest", "square", "diagonal", "fourth_power", "plaquette")


def test_fine_latents_are_integrated_out(seed: int) -> None:
    """A fine latent that follows its block has no say in the blocks' own energy."""
    flow = linear_flow((4, 4), haar)
    given = torch.tensor([-0.1, 0.6, 0.05, 0.02, 0.03])
    up = flow.up_to_scale(1)

    def energy(x: Tensor) -> Tensor:
        u, ladj = up.inverse_and_ladj(x)
        coarse, follower = u[..., ::2, ::2], u[..., ::2, 1::2]
        rest = u[..., 1::2, :].square().sum((-1, -2))
        follows = (follower - 0.5 * coarse).square().sum((-1, -2))
        return operator_sums(coarse, (2, 2), BASIS) @ given + 0.5 * (rest + follows) + ladj

    x = flow.forward_and_ladj(torch.randn(1000, 4, 4))[0].detach()
    found = running_couplings(energy, flow, x, num_fine=100, seed=seed)
    values, errors = in_units_of_the_field(found, 1)
    assert ((values - given).abs() < 4 * errors + 0.01).all()
    assert float(errors[1]) < 0.02  # the mean over the latents instead adds an eighth there
    assert 0.9 < float(found.explained[1]) < 1.0
    assert 0.2 < float(found.ess[1]) < 0.6
    assert found.explained_error[1] > 0


def test_jackknife_errors_cover(seed: int) -> None:
    """Coefficients of columns with noise, and the share that these explain."""
    columns = torch.randn(100, 300, 2) * torch.tensor([1.0, 20.0]) + 3
    values = 2 * columns[..., 0] - 0.1 * columns[..., 1] + 2 * torch.randn(100, 300) - 5
    found = torch.stack([least_squares(*pair) for pair in zip(values, columns, strict=True)])
    exact = torch.tensor([2.0, -0.1, 8 / 12])
    off = (found[:, 0] - exact) / found[:, 1]
    assert (off.mean(0).abs() < 0.45).all()
    assert (off.square().mean(0) - 1.1).abs().max() < 0.6


def test_draws_that_are_seeded_and_bad_fields() -> None:
    target = IsingDual((4, 4))
    flow, x = target.flow(), target.sample_reference(40)
    first, again = (running_couplings(target, flow, x, batch_size=size) for size in (40, 40))
    torch.testing.assert_close(first.values, again.values, rtol=0, atol=0, equal_nan=True)
    assert repr(first).startswith("RunningCouplings(nearest, square")
    assert math.isfinite(float(first.explained.sum()))
    field = [operator for operator in lattice_operators((4, 4)) if operator.name == "field"]
    odd = running_couplings(target, flow, x, operators=field)
    assert (odd.values.abs() < 5 * odd.standard_error).all()
    with pytest.raises(ValueError, match=r"flow is .*accepted: one of a periodic"):
        running_couplings(target, hierarchical_flow((4, 4), boundary="open"), x)
