# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_neuralrg.transforms import hierarchical_flow


@pytest.fixture
def jittered() -> Callable[..., Any]:
    """Make a flow with random parameters, so that no term of ln q vanishes."""

    def make(shape: tuple[int, ...], **options: Any) -> Any:
        flow = hierarchical_flow(shape, **options)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return flow

    return make
