# SPDX-License-Identifier: Apache-2.0
"""Critical points of made-up scaling functions and of exact curves, and curves by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.free_energy import (
    Curve,
    crossings,
    scaling_collapse,
    scaling_curves,
)
from pyro_neuralrg.potentials import (
    IsingDualFamily,
    IsingModel,
    Phi4,
    Phi4Family,
    critical_temperature,
)
from pyro_neuralrg.transforms import Neighbour
from tests.potentials.enumeration import Ising

CRITICAL, NU = 0.44, 0.7
BIJECTOR = Neighbour(layers=2, hidden=(4,))
FUNCTION = (0.6, 0.3, -0.05, -0.02)


def made_up(sides: Sequence[int], error: float = 0.0, correction: float = 0.0) -> dict[int, Any]:
    """Curves of a cubic scaling function with corrections of L^(-7/4), without noise."""
    curves = {}
    for side in sides:
        x = np.linspace(-1.0, 1.2, 8)
        powers = x[:, None] ** np.arange(4)
        values = powers @ FUNCTION + correction * side**-1.75 * (1 - x / 3)
        parameter = CRITICAL + x * side ** (-1 / NU)
        curves[side] = Curve(parameter, values, np.full(8, error))
    return curves


def test_a_scaling_function_is_found_exactly() -> None:
    curves = made_up((16, 4, 8))
    found = crossings(curves, resamples=2)
    assert [one.sides for one in found] == [(4, 8), (8, 16)]
    collapse = scaling_collapse(curves)
    for one in (*found, collapse):
        assert one.parameter.value == pytest.approx(CRITICAL, abs=1e-9)
        assert one.nu.value == pytest.approx(NU, abs=1e-7)
        assert one.value.value == pytest.approx(FUNCTION[0], abs=1e-7)
        assert one.parameter.standard_error < 1e-8
    assert collapse.degrees_of_freedom == 3 * 8 - 6
    assert math.isnan(collapse.chi_square)


def test_corrections_move_the_crossings_and_the_fit_takes_them_in() -> None:
    """As L^(-1 / nu - omega) from pair to pair, to first order."""
    curves = made_up((8, 16, 32, 64), 1e-4, correction=0.2)
    off = [one.parameter.value - CRITICAL for one in crossings(curves, resamples=2)]
    for one, next_one in itertools.pairwise(off):
        assert one / next_one == pytest.approx(2 ** (1 / NU + 1.75), rel=0.1)
    found = scaling_collapse(curves, correction=1.75)
    assert found.parameter.value == pytest.approx(CRITICAL, abs=1e-8)
    assert found.nu.value == pytest.approx(NU, abs=1e-6)
    assert found.value.value == pytest.approx(FUNCTION[0], abs=1e-6)
    assert found.chi_square == pytest.approx(0, abs=1e-6)
    plain = scaling_collapse(curves)
    assert plain.chi_square > 1000
    assert abs(plain.parameter.value - CRITICAL) > 5 * plain.parameter.standard_error


@pytest.mark.parametrize("fit", ["crossings", "collapse", "with a correction"])
def test_errors_cover_at_their_rate(fit: str, seed: int) -> None:
    """In units of their errors results scatter as normals."""
    rng, error, number = np.random.default_rng(seed), 0.003, 100
    correction = 0.2 if fit == "with a correction" else 0.0
    sides = (16, 32) if fit == "crossings" else (8, 16, 32)
    exact = made_up(sides, error, correction)
    deviations, squares = [], []
    for _ in range(number):
        curves = {
            side: curve._replace(values=curve.values + error * rng.normal(size=8))
            for side, curve in exact.items()
        }
        if fit == "crossings":
            found: Any = crossings(curves, resamples=60)[0]
        else:
            found = scaling_collapse(curves, correction=1.75 if correction else None)
            squares.append(found.chi_square / found.degrees_of_freedom)
        pairs = ((found.parameter, CRITICAL), (found.nu, NU), (found.value, FUNCTION[0]))
        deviations.append([(one.value - true) / one.standard_error for one, true in pairs])
    np.testing.assert_allclose(np.std(deviations, 0), 1, atol=3.2 / math.sqrt(2 * number))
    np.testing.assert_allclose(np.mean(deviations, 0), 0, atol=4.5 / math.sqrt(number))
    if squares:
        assert np.mean(squares) == pytest.approx(1, abs=4.5 * math.sqrt(2 / 18 / number))


def exact_ratio(side: int, temperature: float) -> float:
    """Exact xi / L of the Ising model."""
    waves = torch.fft.fft2(IsingModel((side, side), temperature).correlations().double()).real
    return math.sqrt(waves[0, 0] / waves[0, 1] - 1) / (2 * side * math.sin(math.pi / side))


def test_exact_curves_of_the_ising_model() -> None:
    """Crossings come nearer as 2^(-1 - 7/4) or so; a correction of L^(-7/4) takes most away."""
    critical = 1 / critical_temperature((8, 8))
    curves = {}
    for side in (4, 8, 12):
        couplings = critical * (1 + 0.3 / side * np.linspace(-1, 1, 5))
        values = np.array([exact_ratio(side, 1 / coupling) for coupling in couplings])
        curves[side] = (couplings, values, np.zeros(5))
    one, other = (found.parameter.value / critical - 1 for found in crossings(curves, resamples=2))
    assert 0 < other < one / 3 < 0.005
    found = scaling_collapse(curves, correction=1.75)
    assert abs(found.parameter.value / critical - 1) < 0.002
    assert abs(found.nu.value - 1) < 0.06
    plain = scaling_collapse(curves)
    assert abs(plain.parameter.value / critical - 1) > 0.002


def test_enumerated_curves_cross_where_they_are_equal() -> None:
    """The Binder cumulants of 3 x 3 and 4 x 4."""

    def cumulant(side: int, temperature: float) -> float:
        averages = Ising.of(IsingModel((side, side), temperature)).averages
        return 1 - averages["fourth_moment"] / (3 * averages["structure_factor"] ** 2)

    grid = np.linspace(1.7, 2.7, 6)
    curves = {L: (grid, [cumulant(L, t) for t in grid], 0 * grid) for L in (3, 4)}
    (found,) = crossings(curves, degree=4, resamples=2)
    root = brentq(lambda t: cumulant(4, t) - cumulant(3, t), 1.7, 2.7, xtol=1e-3)
    assert found.parameter.value == pytest.approx(root, abs=0.01)
    assert found.value.value == pytest.approx(cumulant(3, root), abs=2e-3)


def test_weights_give_the_curves_of_spins() -> None:
    """Of a flow that is wider than the target, against enumeration."""
    family, temperatures = IsingDualFamily((2, 2), (3.0, 5.0)), [3.0, 4.0, 5.0]
    spectra = {name: 4 * getattr(family, name) for name in ("spectrum", "spectrum_slopes")}
    flow = family.flow(bijector=BIJECTOR, base=StandardNormal(), **spectra)
    found = scaling_curves(family, flow, temperatures, 8000, batch_size=3000)
    assert (found.ess < 0.9).all()
    for i, temperature in enumerate(temperatures):
        exact = Ising.of(IsingModel((2, 2), temperature))
        waves = torch.fft.fft2(exact.spins.view(-1, 2, 2)).abs().square().flatten(1) / 4**2
        uniform, lowest = (exact.probability @ waves[:, :2]).tolist()
        expected = (
            1 - exact.averages["fourth_moment"] / (3 * uniform**2),
            math.sqrt(uniform / lowest - 1) / (2 * 2 * math.sin(math.pi / 2)),
        )
        for curve, value in zip(found[:2], expected, strict=True):
            assert curve.parameter[i] == temperature
            assert abs(curve.values[i] - value) < 4.5 * curve.standard_error[i]
            assert 0 < curve.standard_error[i] < 0.05


def test_one_flow_serves_for_all_parameters() -> None:
    """The free field: no cumulant, and 1 / xi^2 = 1 / kappa - 4."""
    family = Phi4Family((4, 4), kappa=(0.1, 0.2), lam=0.0)
    kappas = np.array([0.1, 0.15])
    density = Phi4((4, 4), kappa=0.15, lam=0.0).flow(bijector=BIJECTOR)
    found = scaling_curves(family, density, kappas, 5000)
    exact = 1 / np.sqrt(1 / kappas - 4) / 4
    for curve, values in ((found.binder, 0.0), (found.length_ratio, exact)):
        assert (abs(curve.values - values) < 4.5 * curve.standard_error).all()
        assert (curve.standard_error < 0.1).all()


def test_what_is_not_known_is_nan() -> None:
    """Noise so large that resampled curves need not cross."""
    found = crossings(made_up((8, 16), 0.3))[0]
    assert found.parameter.value == pytest.approx(CRITICAL)
    assert math.isnan(found.parameter.standard_error)
    assert math.isnan(found.nu.standard_error)


def test_a_critical_point_outside_of_the_curves_is_told() -> None:
    curves = {
        side: tuple(part[-4:] for part in curve) for side, curve in made_up((8, 16), 1e-4).items()
    }
    assert all(curve[0].min() > CRITICAL for curve in curves.values())
    with pytest.warns(UserWarning, match="outside of the curves"):
        found = scaling_collapse(curves, degree=2)
    assert found.parameter.value < min(curve[0].min() for curve in curves.values())


GOOD = made_up((8, 16), 0.1)
LINE = np.arange(8.0)


@pytest.mark.parametrize(
    ("curves", "error", "message"),
    [
        ([1], TypeError, "curves is a list; accepted: a mapping"),
        ({8: GOOD[8]}, ValueError, "curves has 1 sizes; accepted"),
        ({**GOOD, 32: "x"}, TypeError, r"curves\[32\] is a str; accepted"),
        ({**GOOD, 32: (LINE, LINE)}, ValueError, r"curves\[32\] has shape \(2, 8\)"),
        ({**GOOD, 32: (LINE, LINE[:4], LINE)}, TypeError, r"curves\[32\] is a tuple"),
        ({**GOOD, 32: (LINE[:3],) * 3}, ValueError, r"curves\[32\] has shape .* of 4 different"),
        ({**GOOD, 32: (LINE, LINE, LINE)}, ValueError, r"curves\[32\] is .*errors > 0 or zero"),
        ({**GOOD, 32: (LINE, LINE * math.nan, LINE + 1)}, ValueError, r"curves\[32\] is .*finite"),
        ({**GOOD, 32: (LINE, LINE, 0 * LINE)}, ValueError, "curves has errors of some sizes"),
        ({**GOOD, 1: GOOD[8]}, ValueError, "a key of curves is 1; accepted"),
        ({**GOOD, "a": GOOD[8]}, TypeError, "a key of curves is 'a'; accepted"),
        ({8: GOOD[8], 16: (LINE + 9, LINE, LINE + 1)}, ValueError, "curves of 8 and 16 have no ra"),
        ({8: GOOD[8], 16: GOOD[8]}, ValueError, "curves of 8 and 16 do not cross"),
    ],
)
def test_wrong_curves_are_named(curves: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        crossings(curves)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 0}, "degree is 0; accepted"),
        ({"correction": 0.0}, "correction is 0.0; accepted"),
        ({"correction": 1.75}, "correction is 1.75 with 2 sizes; accepted: .* three"),
        ({"degree": 13}, "curves have 16 points; accepted: 17 or more"),
    ],
)
def test_a_collapse_needs_enough(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling_collapse(GOOD, **options)


def test_curves_that_do_not_depend_on_anything_tell_nothing() -> None:
    flat = {side: (LINE, np.ones(8), np.ones(8)) for side in (8, 16)}
    with pytest.raises(ValueError, match="curves leave p_c or nu open; accepted"):
        scaling_collapse(flat)


def test_bad_arguments_of_curves() -> None:
    family = Phi4Family((4, 4), kappa=(0.0, 0.1), lam=0.1)
    flow = family.flow(bijector=BIJECTOR)
    wrong: Any = IsingModel((4, 4))
    with pytest.raises(TypeError, match="family is an IsingModel; accepted: a family"):
        scaling_curves(wrong, flow, [0.1])
    for shape, boundary in (((4, 2), "periodic"), ((1, 1), "periodic"), ((4, 4), "open")):
        other = Phi4Family(shape, (0.0, 0.1), 0.1, boundary)
        with pytest.raises(ValueError, match=r"family is .*; accepted: .* equal sides"):
            scaling_curves(other, flow, [0.1])
    for given, message in (([], "parameters has shape"), ([[0.1]], "parameters has shape")):
        with pytest.raises(ValueError, match=message):
            scaling_curves(family, flow, given)
    with pytest.raises(ValueError, match=r"kappa is .*; accepted: from 0\.0 to 0\.1"):
        scaling_curves(family, flow, [0.2])
    with pytest.raises(ValueError, match="num_samples is 1; accepted"):
        scaling_curves(family, flow, [0.1], 1)
    with pytest.raises(ValueError, match="resamples is 1; accepted"):
        crossings(GOOD, resamples=1)
    with pytest.warns(UserWarning, match="effective samples") as caught:
        scaling_curves(family, flow, [0.1], 5)
    assert caught[0].filename == __file__
