# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What ArviZ says of one series of draws, for whichever ArviZ is installed.

Plain numpy in, numbers out; ArviZ, slow to import, is imported at the first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from pyro_neuralrg.statistics.draws import MIN_DRAWS, as_draws

__all__ = ["Summary", "arviz_module", "quiet", "summarise"]

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
    series = as_draws(values)
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
