# SPDX-License-Identifier: Apache-2.0
"""Susceptibility, Binder's cumulant and specific heat from weighted draws, against exact values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDualFamily
from pyro_neuralrg import observables as obs
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.free_energy import expectations, reweight
from pyro_neuralrg.statistics import jackknife
from pyro_neuralrg.transforms import Neighbour
from tests.free_energy.gaussian import SITES, check_coverage, energy, proposal
from tests.potentials.enumeration import Ising

FUNCTIONS = {
    "m2": lambda x: x.mean(-1).square(),
    "m4": lambda x: x.mean(-1).pow(4),
    "e": lambda x: energy(x) / SITES,
    "e2": lambda x: (energy(x) / SITES).square(),
}
SHAPE, TEMPERATURE = (2, 2), 1.7
EXACT = {  # m is normal of variance 1 / N, H a sum of N squares of normals over two
    "susceptibility": 1 / TEMPERATURE,
    "binder_cumulant": 0.0,
    "specific_heat": 0.5 / TEMPERATURE**2,
}


def ratios(found: Any) -> dict[str, Any]:
    return {
        "susceptibility": obs.susceptibility(found["m2"], SHAPE, TEMPERATURE),
        "binder_cumulant": obs.binder_cumulant(found["m2"], found["m4"]),
        "specific_heat": obs.specific_heat(found["e"], found["e2"], SHAPE, TEMPERATURE),
    }


def test_equal_weights_are_the_path_of_draws() -> None:
    """Chains of one draw each, and samples of weight one."""
    x = torch.randn(200, SITES)
    values = {name: function(x) for name, function in FUNCTIONS.items()}
    draws = ratios({name: value.unsqueeze(-1) for name, value in values.items()})
    weighted = ratios({name: reweight(value, torch.zeros(200)) for name, value in values.items()})
    for name, found in draws.items():
        assert tuple(weighted[name]) == pytest.approx(tuple(found), rel=1e-9)


def test_a_mean_by_the_delta_method() -> None:
    x = proposal().sample((700,))
    found = reweight(energy(x), -energy(x) - proposal().log_prob(x))
    value, error = jackknife(lambda mean: mean, found)
    assert error == pytest.approx(float(found.standard_error), rel=0.01)
    assert abs(value - float(found.value)) < 0.1 * error
    one = reweight(torch.arange(10.0), torch.tensor([0.0, *[-math.inf] * 9]))
    assert math.isnan(jackknife(lambda mean: mean, one).standard_error)  # all the weight


@pytest.mark.parametrize("number", [700, 1500])
def test_errors_cover(number: int) -> None:
    """One block for each sample, and blocks of one or two."""
    pulls: dict[str, list[float]] = {name: [] for name in EXACT}
    for _ in range(60):
        x = proposal().sample((number,))
        weights = -energy(x) - proposal().log_prob(x)
        found = ratios({name: reweight(f(x), weights) for name, f in FUNCTIONS.items()})
        for name, exact in EXACT.items():
            pulls[name].append((found[name].value - exact) / found[name].standard_error)
    for of_one in pulls.values():
        check_coverage(of_one)


def test_copies_within_groups_count_once() -> None:
    x = proposal().sample((600,))
    once = {name: function(x) for name, function in FUNCTIONS.items()}
    weights = -energy(x) - proposal().log_prob(x)
    copies = {name: value.repeat_interleave(3) for name, value in once.items()}
    found = ratios({name: reweight(value, weights) for name, value in once.items()})
    weights = weights.repeat_interleave(3)
    again = ratios({n: reweight(value, weights, groups=600) for n, value in copies.items()})
    for name, (value, error) in found.items():
        assert tuple(again[name]) == pytest.approx((value, error))


@pytest.mark.parametrize("temperature", [3.0, 4.2])
def test_a_family_at_one_temperature(temperature: float) -> None:
    """An untrained flow whose weights are bounded, against enumeration."""
    family = IsingDualFamily((2, 2), (3.0, 5.0))
    spectra = {name: 4 * getattr(family, name) for name in ("spectrum", "spectrum_slopes")}
    small: dict[str, Any] = {"bijector": Neighbour(layers=2, hidden=(4,)), "features": 4}
    flow = family.flow(**small, base=StandardNormal(), **spectra)
    target = family.at_temperature(temperature)
    q = flow.condition(family.contexts([temperature])[0])
    found = expectations(target, q, target.observables(), 8000).observables
    exact, at = Ising.of(target).averages, ((2, 2), temperature)
    names = "structure_factor", "abs_magnetisation", "fourth_moment"
    (square, modulus, fourth), (s, m, f) = ([of[x] for x in names] for of in (found, exact))
    energies = found["internal_energy"], found["squared_internal_energy"]
    for one, value in (
        (obs.susceptibility(square, *at), 4 * s / temperature),
        (obs.susceptibility(square, *at, modulus), 4 * (s - m**2) / temperature),
        (obs.binder_cumulant(square, fourth), 1 - f / (3 * s**2)),
        (obs.specific_heat(*energies, *at), target.spins.specific_heat()),
    ):
        assert abs(one.value - value) < 4 * one.standard_error < 0.4 * abs(value)


def of(values: Tensor, **more: Any) -> Any:
    return reweight(values, torch.zeros(len(values)), **more)


ONES = torch.ones(40)
BAD: list[tuple[Any, Any, str]] = [
    (of(ONES), torch.ones(40, 1), r"series\[1\] is not of the weighted samples of the first"),
    (torch.ones(40, 1), of(ONES), r"series\[0\] is not of the weighted samples of the first"),
    (of(ONES), of(torch.ones(20)), r"series\[1\] is not of the weighted samples"),
    (
        of(ONES),
        reweight(ONES, ONES.cumsum(0) / 9),
        r"series\[1\] is not of the weighted samples",
    ),
    (of(torch.ones(40, 3)), of(ONES), r"series\[0\] is the mean of values of shape \(3,\)"),
    (of(torch.ones(1)), of(torch.ones(1)), "one weighted sample or group; accepted: two or more"),
]


@pytest.mark.parametrize(("first", "second", "message"), BAD)
def test_bad_arguments(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        obs.binder_cumulant(first, second)
