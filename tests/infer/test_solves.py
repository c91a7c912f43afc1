# SPDX-License-Identifier: Apache-2.0
"""One triangular solve for all draws of a vmap gives the numbers of one for each."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_neuralrg.infer.log_joint import SharedSolves, _Solve

DIM = 5
ROOT = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)).double()
COVARIANCE = ROOT @ ROOT.T + torch.eye(DIM).double()
LOC = torch.arange(DIM).double()
PRIOR = dist.MultivariateNormal(LOC, COVARIANCE)
TWO = torch.tensor([[1.0], [2.0]]).double()

DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "covariance": PRIOR.log_prob,
    "precision": dist.MultivariateNormal(LOC, precision_matrix=COVARIANCE).log_prob,
    "two vectors": lambda x: PRIOR.log_prob(TWO * x).sum(),
    "two matrices": lambda x: (
        dist.MultivariateNormal(LOC, TWO[..., None] * COVARIANCE).log_prob(x).sum()
    ),
    "covariance of the draw": lambda x: dist.MultivariateNormal(
        LOC, x[0].square() * torch.eye(DIM).double() + COVARIANCE
    ).log_prob(x),
    "low rank": dist.LowRankMultivariateNormal(LOC, ROOT[:, :2], LOC.exp()).log_prob,
}


@pytest.fixture(autouse=True)
def _no_validation() -> object:
    """Checks of matrices that depend on a draw are no part of vmap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.Distribution, "_validate_args", False)
        yield


def _shared(density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def of_one(x: Tensor) -> Tensor:
        with SharedSolves():
            return density(x)

    return of_one


@pytest.mark.parametrize("name", DENSITIES)
def test_density_and_gradient_are_those_of_torch(name: str) -> None:
    density, found = DENSITIES[name], []
    points = torch.randn(4, DIM)
    for function in (density, _shared(density)):
        leaf = points.clone().requires_grad_()
        values = torch.func.vmap(function)(leaf)
        with torch.no_grad():
            assert torch.allclose(torch.func.vmap(function)(points), values)
        found.append((values.detach(), *torch.autograd.grad(values.sum(), leaf)))
        found[-1] += (torch.func.vmap(torch.func.grad(function))(points),)
    for expected, seen in zip(*found, strict=True):
        torch.testing.assert_close(seen, expected)


def test_a_second_derivative() -> None:
    x = torch.randn(DIM, requires_grad=True)
    assert torch.autograd.gradgradcheck(_shared(PRIOR.log_prob), x)


def test_a_matrix_is_solved_once_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, seen, solve = PRIOR.scale_tril, [], torch.linalg.solve_triangular

    def watched(matrix: Tensor, right: Tensor, **options: bool) -> Tensor:
        seen.append((matrix.numel(), right.shape[-1]))
        return solve(matrix, right, **options)

    points = torch.randn(4, DIM, 1)
    expected = solve(factor, points, upper=False)
    monkeypatch.setattr(torch.linalg, "solve_triangular", watched)
    found = torch.func.vmap(lambda b: _Solve.apply(factor, b, False))(points)
    torch.testing.assert_close(found, expected)
    assert seen == [(DIM * DIM, 4)]
