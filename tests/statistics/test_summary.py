# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's figures of one series, for whichever ArviZ is installed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import quiet, summarise
from tests.statistics.processes import autoregressive


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
