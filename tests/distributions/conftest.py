# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyro_neuralrg.transforms import hierarchical_flow
from tests.transforms.registry import perturb


@pytest.fixture
def jittered() -> Callable[..., Any]:
    """Make a flow with random parameters, so that no term of ln q vanishes."""
    return lambda shape, **options: perturb(hierarchical_flow(shape, **options), 0.1)
