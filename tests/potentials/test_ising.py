# SPDX-License-Identifier: Apache-2.0
"""The dual of the Ising model against enumeration, quadrature and known values."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, DualSpins, IsingDual, IsingModel
from pyro_neuralrg.potentials.ising import SpinDual, logcosh
from tests.potentials.enumeration import Ising
from tests.potentials.registry import POTENTIALS

SMALL = {
    name: case.build
    for name, case in POTENTIALS.items()
    if isinstance(case.build(), SpinDual) and math.prod(case.build().shape) <= 16
}
every_small_model = pytest.mark.parametrize("name", SMALL)


@functools.cache
def small(name: str) -> tuple[IsingDual | DualSpins, Ising]:
    potential = SMALL[name]()
    assert isinstance(potential, IsingDual | DualSpins)
    return potential, Ising.of(potential)


@functools.cache
def drawn(name: str) -> tuple[Tensor, Tensor]:
    """Reference fields, and spins given these."""
    potential, _ = small(name)
    fields = potential.sample_reference(3000, seed=1)
    return fields, potential.sample_spins(fields, seed=2)


def gaussian_part(potential: IsingDual | DualSpins, ising: Ising) -> Tensor:
    """K + alpha I."""
    return ising.matrix + potential.alpha * torch.eye(len(ising.matrix))


@every_small_model
def test_density_is_the_normalised_mixture_over_all_spins(name: str) -> None:
    """exp(-energy(x) - ln Z) = sum_s p(s) N(x; K' s, K'), manifestly of integral one, at any x.

    So the field's correlations are K' + K' <s s> K'.
    """
    potential, ising = small(name)
    covariance = gaussian_part(potential, ising)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert float(eigenvalues[0]) == pytest.approx(0.1)
    if isinstance(potential, IsingDual):
        torch.testing.assert_close(potential.spectrum.flatten().sort().values, eigenvalues)
    x = 2 * torch.randn(3, *potential.shape)
    noise = x.flatten(1)[:, None] - ising.spins @ covariance
    given_spins = MultivariateNormal(torch.zeros(len(covariance)), covariance)
    log_prob = given_spins.log_prob(noise) + ising.probability.log()
    expected = -potential.energy(x) - potential.log_partition()
    torch.testing.assert_close(expected, log_prob.logsumexp(1), rtol=1e-10, atol=1e-9)
    if isinstance(potential, DualSpins):
        torch.testing.assert_close(potential.covariance, covariance)
        return
    if potential.boundary == "open" or potential.field is not None:
        with pytest.raises(NotImplementedError):
            potential.correlations()
        return
    exact = covariance + covariance @ ising.second_moment @ covariance
    correlations = exact[0].reshape(potential.shape)
    torch.testing.assert_close(potential.correlations(), correlations, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("side", "log_partition", "structure_factor", "internal_energy"),
    [
        (8, 148.655016, 0.6469116, -1.4915891),
        (16, 592.875740, 0.5454172, -1.4530649),
        (32, 2369.587091, 0.4589750, -1.4336585),
    ],
)
def test_known_values_at_the_critical_temperature(
    side: int, log_partition: float, structure_factor: float, internal_energy: float
) -> None:
    target = IsingDual((side, side))
    assert target.temperature == CRITICAL_TEMPERATURE
    assert target.log_partition() == pytest.approx(log_partition, abs=5e-7)
    assert target.spins.internal_energy() == pytest.approx(internal_energy, abs=5e-8)
    assert target.spins.structure_factor() == pytest.approx(structure_factor, abs=5e-8)


@every_small_model
def test_observables_of_reference_draws_are_exact(name: str) -> None:
    """In fields, open, with unequal couplings: nothing of the target is forgotten."""
    potential, ising = small(name)
    x, _ = drawn(name)
    functions = potential.observables()
    exact = ising.averages
    periodic = [axis for axis, side in enumerate(potential.shape) if side > 1]
    for axis in [] if potential.boundary == "open" else periodic:
        sites = torch.tensor(list(itertools.product(*map(range, potential.shape))))
        angle = 2 * math.pi * sites[:, axis] / potential.shape[axis]
        waves = torch.stack([angle.cos(), angle.sin()])
        exact[f"structure_factor_axis{axis}"] = float(
            (waves @ ising.second_moment @ waves.T).trace() / len(sites) ** 2
        )
    assert functions.keys() == exact.keys()
    for key, function in functions.items():
        values = function(x)
        error = float(values.std()) / math.sqrt(len(x))
        assert abs(float(values.mean()) - exact[key]) < 4.5 * error + 1e-12, key
        assert error < 0.1, key


@every_small_model
def test_reference_samples_have_the_exact_mean_and_covariance(name: str) -> None:
    """Mean K' <s>, second moment K' + K' <s s> K'; each from a chain of its own. Spins given x."""
    potential, ising = small(name)
    x, spins = (values.flatten(1) for values in drawn(name))
    assert set(spins.unique().tolist()) <= {-1.0, 1.0}
    _within_errors(spins, ising.mean, spins=True)
    row, column = torch.triu_indices(spins.shape[1], spins.shape[1], 1)
    products = spins[:, row] * spins[:, column]
    _within_errors(products, ising.second_moment[row, column], spins=True)
    covariance = gaussian_part(potential, ising)
    _within_errors(x, covariance @ ising.mean)
    products = (x[:, :, None] * x[:, None, :]).flatten(1)
    exact = covariance + covariance @ ising.second_moment @ covariance
    _within_errors(products, exact.flatten())


def _within_errors(samples: Tensor, exact: Tensor, spins: bool = False) -> None:
    """Means of independent samples, 4.5 standard errors for each of up to 225 of them."""
    # the error bar of a spin that hardly ever flips is not known from its samples
    variance = 1 - exact.square() if spins else samples.var(0)
    error = (variance / len(samples)).sqrt().clamp_min(1 / len(samples))
    assert float(((samples.mean(0) - exact).abs() / error).max()) < 4.5


def test_probabilities_and_moments_are_those_of_the_gradient() -> None:
    """d(-energy)/dx, beside the Gaussian part, is the mean spin."""
    potential = IsingDual((3, 2), 1.5, field=torch.randn(3, 2))
    x = torch.randn(3, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(-potential.energy(x), x)
    gaussian = torch.linalg.inv(gaussian_part(potential, Ising.of(potential)))
    expected = slope + (gaussian @ x.detach().flatten()).reshape(3, 2)
    mean, variance = potential.spin_moments(x.detach())
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(variance, 1 - expected**2)
    up = potential.spin_probability(x.detach())
    torch.testing.assert_close(up, (1 + expected) / 2)
    assert potential.spin_probability(x.float()).dtype == torch.float32
    for function in (potential.spin_probability, potential.spin_moments, potential.sample_spins):
        with pytest.raises(ValueError, match="x has shape"):
            function(torch.zeros(3))


@pytest.mark.parametrize("temperature", [1.5, CRITICAL_TEMPERATURE, 3.5])
def test_large_lattices_are_stable(temperature: float) -> None:
    """A constant field has one mode; ln Z per site is near that of the largest known lattice."""
    side, value = 1024, 0.7
    potential, sites = IsingDual((side, side), temperature), side**2
    expected = sites * (
        value**2 / 2 / (4 / temperature + potential.alpha) - math.log(math.cosh(value))
    )
    energy = potential.energy(torch.full((side, side), value))
    assert float(energy) == pytest.approx(expected, rel=1e-12)
    reference = IsingDual((32, 32), temperature).log_partition() / 32**2
    assert potential.log_partition() / sites == pytest.approx(reference, abs=2e-3)
    smaller = IsingModel((256, 256), temperature).internal_energy()
    assert potential.spins.internal_energy() == pytest.approx(smaller, abs=2e-3)
    assert math.isfinite(potential.spins.specific_heat())


def test_logcosh() -> None:
    x = torch.tensor([0.0, 1e-8, 0.5, -3.0, 20.0, 1e4, -1e30])
    expected = [0, 5e-17, *(math.log(math.cosh(v)) for v in (0.5, 3.0, 20.0)), 1e4 - math.log(2)]
    torch.testing.assert_close(logcosh(x)[:-1], torch.tensor(expected), rtol=1e-14, atol=2e-16)
    assert float(logcosh(x)[-1]) == 1e30
    assert torch.equal(logcosh(x), logcosh(-x))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(logcosh(x).sum(), x)
    torch.testing.assert_close(slope, x.detach().tanh(), rtol=1e-12, atol=2e-16)
    assert logcosh(torch.tensor(1e30, dtype=torch.float32)).isfinite()


@pytest.mark.parametrize(
    "field", [0.5, np.float32(0.5), np.full((2, 2), 0.5), torch.full((2, 2), 0.5), [[0.5] * 2] * 2]
)
def test_fields_of_any_kind(field: Any) -> None:
    potential = IsingDual((2, 2), field=field)
    assert potential.field is not None
    torch.testing.assert_close(potential.field, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert not potential.even


def test_fields_of_zero_and_read_only_reversed_fields() -> None:
    for none in (0.0, np.zeros((4, 4)), None):
        dual = IsingDual((4, 4), field=none)
        assert dual.field is None
        assert dual.even
    field = np.linspace(-1.0, 1.0, 12).reshape(4, 3).T[::-1]
    value = IsingModel((3, 4), 2.0, field=np.ascontiguousarray(field)).log_partition()
    field.flags.writeable = False
    assert IsingModel((3, 4), 2.0, field=field).log_partition() == value


def test_heated_is_the_model_at_the_higher_temperature() -> None:
    hot = IsingDual((4, 3), 2.0, (1.0, -0.5), 0.3, "open").heated(1.5)
    same = IsingDual((4, 3), 3.0, (1.0, -0.5), 0.3, "open")
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(hot.energy(x), same.energy(x))
    options = "temperature=3, couplings=(1.0, -0.5), field=..., boundary='open'"
    assert repr(hot) == repr(same) == f"IsingDual((4, 3), {options})"


def test_seeds() -> None:
    potential, x = IsingDual((2, 3)), torch.randn(4, 2, 3, dtype=torch.float32)
    spins = potential.sample_spins(x, seed=3)
    assert (spins.shape, spins.dtype) == (x.shape, torch.float32)
    assert torch.equal(potential.sample_spins(x, seed=3), spins)
    assert not torch.equal(potential.sample_spins(x), potential.sample_spins(x))
    fields = [potential.sample_reference(2, seed) for seed in (np.uint8(7), 7)]
    assert torch.equal(*fields)
    with pytest.raises(ValueError, match="seed is -1; accepted: an integer from 0 to"):
        potential.sample_spins(x, -1)


def test_a_class_derived_from_ours_is_heated_whatever_arguments_it_takes() -> None:
    class Square(IsingDual):
        def __init__(self, side: int) -> None:
            super().__init__((side, side), 2.3)

    hot = Square(3).heated(2.0)
    x = torch.randn(4, 3, 3)
    torch.testing.assert_close(hot.energy(x), IsingDual((3, 3), 4.6).energy(x))
