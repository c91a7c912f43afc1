# SPDX-License-Identifier: Apache-2.0
"""Finite-size scaling against power laws, exact susceptibilities and its own error bars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyro_neuralrg.free_energy import finite_size_scaling
from pyro_neuralrg.potentials import IsingModel
from pyro_neuralrg.statistics import Estimate


def test_a_power_law_is_found_exactly() -> None:
    for given in (lambda y: y, lambda y: (y, 0.1 * y), lambda y: Estimate(y, 0.01)):
        values = {side: given(3.0 * side**-0.125) for side in (4, 8, 16, 30)}
        found = finite_size_scaling(values)
        assert found.exponent.value == pytest.approx(-0.125)
        assert found.log_amplitude.value == pytest.approx(math.log(3.0))
        assert found.degrees_of_freedom == 2
        assert found.without_smallest is not None
        assert found.without_smallest.value == pytest.approx(-0.125)
    assert finite_size_scaling(values).chi_square == pytest.approx(0, abs=1e-12)


def test_shapes_stand_for_their_mean_side() -> None:
    by_shape = finite_size_scaling({(4, 9): 6.0, (12, 12): 12.0, (2, 4, 8): 4.0})
    assert by_shape.exponent.value == pytest.approx(1)
    assert by_shape.exponent.standard_error == pytest.approx(0, abs=1e-7)
    two_of_8 = {8: (1, 0.1), (8, 8, 8): (2, 0.1), 16: (2, 0.1)}
    assert finite_size_scaling(two_of_8).without_smallest is None


def test_exponents_of_the_ising_model() -> None:
    """gamma / nu = 7 / 4 at Tc in two dimensions, from exact values; larger lattices are nearer."""
    chi = {(n, n): n**2 * IsingModel((n, n)).structure_factor() for n in (8, 16, 32)}
    found = finite_size_scaling(chi)
    assert found.without_smallest is not None
    assert abs(found.without_smallest.value - 1.75) < 0.5 * abs(found.exponent.value - 1.75)
    assert found.exponent.value == pytest.approx(1.75, abs=5e-3)
    assert math.isnan(found.chi_square)


def test_errors_cover_the_exponent_at_their_rate(seed: int) -> None:
    """In units of its error the exponent scatters as a normal; chi^2 as its degrees say."""
    rng, sides = np.random.default_rng(seed), (6, 10, 16, 24)
    errors = np.array([0.01, 0.03, 0.02, 0.05])
    deviations, squares = [], []
    for _ in range(400):
        noisy = np.array(sides, float) ** 1.5 * (1 + errors * rng.normal(size=4))
        pairs = zip(sides, noisy, errors * noisy, strict=True)
        found = finite_size_scaling({n: (value, error) for n, value, error in pairs})
        deviations.append((found.exponent.value - 1.5) / found.exponent.standard_error)
        squares.append(found.chi_square)
    assert np.std(deviations) == pytest.approx(1, abs=4.5 / math.sqrt(2 * 400))
    assert abs(np.mean(deviations)) < 4.5 / math.sqrt(400)
    assert np.mean(squares) == pytest.approx(2, abs=4.5 * 2 / math.sqrt(400))


def test_two_lattices_have_no_error_of_their_own() -> None:
    found = finite_size_scaling({8: 1.0, 16: 2.0})
    assert found.exponent.value == pytest.approx(1)
    assert math.isnan(found.exponent.standard_error)
    assert found.without_smallest is None
    error = finite_size_scaling({8: (1.0, 0.03), 16: (2.0, 0.08)}).exponent.standard_error
    assert error == pytest.approx(0.05 / math.log(2))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({8: 1.0}, ValueError, "values has 1 lattices; accepted: two or more"),
        ([1.0, 2.0], TypeError, "values is a list; accepted: a mapping"),
        ({8: 1.0, 16: -2.0}, ValueError, r"values\[16\] is -2.0; accepted: a number > 0"),
        ({8: 1.0, 16: (2.0, 0.0)}, ValueError, r"values\[16\] is \(2.0, 0.0\); accepted"),
        ({8: 1.0, 16: (2.0, 0.1, 3)}, ValueError, r"values\[16\] is .*; accepted: .* a pair"),
        ({8: 1.0, 16: "two"}, TypeError, r"values\[16\] is 'two'; accepted"),
        ({8: 1.0, 16: (2.0, 0.1)}, ValueError, "accepted: .*, all with an error or none"),
        ({(8, 8): 1.0, 8: 2.0}, ValueError, "accepted: two different sides or more"),
        ({8: 1.0, (8, 8, 8): 2.0}, ValueError, "accepted: two different sides or more"),
        ({0: 1.0, 8: 2.0}, ValueError, "a key of values is 0; accepted: an integer >= 1"),
        ({"a": 1.0, 8: 2.0}, TypeError, "a key of values is 'a'; accepted"),
    ],
)
def test_wrong_values_are_named(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        finite_size_scaling(values)
