# SPDX-License-Identifier: Apache-2.0
"""Fields of every scale, resampling, and the effective energy, against linear and exact cases."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.analysis import (
    effective_energy,
    latents_of_scale,
    pyramid,
    resample,
    scale_of_latents,
    top_energy,
    top_variable,
    variables_of_scale,
)
from pyro_neuralrg.analysis.renormalization import _mean_weight
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.potentials import FreeField, IsingDual
from pyro_neuralrg.train import fit
from pyro_neuralrg.transforms import hierarchical_flow
from tests.analysis.linear import any_matrix, gaussian, haar, jacobian, linear_flow
from tests.transforms.registry import perturb


def test_pyramid_of_a_haar_flow_are_block_means() -> None:
    flow = linear_flow((8, 8), haar)
    x = torch.randn(3, 2, 8, 8)
    fields = pyramid(flow, x)
    assert fields[0] is x
    for scale in (1, 2, 3):
        side = 2**scale
        cells = x.reshape(3, 2, 8 // side, side, 8 // side, side)
        torch.testing.assert_close(fields[scale], cells.mean((3, 5)) * side)
    torch.testing.assert_close(top_variable(flow, x), x.mean((-1, -2)) * 8)
    odd = pyramid(hierarchical_flow((5, 3)), torch.randn(5, 3))
    assert [tuple(h.shape) for h in odd] == [(5, 3), (3, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_resampling_fixes_one_half_and_redraws_the_other(scale: int) -> None:
    flow = perturb(hierarchical_flow((4, 4), base=TwoModes(2.0)), 0.02)
    x = flow.forward_and_ladj(torch.randn(2, 4, 4))[0].detach()
    is_coarse = scale_of_latents(flow).flatten() >= scale
    old = flow.inverse_and_ladj(x)[0].flatten(1)
    for fix, kept in (("coarse", is_coarse), ("fine", ~is_coarse)):
        new, again = (
            resample(flow, x, fix, scale=scale, number=500, generator=generator.manual_seed(1))
            for generator in (torch.Generator(), torch.Generator())
        )
        assert torch.equal(new, again)
        z = flow.inverse_and_ladj(new)[0].flatten(2)
        torch.testing.assert_close(z[..., kept], old[:, kept].expand(500, 2, -1))
        normals, _ = flow.base.to_normal(z.detach().reshape(500, 2, 4, 4), 2)
        drawn = normals.flatten(2)[..., ~kept]
        if drawn.numel():  # draws of the base, 1000 of each variable
            assert drawn.mean((0, 1)).abs().max() < 5 / math.sqrt(1000)
            assert (drawn.var((0, 1)) - 1).abs().max() < 5 * math.sqrt(2 / 1000)


def test_effective_energy_of_a_perfect_flow_is_that_of_normals() -> None:
    target = FreeField((4, 4))
    flow = linear_flow((4, 4), any_matrix, "mera")
    z = torch.randn(5, 4, 4)
    normal = 0.5 * z.square().sum((-1, -2))
    covariance = jacobian(flow) @ jacobian(flow).T
    found = effective_energy(gaussian(torch.linalg.inv(covariance)), flow, z)
    constant = -0.5 * float(torch.linalg.slogdet(covariance)[1])
    torch.testing.assert_close(found, normal + constant)
    linear = hierarchical_flow((4, 4), depth=0, spectrum=target.spectrum)
    perfect = effective_energy(target, linear, z)
    exact = normal - target.log_partition() + 8 * math.log(2 * math.pi)
    torch.testing.assert_close(perfect, exact)


def test_effective_energy_up_to_a_scale_is_that_of_the_block_variables() -> None:
    """Of a Gaussian that a tree generates: fine normals, and the block variables' own energy."""
    flow = linear_flow((4, 4), any_matrix)
    energy = gaussian(torch.linalg.inv(jacobian(flow) @ jacobian(flow).T))
    z = torch.randn(6, 4, 4)
    coarse, fine = variables_of_scale(flow, 1), latents_of_scale(flow, 0)
    part = flow.up_to_scale(1)
    matrix = jacobian(part)
    covariance = torch.linalg.solve(matrix, jacobian(flow))
    covariance = (covariance @ covariance.T)[coarse][:, coarse]
    blocks = part.inverse_and_ladj(flow.forward_and_ladj(z)[0])[0].flatten(1)[:, coarse]
    own = 0.5 * (blocks * torch.linalg.solve(covariance, blocks.T).T).sum(-1)
    ladj = torch.linalg.slogdet(matrix)[1]
    expected = 0.5 * z.flatten(1)[:, fine].square().sum(-1) + own - ladj
    torch.testing.assert_close(effective_energy(energy, flow, z, scale=1), expected)


