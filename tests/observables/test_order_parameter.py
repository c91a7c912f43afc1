# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The magnetisation and its moments against enumeration of the spins and hand counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import observables as obs
from tests.observables.enumeration import SHAPES, all_spins, assert_same, given_x


@pytest.mark.parametrize("shape", SHAPES)
def test_averages_over_spins_are_those_of_enumerated_spins(shape: tuple[int, ...]) -> None:
    x, bias = torch.randn(2, *shape)
    mean = obs.spin_mean(x, bias)
    assert_same(
        obs.magnetisation(mean, shape), given_x(x, bias, lambda s: obs.magnetisation(s, shape))
    )
    for averaged, sampled in (
        (obs.structure_factor, obs.spin_structure_factor),
        (obs.fourth_moment, obs.spin_fourth_moment),
        (obs.expected_abs_magnetisation, obs.abs_magnetisation),
    ):

        def of_spins(s: Tensor, function: Callable[..., Tensor] = sampled) -> Tensor:
            return function(s, shape)

        assert_same(averaged(x, shape, bias), given_x(x, bias, of_spins))


@pytest.mark.parametrize("shape", SHAPES)
def test_distribution_is_that_of_enumerated_spins(shape: tuple[int, ...]) -> None:
    x, bias = torch.randn(2, *shape)
    ups = torch.arange(math.prod(shape) + 1)

    def counts(spins: Tensor) -> Tensor:
        return ((spins > 0).flatten(1).sum(1, keepdim=True) == ups).to(x)

    assert_same(obs.magnetisation_distribution(x, shape, bias), given_x(x, bias, counts))


def test_moments_of_the_distribution_are_the_moments() -> None:
    """On lattices that no enumeration reaches, with all that a field can be."""
    shape = (9, 12)
    x = torch.stack([torch.randn(shape), 50 * torch.randn(shape), torch.full(shape, 40.0)])
    levels = torch.linspace(-1, 1, 109)
    table = obs.magnetisation_distribution(x, shape)
    assert_same(table.sum(-1), torch.ones(3))
    assert_same(table @ levels.square(), obs.structure_factor(x, shape))
    assert_same(table @ levels.pow(4), obs.fourth_moment(x, shape))
    assert_same(table @ levels.abs(), obs.expected_abs_magnetisation(x, shape))


def test_powers_of_spins() -> None:
    spins = all_spins(6).reshape(4, 16, 2, 3)
    mean = spins.sum((-2, -1)) / 6
    assert_same(obs.spin_structure_factor(spins, (2, 3)), mean**2)
    assert_same(obs.spin_fourth_moment(spins, (2, 3)), mean**4)


def test_magnetisation_of_a_batch() -> None:
    spins = torch.stack([torch.ones(2, 2), -torch.ones(2, 2)]).expand(3, 2, 2, 2)
    assert_same(obs.magnetisation(spins, (2, 2)), torch.tensor([1.0, -1.0]).expand(3, 2))
    assert_same(obs.abs_magnetisation(spins, (2, 2)), torch.ones(3, 2))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batch_shape_and_dtype(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = torch.randn(*batch, 3, 4, dtype=dtype), torch.randn(3, 4, dtype=torch.float64)
    for function in (obs.structure_factor, obs.fourth_moment, obs.expected_abs_magnetisation):
        values = function(x, (3, 4), bias)
        assert values.shape == batch
        assert values.dtype == dtype
        torch.testing.assert_close(
            values.double(), function(x.double(), (3, 4), bias), rtol=0.05, atol=0.02
        )
    assert obs.magnetisation_distribution(x, (3, 4), bias).shape == (*batch, 13)


def test_observables_are_differentiable() -> None:
    x = torch.randn(2, 2, 3, requires_grad=True)
    for function in (obs.structure_factor, obs.fourth_moment, obs.expected_abs_magnetisation):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, (2, 3)), (x,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: obs.magnetisation(x, (3, 3)),
            ValueError,
            r"spins has shape \(2, 2, 3\); accepted: any batch shape followed by \(3, 3\)",
        ),
        (lambda x: obs.structure_factor(x, (3,) * 4), ValueError, r"shape is \(3, 3, 3, 3\)"),
        (lambda x: obs.structure_factor(x, (6,)), ValueError, r"x has shape \(2, 2, 3\); accepted"),
        (lambda x: obs.fourth_moment(x, (2,)), ValueError, r"x has shape \(2, 2, 3\); accepted"),
        (
            lambda x: obs.expected_abs_magnetisation(x, (3, 2)),
            ValueError,
            r"x has shape \(2, 2, 3\); accepted",
        ),
        (
            lambda x: obs.magnetisation(x.to(torch.int8), (2, 3)),
            TypeError,
            r"spins has dtype torch.int8; accepted: a floating dtype",
        ),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 2, 3))
