# SPDX-License-Identifier: Apache-2.0
"""The Gaussian layer against dense matrices, and the spectra that it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.transforms import CovarianceLayer, FourierLayer
from tests.potentials.enumeration import bond_matrix
from tests.transforms.registry import free_spectrum


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)])
def test_covariance_is_the_lattice_propagator(boundary: str, shape: tuple[int, ...]) -> None:
    """Cov(x) = (1 - Laplacian / 2)^-1, the matrix inverted as it stands."""
    layer = FourierLayer(free_spectrum(shape, boundary), boundary)
    sites = layer.scale.numel()
    rows = layer(torch.eye(sites).reshape(sites, *shape)).reshape(sites, sites)
    bonds = bond_matrix(shape, (0.5,) * len(shape), boundary)
    precision = (1 + len(shape)) * torch.eye(sites) - bonds
    torch.testing.assert_close(rows.T @ rows, torch.linalg.inv(precision))


def test_the_callers_spectrum_is_copied() -> None:
    spectrum = torch.full((4,), 4.0)
    layer = FourierLayer(spectrum)
    spectrum.fill_(1.0)
    torch.testing.assert_close(layer(torch.ones(4)), torch.full((4,), 2.0))


def test_an_open_spectrum_need_not_be_even() -> None:
    assert FourierLayer(torch.tensor([1.0, 2.0, 3.0]), "open").event_shape == (3,)


def test_a_covariance_of_single_precision_is_symmetric_but_for_rounding() -> None:
    """Entries that vanish differ by as much as the large ones are rounded."""
    exact = 2 * torch.eye(6)
    rounded = exact.float() + 1e-7 * torch.randn(6, 6, dtype=torch.float32)
    x = CovarianceLayer(rounded, (2, 3))(torch.ones(2, 3, dtype=torch.float32))
    torch.testing.assert_close(x, torch.full_like(x, math.sqrt(2)))
