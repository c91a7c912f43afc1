# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Tails of importance weights: of known shape, absent, or of what are no weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import pareto_k


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
