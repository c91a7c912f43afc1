# SPDX-License-Identifier: Apache-2.0
"""Lattice operators against sums that are written out, and under symmetries of the lattice."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyro_neuralrg.analysis import OPERATORS, Operator, lattice_operators, operator_sums

BY_NAME = {operator.name: operator for operator in OPERATORS}


def test_sums_are_those_written_out() -> None:
    side = 5
    x = torch.randn(side, side)
    written = dict.fromkeys(("nearest", "diagonal", "knight", "plaquette", "corner", "tee"), 0.0)
    for i, j in itertools.product(range(side), repeat=2):

        def at(a: int, b: int, i: int = i, j: int = j) -> torch.Tensor:
            return x[(i + a) % side, (j + b) % side]

        written["nearest"] += at(0, 0) * (at(1, 0) + at(0, 1))
        written["diagonal"] += at(0, 0) * (at(1, 1) + at(1, -1))
        written["knight"] += at(0, 0) * (at(1, 2) + at(2, 1) + at(1, -2) + at(2, -1))
        written["plaquette"] += at(0, 0) * at(1, 0) * at(0, 1) * at(1, 1)
        written["corner"] += at(0, 0) * (at(1, 0) + at(-1, 0)) * (at(0, 1) + at(0, -1))
        around = at(1, 0) * at(-1, 0) * (at(0, 1) + at(0, -1))
        around = around + at(0, 1) * at(0, -1) * (at(1, 0) + at(-1, 0))
        written["tee"] += at(0, 0) * around
    for name, value in written.items():
        torch.testing.assert_close(BY_NAME[name](x, (side, side)), value)
    torch.testing.assert_close(BY_NAME["fourth_power"](x, (side, side)), x.pow(4).sum())
    torch.testing.assert_close(BY_NAME["field"](x, (side, side)), x.sum())
    line = torch.randn(3, 7)
    products = line * line.roll(-1, 1) * line.roll(-3, 1)
    mirrored = line * line.roll(-2, 1) * line.roll(-3, 1)
    torch.testing.assert_close(
        BY_NAME["two_and_one"](line, (7,)), products.sum(1) + mirrored.sum(1)
    )


@pytest.mark.parametrize("shape", [(6,), (4, 5), (4, 4), (4, 4, 4)])
def test_sums_have_the_symmetries_of_the_lattice(shape: tuple[int, ...]) -> None:
    dim = tuple(range(1, 1 + len(shape)))
    x = torch.randn(3, *shape)
    operators = lattice_operators(shape)
    sums = operator_sums(x, shape, operators)
    assert sums.shape == (3, len(operators))
    assert sums.dtype == torch.float64
    for same in (x.roll((1,) * len(shape), dim), x.flip(dim[0]), x.flip(dim)):
        torch.testing.assert_close(operator_sums(same, shape, operators), sums)
    turned = x.movedim(1, -1)
    torch.testing.assert_close(operator_sums(turned, turned.shape[1:], operators), sums)
    degrees = torch.tensor([operator.degree for operator in operators])
    torch.testing.assert_close(operator_sums(-2 * x, shape, operators), sums * (-2.0) ** degrees)
    even = torch.tensor([operator.parity == "even" for operator in operators])
    assert torch.equal(even, degrees % 2 == 0)
    assert lattice_operators(shape, "even") + lattice_operators(shape, "odd") == operators
    ones = operator_sums(torch.ones(shape), shape, operators)
    images = [len(operator.images(len(shape))) for operator in operators]
    assert (ones / math.prod(shape)).tolist() == images


def test_batches_and_parts_give_the_same_and_gradients_pass() -> None:
    x = torch.randn(2, 150, 32, 32)  # more than are formed at once
    operators = lattice_operators((32, 32), spins=True)
    sums = operator_sums(x, (32, 32), operators)
    assert not any(operator.has_powers for operator in operators)
    torch.testing.assert_close(sums[1, 149], operator_sums(x[1, 149], (32, 32), operators))
    assert operator_sums(x[:0], (32, 32), operators).shape == (0, 150, len(operators))
    small = torch.randn(3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: operator_sums(h, (3, 3), operators[:3]), (small,))


def test_operators_that_do_not_fit_are_named() -> None:
    x = torch.randn(2, 2)
    assert [operator.name for operator in lattice_operators((2, 2), "even", spins=True)] == [
        "nearest",
        "diagonal",
        "plaquette",
    ]
    for operators in ([BY_NAME["knight"]], [BY_NAME["space_diagonal"]], [], ["nearest"], None):
        with pytest.raises((TypeError, ValueError), match=r"operators is .*accepted: "):
            operator_sums(x, (2, 2), operators if operators is not None else 3)
    for sites in ((), ((),), ((0, 0), (1,)), ((0.5,),), 3, ((0, 0, 0, 0),)):
        with pytest.raises((TypeError, ValueError), match=r"sites is .*accepted: "):
            Operator("bad", sites)
    with pytest.raises(TypeError, match=r"name is .*accepted: "):
        Operator(3, ((0,),))
    for dimension in (1, 4, "2"):
        with pytest.raises((TypeError, ValueError), match=r"dimension is .*accepted: "):
            BY_NAME["knight"].images(dimension)
