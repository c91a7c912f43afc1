# SPDX-License-Identifier: Apache-2.0
"""The integrated autocorrelation time on processes where it is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import integrated_autocorrelation_time, summarise
from tests.statistics.processes import autoregressive


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9, -0.5, -0.8])
def test_time_of_an_autoregressive_process_and_the_coverage_of_its_error(
    correlation: float,
) -> None:
    """Tau = (1 + r) / (2 (1 - r)); 200 runs of 4 chains."""
    exact = (1 + correlation) / (2 * (1 - correlation))
    runs = autoregressive(correlation, 200, 4, 1500)
    found = [integrated_autocorrelation_time(values) for values in runs]
    times = np.array([time for time, _, _ in found])
    errors = np.array([error for _, error, _ in found])
    # a standard deviation of 200 runs is known to 5 %; the window cuts off about exp(-W / tau)
    assert errors.mean() == pytest.approx(times.std(), rel=0.2)
    assert abs(times.mean() - exact) < 4 * times.std() / math.sqrt(200) + 0.02 * exact
    covered = (abs(times - exact) < errors).mean()
    assert abs(covered - 0.683) < 4 * math.sqrt(0.683 * 0.317 / 200)


def test_it_gives_the_error_of_the_mean() -> None:
    """Of ArviZ too: ESS = n / (2 tau)."""
    series = autoregressive(0.8, 8, 5000)
    found = integrated_autocorrelation_time(torch.from_numpy(series))
    error = found.standard_error / found.time
    assert summarise(series).ess_bulk == pytest.approx(40_000 / (2 * found.time), rel=4 * error)


def test_time_and_error_are_the_sums_of_their_definitions() -> None:
    """Term by term, and the time: lags do not wrap round, though the ends differ."""
    series = autoregressive(0.7, 5, 200) + np.arange(200) * 0.004
    found = integrated_autocorrelation_time(series)
    window, n = found.window, series.size
    deviations = series - series.mean()
    gamma = np.zeros(10 * window)
    for lag in range(window + 1):
        gamma[lag] = (deviations[:, lag:] * deviations[:, : 200 - lag]).sum() / (5 * (200 - lag))
    gamma[: window + 1] += (gamma[0] + 2 * gamma[1:].sum()) / n
    rho = gamma / gamma[0]
    variance = 0.0
    for k in range(1, 2 * window + 1):
        terms = [rho[k + t] + rho[abs(k - t)] - 2 * rho[k] * rho[t] for t in range(1, window + 1)]
        variance += sum(terms) ** 2 / n
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)
    assert found.time == pytest.approx(rho.sum() - 0.5, rel=1e-12)


def test_chains_that_disagree_have_a_long_time() -> None:
    values = autoregressive(0.0, 4, 400)
    values[0] += 3
    with pytest.warns(UserWarning, match="have not died out after 200"):
        found = integrated_autocorrelation_time(values)
    assert found.time > 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(10), r"values has shape \(10,\); accepted: \(chains, draws\)"),
        (np.zeros((3, 0)), r"values has shape \(3, 0\); accepted: at least one draw"),
        (np.zeros((5, 3)), r"values has shape \(5, 3\); accepted: at least 4 draws"),
        (np.full((2, 9), 0.3), r"values is 0\.3 throughout; accepted: a series that varies"),
        (np.array([[0.0, 1.0, np.inf, -np.inf]]), r"values has 2 entries that are not finite"),
    ],
)
def test_bad_series(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integrated_autocorrelation_time(values)