@pytest.mark.parametrize("scale", [None, 0, 2])
def test_effective_energies_of_the_ends(scale: int | None) -> None:
    target = IsingDual((4, 4))
    flow = perturb(target.flow(), 0.02)
    z = torch.randn(5, 4, 4)
    x, ladj = flow.forward_and_ladj(z)
    if scale is not None:
        part = flow.gaussian if scale == 0 else flow
        ladj = part.inverse_and_ladj(x)[1]
    torch.testing.assert_close(effective_energy(target, flow, z, scale), target.energy(x) - ladj)


def test_energy_of_the_top_of_a_gaussian_is_that_of_its_marginal() -> None:
    """Of another Gaussian than the flow's: weights are needed, and the answer is known."""
    flow = linear_flow((2, 2), haar)  # the top is the sum over 2
    y = torch.tensor([-1.0, 0.0, 2.0])

    def exact(variance: float) -> torch.Tensor:
        return 0.5 * y.square() / variance + 0.5 * math.log(2 * math.pi * variance)

    precision = torch.eye(4) + 0.3 * torch.ones(4, 4)  # only the top feels the 0.3
    log_partition = 2 * math.log(2 * math.pi) - 0.5 * float(torch.linalg.slogdet(precision)[1])
    found = top_energy(gaussian(precision), flow, y, num_samples=50)
    variance = float(torch.linalg.inv(precision).sum() / 4)
    torch.testing.assert_close(found.values + log_partition, exact(variance))
    torch.testing.assert_close(found.ess, torch.ones(3))
    target = FreeField((2, 2), mass=2.0)
    modes = target.sample_reference(20_000, seed=0)
    found = top_energy(target, flow, y, num_samples=20_000)
    off = found.values + target.log_partition() - exact(float((modes.sum((-1, -2)) / 2).var()))
    assert (off.abs() < 4 * found.standard_error + 0.01 * (1 + 2 * y.square())).all()
    assert (found.ess < 0.95).all()


def test_heavy_tails_behind_the_energy_of_the_top_are_told() -> None:
    """Finer latents of the flow are narrower than the target's: weights have no variance."""
    flow, y = linear_flow((2, 2), haar), torch.zeros(2)
    with pytest.warns(UserWarning, match=r"behind 2 of 2 values of the top .* \(Pareto k-hat up"):
        found = top_energy(gaussian(0.05 * torch.eye(4)), flow, y, num_samples=2000)
    assert (found.pareto_k > 0.7).all()
    assert _mean_weight(-2.0 * torch.rand(2000).log())[1] == math.inf  # no mean either
    found = top_energy(gaussian(1.5 * torch.eye(4)), flow, y, num_samples=2000)
    assert (found.pareto_k < 0.7).all()


@pytest.mark.filterwarnings("ignore:the weights behind")
def test_energy_of_the_top_of_a_magnet_is_that_of_exact_samples() -> None:
    target = IsingDual((2, 2), temperature=3.0)
    flow = target.flow()
    fit(target, flow, steps=60, batch=64, seed=0, progress=False)
    y = top_variable(flow, target.sample_reference(10_000, seed=1))
    counts, edges = torch.histogram(y, 30)
    often = counts > 200
    middle, width = ((edges[1:] + edges[:-1]) / 2)[often], float(edges[1] - edges[0])
    found = top_energy(target, flow, middle, num_samples=3000)
    assert top_energy(target, flow, middle[:1].float(), num_samples=5).values.isfinite()
    density = (-found.values - target.log_partition()).exp()
    share = counts[often] / counts.sum()
    error = ((share / counts.sum()).sqrt() / width).hypot(density * found.standard_error)
    bent = 0.02 * density.max()  # within a bin
    assert len(middle) > 9
    assert ((density - share / width).abs() < 4 * error + bent).all()
    assert density.max() > 15 * error.max()


def test_effective_energy_is_differentiable() -> None:
    target = IsingDual((2, 2))
    flow = target.flow()
    z = torch.randn(2, 2, 2, requires_grad=True)
    for scale in (None, 1):
        assert torch.autograd.gradcheck(
            lambda h, k=scale: effective_energy(target, flow, h, scale=k), (z,)
        )
