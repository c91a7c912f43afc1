# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Susceptibility, Binder's cumulant and specific heat from weighted draws, against exact values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import FreeField, IsingDualFamily
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
        assert weighted[name] == pytest.approx(found, rel=1e-9)


def test_a_mean_by_the_delta_method() -> None:
    x = proposal().sample((700,))
    found = reweight(energy(x), -energy(x) - proposal().log_prob(x))
    value, error = jackknife(lambda mean: mean, found)
    assert error == pytest.approx(float(found.standard_error), rel=0.01)
    assert abs(value - float(found.estimate)) < 0.1 * error


@pytest.mark.parametrize("number", [700, 1500])
def test_errors_cover(number: int) -> None:
    """One block for each sample, and blocks of one or two."""
    pulls: dict[str, list[float]] = {name: [] for name in EXACT}
    for _ in range(100):
        x = proposal().sample((number,))
        weights = -energy(x) - proposal().log_prob(x)
        found = ratios({name: reweight(f(x), weights) for name, f in FUNCTIONS.items()})
        for name, exact in EXACT.items():
            pulls[name].append((found[name].value - exact) / found[name].standard_error)
    for of_one in pulls.values():
        check_coverage(of_one)


def test_chains_at_another_temperature() -> None:
    """Free fields of one mass, copies of each other within a chain, for another mass."""
    here, there = FreeField((2, 2), 1.2), FreeField((2, 2), 1.0)
    chains = 3000
    x = here.sample_reference(chains)
    weights = here.energy(x) - there.energy(x)
    values = [function(x.flatten(1)) for function in (FUNCTIONS["m2"], FUNCTIONS["m4"])]
    once = obs.binder_cumulant(*(reweight(value, weights) for value in values))
    copies = [
        reweight(v.repeat_interleave(3), weights.repeat_interleave(3), groups=chains)
        for v in values
    ]
    found = obs.binder_cumulant(*copies)
    assert found == pytest.approx(once)
    assert abs(found.value) < 4 * found.standard_error < 0.4
    found = obs.susceptibility(copies[0], (2, 2), 1.0)
    assert abs(found.value - 1.0) < 4 * found.standard_error < 0.4


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
    exact = Ising.of(target).averages
    square, size = exact["structure_factor"], 4
    for one, value in (
        (
            obs.susceptibility(found["structure_factor"], (2, 2), temperature),
            size * square / temperature,
        ),
        (
            obs.susceptibility(
                found["structure_factor"], (2, 2), temperature, found["abs_magnetisation"]
            ),
            size * (square - exact["abs_magnetisation"] ** 2) / temperature,
        ),
        (
            obs.binder_cumulant(found["structure_factor"], found["fourth_moment"]),
            1 - exact["fourth_moment"] / (3 * square**2),
        ),
        (
            obs.specific_heat(
                found["internal_energy"], found["squared_internal_energy"], (2, 2), temperature
            ),
            target.spins.specific_heat(),
        ),
    ):
        assert abs(one.value - value) < 4 * one.standard_error < 0.4 * abs(value)


def test_one_sample_with_all_the_weight() -> None:
    weights = torch.tensor([0.0, *[-math.inf] * 9])
    found = jackknife(lambda mean: mean, reweight(torch.arange(10.0), weights))
    assert np.isnan(found.standard_error)


def of(values: Tensor, **more: Any) -> Any:
    return reweight(values, torch.zeros(len(values)), **more)


ONES = torch.ones(40)
BAD: list[tuple[Any, Any, str]] = [
    (of(ONES), torch.ones(40, 1), r"series\[1\] is not of the weighted samples of the first"),
    (torch.ones(40, 1), of(ONES), r"series\[0\] is not of the weighted samples of the first"),
    (of(ONES), of(torch.ones(20)), r"series\[1\] is not of the weighted samples"),
    (of(ONES), reweight(ONES, -torch.arange(40.0)), r"series\[1\] is not of the weighted samples"),
    (of(torch.ones(40, 3)), of(ONES), r"series\[0\] is the mean of values of shape \(3,\)"),
    (of(torch.ones(1)), of(torch.ones(1)), "one weighted sample or group; accepted: two or more"),
]


@pytest.mark.parametrize(("first", "second", "message"), BAD)
def test_bad_arguments(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        obs.binder_cumulant(first, second)
