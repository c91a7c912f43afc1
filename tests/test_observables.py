# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Observables against hand counts, enumeration of the spins and exact values."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual
from pyro_neuralrg import observables as obs


def all_spins(sites: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sites)))


def given_x(x: Tensor, bias: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``function(spins)`` over spins drawn given one field, by enumeration."""
    spins = all_spins(x.numel()).reshape(-1, *x.shape)
    log_p = torch.nn.functional.logsigmoid(2 * spins * (x + bias)).flatten(1).sum(1)
    return (log_p.exp() * function(spins)).sum()


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 2)])
def test_conditional_means_are_those_of_enumerated_spins(shape: tuple[int, ...]) -> None:
    x, bias = torch.randn(2, *shape)
    couplings = (0.7, -1.3, 0.4)[: len(shape)]
    mean = obs.spin_mean(x, bias)
    torch.testing.assert_close(
        obs.magnetisation(mean, shape), given_x(x, bias, lambda s: obs.magnetisation(s, shape))
    )
    torch.testing.assert_close(
        obs.structure_factor(x, shape, bias),
        given_x(x, bias, lambda s: obs.spin_structure_factor(s, shape)),
    )
    for boundary in ("periodic", "open"):
        energy = functools.partial(
            obs.internal_energy, shape=shape, couplings=couplings, field=bias, boundary=boundary
        )
        torch.testing.assert_close(energy(mean), given_x(x, bias, energy))


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


def test_magnetisation_of_a_batch() -> None:
    spins = torch.stack([torch.ones(2, 2), -torch.ones(2, 2)]).expand(3, 2, 2, 2)
    torch.testing.assert_close(
        obs.magnetisation(spins, (2, 2)), torch.tensor([1.0, -1.0]).expand(3, 2)
    )
    torch.testing.assert_close(obs.abs_magnetisation(spins, (2, 2)), torch.ones(3, 2))


@pytest.mark.parametrize("temperature", [1.9, 2.9])
def test_reference_samples_give_the_exact_values(temperature: float) -> None:
    """Also that averaging over the spins does not widen the error."""
    target = IsingDual((4, 4), temperature)
    x = target.sample_reference(20_000)
    spins = target.sample_spins(x)
    for averaged, sampled, exact in (
        (
            obs.structure_factor(x, (4, 4)),
            obs.spin_structure_factor(spins, (4, 4)),
            target.exact_structure_factor(),
        ),
        (
            obs.internal_energy(obs.spin_mean(x), (4, 4)),
            obs.internal_energy(spins, (4, 4)),
            target.exact_internal_energy(),
        ),
    ):
        for values in (averaged, sampled):
            error = float(values.std()) / math.sqrt(len(values) / 3)  # sweeps are correlated
            assert abs(float(values.mean()) - exact) < 4 * error
        assert float(averaged.var()) < float(sampled.var())


def test_observables_are_differentiable() -> None:
    x = torch.randn(2, 2, 3, requires_grad=True)
    for function in (
        lambda x: obs.structure_factor(x, (2, 3)),
        lambda x: obs.internal_energy(obs.spin_mean(x), (2, 3)),
    ):
        assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: obs.magnetisation(x, (3, 3)), r"spins has shape \(2, 2, 3\); accepted"),
        (lambda x: obs.structure_factor(x, (3,) * 4), r"shape"),
        (lambda x: obs.structure_factor(x, (6,)), r"x has shape \(2, 2, 3\); accepted"),
        (lambda x: obs.internal_energy(x, (2, 3), (1.0,)), r"couplings has 1 entries"),
        (lambda x: obs.internal_energy(x, (2, 3), boundary="closed"), r"boundary is 'closed'"),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 2, 3))
