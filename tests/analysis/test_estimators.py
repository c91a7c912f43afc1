# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Estimators of mutual information against their definitions and against Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma

from pyro_neuralrg.analysis import Bins, Neighbours


def gaussian_ranks(correlation: float, size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size)
    y = correlation * x + math.sqrt(1 - correlation**2) * rng.normal(size=size)
    return [values.argsort().argsort() for values in (x, y)]


def estimates(estimator, correlation: float, size: int, repeats: int, seed: int) -> np.ndarray:
    found = []
    for index in range(repeats):
        ready = [estimator.prepare(r) for r in gaussian_ranks(correlation, size, seed + index)]
        found.append(estimator.contributions(*ready).mean())
    return np.array(found)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_neighbours_count_as_kraskov_et_al_do(k: int, seed: int) -> None:
    ranks = gaussian_ranks(0.7, 60, seed)
    ready = [Neighbours(k).prepare(r) for r in ranks]
    x, y = (values for values, _ in ready)
    distance_x, distance_y = (np.abs(v[:, None] - v) for v in (x, y))
    joint = np.maximum(distance_x, distance_y)
    np.fill_diagonal(joint, np.inf)
    radius = np.sort(joint, axis=1)[:, k - 1 : k]
    counts = [(distance < radius).sum(1) - 1 for distance in (distance_x, distance_y)]
    expected = digamma(k) + digamma(60) - digamma(counts[0] + 1) - digamma(counts[1] + 1)
    np.testing.assert_allclose(Neighbours(k).contributions(*ready), expected)


@pytest.mark.parametrize("correlation", [0.0, 0.3, -0.6, 0.9])
def test_neighbours_of_gaussians(correlation: float, seed: int) -> None:
    found = estimates(Neighbours(4), correlation, 1000, 60, seed)
    exact = -0.5 * math.log(1 - correlation**2)
    error = found.std() / math.sqrt(60)
    assert abs(found.mean() - exact) < 4 * error + 0.02 * exact  # its bias where both depend
    assert error < 0.006


def test_bins_are_those_of_the_frequencies(seed: int) -> None:
    ranks = gaussian_ranks(0.8, 200, seed)
    estimator = Bins(4)
    first, second = (estimator.prepare(r) for r in ranks)
    assert np.bincount(first).tolist() == [50] * 4
    exact = 0.0
    for a in range(4):
        for b in range(4):
            p = np.mean((first == a) & (second == b))
            if p:
                exact += p * math.log(p / 0.25**2)
    assert estimator.contributions(first, second).mean() == pytest.approx(exact)
    assert exact > 0.2


def test_bins_of_independent_variables_have_the_known_bias(seed: int) -> None:
    found = estimates(Bins(8), 0.0, 5000, 100, seed)
    assert abs(found.mean() - 49 / 10_000) < 4 * found.std() / 10


def test_bins_bound_from_below(seed: int) -> None:
    few, many = (estimates(Bins(b), 0.6, 50_000, 5, seed).mean() for b in (4, 16))
    exact = -0.5 * math.log(1 - 0.36)
    assert few < many < exact
    assert many > 0.93 * exact


@pytest.mark.parametrize("make", [lambda v: Neighbours(v), lambda v: Bins(v)])
def test_bad_numbers(make) -> None:
    with pytest.raises(ValueError, match=r"is 0; accepted: an integer >= [12]"):
        make(0)
    with pytest.raises(TypeError, match=r"is 2\.5"):
        make(2.5)
