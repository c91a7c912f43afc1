# SPDX-License-Identifier: Apache-2.0
"""Models of Pyro's tutorials and examples behind the guide's defaults."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.pyro_models import MODELS, guided

TUTORIALS = "eight schools", "linear regression", "logistic, centred", "Gaussian process"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model does not take all particles at once")
@pytest.mark.parametrize("name", TUTORIALS)
def test_svi_with_defaults_is_no_worse_than_a_diagonal_normal(name: str) -> None:
    found = guided(MODELS[name](), 0)
    assert found.flow > found.normal - 3 * math.hypot(found.flow_se, found.normal_se)
