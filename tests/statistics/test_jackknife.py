# SPDX-License-Identifier: Apache-2.0
"""The jackknife: exact where the algebra is, and the coverage of its error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import Estimate, jackknife, with_error
from tests.statistics.processes import autoregressive


def test_means_and_variances_are_the_usual_ones() -> None:
    values = torch.from_numpy(autoregressive(0.0, 40, 1))
    found = jackknife(lambda mean: 3 * mean, values)
    assert found.value == pytest.approx(3 * float(values.mean()), rel=1e-12)
    error = 3 * float(values.std()) / math.sqrt(40)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    variance = jackknife(lambda mean, square: square - mean**2, values, values.square())
    assert variance.value == pytest.approx(float(values.var()), rel=1e-12)


def test_blocks_of_unequal_length_weigh_as_their_draws() -> None:
    values = autoregressive(0.5, 3, 11)
    found = jackknife(lambda mean: mean, values, blocks=4)
    blocks = [block for chain in values for block in np.split(chain, [2, 5, 8])]
    means, sizes = (np.array([of(block) for block in blocks]) for of in (np.mean, len))
    variance = (np.square(means - values.mean()) / (33 / sizes - 1)).mean()
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize(("chains", "draws"), [(40, 100), (4, 1000), (1, 4000)])
def test_coverage(correlation: float, chains: int, draws: int) -> None:
    """Of the ratio <x^4> / <x^2>^2 = 3 of 300 runs: whole chains, and blocks cut from chains."""
    runs = autoregressive(correlation, 300, chains, draws)
    found = [jackknife(lambda square, fourth: fourth / square**2, x**2, x**4) for x in runs]
    values, errors = np.array([tuple(one) for one in found]).T
    scatter = values.std()
    assert abs(values.mean() - 3) < 4 * scatter / math.sqrt(300)
    assert errors.mean() == pytest.approx(scatter, rel=0.2)
    covered = (abs(values - 3) < errors).mean()
    assert abs(covered - 0.66) < 4 * math.sqrt(0.66 * 0.34 / 300)  # of few blocks, 0.65 to 0.68


def test_blocks_are_long_against_the_correlations() -> None:
    """Blocks of the length that 32 of them would have make the error of the mean too small."""
    values = autoregressive(0.98, 3, 4000)
    exact = math.sqrt(2 * 49.5 / 12_000)
    short = jackknife(lambda mean: mean, values, blocks=400).standard_error
    chosen = jackknife(lambda mean: mean, values).standard_error
    assert short < 0.5 * exact
    assert 0.6 * exact < chosen < 1.5 * exact


def test_constants_and_functions_that_are_not_known() -> None:
    found = jackknife(lambda mean: mean**2, np.full((3, 100), 0.5))
    assert tuple(found) == pytest.approx((0.25, 0.0), abs=1e-14)
    assert all(math.isnan(part) for part in jackknife(lambda mean: math.nan, np.ones((40, 3))))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.545123, 0.00161, "0.5451(16)"), (622.267, 13.395, "622(13)"), (-3.0, 9.96, "-3(10)"),
     (1.0, 0.0996, "1.00(10)"), (3.0, 0.995, "3.00(99)"), (2.0, 1.44, "2.0(1.4)"),
     (0.25, 0.0, "0.25(0)"), (1.0, math.nan, "1(nan)"), (math.inf, 1.0, "inf(1)")],
)  # fmt: skip
def test_a_value_with_its_error_in_brackets(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == str(Estimate(value, error)) == text


def test_few_blocks_warn() -> None:
    slow = np.linspace(0, 1, 500)[None]
    with pytest.warns(UserWarning, match=r"comes from 2 blocks only"):
        jackknife(lambda mean: mean, slow)
    jackknife(lambda mean: mean, slow, blocks=2)  # asked for


@pytest.mark.parametrize(
    ("series", "blocks", "error", "message"),
    [
        ((), None, ValueError, r"series is empty; accepted"),
        ((np.ones(5),), None, ValueError, r"series\[0\] has shape \(5,\); accepted: \(chains"),
        ((np.ones((4, 5)), np.ones((4, 6))), None, ValueError, r"series\[1\] has shape \(4, 6\)"),
        ((np.full((4, 5), math.nan),), None, ValueError, r"series\[0\] has 20 entries that are no"),
        ((np.ones((1, 3)),), None, ValueError, r"series has 1 chains of 3 draws, one block"),
        ((np.ones((3, 9)),), 10, ValueError, r"blocks is 10; accepted: an integer from 1 to 9"),
        ((np.ones((3, 9)),), 2.5, TypeError, r"blocks is 2.5; accepted"),
    ],
)
def test_bad_arguments(series: Any, blocks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        jackknife(lambda *means: means[0], *series, blocks=blocks)
