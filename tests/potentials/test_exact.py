# SPDX-License-Identifier: Apache-2.0
"""Exact quantities of the Ising model against enumeration, known values, limits, one another.

Terms that cancel, overflow or vanish are looked for: frustration, low and high temperature.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingModel, critical_temperature
from pyro_neuralrg.potentials.exact import pfaffian, transfer
from tests.potentials.enumeration import Ising

QUANTITIES = ("log_partition", "internal_energy", "specific_heat", "structure_factor")
TEMPERATURES = (1e-4, 0.2, CRITICAL_TEMPERATURE, 3.5, 1e4)
SHAPES = [(1,), (2,), (5,), (6,), (3, 3), (4, 3), (2, 4), (2, 2), (1, 5), (4, 1, 1)]
SHAPES += [(2, 2, 2), (2, 3, 2)]
COUPLINGS = [
    (1.0, 0.5, 0.7),
    (-1.0, 0.6, 1.0),
    (1.0, 1.0, 1.0),
    (-1.0, -1.0, -1.0),
    (0.0, -1.0, 1.0),
]


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("in_a_field", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_agree_with_enumeration(
    shape: tuple[int, ...], in_a_field: bool, boundary: str
) -> None:
    """In a field: one that differs from site to site, and with other couplings a uniform one."""
    tried: list[tuple[Any, Any]] = [(couplings, None) for couplings in COUPLINGS]
    if in_a_field:
        per_site = np.random.default_rng(len(shape)).normal(size=shape)
        tried = [(COUPLINGS[0], per_site), (COUPLINGS[4], -0.4)]
    elif boundary == "open":
        tried = tried[::4]
    for temperature, (couplings, h) in itertools.product(TEMPERATURES, tried):
        model = IsingModel(shape, temperature, couplings[: len(shape)], h, boundary)
        ising = Ising.of(model)
        expected = {**ising.averages, "log_partition": ising.log_partition}
        expected["specific_heat"] = ising.specific_heat
        for name in QUANTITIES:
            value = getattr(model, name)()
            assert isinstance(value, float)
            assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (name, model)
        if h is None and boundary == "periodic":
            table = ising.second_moment[0].reshape(shape)
            torch.testing.assert_close(model.correlations(), table, rtol=0, atol=1e-9)
        else:
            with pytest.raises(NotImplementedError, match="depend on both sites; accepted"):
                model.correlations()


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
            table = pfaffian.torus_correlations(shape, couplings)
        except NotImplementedError:
            continue
        known += 1
        np.testing.assert_allclose(table, expected, atol=1e-9)
    assert known >= (4 if frustrated else len(temperatures))


@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e3])
def test_smooth_where_the_form_changes(ratio: float) -> None:
    """Above and below sinh 2K_0 sinh 2K_1 = 1, where gamma_0 = 0, other terms are factored out."""
    low, high = 1e-3, 1e4
    for _ in range(200):
        middle = math.sqrt(low * high)
        sinh = [math.sinh(min(2 * j / middle, 300)) for j in (1.0, ratio)]
        low, high = (low, middle) if math.prod(sinh) < 1 else (middle, high)
    for name in QUANTITIES[:3]:
        sides = [IsingModel((6, 8), low * (1 + d), (1.0, ratio)) for d in (-1e-9, 1e-9)]
        below, above = (getattr(side, name)() for side in sides)
        assert below == pytest.approx(above, rel=1e-7)
        steps = [IsingModel((6, 8), low * (1 + 1e-4 * k), (1.0, ratio)) for k in range(-3, 4)]
        values = np.array([getattr(step, name)() for step in steps])
        assert np.abs(np.diff(values, 3)).max() < 1e-7 * max(1, np.abs(values).max())


def test_each_dimension_has_its_critical_temperature() -> None:
    """Onsager's, where sinh(2 J / T) = 1, and the literature's of the cube; sides of 1 are none."""
    for shape in ((8, 8), (1, 4, 4), (4, 6, 1)):
        assert math.sinh(2 / IsingModel(shape).temperature) == pytest.approx(1)
    for model in (IsingModel((6, 6, 6)), IsingModel((2, 3, 4), boundary="open")):
        assert model.temperature == pytest.approx(4.511523, abs=1e-6)
    assert IsingModel((6, 6, 6), CRITICAL_TEMPERATURE).temperature == CRITICAL_TEMPERATURE
    for shape in ((8,), (1, 8), (1,), (1, 1, 1)):
        with pytest.raises(ValueError, match="has no critical temperature; accepted"):
            critical_temperature(shape)


@pytest.mark.parametrize("temperature", [1.8, CRITICAL_TEMPERATURE, 2.9])
def test_neighbour_correlations_give_the_energy(temperature: float) -> None:
    model = IsingModel((12, 10), temperature, (1.0, 0.4))
    table = model.correlations()
    energy = -(table[1, 0] + 0.4 * table[0, 1])
    assert model.internal_energy() == pytest.approx(float(energy))


def test_distant_correlations_give_the_spontaneous_magnetisation() -> None:
    """C. N. Yang, Phys. Rev. 85, 808 (1952): M^8 = 1 - sinh(2 J / T)^-4."""
    squared = (1 - math.sinh(2 / 2.0) ** -4) ** 0.25
    distant = IsingModel((32, 32), 2.0).correlations()[16, 16]
    assert float(distant) == pytest.approx(squared, abs=1e-3)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3, 0.05])
def test_odd_antiferromagnetic_ring_at_zero_temperature(temperature: float) -> None:
    """One broken bond, anywhere: 2 n ground states, C = (-1)^r (1 - 2 r / n)."""
    ring = IsingModel((101,), temperature, (-1.0,))
    assert ring.log_partition() == pytest.approx(99 / temperature + math.log(202))
    assert ring.internal_energy() == pytest.approx(-99 / 101)
    assert ring.specific_heat() == pytest.approx(0, abs=1e-12)
    expected = [(-1) ** r * (1 - 2 * r / 101) for r in range(51)]
    np.testing.assert_allclose(ring.correlations()[:51], expected, atol=1e-12)
    uncoupled = IsingModel((101, 3), temperature, (-1.0, 0.0))
    assert uncoupled.log_partition() == pytest.approx(3 * ring.log_partition())


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3, 0.0028, 0.05])
@pytest.mark.parametrize("signs", [(1.0, 1.0), (-1.0, 0.3)], ids=str)
def test_torus_at_zero_temperature(temperature: float, signs: tuple[float, float]) -> None:
    model, strength = IsingModel((8, 6), temperature, signs), sum(map(abs, signs))
    assert model.log_partition() == pytest.approx(48 * strength / temperature + math.log(2))
    assert model.internal_energy() == pytest.approx(-strength)
    if temperature < 0.01:
        assert model.specific_heat() == pytest.approx(0, abs=1e-12)
    staggered = np.ones((8, 6)) if signs[0] > 0 else np.tile([[1.0], [-1.0]], (4, 6))
    np.testing.assert_allclose(model.correlations(), staggered, atol=1e-4)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.0028])
def test_transfer_matrix_at_zero_temperature(temperature: float) -> None:
    """Open, frustrated and in a field: the ground state, and nothing else."""
    for shape, couplings, boundary, field, energy, states in (
        ((3, 4), (1.0, 1.0), "open", 0.0, -17.0, 2),
        ((3, 4), (-1.0, 1.0), "periodic", 0.0, -16.0, 6),
        ((3, 4), (1.0, 1.0), "periodic", 0.5, -30.0, 1),
        ((4, 3, 2), (1.0, 0.5, 0.25), "periodic", 0.0, -42.0, 2),
    ):
        model = IsingModel(shape, temperature, couplings, field, boundary)
        expected = -energy / temperature + math.log(states)
        assert model.log_partition() == pytest.approx(expected, rel=1e-14)
        assert model.internal_energy() == pytest.approx(energy / math.prod(shape))
        assert model.specific_heat() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("temperature", [1e3, 1e6, 1e9, 1e12, 1e100])
@pytest.mark.parametrize("shape", [(8, 8), (5, 6), (64, 64), (7,)], ids=str)
def test_high_temperature(shape: tuple[int, ...], temperature: float) -> None:
    """E = -sum_a J_a tanh(K_a), C = sum_a K_a^2, up to the shortest closed loops."""
    couplings = (1.0, 0.5)[: len(shape)]
    model = IsingModel(shape, temperature, couplings)
    accuracy = 10 * temperature**-2 + 1e-12
    energy = -sum(j * math.tanh(j / temperature) for j in couplings)
    assert model.internal_energy() == pytest.approx(energy, rel=accuracy)
    heat = sum((j / temperature) ** 2 for j in couplings)
    assert model.specific_heat() == pytest.approx(heat, rel=accuracy)


@pytest.mark.parametrize("name", [*QUANTITIES, "correlations"])
@pytest.mark.parametrize("couplings", COUPLINGS[:4], ids=str)
def test_finite_at_any_temperature(name: str, couplings: tuple[float, ...]) -> None:
    """And without a warning, which pytest makes an error."""
    shapes = ((7,), (4, 6), (3, 4), (2, 2, 3))
    for shape, exponent in itertools.product(shapes, range(-300, 301, 150)):
        model = IsingModel(shape, 10.0**exponent, couplings[: len(shape)])
        assert np.isfinite(np.asarray(getattr(model, name)())).all()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((16, 16), {"field": 0.1}),
        ((20, 20), {"boundary": "open"}),
        ((13, 13), {"couplings": (-1.0, 1.0)}),
        ((6, 6, 6), {}),
    ],
)
def test_out_of_reach_is_said(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    model = IsingModel(shape, 2.0, **options)
    with pytest.raises(NotImplementedError, match=r"ln Z of .*not known exactly: accepted are"):
        model.log_partition()
    if "couplings" not in options:
        with pytest.raises(NotImplementedError, match=r"structure factor of .*not known exactly"):
            model.structure_factor()


def test_wide_frustrated_tori_say_where_they_end() -> None:
    hot = IsingModel((13, 12), 4.0, (-1.0, -1.0)).correlations()
    bonds = IsingModel((13, 12), 4.0).correlations()  # differ by what goes around the torus
    assert float(hot[1, 0] + bonds[1, 0]) == pytest.approx(0, abs=1e-3)
    for name in ("correlations", "structure_factor"):
        with pytest.raises(NotImplementedError, match=r"\(13, 12\).*Pfaffians cancel at low"):
            getattr(IsingModel((13, 12), 0.3, (-1.0, -1.0)), name)()
    with pytest.raises(NotImplementedError, match="at most 10 spins across"):
        IsingModel((8, 3, 3000), 2.0).correlations()
