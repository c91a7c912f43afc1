# SPDX-License-Identifier: Apache-2.0
"""A mass of low rank: the matrix that it stands for, and what is learned of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, ChEESHMC
from pyro_neuralrg.mcmc import Adaptation, EnergyTarget, RandomWalkMetropolis
from pyro_neuralrg.mcmc.kernel import LowRankMass, Mass, is_covariance
from pyro_neuralrg.mcmc.low_rank import LowRankCovariance
from tests.mcmc.registry import low_rank_inverse_mass, run

DIM = 500
VARIANCES = torch.tensor([1e-3, 4e-3, 0.02, 30.0, 100.0], dtype=torch.float64)


def matrix_of(inverse: Tensor) -> Tensor:
    """The whole of s [1 + V (Lambda - 1) V^T] s."""
    variances = inverse[:, 1:].norm(dim=0)
    directions, scale = inverse[:, 1:] / variances, inverse[:, 0].sqrt()
    inside = torch.eye(len(inverse)) + directions * (variances - 1) @ directions.mT
    return scale.unsqueeze(-1) * inside * scale


def stiff_and_wide() -> Tensor:
    """A root ``(DIM, DIM)`` of the covariance of a few directions, each coordinate on its scale."""
    turned = torch.linalg.qr(torch.randn(DIM, len(VARIANCES))).Q
    scale = torch.logspace(-1, 1, DIM).unsqueeze(-1)
    return scale * (torch.eye(DIM) + turned * (VARIANCES.sqrt() - 1) @ turned.mT)


def learned(root: Tensor, steps: int, chains: int, moving: bool = True) -> Tensor:
    """What is learned of independent draws of a normal, or of chains that stay where they are."""
    learner, inverse = LowRankCovariance(), torch.linalg.inv(root)
    normals = torch.randn(chains, len(root))
    for _ in range(steps):
        normals = torch.randn_like(normals) if moving else normals
        learner.update(normals @ root.mT, normals @ inverse)
    found = learner.regularised()
    assert found is not None
    assert is_covariance(found)
    return found


def test_it_is_the_matrix_it_stands_for() -> None:
    inverse = low_rank_inverse_mass(6)
    matrix, mass = matrix_of(inverse), Mass.of(inverse, torch.zeros(1, 6))
    assert isinstance(mass, LowRankMass)
    x, close = torch.randn(7, 6), torch.testing.assert_close
    root = mass.displacement(torch.eye(6)).mT
    close(root @ root.mT, matrix)
    close(mass.velocity(x), x @ matrix)
    close(mass.kinetic_energy(x), 0.5 * ((x @ matrix) * x).sum(-1))
    close(mass.momentum(x), x @ torch.linalg.inv(root))
    close(mass.whitened(x), x @ torch.linalg.inv(root).mT)
    close(mass.scaled(x), x @ root)


def test_it_finds_the_covariance_of_a_few_directions() -> None:
    """True variances over those found, in every direction; wide ones swell variances alone."""
    root = stiff_and_wide()
    found = learned(root, 64, 32)
    assert found.shape == (DIM, 1 + len(VARIANCES))
    for inverse, is_close in ((found, True), (found[:, 0].contiguous(), False)):
        whitened = Mass.of(inverse, root).whitened(root.mT)
        spread = torch.linalg.eigvalsh(whitened.mT @ whitened)
        assert bool((spread > 0.3).all() and (spread < 2.0).all()) == is_close


@pytest.mark.parametrize("moving", [True, False])
def test_of_noise_it_is_diagonal(moving: bool) -> None:
    """Also of chains that stay, whose few points span a space of no meaning."""
    found = learned(torch.logspace(-1, 1, 200).diag(), 40, 16, moving)
    assert found.shape == (200,)


def test_memory_does_not_grow_with_the_window() -> None:
    learner = LowRankCovariance()
    for _ in range(1000):
        learner.update(*torch.randn(2, 50, 3))
        assert len(learner._rows) * 50 <= learner.MOST_ROWS + 50
    learner.clear()
    learner.update(*torch.randn(2, 9000, 3))
    assert learner._rows[0].shape[1] <= learner.MOST_ROWS


def test_steps_are_longer_with_it() -> None:
    """Stiff directions of 0.03 are no limit of the step any more."""
    root = stiff_and_wide()
    precision = torch.linalg.inv(root @ root.mT)
    target = EnergyTarget(lambda x: 0.5 * ((x @ precision) * x).sum(-1), (DIM,))
    sizes = {}
    for mass in ("diagonal", "low_rank"):
        warmup = Adaptation(mass=mass, steps=80)
        mcmc = run(ChEESHMC(target, max_steps=12), 2, warmup_steps=warmup, num_chains=32)
        sizes[mass] = mcmc.kernel.step_size
    assert sizes["low_rank"] > 4 * sizes["diagonal"]


def test_without_gradients_it_is_refused() -> None:
    kernel = RandomWalkMetropolis(EnergyTarget(lambda x: 0.5 * x.square().sum(-1), (3,)))
    with pytest.raises(ValueError, match=r"mass is 'low_rank', and .* no gradients .*; accepted"):
        run(kernel, 2, warmup_steps=Adaptation(mass="low_rank", steps=40))


@pytest.mark.parametrize("change", [(0, 0, -1.0), (0, 1, 0.9), (2, 2, float("nan"))])
def test_directions_are_at_right_angles(change: tuple[int, int, float]) -> None:
    inverse = low_rank_inverse_mass(6)
    assert is_covariance(inverse)
    inverse[change[:2]] = change[2]
    with pytest.raises(ValueError, match=r"(?s)inverse_mass is .*; accepted: .*right angles"):
        HMC(lambda x: x.square().sum(-1), shape=(6,), inverse_mass=inverse)


def test_without_variances_there_is_no_mass() -> None:
    with pytest.raises(ValueError, match=r"inverse_mass is .*; accepted: .*\(dim, 1 \+ rank\)"):
        HMC(lambda x: x.square().sum(-1), shape=(3,), inverse_mass=torch.zeros(3, 0))
