# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Two-point functions against direct sums, enumeration of the spins, and one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import observables as obs
from tests.observables.enumeration import SHAPES, assert_same, given_x


def direct_modes(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """S(k) by a sum over sites for every k."""
    sites = torch.tensor(list(itertools.product(*map(range, shape))), dtype=values.dtype)
    phases = 2 * math.pi * (sites / torch.tensor(shape)) @ sites.T  # r . k
    flat = values.flatten(-len(shape))
    size = len(sites)
    squares = (flat @ phases.cos()).square() + (flat @ phases.sin()).square()
    return (squares / size**2).unflatten(-1, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_modes_are_direct_sums(shape: tuple[int, ...]) -> None:
    values = torch.randn(4, *shape)
    assert_same(obs.spin_mode_structure_factor(values, shape), direct_modes(values, shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_averages_over_spins_are_those_of_enumerated_spins(shape: tuple[int, ...]) -> None:
    x, bias = torch.randn(2, *shape)
    assert_same(
        obs.mode_structure_factor(x, shape, bias),
        given_x(x, bias, lambda s: direct_modes(s, shape)),
    )
    assert_same(
        obs.correlations(x, shape, bias), given_x(x, bias, lambda s: direct_products(s, shape))
    )
    for axis, boundary in itertools.product(range(len(shape)), ("periodic", "open")):
        assert_same(
            obs.axis_correlations(x, shape, axis, boundary, bias),
            given_x(
                x,
                bias,
                lambda s, axis=axis, boundary=boundary: direct_lines(s, shape, axis, boundary),
            ),
        )


def direct_products(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """C(r) by rolling the lattice, for every r."""
    dims = tuple(range(-len(shape), 0))
    table = [
        (values * values.roll([-step for step in r], dims)).mean(dims)
        for r in itertools.product(*map(range, shape))
    ]
    return torch.stack(table, -1).unflatten(-1, shape)


def direct_lines(values: Tensor, shape: tuple[int, ...], axis: int, boundary: str) -> Tensor:
    dims, dim, side = tuple(range(-len(shape), 0)), axis - len(shape), shape[axis]
    if boundary == "periodic":
        return torch.stack([(values * values.roll(-r, dim)).mean(dims) for r in range(side)], -1)
    pairs = [
        (values.narrow(dim, 0, side - r), values.narrow(dim, r, side - r)) for r in range(side)
    ]
    return torch.stack([(left * right).mean(dims) for left, right in pairs], -1)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (4, 3, 2)])
def test_correlations_are_direct_means(shape: tuple[int, ...]) -> None:
    values = torch.randn(5, *shape)
    assert_same(obs.spin_correlations(values, shape), direct_products(values, shape))
    for axis, boundary in itertools.product(range(len(shape)), ("periodic", "open")):
        assert_same(
            obs.spin_axis_correlations(values, shape, axis, boundary),
            direct_lines(values, shape, axis, boundary),
        )


@pytest.mark.parametrize("shape", [(7,), (3, 4), (4, 3, 2)])
def test_they_are_one_anothers_fourier_transforms(shape: tuple[int, ...]) -> None:
    """And the uniform mode is the structure factor, the line along an axis part of the table."""
    x, dims, size = torch.randn(5, *shape), tuple(range(-len(shape), 0)), math.prod(shape)
    bias = torch.randn(shape)
    modes, table = obs.mode_structure_factor(x, shape, bias), obs.correlations(x, shape, bias)
    assert_same(torch.fft.fftn(table, dim=dims).real / size, modes)
    assert_same(modes[(..., *[0] * len(shape))], obs.structure_factor(x, shape, bias))
    assert_same(modes.sum(dims), torch.ones(5))  # C(0): spins have length one
    assert_same(table.mean(dims), obs.structure_factor(x, shape, bias))
    for axis in range(len(shape)):
        line = (..., *[slice(None) if other == axis else 0 for other in range(len(shape))])
        assert_same(obs.axis_correlations(x, shape, axis, bias=bias), table[line])


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_shape_and_dtype(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = torch.randn(*batch, 3, 4, dtype=dtype), torch.randn(3, 4)
    for values in (obs.mode_structure_factor(x, (3, 4), bias), obs.correlations(x, (3, 4), bias)):
        assert values.shape == (*batch, 3, 4)
        assert values.dtype == dtype
    for boundary in ("periodic", "open"):
        line = obs.axis_correlations(x, (3, 4), 1, boundary, bias)
        assert line.shape == (*batch, 4)
        assert line.dtype == dtype
        torch.testing.assert_close(
            line.double(),
            obs.axis_correlations(x.double(), (3, 4), 1, boundary, bias),
            rtol=0.05,
            atol=0.02,
        )
        ring = torch.randn(*batch, 4, dtype=dtype)
        assert obs.axis_correlations(ring, (4,), boundary=boundary).shape == (*batch, 4)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_they_are_differentiable(boundary: str) -> None:
    x = torch.randn(2, 2, 3, requires_grad=True)
    for function in (
        lambda x: obs.mode_structure_factor(x, (2, 3)),
        lambda x: obs.correlations(x, (2, 3)),
        lambda x: obs.axis_correlations(x, (2, 3), 1, boundary),
    ):
        assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: obs.mode_structure_factor(x, (3, 3)), ValueError, r"x has shape \(2, 2, 3\)"),
        (lambda x: obs.spin_correlations(x, (2,)), ValueError, r"spins has shape \(2, 2, 3\)"),
        (
            lambda x: obs.axis_correlations(x, (2, 3), 2),
            ValueError,
            r"axis is 2; accepted: an integer from 0 to 1",
        ),
        (lambda x: obs.axis_correlations(x, (2, 3), "row"), TypeError, r"axis is 'row'; accepted"),
        (
            lambda x: obs.spin_axis_correlations(x, (2, 3), 1, "closed"),
            ValueError,
            r"boundary is 'closed'",
        ),
        (
            lambda x: obs.spin_mode_structure_factor(x.long(), (2, 3)),
            TypeError,
            r"spins has dtype torch.int64; accepted: a floating dtype",
        ),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 2, 3))
