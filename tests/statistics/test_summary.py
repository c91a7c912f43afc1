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
from pyro_neuralrg.statistics.summary import MORE_CHAINS_THAN_DRAWS
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


@pytest.mark.parametrize("text", MORE_CHAINS_THAN_DRAWS, ids=["0.x", "1.x"])
def test_the_complaint_of_either_arviz_is_quiet(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            warnings.warn(text, UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="another"), quiet():
        warnings.warn("another", UserWarning, stacklevel=1)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"values has shape \(10,\); accepted: \(chains, draws\)"):
        summarise(np.zeros(10))
