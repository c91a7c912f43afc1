# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's figures of one series, for whichever ArviZ is installed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from pyro_neuralrg.series import pareto_k, quiet, summarise


def autoregressive(correlation: float, chains: int, draws: int) -> np.ndarray:
    """Standard normal draws whose neighbours have this correlation."""
    noise = np.random.default_rng(int(torch.randint(2**31, ()))).normal(size=(draws, chains))
    series = [noise[0]]
    for step in noise[1:]:
        series.append(correlation * series[-1] + math.sqrt(1 - correlation**2) * step)
    return np.stack(series, 1)


def test_figures_of_a_series_of_known_correlation() -> None:
    """ESS of an autoregressive series is n (1 - r) / (1 + r)."""
    values = autoregressive(0.6, 20, 2000)
    found = summarise(torch.from_numpy(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.ess_bulk == pytest.approx(40_000 * 0.25, rel=0.15)
    assert found.mcse == pytest.approx(1 / math.sqrt(40_000 * 0.25), rel=0.15)
    assert abs(found.mean) < 4 * found.mcse
    assert 0.999 < found.rhat < 1.01


def test_chains_that_disagree_have_a_high_rhat() -> None:
    values = autoregressive(0.0, 4, 200)
    values[0] += 3
    assert summarise(values).rhat > 1.1


@pytest.mark.parametrize("shape", [(1, 100), (4, 3), (1, 1)])
def test_what_cannot_be_told_is_nan(shape: tuple[int, int]) -> None:
    found = summarise(np.random.default_rng(0).normal(size=shape))
    assert math.isfinite(found.mean)
    assert math.isnan(found.rhat)
    assert math.isnan(found.mcse) == math.isnan(found.ess_bulk) == (shape[1] < 4)


def test_constant_series_warn_of_nothing() -> None:
    assert math.isnan(summarise(np.ones((4, 100))).rhat)


@pytest.mark.parametrize(
    "text",
    [
        "More chains (64) than draws (5). Passed array should have shape (chains, draws, *shape)",
        "Found chain dimension to be longer than draw dimension. Check `sample_dims` is correct.",
    ],
    ids=["0.x", "1.x"],
)
def test_the_complaint_of_either_arviz_isquiet(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            warnings.warn(text, UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="another"), quiet():
        warnings.warn("another", UserWarning, stacklevel=1)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"values has shape \(10,\); accepted: \(chains, draws\)"):
        summarise(np.zeros(10))


@pytest.mark.parametrize("shape", [-0.5, 0.3, 0.9])
def test_pareto_k_of_weights_of_known_tail(shape: float) -> None:
    """u^-k of uniform u; for negative k the weights 1 - u^-k, whose tail ends at 1."""
    u = np.random.default_rng(int(torch.randint(2**31, ()))).uniform(size=20_000)
    log_weights = -shape * np.log(u) if shape > 0 else np.log1p(-(u**-shape))
    # 425 weights of the tail, and a prior that draws k to 0.5 by 10 of them
    assert abs(pareto_k(torch.from_numpy(log_weights)) - shape) < 0.2
    shifted = np.where(np.arange(20_000) % 3 == 0, -np.inf, log_weights + 1e4)
    assert abs(pareto_k(shifted) - shape) < 0.25


def test_pareto_k_where_there_is_no_tail() -> None:
    some = np.random.default_rng(0).normal(size=30)
    assert math.isfinite(pareto_k(some))
    assert math.isnan(pareto_k(some[:29]))
    assert math.isnan(pareto_k(np.zeros(100)))
    assert math.isnan(pareto_k(np.full(100, -np.inf)))
    assert pareto_k(np.r_[0.0, np.full(99, -1000.0)]) == math.inf
    assert pareto_k(np.r_[0.0, np.full(99, -np.inf)]) == math.inf


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.zeros((2, 50)), r"log_weights has shape \(2, 50\); accepted"),
        (np.r_[np.zeros(50), np.nan], "log_weights has 1 entries that are NaN or plus infinity"),
        (np.r_[np.zeros(50), np.inf], "log_weights has 1 entries that are NaN or plus infinity"),
    ],
)
def test_pareto_k_of_what_are_no_log_weights(weights: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pareto_k(weights)
