# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Exact quantities where terms cancel, overflow or vanish: frustration, low and high temperature.

Enumeration sums positive weights relative to the ground state, and so keeps all its digits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingDual, exact
from pyro_neuralrg.potentials.exact import transfer
from pyro_neuralrg.potentials.exact.correlations import torus_correlations
from tests.potentials.test_exact import enumerate_spins

COLD = (1e-4, 0.002, 0.05, 0.08, 0.3, 0.5)
HOT = (50.0, 1e4)
SCALARS = ("log_partition", "internal_energy", "specific_heat", "structure_factor")
SHAPES = [(2,), (3,), (5,), (6,), (3, 3), (4, 3), (3, 5), (2, 5), (1, 5), (2, 3, 2), (3, 2, 2)]
COUPLINGS = [
    (1.0, 1.0, 1.0),
    (-1.0, -1.0, -1.0),
    (-1.0, 0.5, 0.7),
    (0.6, -1.0, -0.8),
    (0.0, -1.0, 1),
]
EVERY: list[Callable[..., Any]] = [getattr(exact, name) for name in exact.__all__]


@pytest.mark.parametrize("couplings", COUPLINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_enumeration_at_low_and_high_temperature(
    shape: tuple[int, ...], couplings: tuple[float, ...]
) -> None:
    for temperature in COLD + HOT:
        model = (shape, temperature, couplings[: len(shape)])
        expected = enumerate_spins(*model)
        for name in SCALARS:
            value = getattr(exact, name)(*model)
            assert value == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9), (
                name,
                model,
            )
        np.testing.assert_allclose(exact.correlations(*model), expected.correlations, atol=1e-9)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("field", [0.3, -2.0])
@pytest.mark.parametrize("shape", [(5,), (3, 3), (2, 3, 2)], ids=str)
def test_enumeration_in_a_field(shape: tuple[int, ...], field: float, boundary: str) -> None:
    for temperature, couplings in itertools.product(COLD + HOT, COUPLINGS[:3]):
        model = (shape, temperature, couplings[: len(shape)], boundary)
        expected = enumerate_spins(*model, field)
        for name in SCALARS:
            value = getattr(exact, name)(*model, field)
            assert value == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9), (
                name,
                model,
            )


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.5, 0.00450976), (0.4, 0.00450307), (0.3, 0.00450206)]
)
def test_frustrated_torus(temperature: float, value: float) -> None:
    """The second derivative of the transfer matrix's ln Z in a uniform field, by differences."""
    model = IsingDual((5, 5), temperature, couplings=[-1.0, -1.0])
    assert model.exact_structure_factor() == pytest.approx(value, abs=1e-8)
    step = 1e-2
    couplings = torch.tensor(model.couplings) / temperature
    up, middle = (
        float(transfer.transfer_log_partition((5, 5), couplings, torch.full((5, 5), h), "periodic"))
        for h in (step, 0.0)
    )
    difference = 2 * (up - middle) / step**2 / 25**2
    assert model.exact_structure_factor() == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("shape", [(5, 5), (4, 3), (6, 4), (3, 7)], ids=str)
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (-1, 0.5), (0.7, -1)], ids=str)
def test_pfaffians_are_the_transfer_matrix_or_refuse(
    shape: tuple[int, int], signs: tuple[float, float]
) -> None:
    frustrated = any(sign < 0 and side % 2 for sign, side in zip(signs, shape, strict=True))
    temperatures = (1e-3, 0.05, 0.3, 0.6, 1.0, CRITICAL_TEMPERATURE, 4.0, 1e3, 1e9)
    known = 0
    for temperature in temperatures:
        couplings = np.array(signs) / temperature
        expected = transfer.transfer_correlations(shape, torch.from_numpy(couplings))
        try:
            table = torus_correlations(shape, couplings)
        except NotImplementedError:
            continue
        known += 1
        np.testing.assert_allclose(table, expected, atol=1e-9)
    assert known >= (4 if frustrated else len(temperatures))


def test_wide_frustrated_tori_say_where_they_end() -> None:
    hot = exact.correlations((13, 12), 4.0, (-1.0, -1.0))
    bonds = exact.correlations((13, 12), 4.0, (1.0, 1.0))  # differ by what goes around the torus
    assert hot[1, 0] == pytest.approx(-bonds[1, 0], abs=1e-3)
    for function in (exact.correlations, exact.structure_factor):
        with pytest.raises(NotImplementedError, match=r"\(13, 12\).*Pfaffians cancel at low"):
            function((13, 12), 0.3, (-1.0, -1.0))


def test_long_frustrated_strip_has_its_structure_factor() -> None:
    """Too long for tables of powers: by the field instead, as the shorter one."""
    assert not transfer.reaches_correlations((5, 40_001))
    lattice = exact.api._lattice((5, 40_001), (-1.0, -1.0), "periodic", None)
    assert not lattice._sums_correlations()
    with pytest.raises(NotImplementedError, match="at most 10 spins across"):
        exact.correlations((8, 3, 3000), 2.0)


@pytest.mark.parametrize(
    ("length", "temperature", "value"), [(3, 0.05, 21.7918), (3, 0.08, 14.2918)]
)
def test_odd_antiferromagnetic_ring(length: int, temperature: float, value: float) -> None:
    assert exact.log_partition((length,), temperature, (-1.0,)) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3, 0.05])
