# SPDX-License-Identifier: Apache-2.0
"""Laws of every observable: its definition, averages over spins, batches, gradients, errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import observables as obs
from pyro_neuralrg.potentials import IsingModel
from tests.potentials.enumeration import bond_matrix

Shape = tuple[int, ...]

SHAPES = [(5,), (6,), (1,), (2, 3), (3, 3), (1, 4), (2, 1, 2), (3, 2, 2)]
"""Rings and planes, odd sides, sides of two and of one."""

COUPLINGS = (0.7, -1.3, 0.4)


def mean(values: Tensor, shape: Shape) -> Tensor:
    return values.sum(tuple(range(-len(shape), 0))) / math.prod(shape)


def modes(values: Tensor, shape: Shape) -> Tensor:
    """S(k) by a sum over sites for every k."""
    sites = torch.tensor(list(itertools.product(*map(range, shape))), dtype=values.dtype)
    phases = 2 * math.pi * (sites / torch.tensor(shape)) @ sites.T  # r . k
    flat = values.flatten(-len(shape))
    squares = (flat @ phases.cos()).square() + (flat @ phases.sin()).square()
    return (squares / len(sites) ** 2).unflatten(-1, shape)


def products(values: Tensor, shape: Shape) -> Tensor:
    """C(r) by rolling the lattice, for every r."""
    dims = tuple(range(-len(shape), 0))
    table = [
        mean(values * values.roll([-step for step in r], dims), shape)
        for r in itertools.product(*map(range, shape))
    ]
    return torch.stack(table, -1).unflatten(-1, shape)


def pairs(axis: int) -> Callable[[Tensor, Shape], Tensor]:
    """C(r) along an axis of an open lattice, pair by pair."""

    def along(values: Tensor, shape: Shape) -> Tensor:
        lines = values.movedim(axis % len(shape) - len(shape), -1)
        across, side = tuple(range(-len(shape), -1)), shape[axis]
        products = [lines[..., : side - r] * lines[..., r:] for r in range(side)]
        return torch.stack([value.mean((*across, -1)) for value in products], -1)

    return along


def line(axis: int, boundary: str) -> Callable[..., Tensor]:
    def function(values: Tensor, variance: Tensor | None, shape: Shape) -> Tensor:
        return obs.axis_correlations(values, variance, shape, axis % len(shape), boundary)

    return function


def model(shape: Shape, boundary: str) -> IsingModel:
    field = torch.linspace(-1, 2, math.prod(shape)).reshape(shape)
    return IsingModel(shape, 1.5, COUPLINGS[: len(shape)], field, boundary)


def energy(values: Tensor, shape: Shape, boundary: str) -> Tensor:
    """H / N, bond by bond."""
    matrix = bond_matrix(shape, COUPLINGS[: len(shape)], boundary).to(values)
    field = model(shape, boundary).field
    assert field is not None
    flat = values.flatten(-len(shape))
    bonds = ((flat @ matrix) * flat).sum(-1) / 2
    return -(bonds + flat @ field.flatten().to(values)) / len(matrix)


OBSERVABLES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Shape], Tensor]]] = {
    "m": (obs.magnetisation, mean),
    "|m|": (obs.abs_magnetisation, lambda v, shape: mean(v, shape).abs()),
    "m^2": (obs.structure_factor, lambda v, shape: mean(v, shape) ** 2),
    "m^4": (obs.fourth_moment, lambda v, shape: mean(v, shape) ** 4),
    "S(k)": (obs.mode_structure_factor, modes),
    "C(r)": (obs.correlations, products),
    "C(r) along an axis": (
        line(0, "periodic"),
        lambda v, shape: products(v, shape)[(..., slice(None), *[0] * (len(shape) - 1))],
    ),
    "C(r) along an open axis": (line(-1, "open"), pairs(-1)),
}
for boundary in ("periodic", "open"):
    OBSERVABLES[f"H, {boundary}"] = (
        lambda m, v, shape, boundary=boundary: model(shape, boundary).energy_per_site(m, v),
        lambda v, shape, boundary=boundary: energy(v, shape, boundary),
    )
    OBSERVABLES[f"H^2, {boundary}"] = (
        lambda m, v, shape, boundary=boundary: model(shape, boundary).squared_energy_per_site(m, v),
        lambda v, shape, boundary=boundary: energy(v, shape, boundary) ** 2,
    )

every_observable = pytest.mark.parametrize("name", OBSERVABLES)


def every_spin(t: Tensor) -> tuple[Tensor, Tensor]:
    """All configurations of independent spins of means t, and their probabilities."""
    spins = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=t.numel())))
    return spins, ((1 + spins * t.flatten()) / 2).prod(1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_observable
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_known_values_by_the_definition(name: str, shape: Shape) -> None:
    function, direct = OBSERVABLES[name]
    values = torch.randn(2, 3, *shape)
    assert_same(function(values, None, shape), direct(values, shape))


@every_observable
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_averages_over_spins_by_enumeration(name: str, shape: Shape) -> None:
    function, direct = OBSERVABLES[name]
    t = (1.5 * torch.randn(shape)).tanh()
    spins, probability = every_spin(t)
    expected = torch.tensordot(probability, direct(spins.reshape(-1, *shape), shape), 1)
    assert_same(function(t, 1 - t.square(), shape), expected)


@every_observable
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_batch_shape_and_dtype(name: str, batch: Shape, dtype: torch.dtype, known: bool) -> None:
    function, _ = OBSERVABLES[name]
    t = torch.randn(*batch, 3, 4).tanh().to(dtype)
    variance = None if known else 1 - t.square()
    values = function(t, variance, (3, 4))
    assert values.shape[: len(batch)] == batch
    assert values.dtype == dtype
    exact = function(t.double(), None if variance is None else variance.double(), (3, 4))
    torch.testing.assert_close(values.double(), exact, rtol=0.05, atol=0.05)


@every_observable
def test_differentiable(name: str) -> None:
    function, _ = OBSERVABLES[name]
    t = torch.randn(2, 2, 3).tanh().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: function(t, 1 - t.square(), (2, 3)), (t,))


@every_observable
def test_wrong_fields_are_named(name: str) -> None:
    function, _ = OBSERVABLES[name]
    t = torch.ones(2, 2, 3)
    with pytest.raises(ValueError, match=r"mean has shape \(2, 2, 3\); accepted: any batch"):
        function(t, None, (3, 3))
    with pytest.raises(ValueError, match=r"shape is \(3, 3, 3, 3\)"):
        function(t, None, (3,) * 4)
    with pytest.raises(TypeError, match=r"mean is torch\.int8; accepted"):
        function(t.to(torch.int8), None, (2, 3))


def test_other_wrong_arguments_are_named() -> None:
    t = torch.ones(2, 2, 3)
    with pytest.raises(ValueError, match=r"variance has shape \(2, 2, 2\); accepted"):
        obs.structure_factor(t, t[..., :2], (2, 3))
    with pytest.raises(ValueError, match=r"axis is 2; accepted: an integer from 0 to 1"):
        obs.axis_correlations(t, None, (2, 3), 2)
    with pytest.raises(ValueError, match=r"boundary is 'closed'"):
        obs.axis_correlations(t, None, (2, 3), 1, "closed")
    with pytest.raises(ValueError, match=r"boundary is 'closed'"):
        obs.field_observables((2, 3), "closed")


@pytest.mark.parametrize("shape", [(7,), (3, 4), (4, 3, 2)], ids=str)
def test_two_point_functions_are_one_anothers_fourier_transforms(shape: Shape) -> None:
    t, dims = torch.randn(5, *shape).tanh(), tuple(range(-len(shape), 0))
    moments: Any = (t, 1 - t.square(), shape)
    of_k, of_r = obs.mode_structure_factor(*moments), obs.correlations(*moments)
    assert_same(torch.fft.fftn(of_r, dim=dims).real / math.prod(shape), of_k)
    assert_same(of_k.sum(dims), torch.ones(5))  # C(0): spins have length one


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distribution_by_enumeration(shape: Shape) -> None:
    t = torch.randn(shape).tanh()
    spins, probability = every_spin(t)
    counts = (spins > 0).sum(1, keepdim=True) == torch.arange(t.numel() + 1)
    assert_same(obs.magnetisation_probabilities(t, shape), probability @ counts.to(t))


def test_moments_of_the_distribution_are_the_moments() -> None:
    """On lattices that no enumeration reaches, with all that a field can be."""
    shape = (9, 12)
    x = torch.stack([torch.randn(shape), 50 * torch.randn(shape), torch.full(shape, 40.0)])
    t = x.tanh()
    levels = torch.linspace(-1, 1, 109)
    table = obs.magnetisation_probabilities(t, shape)
    assert_same(table.sum(-1), torch.ones(3))
    for power, function in ((2, obs.structure_factor), (4, obs.fourth_moment)):
        assert_same(table @ levels.pow(power), function(t, 1 - t.square(), shape))
