# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Humps and separate chains are found where they are, and rarely where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pyro_neuralrg.diagnostics.modes import MOST_POINTS, critical_dip, dip, split_of_chains


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], 1 / 4),  # 1 / (2 n): any two numbers have one hump at most
        ([0.0, 1.0, 2.0, 3.0], 1 / 8),
        ([0.0, 0.0, 1.0, 1.0], 1 / 4),  # two atoms: the largest dip there is
        ([5.0, 5.0, 5.0], 1 / 6),
        # half of the points near 0, half near 10: two humps, a quarter less what they are wide
        (np.r_[np.arange(50) * 1e-3, 10 + np.arange(50) * 1e-3], 0.25),
    ],
)
def test_dip_of_known_cases(values: np.ndarray, expected: float) -> None:
    assert dip(np.asarray(values)) == pytest.approx(expected, abs=2e-3)


def brute_force_dip(x: np.ndarray) -> float:
    """The definition as a linear program, for every mode between or at the data."""
    from scipy.optimize import linprog

    x = np.sort(x)
    n = len(x)
    best = math.inf
    for mode in range(n):  # convex up to x[mode], concave from there, a jump at the mode allowed
        # unknowns: g just below and at each point (they differ at the mode only), and d
        below, at = np.arange(n), np.arange(n) + n
        rows, right = [], []

        def add(entries: dict[int, float], bound: float, rows=rows, right=right) -> None:
            row = np.zeros(2 * n + 1)
            for index, value in entries.items():
                row[index] += value
            rows.append(row)
            right.append(bound)

        for i in range(n):
            if i != mode:
                add({below[i]: 1.0, at[i]: -1.0}, 0.0)
                add({below[i]: -1.0, at[i]: 1.0}, 0.0)
            else:
                add({below[i]: 1.0, at[i]: -1.0}, 0.0)
            for index, level in ((below[i], i / n), (at[i], (i + 1) / n)):
                add({index: 1.0, 2 * n: -1.0}, level)
                add({index: -1.0, 2 * n: -1.0}, -level)
        for i in range(n - 1):
            add({at[i]: 1.0, below[i + 1]: -1.0}, 0.0)
        for i in range(1, n - 1):
            before, after = x[i] - x[i - 1], x[i + 1] - x[i]
            slopes = {
                at[i - 1]: -1 / before,
                below[i]: 1 / before,
                at[i]: 1 / after,
                below[i + 1]: -1 / after,
            }
            if i < mode:
                add(slopes, 0.0)
            elif i > mode:
                add({index: -value for index, value in slopes.items()}, 0.0)
        cost = np.r_[np.zeros(2 * n), 1.0]
        found = linprog(cost, A_ub=np.array(rows), b_ub=np.array(right), bounds=(0, 1))
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("number", [4, 9, 14])
def test_dip_is_the_distance_to_the_nearest_distribution_with_one_hump(
    number: int, rng: np.random.Generator
) -> None:
    for _ in range(3):
        x = np.concatenate([rng.normal(size=number), 4 + rng.normal(size=number // 2)])
        assert dip(x) == pytest.approx(brute_force_dip(x), abs=1e-7)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": lambda rng, n: rng.uniform(size=n),
    "normal": lambda rng, n: rng.normal(size=n),
    "gamma": lambda rng, n: rng.gamma(2.0, size=n),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_hump_is_rarely_taken_for_two(shape: str, rng: np.random.Generator) -> None:
    """One in a thousand at most: of 400 samples, four or more have a chance of 1 in 1000."""
    found = [dip(SHAPES[shape](rng, 200)) > critical_dip(200) for _ in range(400)]
    assert sum(found) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [100, 1000])
def test_the_rate_at_which_the_uniform_distribution_is_taken_for_two_humps(
    number: int, rng: np.random.Generator
) -> None:
    scaled = np.array([dip(rng.uniform(size=number)) for _ in range(10_000)]) * math.sqrt(number)
    limit = critical_dip(number) * math.sqrt(number)
    assert (scaled > 0.85 * limit).sum() > 0  # the threshold is not out of reach
    assert (scaled > limit).sum() <= 10 + 4 * math.sqrt(10)


def test_two_humps_are_found(rng: np.random.Generator) -> None:
    draws = np.concatenate([rng.normal(size=300), 5 + rng.normal(size=200)])
    assert dip(draws) > 1.5 * critical_dip(500)


def test_long_series_are_thinned(rng: np.random.Generator) -> None:
    draws = rng.normal(size=50_000)
    assert dip(draws) < critical_dip(50_000) == critical_dip(MOST_POINTS)
    draws[::2] += 6
    assert dip(rng.permutation(draws)) > critical_dip(50_000)


@pytest.mark.parametrize("chains", [2, 4, 64])
def test_chains_of_one_distribution_are_not_apart(chains: int, rng: np.random.Generator) -> None:
    for draw in (rng.normal, rng.standard_cauchy, rng.exponential):
        assert max(split_of_chains(draw(size=(chains, 12))).gap for _ in range(50)) < 3


def test_chains_that_visit_both_modes_are_not_apart(rng: np.random.Generator) -> None:
    signs = np.where(rng.uniform(size=(8, 200)) < 0.5, -1.0, 1.0)
    assert split_of_chains(signs + 0.05 * rng.normal(size=(8, 200))).gap < 2.5


def test_separate_chains_are_counted(rng: np.random.Generator) -> None:
    draws = 0.1 * rng.normal(size=(10, 50))
    draws[[1, 4, 7]] += 2.0
    found = split_of_chains(draws)
    assert (found.low, found.high) == (7, 3)
    assert found.gap == pytest.approx(20, rel=0.3)
    assert found.low_median == pytest.approx(0.0, abs=0.1)
    assert found.high_median == pytest.approx(2.0, abs=0.1)


def test_chains_without_any_change_have_no_scale() -> None:
    assert math.isnan(split_of_chains(np.arange(4.0)[:, None] * np.ones(10)).gap)
