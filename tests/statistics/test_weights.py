# SPDX-License-Identifier: Apache-2.0
"""Importance weights: by hand, with tails of known shape, and what are no weights."""

from __future__ import annotations

import math
from typing import Any

import arviz
import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import LogWeights, kish_fractions


def test_estimates_by_hand() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0])
    found = LogWeights(weights.log() + 1000.0)  # beyond the range of exp
    assert found.log_mean.value == pytest.approx(1000.0 + math.log(8.0 / 3.0))
    relative = weights.std() / weights.mean() / math.sqrt(3.0)
    assert found.log_mean.standard_error == pytest.approx(relative.item())
    assert found.mean_log.value == pytest.approx(1000.0 + weights.log().mean().item())
    assert found.mean_log.standard_error == pytest.approx(weights.log().std().item() / 3**0.5)
    assert found.ess == pytest.approx(64.0 / 30.0 / 3.0)
    assert repr(found) == "LogWeights(3 samples, 71.1 % effective)"
    single = LogWeights(np.zeros(1))
    for found in (single.log_mean, single.mean_log):
        assert tuple(found) == pytest.approx((0.0, math.nan), nan_ok=True)


def test_weights_of_zero() -> None:
    """The mean weight leaves them out, the mean of ln w does not."""
    some = LogWeights(torch.tensor([0.0, 0.0, -math.inf, -math.inf]))
    assert tuple(some.log_mean) == pytest.approx((-math.log(2.0), math.sqrt(1.0 / 3.0)))
    assert some.ess == pytest.approx(0.5)
    none = LogWeights(torch.full((4,), -math.inf))
    assert (none.mean_log.value, none.log_mean.value, none.ess) == (-math.inf, -math.inf, 0.0)
    for figure in (none.pareto_k, none.log_mean.standard_error, none.mean_log.standard_error):
        assert math.isnan(figure)


def test_effective_fractions_of_rows() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf], [-math.inf] * 3])
    torch.testing.assert_close(kish_fractions(rows), torch.tensor([1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(kish_fractions(rows - 500), kish_fractions(rows))


@pytest.mark.parametrize("shape", [-0.5, 0.3, 0.9])
def test_pareto_k_of_weights_of_known_tail(shape: float) -> None:
    """u^-k of uniform u; for negative k the weights 1 - u^-k, whose tail ends at 1."""
    u = np.random.default_rng(int(torch.randint(2**31, ()))).uniform(size=20_000)
    log_weights = -shape * np.log(u) if shape > 0 else np.log1p(-(u**-shape))
    found = LogWeights(torch.from_numpy(log_weights)).pareto_k
    # 425 weights of the tail, and a prior that draws k to 0.5 by 10 of them
    assert abs(found - shape) < 0.2
    if hasattr(arviz, "psislw"):  # ArviZ 0.x
        theirs, k = arviz.psislw(log_weights)
        assert found == pytest.approx(float(k), abs=1e-9)
        smoothed = LogWeights(torch.from_numpy(log_weights)).smoothed.values
        ours = (smoothed - smoothed.logsumexp(0)).numpy()
        np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-9)
    shifted = np.where(np.arange(20_000) % 3 == 0, -np.inf, log_weights + 1e4)
    assert abs(LogWeights(shifted).pareto_k - shape) < 0.25
    assert math.isnan(LogWeights(shifted, copies=True).pareto_k)


def test_smoothed_weights_of_which_most_are_equal() -> None:
    """The tail is what is above the others: twenty of 190."""
    values = torch.zeros(4000)
    values[:20] = torch.rand(20)
    weights = LogWeights(values)
    smoothed = weights.smoothed.values
    assert bool((smoothed[20:] == 0).all())
    assert float(smoothed.max()) <= float(values.max())
    assert weights.smoothed.log_mean.value == pytest.approx(weights.log_mean.value, abs=1e-3)


def test_pareto_k_where_there_is_no_tail() -> None:
    some = np.random.default_rng(0).normal(size=30)
    assert math.isfinite(LogWeights(some).pareto_k)
    for none in (some[:29], np.zeros(100), np.full(100, -np.inf)):
        assert math.isnan(LogWeights(none).pareto_k)
    for least in (-1000.0, -np.inf):
        assert LogWeights(np.r_[0.0, np.full(99, least)]).pareto_k == math.inf


HEAVY = -0.9 * np.log(np.random.default_rng(0).uniform(size=2000))


@pytest.mark.parametrize(("values", "tail"), [(np.zeros(9), ""), (HEAVY, "Pareto k-hat")])
def test_poor_weights_warn_at_the_callers_line(values: Any, tail: str) -> None:
    assert LogWeights(np.zeros(11)).is_trustworthy
    LogWeights(np.zeros(11)).warn_if_poor()
    weights = LogWeights(values)
    assert not weights.is_trustworthy

    def caller() -> None:
        weights.warn_if_poor("annealed")

    text = f"the annealed estimate rests on {weights.ess * len(weights):.1f} effective .*{tail}"
    with pytest.warns(UserWarning, match=text) as caught:
        caller()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.zeros((2, 50)), r"log_weights has shape \(2, 50\); accepted"),
        (torch.zeros(0), r"log_weights has shape \(0,\); accepted"),
        (np.r_[np.zeros(50), np.nan], "log_weights has 1 of 51 entries that are NaN or plus inf"),
    ],
)
def test_bad_log_weights(weights: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LogWeights(weights)
