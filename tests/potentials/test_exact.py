# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Exact quantities of the Ising lattice against enumeration, known values and one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, exact
from pyro_neuralrg.potentials.exact.torus import kaufman_log_partition, ring_log_partition
from pyro_neuralrg.potentials.exact.transfer import transfer_log_partition

TEMPERATURES = (1.2, CRITICAL_TEMPERATURE, 3.5)
SHAPES = [(1,), (2,), (5,), (3, 3), (3, 4), (2, 4), (2, 2), (1, 5), (4, 3), (4, 1, 1)]
SHAPES += [(2, 2, 2), (2, 3, 2), (1, 3, 4)]
COUPLINGS = [
    (1.0, 1.0, 1.0),
    (1.0, 0.5, 0.7),
    (-1.0, 0.6, 1.0),
    (-1.0, -1.0, -1.0),
    (1.0, 0.0, 1.0),
]


class Enumerated(NamedTuple):
    """Averages over all configurations, in the order of exact's functions."""

    log_partition: float
    internal_energy: float
    specific_heat: float
    structure_factor: float
    correlations: NDArray[np.float64]


def enumerate_spins(
    shape: tuple[int, ...],
    temperature: float,
    couplings: tuple[float, ...],
    boundary: str = "periodic",
    field: Any = 0.0,
) -> Enumerated:
    sites = math.prod(shape)
    spins = np.array(list(itertools.product((1, -1), repeat=sites))).reshape(-1, *shape)
    energy = -(spins * field).reshape(len(spins), -1).sum(1)
    for axis, side in enumerate(shape):
        bonds = spins * np.roll(spins, -1, axis + 1)
        if side == 1:
            continue
        if boundary == "open":
            bonds = np.take(bonds, range(side - 1), axis=axis + 1)
        energy = energy - couplings[axis] * bonds.reshape(len(spins), -1).sum(1)
    weights = np.exp(-(energy - energy.min()) / temperature)
    p = weights / weights.sum()
    mean = (p * energy).sum()
    flat = spins.reshape(len(spins), -1)
    return Enumerated(
        math.log(weights.sum()) - energy.min() / temperature,
        mean / sites,
        (p * (energy - mean) ** 2).sum() / temperature**2 / sites,
        (p * flat.sum(1) ** 2).sum() / sites**2,
        ((p * flat[:, 0]) @ flat).reshape(shape),
    )


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("field", ["no field", "uniform", "per site"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_agree_with_enumeration(shape: tuple[int, ...], field: str, boundary: str) -> None:
    h: Any = {
        "no field": None,
        "uniform": 0.4,
        "per site": np.random.default_rng(len(shape)).normal(size=shape),
    }[field]
    couplings_tried = COUPLINGS if h is None else COUPLINGS[1:3]
    for temperature, couplings in itertools.product(TEMPERATURES, couplings_tried):
        model = (shape, temperature, couplings[: len(shape)], boundary)
        expected = enumerate_spins(*model, 0.0 if h is None else h)
        for name in ("log_partition", "internal_energy", "specific_heat", "structure_factor"):
            value = getattr(exact, name)(*model, h)
            assert isinstance(value, float)
            assert value == pytest.approx(getattr(expected, name), abs=1e-8), (name, model)
        if h is None and boundary == "periodic":
            table = exact.correlations(*model)
            np.testing.assert_allclose(table, expected.correlations, atol=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(4, 5), (7, 3), (6, 6)])
def test_kaufman_is_the_transfer_matrix(shape: tuple[int, int], temperature: float) -> None:
    couplings = torch.tensor([1.0, 0.6], dtype=torch.float64) / temperature
    fields = torch.zeros(shape, dtype=torch.float64)
    expected = transfer_log_partition(shape, couplings, fields, "periodic")
    torch.testing.assert_close(kaufman_log_partition(shape, couplings), expected)


@pytest.mark.parametrize("coupling", [-0.7, 0.0, 0.3, 40.0])
def test_ring_is_the_transfer_matrix(coupling: float) -> None:
    k = torch.tensor(coupling, dtype=torch.float64)
    fields = torch.zeros(9, dtype=torch.float64)
    expected = transfer_log_partition((9,), k.reshape(1), fields, "periodic")
    torch.testing.assert_close(ring_log_partition(9, k), expected)


@pytest.mark.parametrize(
    ("side", "temperature", "value"),
    [
        (8, CRITICAL_TEMPERATURE, 60.141781),
        (16, CRITICAL_TEMPERATURE, 238.642257),
        (32, CRITICAL_TEMPERATURE, 952.648080),
        (16, 2.5, 225.228847),
        (4, 3.0, 13.281033),
    ],
)
def test_known_log_partition(side: int, temperature: float, value: float) -> None:
    assert exact.log_partition((side, side), temperature) == pytest.approx(value, abs=1e-6)


def test_continuous_across_the_critical_temperature() -> None:
    """ln Z takes a branch at gamma_0 = 0, that is at sinh 2K_0 sinh 2K_1 = 1."""
    steps = CRITICAL_TEMPERATURE + 1e-4 * np.arange(-3, 4)
    for function in (exact.log_partition, exact.internal_energy, exact.specific_heat):
        values = np.array([function((6, 8), t) for t in steps])
        assert np.abs(np.diff(values, 3)).max() < 1e-7


@pytest.mark.parametrize("temperature", [1.8, CRITICAL_TEMPERATURE, 2.9])
@pytest.mark.parametrize("shape", [(16, 12), (40,)])
def test_energy_and_specific_heat_are_derivatives(
    shape: tuple[int, ...], temperature: float
) -> None:
    step, sites = 1e-4, math.prod(shape)
    log_z = [exact.log_partition(shape, 1 / (1 / temperature + d)) for d in (-step, step)]
    assert exact.internal_energy(shape, temperature) == pytest.approx(
        -(log_z[1] - log_z[0]) / (2 * step) / sites, abs=1e-5
    )
    energy = [exact.internal_energy(shape, temperature + d) for d in (-step, step)]
    assert exact.specific_heat(shape, temperature) == pytest.approx(
        (energy[1] - energy[0]) / (2 * step), abs=1e-5
    )


@pytest.mark.parametrize("temperature", [1.8, CRITICAL_TEMPERATURE, 2.9])
def test_neighbour_correlations_give_the_energy(temperature: float) -> None:
    couplings = (1.0, 0.4)
    table = exact.correlations((12, 10), temperature, couplings)
    energy = -(couplings[0] * table[1, 0] + couplings[1] * table[0, 1])
    assert exact.internal_energy((12, 10), temperature, couplings) == pytest.approx(energy)


def test_distant_correlations_give_the_spontaneous_magnetisation() -> None:
    """C. N. Yang, Phys. Rev. 85, 808 (1952): M^8 = 1 - sinh(2 J / T)^-4."""
    squared = (1 - math.sinh(2 / 2.0) ** -4) ** 0.25
    assert exact.correlations((32, 32), 2.0)[16, 16] == pytest.approx(squared, abs=1e-3)


@pytest.mark.parametrize("temperature", [2.0, CRITICAL_TEMPERATURE, 2.6])
def test_large_lattices_are_finite(temperature: float) -> None:
    large = [
        function((1024, 1024), temperature)
        for function in (exact.log_partition, exact.internal_energy, exact.specific_heat)
    ]
    assert all(map(math.isfinite, large))
    assert large[1] == pytest.approx(exact.internal_energy((256, 256), temperature), abs=2e-3)


def test_low_temperature_is_the_ground_state() -> None:
    assert exact.log_partition((64, 64), 0.01) == pytest.approx(2 * 64**2 / 0.01 + math.log(2))
    assert exact.internal_energy((64, 64), 0.01) == pytest.approx(-2.0)


ALL: list[Callable[..., Any]] = [getattr(exact, name) for name in exact.__all__]


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature(function: Callable[..., Any], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature is .*; accepted: a finite number > 0"):
        function((4, 4), temperature)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("couplings", [(1.0,), (1.0, 1.0, 1.0), (math.nan, 1.0)])
def test_bad_couplings(function: Callable[..., Any], couplings: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"couplings is .*; accepted: one finite J"):
        function((4, 4), 2.0, couplings)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("shape", [(), (0, 4), (-1,), (2.5, 4), (2, 2, 2, 2)])
def test_bad_shape(function: Callable[..., Any], shape: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"shape.*accepted"):
        function(shape, 2.0)


@pytest.mark.parametrize("function", ALL)
def test_bad_boundary(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"boundary is 'closed'; accepted"):
        function((4, 4), 2.0, None, "closed")


@pytest.mark.parametrize("field", [math.nan, np.full((4, 4), math.inf), np.zeros((3, 4))])
def test_bad_field(field: Any) -> None:
    with pytest.raises(ValueError, match=r"^field .*; accepted: a finite number"):
        exact.log_partition((4, 4), 2.0, field=field)


@pytest.mark.parametrize("field", ["strong", 1j, np.full((4, 4), 1j), [["1"] * 4] * 4])
def test_field_of_wrong_type(field: Any) -> None:
    with pytest.raises(TypeError, match=r"^field is [^;]*; accepted: a finite number"):
        exact.log_partition((4, 4), 2.0, field=field)


def test_field_in_any_memory_order() -> None:
    field = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
    value = exact.log_partition((3, 4), 2.0, field=np.ascontiguousarray(field.T[::-1]))
    fixed = field.T[::-1]
    fixed.flags.writeable = False
    assert exact.log_partition((3, 4), 2.0, field=fixed) == value


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
    with pytest.raises(NotImplementedError, match=r"not known exactly: accepted are"):
        exact.log_partition(shape, 2.0, **options)
