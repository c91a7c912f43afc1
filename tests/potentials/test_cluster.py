# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Swendsen-Wang: exact states stay exact, whatever the signs, the boundary and the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingDual, cluster
from pyro_neuralrg.potentials.cluster import swendsen_wang
from tests.potentials.enumeration import Ising

MODELS: dict[str, dict[str, Any]] = {
    "ferromagnet": {"shape": (2, 3), "temperature": 3.0},
    "antiferromagnet, frustrated": {"shape": (3, 3), "couplings": (-1.0, -0.6)},
    "mixed signs": {"shape": (2, 2, 2), "couplings": (0.5, -0.3, 0.2), "temperature": 1.5},
    "field": {"shape": (2, 3), "field": 0.4, "temperature": 3.0},
    "staggered field": {"shape": (6,), "field": [1.0, -0.5, 0.2, -1, 0.1, 0.3]},
    "strong field against weak bonds": {"shape": (3, 2), "field": 2.0, "couplings": (-1.0, 0.3)},
    "open": {"shape": (3, 3), "boundary": "open", "temperature": 1.5},
    "side 1": {"shape": (1, 5), "temperature": 1.5},
    "no bonds": {"shape": (3,), "couplings": (0.0,), "field": 0.5},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("warmup", "chains"), [(20, None), (20, 400)])
def test_every_state_has_its_weight(name: str, warmup: int, chains: int | None, seed: int) -> None:
    """Counts of all 2^N states against their probabilities: no moment is left out."""
    model = IsingDual(**MODELS[name])
    ising = Ising.of(model)
    n = 4000
    spins = swendsen_wang(
        model.shape,
        [coupling / model.temperature for coupling in model.couplings],
        n,
        boundary=model.boundary,
        field=None if model.field is None else (model.field / model.temperature).numpy(),
        seed=seed,
        chains=chains,
        warmup=warmup,
        between=10,
    )
    sites = math.prod(model.shape)
    code = ((spins.reshape(n, sites) + 1) // 2).astype(int) @ 2 ** np.arange(sites)
    counts = np.bincount(code, minlength=2**sites)
    expected = n * ising.probability.numpy()
    order = np.argsort(expected)
    # rare states are put together until each cell holds at least ten
    cell = np.cumsum(expected[order]) // 10
    observed, mean = (
        np.bincount(np.unique(cell, return_inverse=True)[1], v[order]) for v in (counts, expected)
    )
    chi_squared = float(((observed - mean) ** 2 / mean).sum())
    freedom = len(mean) - 1
    assert chi_squared < freedom + 4.5 * math.sqrt(2 * freedom) + 4.5


def test_seed_decides() -> None:
    one, two, three = (swendsen_wang((4, 4), (0.4, 0.4), 5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize(("n", "chains"), [(1, None), (7, 3), (3, 7), (4, 1)])
def test_as_many_as_asked_for(n: int, chains: int | None) -> None:
    spins = swendsen_wang((2, 3), (0.4, 0.4), n, chains=chains, warmup=2, between=1)
    assert spins.shape == (n, 2, 3)
    assert set(np.unique(spins)) <= {-1, 1}


def test_zero_temperature_limit_is_ordered() -> None:
    spins = swendsen_wang((8, 8), (50.0, -50.0), 20)
    row = spins * np.array([1, -1] * 4, dtype=np.int8)
    assert np.all(np.abs(row.reshape(20, -1).sum(1)) == 64)


def test_configurations_of_a_chain_are_nearly_independent(seed: int) -> None:
    """|m| at Tc from one to the next of a single chain; a sweep apart they have 0.7."""
    n, bond = 800, 1 / CRITICAL_TEMPERATURE
    spins = swendsen_wang((8, 8), (bond, bond), n, seed=seed, chains=1)
    size = np.abs(spins.mean((1, 2)))
    centred = size - size.mean()
    autocorrelation = float((centred[1:] * centred[:-1]).mean() / np.square(centred).mean())
    assert abs(autocorrelation) < 4.5 / math.sqrt(n) + 0.05


def reference(model: IsingDual, n: int, seed: int) -> tuple[float, float]:
    exact = float(Ising.of(model).second_moment.mean())
    found = model.reference_structure_factor(n, seed)
    return found.mean - exact, found.standard_error


@pytest.mark.parametrize("name", MODELS)
def test_structure_factor_is_the_exact_one(name: str, seed: int) -> None:
    model = IsingDual(**MODELS[name])
    deviation, error = reference(model, 4000, seed)
    exact = model.exact_structure_factor()
    assert exact == pytest.approx(float(Ising.of(model).second_moment.mean()), abs=1e-10)
    assert 0 < error < 0.05 * exact
    assert abs(deviation) < 4.5 * error


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "n"), [((4, 4), 40), ((2, 2, 2), 33)])
def test_standard_error_covers(shape: tuple[int, ...], n: int) -> None:
    """Deviations in standard errors have the variance of Student's t, over many repetitions."""
    model = IsingDual(shape, 4.0)
    pulls = np.array([np.divide(*reference(model, n, seed)) for seed in range(200)])
    assert abs(pulls.mean()) < 4 / math.sqrt(200)
    assert 0.75 < float(np.square(pulls).mean()) < 1.45


def test_standard_error_counts_chains_not_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strongly correlated configurations do not shrink it."""
    monkeypatch.setattr(cluster, "SITES_AT_ONCE", 1)
    monkeypatch.setattr(
        swendsen_wang, "__kwdefaults__", swendsen_wang.__kwdefaults__ | {"between": 0}
    )
    bond = 1 / CRITICAL_TEMPERATURE
    few, many = (cluster.structure_factor((8, 8), (bond, bond), n) for n in (32, 320))
    assert many == pytest.approx(few)


def test_structure_factor_by_seed() -> None:
    model = IsingDual((4, 4))
    assert model.reference_structure_factor(50, 3) == model.reference_structure_factor(50, 3)
    assert model.reference_structure_factor(50, 3) != model.reference_structure_factor(50, 4)
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"n is {n}; accepted: an integer >= 2"):
            model.reference_structure_factor(n)


def test_large_lattice_against_pfaffians(seed: int) -> None:
    model = IsingDual((16, 16))
    mean, error = model.reference_structure_factor(512, seed)
    assert abs(mean - model.exact_structure_factor()) < 4 * error
    assert error < 0.03