def test_odd_antiferromagnetic_ring_at_zero_temperature(temperature: float) -> None:
    """One broken bond, anywhere: 2 n ground states, C = (-1)^r (1 - 2 r / n)."""
    model = ((101,), temperature, (-1.0,))
    assert exact.log_partition(*model) == pytest.approx(99 / temperature + math.log(202))
    assert exact.internal_energy(*model) == pytest.approx(-99 / 101)
    assert exact.specific_heat(*model) == pytest.approx(0, abs=1e-12)
    expected = [(-1) ** r * (1 - 2 * r / 101) for r in range(51)]
    np.testing.assert_allclose(exact.correlations(*model)[:51], expected, atol=1e-12)
    uncoupled = ((101, 3), temperature, (-1.0, 0.0))
    assert exact.log_partition(*uncoupled) == pytest.approx(3 * exact.log_partition(*model))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3, 0.0028, 0.05])
@pytest.mark.parametrize("signs", [(1.0, 1.0), (-1.0, 0.3)], ids=str)
def test_torus_at_zero_temperature(temperature: float, signs: tuple[float, float]) -> None:
    model, strength = ((8, 6), temperature, signs), sum(map(abs, signs))
    assert exact.log_partition(*model) == pytest.approx(48 * strength / temperature + math.log(2))
    assert exact.internal_energy(*model) == pytest.approx(-strength)
    if temperature < 0.01:
        assert exact.specific_heat(*model) == pytest.approx(0, abs=1e-12)
    staggered = np.ones((8, 6)) if signs[0] > 0 else np.tile([[1.0], [-1.0]], (4, 6))
    np.testing.assert_allclose(exact.correlations(*model), staggered, atol=1e-4)


def test_cold_ferromagnet_is_ordered() -> None:
    assert IsingDual((8, 8), temperature=0.05).exact_structure_factor() == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.0028])
def test_transfer_matrix_at_zero_temperature(temperature: float) -> None:
    """Open, frustrated and in a field: the ground state, and nothing else."""
    for shape, couplings, boundary, field, energy, states in (
        ((3, 4), (1.0, 1.0), "open", 0.0, -17.0, 2),
        ((3, 4), (-1.0, 1.0), "periodic", 0.0, -16.0, 6),
        ((3, 4), (1.0, 1.0), "periodic", 0.5, -30.0, 1),
        ((4, 3, 2), (1.0, 0.5, 0.25), "periodic", 0.0, -42.0, 2),
    ):
        model = (shape, temperature, couplings, boundary, field)
        expected = -energy / temperature + math.log(states)
        assert exact.log_partition(*model) == pytest.approx(expected, rel=1e-14)
        assert exact.internal_energy(*model) == pytest.approx(energy / math.prod(shape))
        assert exact.specific_heat(*model) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("temperature", [1e3, 1e6, 1e9, 1e12, 1e100])
@pytest.mark.parametrize("shape", [(8, 8), (5, 6), (64, 64), (7,)], ids=str)
def test_high_temperature(shape: tuple[int, ...], temperature: float) -> None:
    """E = -sum_a J_a tanh(K_a), C = sum_a K_a^2, up to the shortest closed loops."""
    couplings = (1.0, 0.5)[: len(shape)]
    expected = -sum(j * math.tanh(j / temperature) for j in couplings)
    accuracy = 10 * temperature**-2 + 1e-12
    energy = exact.internal_energy(shape, temperature, couplings)
    assert energy == pytest.approx(expected, rel=accuracy)
    heat = exact.specific_heat(shape, temperature, couplings)
    assert heat == pytest.approx(sum((j / temperature) ** 2 for j in couplings), rel=accuracy)


@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e3])
def test_energy_is_smooth_where_the_form_changes(ratio: float) -> None:
    """Above and below sinh 2K_0 sinh 2K_1 = 1 other terms are factored out."""
    low, high = 1e-3, 1e4
    for _ in range(200):
        middle = math.sqrt(low * high)
        above = (
            math.sinh(2 / middle) * math.sinh(2 * ratio / middle) < 1 if middle > 0.01 else False
        )
        low, high = (low, middle) if above else (middle, high)
    for function in (exact.log_partition, exact.internal_energy, exact.specific_heat):
        below, above = (function((6, 8), low * (1 + d), (1.0, ratio)) for d in (-1e-9, 1e-9))
        assert below == pytest.approx(above, rel=1e-7)


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("exponent", range(-300, 301, 60))
@pytest.mark.parametrize("couplings", COUPLINGS[:4], ids=str)
def test_finite_at_any_temperature(
    function: Callable[..., Any], exponent: int, couplings: tuple[float, ...]
) -> None:
    """And without a warning, which pytest makes an error."""
    for shape in ((7,), (4, 6), (3, 4), (2, 2, 3)):
        value = function(shape, 10.0**exponent, couplings[: len(shape)])
        assert np.isfinite(value).all()


def test_temperature_whose_inverse_overflows() -> None:
    with pytest.raises(ValueError, match=r"temperature is 1e-310; accepted: a finite number > 0"):
        exact.log_partition((4, 4), 1e-310)


@pytest.mark.parametrize("function", EVERY)
def test_bad_arguments_are_named(function: Callable[..., Any]) -> None:
    bad: Any
    for bad in ("a", None, [1.0, 2.0], torch.ones(2), True):
        with pytest.raises(TypeError, match=r"temperature is .*; accepted: a finite number > 0"):
            function((4, 4), bad)
    for bad in (1.0, "ab", (None, 1.0)):
        with pytest.raises(TypeError, match=r"couplings is .*; accepted: one finite J for each"):
            function((4, 4), 2.0, bad)
