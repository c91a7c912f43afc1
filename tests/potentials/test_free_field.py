# SPDX-License-Identifier: Apache-2.0
"""The free field against the multivariate normal of its dense matrix."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.spectral import apply_spectrum
from tests.potentials.registry import POTENTIALS

FREE = {
    name: case.build for name, case in POTENTIALS.items() if isinstance(case.build(), FreeField)
}
every_free_field = pytest.mark.parametrize("name", FREE)


def free(name: str) -> tuple[FreeField, MultivariateNormal]:
    """The field, and the normal distribution whose precision is the Hessian of its energy."""
    potential = FREE[name]()
    assert isinstance(potential, FreeField)
    sites = math.prod(potential.shape)
    unit = torch.eye(sites).reshape(sites, *potential.shape)
    hessian = torch.func.vmap(torch.func.grad(potential.energy))(unit).reshape(sites, sites)
    return potential, MultivariateNormal(torch.zeros(sites), precision_matrix=hessian)


@every_free_field
def test_all_is_that_of_the_normal(name: str) -> None:
    potential, normal = free(name)
    x = torch.randn(5, *potential.shape)
    covariance = apply_spectrum(x, potential.spectrum, potential.boundary)
    torch.testing.assert_close(covariance.flatten(1), x.flatten(1) @ normal.covariance_matrix)
    log_prob = -potential.energy(x) - potential.log_partition()
    torch.testing.assert_close(log_prob, normal.log_prob(x.flatten(1)))
    for index, site in ((0, None), (-1, np.array(potential.shape) - 1)):
        row = normal.covariance_matrix[index].reshape(potential.shape)
        torch.testing.assert_close(potential.correlations(site), row)
    n = 5000
    x = potential.sample_reference(n).flatten(1)
    products = (x[:, :, None] * x[:, None, :]).flatten(1)
    expected = torch.cat([torch.zeros(x.shape[1]), normal.covariance_matrix.flatten()])
    values = torch.cat([x, products], 1)
    error = values.std(0) / math.sqrt(n)
    assert float(((values.mean(0) - expected) / error).abs().max()) < 4.5


def test_one_site_is_an_oscillator() -> None:
    """A periodic side of 1 has no bond; an open one has two, to zero."""
    x = torch.tensor([3.0])
    assert float(FreeField((1,), 2.0).energy(x)) == pytest.approx(18.0)
    assert float(FreeField((1,), 2.0, "open").energy(x)) == pytest.approx(27.0)
    expected = 0.5 * math.log(2 * math.pi / 4)
    assert FreeField((1,), 2.0).log_partition() == pytest.approx(expected)


@pytest.mark.parametrize("mass", [1.0, 1e-7, 1e-12])
@pytest.mark.parametrize("shape", [(6, 6), (7,), (2, 3, 4)], ids=str)
def test_small_mass_keeps_its_digits(shape: tuple[int, ...], mass: float) -> None:
    """The zero mode has m^2 to all digits, and no rounding of the others is added to it."""
    value = FreeField(shape, mass).log_partition()
    waves = itertools.product(*(range(side) for side in shape))
    precision = [
        sum(4 * math.sin(math.pi * m / side) ** 2 for m, side in zip(wave, shape, strict=True))
        for wave in waves
    ]
    expected = sum(0.5 * math.log(2 * math.pi / (mass**2 + p)) for p in precision)
    assert value == pytest.approx(expected, abs=1e-11)
    assert float(FreeField(shape, mass).spectrum.flatten()[0]) == pytest.approx(mass**-2)
