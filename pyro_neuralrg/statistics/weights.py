# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Effective sample size and Pareto k-hat of importance weights."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from torch import Tensor

from pyro_neuralrg.statistics.summary import arviz_module, quiet

__all__ = ["kish_fraction", "pareto_k"]

#: Of fewer importance weights no tail is fitted.
MIN_WEIGHTS = 30

#: Log-weights this far below the largest, or this much alike, differ by rounding only.
LOG_OF_NOTHING, ALIKE = -700.0, 1e-6


def pareto_k(log_weights: Any) -> float:
    """Shape k-hat of a generalised Pareto tail fitted to importance weights (ArviZ's PSIS).

    The weights have finite moments up to order 1 / k: above 0.5 their variance is infinite, above
    0.7 neither a mean of so many weights nor its error bar can be trusted.

    Args:
        log_weights: numpy array or torch tensor of shape ``(num_samples,)``; minus infinity is a
            weight of zero.

    Returns:
        The shape; infinity if too few weights are left to fit a tail to, since a handful outweighs
        all others; NaN of fewer than 30 weights, of weights that are all zero, and of equal ones,
        which have no tail.

    Raises:
        ValueError: if ``log_weights`` has another number of dimensions, NaNs or plus infinity.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling", JMLR 25 (2024).

    Example:
        >>> import numpy as np
    from torch import Tensor
        >>> uniform = np.random.default_rng(0).uniform(size=10_000)
        >>> bool(abs(pareto_k(-0.5 * np.log(uniform)) - 0.5) < 0.1)  # w = u^-0.5
        True
    """
    detached = log_weights.detach().cpu() if hasattr(log_weights, "detach") else log_weights
    weights = np.asarray(detached, dtype=np.float64)
    if weights.ndim != 1:
        raise ValueError(f"log_weights has shape {weights.shape}; accepted: (num_samples,)")
    bad = int(np.isnan(weights).sum() + np.isposinf(weights).sum())
    if bad:
        raise ValueError(
            f"log_weights has {bad} entries that are NaN or plus infinity; accepted: numbers, or "
            "minus infinity for a weight of zero"
        )
    if weights.size < MIN_WEIGHTS or not np.isfinite(weights.max()):
        return float("nan")
    relative = np.maximum(weights - weights.max(), LOG_OF_NOTHING)
    if relative.min() > -ALIKE:
        return float("nan")
    with quiet():
        shape = float(np.asarray(_psis(relative)[1]).item())
    return float("inf") if np.isnan(shape) else shape  # ArviZ 1.x says NaN of too short a tail


def kish_fraction(log_weights: Tensor) -> float:
    """Kish's effective sample size as a fraction, (sum w)^2 / (n sum w^2); 0 if all w are zero."""
    log_sum = float(log_weights.logsumexp(0))
    if log_sum == -math.inf:
        return 0.0
    log_sum_of_squares = float((2.0 * log_weights).logsumexp(0))
    return math.exp(min(0.0, 2.0 * log_sum - log_sum_of_squares - math.log(len(log_weights))))


def _psis(log_weights: np.ndarray) -> Any:
    """Smoothed log-weights and k-hat; ArviZ 1.x takes log-likelihoods, the other sign."""
    az = arviz_module()
    if hasattr(az, "psislw"):
        return az.psislw(log_weights)
    return importlib.import_module("arviz_stats.base").array_stats.psislw(-log_weights)
