# SPDX-License-Identifier: Apache-2.0
"""Crystals: energies pair by pair, the harmonic crystal, and a free energy by quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.potentials import LennardJonesCrystal
from pyro_neuralrg.potentials.crystal import STRUCTURES

CUTOFF = 2.7


def shifted(r: np.ndarray) -> np.ndarray:
    """v, truncated and shifted."""
    v = 4 * (r**-12.0 - r**-6.0) - 4 * (CUTOFF**-12.0 - CUTOFF**-6.0)
    return np.where(r < CUTOFF, v, 0.0)


def by_hand(crystal: LennardJonesCrystal, u: np.ndarray) -> float:
    """Energy of all pairs and images, in units of epsilon, from positions in the box."""
    edges, sites, _ = STRUCTURES[crystal.structure]
    scale = (crystal.volume / abs(np.linalg.det(edges)) / math.prod(crystal.lattice)) ** (
        1 / crystal.dimensions
    )
    cells = np.stack(np.unravel_index(np.arange(math.prod(crystal.lattice)), crystal.lattice), -1)
    places = (cells @ np.array(edges))[:, None] + np.array(sites)
    sites = scale * places.reshape(-1, crystal.dimensions)
    np.testing.assert_allclose(crystal.sites.reshape(sites.shape).numpy(), sites, atol=1e-12)
    positions = sites + u.reshape(-1, crystal.dimensions)
    box = scale * np.array(edges) * np.array(crystal.lattice)[:, None]
    total = 0.0
    for image in itertools.product(range(-4, 5), repeat=crystal.dimensions):
        vectors = positions[:, None] - positions + np.array(image) @ box
        r = np.linalg.norm(vectors, axis=-1)
        total += 0.5 * shifted(r[r > 1e-9]).sum()
    return float(total)


def centre_term(crystal: LennardJonesCrystal, u: torch.Tensor) -> float:
    mean = u.reshape(-1, crystal.dimensions).mean(0)
    return 0.5 * crystal.stiffness * crystal.atoms * float(mean.square().sum())


CRYSTALS = [
    ((4, 4), 1.0, 1.0),
    ((3, 2), 1.1, 0.5),
    ((2, 2, 2), 1.28, 2.0),
    ((1, 1, 2), 1.28, 2.0),
    ((1, 1, 3), 1.28, 2.0),
]
every_crystal = pytest.mark.parametrize("crystal", [LennardJonesCrystal(*one) for one in CRYSTALS])


@every_crystal
def test_the_energy_pair_by_pair(crystal: LennardJonesCrystal) -> None:
    for spread in (0.0, 0.06):
        u = spread * torch.randn(crystal.shape)
        exact = by_hand(crystal, u.numpy()) / crystal.temperature + centre_term(crystal, u)
        assert float(crystal.energy(u)) == pytest.approx(exact, rel=1e-12)
        per_atom = float(crystal.energy_per_atom(u)) * crystal.atoms
        assert per_atom == pytest.approx(by_hand(crystal, u.numpy()), rel=1e-12)


@every_crystal
def test_the_spectrum_is_the_harmonic_crystal(crystal: LennardJonesCrystal) -> None:
    zero = torch.zeros(crystal.shape)
    hessian = torch.func.jacrev(torch.func.grad(crystal.energy))(zero).reshape(zero.numel(), -1)
    covariance = torch.linalg.inv(hessian)
    axes = tuple(range(len(crystal.lattice)))
    from_cell_0 = torch.fft.ifftn(crystal.spectrum, dim=axes).real
    own = crystal.components
    rows = covariance.reshape(-1, own, zero.numel() // own, own)[:, :, 0]
    torch.testing.assert_close(from_cell_0.reshape(-1, own, own), rows, atol=1e-12, rtol=1e-9)
    flow = crystal.flow(depth=0)
    jacobian = flow(torch.eye(zero.numel()).reshape(-1, *crystal.shape)).reshape(zero.numel(), -1)
    torch.testing.assert_close(jacobian.T @ jacobian, covariance, atol=1e-12, rtol=1e-9)
    exact = 0.5 * torch.logdet(2 * math.pi * covariance) - crystal.energy(zero)
    assert crystal.harmonic_log_partition() == pytest.approx(float(exact), rel=1e-10)


def test_moving_all_atoms_moves_the_centre_alone() -> None:
    crystal = LennardJonesCrystal((3, 4), 1.0, 1.0)
    u = 0.05 * torch.randn(5, 3, 4, 2)
    moved = u + torch.tensor([0.02, -0.03])
    for name, function in crystal.observables().items():
        torch.testing.assert_close(function(moved), function(u), msg=name)
    centred = u - u.mean((1, 2), keepdim=True)
    difference = crystal.energy(u) - crystal.energy(centred)
    exact = torch.tensor([centre_term(crystal, one) for one in u])
    torch.testing.assert_close(difference, exact)


def test_a_line_at_short_distances() -> None:
    """The same but below; there finite, with a continuous slope."""
    crystal = LennardJonesCrystal((2, 1), 1.0, 1.0)
    line = crystal.linearised(0.9)
    u = 0.05 * torch.randn(20, 2, 1, 2)
    torch.testing.assert_close(line.energy(u), crystal.energy(u))
    close = torch.zeros(2, 1, 2)
    close[0, 0, 0] = crystal.nearest - 0.3
    assert float(line.energy(close)) < 0.2 * float(crystal.energy(close))
    r = torch.linspace(0.9 - 1e-7, 0.9 + 1e-7, 2)
    vectors = torch.stack([r, torch.zeros(2)], -1).requires_grad_()
    (slopes,) = torch.autograd.grad(line._pair_energy(vectors).sum(), vectors)
    assert float(slopes[0, 0]) == pytest.approx(float(slopes[1, 0]), rel=1e-4)


def test_the_free_energy_of_two_atoms() -> None:
    """-ln of V / 2! times the integral over the vector between them, by quadrature."""
    crystal = LennardJonesCrystal((2, 1), 1.1, 0.3)
    side = np.linspace(-0.6, 0.6, 241)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    u = np.zeros((len(grid), 2, 1, 2))
    u[:, 1, 0] = grid
    relative = torch.from_numpy(u - u.mean((1, 2), keepdims=True))
    integral = float((-crystal.energy(relative)).exp().sum()) * (side[1] - side[0]) ** 2
    exact = -math.log(crystal.volume * integral / 2) / 2
    torch.manual_seed(0)
    found = estimate(crystal, crystal.flow(depth=0), num_samples=40_000)
    error = found.importance_se / crystal.atoms
    assert error < 0.01
    assert abs(crystal.helmholtz(-found.importance) - exact) < 4 * error


def test_training_beats_the_harmonic_crystal() -> None:
    from pyro_neuralrg.train import fit

    crystal = LennardJonesCrystal((3, 4), 1.0, 1.0)
    torch.manual_seed(0)
    flow = crystal.flow(dtype=torch.float32)
    fit(crystal.linearised(), flow, steps=250, batch=128, seed=0, progress=False)
    harmonic = crystal.flow(depth=0, dtype=torch.float32)
    before, after = (
        estimate(crystal.linearised(), one, num_samples=4000) for one in (harmonic, flow)
    )
    gaps = [one.variational - after.importance for one in (before, after)]
    assert after.ess > 0.5
    assert gaps[1] < gaps[0] / 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4,), 1.0, 1.0), ValueError, r"cells is \(4,\); accepted: two sides \(triangular\)"),
        (((4, 4), -1.0, 1.0), ValueError, "density is -1.0; accepted"),
        (((4, 4), 1.0, 0.0), ValueError, "temperature is 0.0; accepted"),
        (((4, 0), 1.0, 1.0), ValueError, "cells is"),
        (((4, 4), 0.5, 1.0), ValueError, "crystal at density 0.5 is not stable"),
        (((1, 1), 1.0, 1.0), ValueError, "is not stable"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LennardJonesCrystal(*arguments)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"cells is \(2, 2\); accepted for fcc: 3 integers"):
        LennardJonesCrystal((2, 2), 1.0, 1.0, structure="fcc")
    with pytest.raises(ValueError, match="structure is 'bcc'; accepted: triangular, fcc"):
        LennardJonesCrystal((2, 2), 1.0, 1.0, structure="bcc")
    with pytest.raises(ValueError, match=r"cutoff is 1\.0; accepted"):
        LennardJonesCrystal((2, 2), 1.0, 1.0, cutoff=1.0)
    with pytest.raises(ValueError, match=r"below is 1\.5; accepted"):
        LennardJonesCrystal((2, 2), 1.0, 1.0).linearised(1.5)
