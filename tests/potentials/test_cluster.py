# SPDX-License-Identifier: Apache-2.0
"""Swendsen-Wang: exact states stay exact, whatever the signs, the boundary and the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.potentials import IsingModel, cluster
from tests.potentials.enumeration import Ising

MODELS: dict[str, dict[str, Any]] = {
    "ferromagnet": {"shape": (2, 3), "temperature": 3.0},
    "antiferromagnet, frustrated": {"shape": (3, 3), "couplings": (-1.0, -0.6)},
    "mixed signs": {"shape": (2, 2, 2), "couplings": (0.5, -0.3, 0.2), "temperature": 1.5},
    "field": {"shape": (2, 3), "field": 0.4, "temperature": 3.0},
    "staggered field": {"shape": (6,), "field": [1.0, -0.5, 0.2, -1, 0.1, 0.3], "temperature": 2.3},
    "strong field against weak bonds": {"shape": (3, 2), "field": 2.0, "couplings": (-1.0, 0.3)},
    "open": {"shape": (3, 3), "boundary": "open", "temperature": 1.5},
    "side 1": {"shape": (1, 5), "temperature": 1.5},
    "no bonds": {"shape": (3,), "couplings": (0.0,), "field": 0.5, "temperature": 2.3},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chains", [400, 4000])
def test_every_state_has_its_weight(name: str, chains: int, seed: int) -> None:
    """Counts of all 2^N states against their probabilities: no moment is left out."""
    model = IsingModel(**MODELS[name])
    n, sites, field = 4000, math.prod(model.shape), model.reduced_field
    spins = cluster.swendsen_wang(
        model.bonds,
        None if field is None else field.flatten().numpy(),
        sites,
        chains=chains,
        rounds=n // chains,
        seed=seed,
        warmup=20,
        between=10,
    )
    code = ((spins.reshape(n, sites) + 1) // 2).astype(int) @ 2 ** np.arange(sites)
    counts = np.bincount(code, minlength=2**sites)
    expected = n * Ising.of(model).probability.numpy()
    order = np.argsort(expected)
    # rare states are put together until each cell holds at least ten
    cell = np.cumsum(expected[order]) // 10
    observed, mean = (
        np.bincount(np.unique(cell, return_inverse=True)[1], v[order]) for v in (counts, expected)
    )
    chi_squared = float(((observed - mean) ** 2 / mean).sum())
    freedom = len(mean) - 1
    assert chi_squared < freedom + 4.5 * math.sqrt(2 * freedom) + 4.5


def test_zero_temperature_limit_is_ordered() -> None:
    spins = IsingModel((8, 8), 0.02, (1.0, -1.0)).sample(20)
    assert set(spins.unique().tolist()) == {-1.0, 1.0}
    assert bool(((spins * torch.tensor([1.0, -1.0] * 4)).sum((1, 2)).abs() == 64).all())


def test_configurations_of_a_chain_are_nearly_independent(seed: int) -> None:
    """|m| at Tc from one to the next of a single chain; a sweep apart they have 0.7."""
    n = 400
    bonds = IsingModel((8, 8)).bonds
    spins = cluster.swendsen_wang(bonds, None, 64, chains=1, rounds=n, seed=seed)
    size = np.abs(spins.mean((1, 2)))
    centred = size - size.mean()
    autocorrelation = float((centred[1:] * centred[:-1]).mean() / np.square(centred).mean())
    assert abs(autocorrelation) < 4.5 / math.sqrt(n) + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "n"), [((4, 4), 40), ((2, 2, 2), 33)])
def test_standard_error_covers(shape: tuple[int, ...], n: int) -> None:
    """Deviations in standard errors have the variance of Student's t, over many repetitions."""
    model = IsingModel(shape, 4.0)
    found = np.array([tuple(model.reference_structure_factor(n, seed)) for seed in range(200)])
    pulls = (found[:, 0] - model.structure_factor()) / found[:, 1]
    assert abs(pulls.mean()) < 4 / math.sqrt(200)
    assert 0.75 < float(np.square(pulls).mean()) < 1.45


@pytest.mark.parametrize("options", [*MODELS.values(), {"shape": (16, 16)}], ids=[*MODELS, "large"])
def test_structure_factor_is_the_exact_one(options: dict[str, Any], seed: int) -> None:
    model = IsingModel(**options)
    value, error = model.reference_structure_factor(4000 if model.shape[0] < 16 else 512, seed)
    assert 0 < error < 0.06 * value
    assert abs(value - model.structure_factor()) < 4.5 * error
    with pytest.raises(ValueError, match="n is 1; accepted: an integer >= 2"):
        model.reference_structure_factor(1)
