# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What ArviZ says of one series of draws, for whichever ArviZ is installed.

Plain numpy in, numbers out; ArviZ, slow to import, is imported at the first use.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Summary", "pareto_k", "summarise"]


#: ArviZ splits chains and needs two draws of each half.
MIN_DRAWS = 4

#: Of fewer importance weights no tail is fitted.
MIN_WEIGHTS = 30

#: Log-weights this far below the largest, or this much alike, differ by rounding only.
LOG_OF_NOTHING, ALIKE = -700.0, 1e-6

#: How the complaint begins in ArviZ 0.x and in 1.x.
MORE_CHAINS_THAN_DRAWS = ("More chains", "Found chain dimension to be longer than draw dimension")


class Summary(NamedTuple):
    """What is said of the mean of one series.

    Attributes:
        mean: over chains and draws.
        mcse: Monte Carlo standard error of the mean.
        rhat: rank-normalised split R-hat; NaN for a single chain or a constant series.
        ess_bulk: bulk effective sample size, of all chains together.
    """

    mean: float
    mcse: float
    rhat: float
    ess_bulk: float


def summarise(values: Any) -> Summary:
    """Mean, standard error, R-hat and effective sample size of one series.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws)``.

    Returns:
        A :class:`Summary`; all but the mean are NaN of fewer than four draws.

    Raises:
        ValueError: if ``values`` has another number of dimensions.

    Example:
        >>> import numpy as np
        >>> result = summarise(np.random.default_rng(0).normal(size=(4, 500)))
        >>> abs(result.mean) < 4 * result.mcse and result.rhat < 1.01 and result.ess_bulk > 1500
        True
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    series = np.asarray(detached, dtype=np.float64)
    if series.ndim != 2:
        raise ValueError(f"values has shape {series.shape}; accepted: (chains, draws)")
    az = arviz_module()
    chains, draws = series.shape
    nan = float("nan")
    mcse, rhat, ess = nan, nan, nan
    with quiet():
        if draws >= MIN_DRAWS:
            # ArviZ 0.23 returns some of its figures as arrays of one number
            mcse = np.asarray(az.mcse(series, method="mean")).item()
            ess = np.asarray(az.ess(series, method="bulk")).item()
        if draws >= MIN_DRAWS and chains > 1:
            rhat = np.asarray(az.rhat(series)).item()
    return Summary(float(series.mean()), mcse, rhat, ess)


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


def _psis(log_weights: np.ndarray) -> Any:
    """Smoothed log-weights and k-hat; ArviZ 1.x takes log-likelihoods, the other sign."""
    az = arviz_module()
    if hasattr(az, "psislw"):
        return az.psislw(log_weights)
    return importlib.import_module("arviz_stats.base").array_stats.psislw(-log_weights)


def arviz_module() -> Any:
    """Import ArviZ, without its announcements."""
    with warnings.catch_warnings():  # ArviZ 0.23 announces its 1.0 at import
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

        return arviz


@contextmanager
def quiet() -> Iterator[None]:
    """Without complaints about what is meant.

    Numpy's about constant series (NaNs in the result tell as much), and ArviZ's about more chains
    than draws: the dimensions of a batch of chains are in their places.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for text in MORE_CHAINS_THAN_DRAWS:
            warnings.filterwarnings("ignore", text, UserWarning)
        yield
