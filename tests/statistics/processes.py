# SPDX-License-Identifier: Apache-2.0
"""Series whose correlations are known."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter


def generator() -> np.random.Generator:
    """Seeded by torch's state, and so by the name of the test."""
    return np.random.default_rng(int(torch.randint(2**31, ())))


def autoregressive(correlation: float, *shape: int) -> NDArray[np.float64]:
    """Standard normal draws whose neighbours along the last dimension have this correlation."""
    noise = generator().normal(size=shape) * math.sqrt(1 - correlation**2)
    noise[..., 0] /= math.sqrt(1 - correlation**2)
    return np.asarray(lfilter([1.0], [1.0, -correlation], noise, axis=-1))
