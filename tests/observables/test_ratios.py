# SPDX-License-Identifier: Apache-2.0
"""Functions of means: limits, exact values by enumeration, cluster Monte Carlo."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg import observables as obs
from pyro_neuralrg.statistics import Estimate, jackknife
from tests.potentials.enumeration import Ising

ONES = torch.ones(40, 5)


def assert_within(found: Estimate, exact: float, relative: float) -> None:
    """Within 4 standard errors, which are small enough to tell."""
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < relative * abs(exact)


def test_limits_of_binders_cumulant_and_the_unknown() -> None:
    ordered = torch.where(torch.rand(50, 20) < 0.5, 1.0, -1.0) * 0.9
    found = obs.binder_cumulant(ordered.square(), ordered.pow(4))
    assert tuple(found) == pytest.approx((2 / 3, 0.0), abs=1e-12)
    disordered = torch.randn(100, 400)
    found = obs.binder_cumulant(disordered.square(), disordered.pow(4))
    assert abs(found.value) < 4 * found.standard_error < 0.1
    none = torch.zeros(40, 5)
    assert math.isnan(obs.binder_cumulant(none, none).value)
    for low in (none, 2 * ONES):
        assert math.isnan(obs.correlation_length(ONES, low, 4).value)


@pytest.mark.parametrize("shape", [(12,), (6, 9)])
def test_correlation_length_of_a_free_field(shape: tuple[int, ...]) -> None:
    """S(k) = 1 / (m^2 + 4 sin^2 (k_0 / 2) + ...): 1 / m along every axis, exactly."""
    mass = 0.4
    axes = [(2 * (math.pi * torch.arange(side) / side).sin()).square() for side in shape]
    modes = 1 / (mass**2 + sum(torch.meshgrid(*axes, indexing="ij")))
    for axis, side in enumerate(shape):
        lowest = modes[tuple(int(other == axis) for other in range(len(shape)))]
        series = [value.expand(40, 3) for value in (modes.flatten()[0], lowest)]
        assert tuple(obs.correlation_length(*series, side)) == pytest.approx((1 / mass, 0), 1e-10)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("field", [None, 0.15])
def test_against_enumeration(boundary: str, field: float | None) -> None:
    """From sampled spins and averaged over them: the same means, and smaller errors."""
    shape, temperature, size = (3, 3), 2.6, 9
    target = IsingDual(shape, temperature, (1.0, 0.7), field, boundary)
    exact = Ising.of(target).averages
    x = target.sample_reference(2**16 // 9).unsqueeze(1)  # one of each chain: independent
    spins = target.sample_spins(x)
    m2 = exact["structure_factor"]
    errors = []
    for functions, values in ((target.observables(), x), (target.spins.observables(), spins)):
        series = {name: function(values) for name, function in functions.items()}
        square, fourth = series["structure_factor"], series["fourth_moment"]
        energies = series["internal_energy"], series["squared_internal_energy"]
        results = [
            (obs.susceptibility(square, shape, temperature), size * m2 / temperature),
            (obs.binder_cumulant(square, fourth), 1 - exact["fourth_moment"] / (3 * m2**2)),
            (obs.specific_heat(*energies, shape, temperature), target.spins.specific_heat()),
        ]
        for name in ("magnetisation", "abs_magnetisation"):
            found = obs.susceptibility(square, shape, temperature, series[name])
            results.append((found, size * (m2 - exact[name] ** 2) / temperature))
        for found, value in results:
            assert_within(found, value, 0.05)
        errors.append([found.standard_error for found, _ in results])
    assert (np.array(errors[0]) < np.array(errors[1])).all()


def test_at_the_critical_temperature() -> None:
    """Exact values of the 8 x 8 lattice, and the length from the exact two-point function."""
    shape = (8, 8)
    target = IsingDual(shape)
    # 1024 chains, round by round: one of each, then the next of each
    x = target.sample_reference(2048).unflatten(0, (2, 1024)).movedim(1, 0)
    series = {name: function(x) for name, function in target.observables().items()}
    for name, exact in (("structure_factor", 0.6469116), ("internal_energy", -1.4915891)):
        assert_within(jackknife(lambda mean: mean, series[name]), exact, 0.02)
    energies = series["internal_energy"], series["squared_internal_energy"]
    heat = obs.specific_heat(*energies, shape, target.temperature)
    assert_within(heat, target.spins.specific_heat(), 0.1)
    correlations = target.spins.correlations()
    modes = torch.fft.fft2(correlations).real
    length = math.sqrt(modes[0, 0] / modes[1, 0] - 1) / (2 * math.sin(math.pi / 8))
    for axis in (0, 1):
        lowest = series[f"structure_factor_axis{axis}"]
        assert_within(obs.correlation_length(series["structure_factor"], lowest, 8), length, 0.05)
    table = obs.correlations(*target.spin_moments(x), shape).mean(1)
    errors = table.std(0) / math.sqrt(len(table))
    assert bool(((table.mean(0) - correlations).abs() <= 4.5 * errors + 1e-12).all())


@pytest.mark.parametrize(
    ("function", "args", "error", "message"),
    [
        (obs.susceptibility, (ONES, (4, 4), 0.0), ValueError, r"temperature is 0.0; accepted"),
        (obs.susceptibility, (ONES, (4, -4), 1.0), ValueError, r"shape is \(4, -4\)"),
        (obs.specific_heat, (ONES, ONES, (4, 4), "1"), TypeError, r"temperature is '1'; accepted"),
        (obs.correlation_length, (ONES, ONES, 1), ValueError, r"side is 1; accepted"),
    ],
)
def test_bad_arguments(
    function: Any, args: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*args)
