# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Energies against hand counts, and their averages over spins against enumeration."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import observables as obs
from tests.observables.enumeration import SHAPES, all_spins, assert_same, given_x
from tests.potentials.enumeration import bond_matrix


def test_energy_of_hand_counted_states() -> None:
    up = torch.ones(3, 4)
    one_down = up.clone()
    one_down[1, 2] = -1
    assert float(obs.internal_energy(up, (3, 4))) == pytest.approx(-2.0)
    assert float(obs.internal_energy(one_down, (3, 4))) == pytest.approx(-(24 - 8) / 12)
    assert float(obs.internal_energy(up, (3, 4), boundary="open")) == pytest.approx(-17 / 12)
    assert float(obs.internal_energy(up, (3, 4), (2.0, 0.5), 0.3)) == pytest.approx(-2.8)
    assert float(obs.internal_energy(torch.ones(2), (2,))) == pytest.approx(-1.0)  # both bonds
    assert float(obs.internal_energy(torch.ones(1, 1), (1, 1))) == 0.0


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_are_those_of_the_bonds(shape: tuple[int, ...], boundary: str) -> None:
    """Bond by bond, of all spins; and given x, the mean and the mean square."""
    x, bias, field = torch.randn(3, *shape)
    couplings = (0.7, -1.3, 0.4)[: len(shape)]
    matrix = bond_matrix(shape, couplings, boundary)

    def direct(spins: Tensor) -> Tensor:
        flat = spins.flatten(1)
        return -(((flat @ matrix) * flat).sum(1) / 2 + flat @ field.flatten()) / flat.shape[1]

    energy = functools.partial(
        obs.internal_energy, shape=shape, couplings=couplings, field=field, boundary=boundary
    )
    spins = all_spins(math.prod(shape)).reshape(-1, *shape)
    assert_same(energy(spins), direct(spins))
    assert_same(energy(obs.spin_mean(x, bias)), given_x(x, bias, direct))
    assert_same(
        obs.squared_internal_energy(x, shape, couplings, field, boundary, bias),
        given_x(x, bias, lambda spins: direct(spins).square()),
    )


def test_default_couplings_and_numbers() -> None:
    x = torch.randn(4, 3, 2)
    assert_same(
        obs.squared_internal_energy(x, (3, 2)),
        obs.squared_internal_energy(x, (3, 2), (1.0, 1.0), torch.zeros(3, 2), "periodic", 0.0),
    )
    assert_same(
        obs.squared_internal_energy(x, (3, 2), field=0.4, bias=0.2),
        obs.squared_internal_energy(x + 0.2, (3, 2), field=torch.full((3, 2), 0.4)),
    )


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_batch_shape_and_dtype(batch: tuple[int, ...]) -> None:
    x, field = torch.randn(*batch, 3, 4, dtype=torch.float32), torch.ones(3, 4)
    for values in (
        obs.internal_energy(x, (3, 4), field=field),
        obs.squared_internal_energy(x, (3, 4), field=field, bias=field),
    ):
        assert values.shape == batch
        assert values.dtype == torch.float32


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_energies_are_differentiable(boundary: str) -> None:
    x = torch.randn(2, 2, 3, requires_grad=True)
    for function in (
        lambda x: obs.internal_energy(obs.spin_mean(x), (2, 3), boundary=boundary),
        lambda x: obs.squared_internal_energy(x, (2, 3), boundary=boundary),
    ):
        assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: obs.internal_energy(x, (2, 3), (1.0,)), r"couplings has 1 entries"),
        (lambda x: obs.internal_energy(x, (2, 3), boundary="closed"), r"boundary is 'closed'"),
        (lambda x: obs.squared_internal_energy(x, (3, 3)), r"x has shape \(2, 2, 3\); accepted"),
        (lambda x: obs.squared_internal_energy(x, (2, 3), (1.0,) * 3), r"couplings has 3 entries"),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 2, 3))
