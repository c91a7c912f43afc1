# SPDX-License-Identifier: Apache-2.0
"""The integrated autocorrelation time of a series, with its error."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from pyro_neuralrg.statistics.draws import MIN_DRAWS, FloatArray, as_finite_draws

WINDOW_FACTOR = 1.5
"""The exponential autocorrelation time in units of the integrated one, for the choice of the window
(Wolff's S: 1 to 2 for most processes)."""


class AutocorrelationTime(NamedTuple):
    """An integrated autocorrelation time, in units of draws.

    Attributes:
        time: tau = 1/2 + sum of rho(t) over t >= 1; 1/2 for independent draws. The variance of the
            mean of n draws is 2 tau Var / n, the effective sample size n / (2 tau).
        standard_error: of ``time``.
        window: W, the largest lag in the sum.
    """

    time: float
    standard_error: float
    window: int


def integrated_autocorrelation_time(values: Any) -> AutocorrelationTime:
    r"""Estimate the integrated autocorrelation time of one series by the Gamma method.

    .. math:: \tau = \tfrac12 + \sum_{t=1}^W \rho(t), \qquad
        (\delta\tau)^2 = \frac1n \sum_{k=1}^{2W} \left(\sum_{t=1}^W
        [\rho(k + t) + \rho(k - t) - 2 \rho(k) \rho(t)]\right)^2

    The autocovariances are pooled over chains, about the mean of all n draws, so that chains that
    disagree give a long time, and corrected for that mean's own variance. W is the first lag at
    which the neglected tail, about exp(-W / S tau), is smaller than the error of what is summed,
    with ``|rho|`` for Wolff's rho, as correlations may alternate in sign. The error is Bartlett's,
    too small where the window is not short against the chains. Also ``tau_int``. O(n log n).

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws)``, at least four draws.

    Raises:
        ValueError: if the shape is another, an entry is not finite, or all entries are equal.

    Warns:
        UserWarning: if the correlations reach further than half of a chain.

    References:
        U. Wolff, Comput. Phys. Commun. 156, 143 (2004); N. Madras and A. D. Sokal, J. Stat. Phys.
        50, 109 (1988).

    Example:
        >>> found = integrated_autocorrelation_time(np.random.default_rng(0).normal(size=(4, 500)))
        >>> abs(found.time - 0.5) < 4 * found.standard_error
        True
    """
    series = as_finite_draws(values)
    if series.shape[1] < MIN_DRAWS:
        raise ValueError(f"values has shape {series.shape}; accepted: at least {MIN_DRAWS} draws")
    if (series == series[0, 0]).all():
        raise ValueError(
            f"values is {series[0, 0]:.6g} throughout; accepted: a series that varies, since a "
            "constant has no autocorrelation time"
        )
    found, reached = windowed_time(series)
    if not reached:
        warnings.warn(
            f"the autocorrelations of {series.shape[1]} draws a chain have not died out after "
            f"{found.window}: the time, {found.time:.3g}, is rather a lower bound; draw longer "
            "chains",
            stacklevel=2,
        )
    return found


tau_int = integrated_autocorrelation_time  # the name of lattice papers


def windowed_time(series: FloatArray) -> tuple[AutocorrelationTime, bool]:
    """The time of a series that varies; True if a window ended the sum before half a chain."""
    n = series.size
    gamma = _autocovariances(series, series.shape[1] // 2)
    window, reached = _window(gamma / gamma[0], n)
    # the mean's own variance C / n is missing in each autocovariance
    gamma = gamma[: window + 1]
    gamma = gamma + (2 * gamma.sum() - gamma[0]) / n
    rho = gamma / gamma[0]
    return AutocorrelationTime(float(rho.sum()) - 0.5, _standard_error(rho, n), window), reached


def _standard_error(rho: FloatArray, n: int) -> float:
    """Standard error of 1/2 + sum rho(t), by Bartlett's formula, without correlations beyond W."""
    window = len(rho) - 1
    both = np.concatenate([rho[:0:-1], rho, np.zeros(2 * window)])  # lags -W .. 3 W
    sums = np.concatenate([[0.0], np.cumsum(both)])
    lags = np.arange(1, 2 * window + 1)
    # sum over t = 1 .. W of rho(k + t) + rho(k - t): lags k - W .. k + W but k itself
    around = sums[lags + 2 * window + 1] - sums[lags]
    at = both[lags + window]
    terms = around - at - 2 * at * (rho.sum() - 1)
    return math.sqrt(float(np.square(terms).sum()) / n)


def _autocovariances(series: FloatArray, lags: int) -> FloatArray:
    """At lags 0 .. ``lags``, about the mean of all draws, averaged over all chains."""
    draws = series.shape[1]
    waves = np.fft.rfft(series - series.mean(), n=2 * draws, axis=1)  # zeros: no lag wraps round
    products = np.fft.irfft(np.square(np.abs(waves)).mean(0), n=2 * draws)[: lags + 1]
    return products / (draws - np.arange(lags + 1))


def _window(rho: FloatArray, n: int) -> tuple[int, bool]:
    """The first lag where the neglected tail is below the error; or the last one."""
    lags = np.arange(1, len(rho))
    reach = np.cumsum(np.abs(rho[1:])).clip(min=np.finfo(float).tiny)
    decay = WINDOW_FACTOR / np.log1p(1 / reach)
    balance = np.exp(-lags / decay) - decay / np.sqrt(lags * n)
    below = np.flatnonzero(balance < 0)
    return (int(lags[below[0]]), True) if len(below) else (int(lags[-1]), False)
