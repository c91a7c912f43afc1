# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's figures of one series of draws, whichever ArviZ is installed.

Plain numpy in, numbers out; ArviZ, slow to import, is imported at the first use.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from pyro_neuralrg.statistics.draws import MIN_DRAWS, as_draws

MORE_CHAINS_THAN_DRAWS = ("More chains", "Found chain dimension to be longer than draw dimension")
"""Beginning of the complaint in ArviZ 0.x and in 1.x."""

TAIL_PROBABILITIES = (0.05, 0.95)
"""Quantiles whose effective sample size is reported, as in Vehtari et al. (2021)."""


class Summary(NamedTuple):
    """Figures of one series, or of the worst or median site of a field.

    Attributes:
        mean: over chains and draws.
        mcse: Monte Carlo standard error of the mean.
        rhat: rank-normalised split R-hat; NaN for a single chain or a constant series, infinite if
            every chain is constant but they differ.
        ess_bulk: bulk effective sample size, of all chains together.
        ess_tail: the smaller effective sample size of the 5 % and 95 % quantiles.
        sd: standard deviation over chains and draws.
    """

    mean: float
    mcse: float
    rhat: float
    ess_bulk: float
    ess_tail: float = math.nan
    sd: float = math.nan


def summarise(values: Any) -> Summary:
    """Mean, standard error, R-hat, effective sample sizes and standard deviation of one series.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws)``.

    Returns:
        A :class:`Summary`; all but mean and sd are NaN of fewer than four draws.

    Raises:
        ValueError: if ``values`` has another number of dimensions.

    Example:
        >>> result = summarise(np.random.default_rng(0).normal(size=(4, 500)))
        >>> abs(result.mean) < 4 * result.mcse and result.rhat < 1.01 and result.ess_bulk > 1500
        True
    """
    series = as_draws(values)
    az = arviz_module()
    chains, draws = series.shape
    mcse = rhat = ess_bulk = ess_tail = math.nan
    with quiet():
        if draws >= MIN_DRAWS:
            # ArviZ 0.23 returns some of its figures as arrays of one number
            mcse = np.asarray(az.mcse(series, method="mean")).item()
            ess_bulk = np.asarray(az.ess(series, method="bulk")).item()
            ess_tail = np.asarray(az.ess(series, method="tail", prob=TAIL_PROBABILITIES)).item()
        if draws >= MIN_DRAWS and chains > 1:
            rhat = np.asarray(az.rhat(series)).item()
        sd = float(series.std(ddof=1)) if series.size > 1 else math.nan
    return Summary(float(series.mean()), mcse, rhat, ess_bulk, ess_tail, sd)


def arviz_module() -> Any:
    """Import ArviZ, without its announcements."""
    with warnings.catch_warnings():  # ArviZ 0.23 announces its 1.0 at import
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

        return arviz


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore numpy's warnings of constant series and ArviZ's of more chains than draws.

    The NaNs of a constant series say as much, and a batch of chains may well be larger than the
    number of draws.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for text in MORE_CHAINS_THAN_DRAWS:
            warnings.filterwarnings("ignore", text, UserWarning)
        yield
