# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The mass: momenta and displacements have the covariances they should, and bad ones are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.mcmc import RandomWalkMetropolis
from pyro_neuralrg.mcmc.kernel import Mass

COVARIANCE = torch.tensor(
    [[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64
)


@pytest.mark.parametrize(
    "inverse", [None, COVARIANCE.diagonal(), COVARIANCE], ids=["unit", "diagonal", "dense"]
)
def test_what_a_mass_does(inverse: Tensor | None) -> None:
    mass = Mass.of(inverse, torch.zeros(1, 3))
    full = torch.eye(3) if inverse is None else inverse if inverse.dim() == 2 else inverse.diag()
    basis = torch.eye(3)  # of unit normals: linear maps are read off it
    momenta, displacements = mass.momentum(basis), mass.displacement(basis)
    torch.testing.assert_close(momenta.mT @ momenta, torch.linalg.inv(full))
    torch.testing.assert_close(displacements.mT @ displacements, full)
    torch.testing.assert_close(mass.velocity(basis), full)
    torch.testing.assert_close(mass.kinetic_energy(basis), 0.5 * full.diagonal())
    white = mass.whitened(basis)
    torch.testing.assert_close(white @ white.mT, torch.linalg.inv(full))
    torch.testing.assert_close(mass.whitened(displacements), basis)


@pytest.mark.parametrize(
    "bad",
    [
        2.0,
        torch.zeros(2, 3),
        torch.zeros(2),
        torch.tensor([1.0, math.nan]),
        torch.tensor([[1.0, math.inf], [math.inf, 1.0]]),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
    ],
    ids=["number", "shape", "zero", "nan", "inf", "negative eigenvalue", "not symmetric"],
)
def test_bad_masses(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)inverse_mass is .*; accepted: finite variances"):
        RandomWalkMetropolis(lambda x: x.sum(-1), shape=(2,), inverse_mass=bad)


def test_a_mass_of_another_dimension() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\); accepted: \(3,\) or \(3, 3\)"):
        Mass.of(torch.ones(2), torch.zeros(1, 3))
