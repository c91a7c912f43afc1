# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How far the chains of a variable with many sites have converged: the worst site and the median.

Plain numpy in, numbers out; the figures are ArviZ's, whichever is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.statistics.draws import MIN_DRAWS
from pyro_neuralrg.statistics.summary import arviz_module, quiet

__all__ = ["LARGEST_RHAT", "FieldSummary", "Figures", "bfmi", "rank_counts", "summarise_field"]

#: R-hat above which chains are said not to have converged (Vehtari et al. 2021).
LARGEST_RHAT = 1.01

#: Numbers that are looked at of one variable; ArviZ takes about 0.05 s for 64 chains x 1000 draws
#: of one site, so a field of 16 x 16 would take 12 s.
BUDGET = 2**22
#: Sites that are looked at in any case.
LEAST_SITES = 8
#: Tails whose effective sample size is told, as in Vehtari et al. (2021).
TAILS = (0.05, 0.95)

Array = NDArray[np.float64]


class Figures(NamedTuple):
    """Figures of one site, or of a summary over sites.

    Attributes:
        mean: over chains and draws.
        sd: standard deviation over chains and draws.
        mcse: Monte Carlo standard error of the mean.
        ess_bulk: bulk effective sample size, of all chains together.
        ess_tail: the smaller effective sample size of the 5 % and 95 % quantiles.
        rhat: rank-normalised split R-hat; NaN for a single chain or a constant series, infinite if
            every chain is constant but they differ.
    """

    mean: float
    sd: float
    mcse: float
    ess_bulk: float
    ess_tail: float
    rhat: float


@dataclass(frozen=True)
class FieldSummary:
    """Figures of each site that was looked at.

    Attributes:
        shape: of the sites, ``()`` for a scalar.
        sites: flat indices of the sites looked at, shape ``(evaluated,)``.
        figures: their figures, one array of shape ``(evaluated,)`` each in the order of
            :class:`Figures`.
    """

    shape: tuple[int, ...]
    sites: NDArray[np.intp]
    figures: dict[str, Array]

    @property
    def coverage(self) -> str:
        """How many sites were looked at, in words; empty if all were.

        Example:
            >>> import numpy as np
            >>> summarise_field(np.zeros((2, 10, 4, 4)), max_sites=3).coverage
            '3 of 16 sites'
        """
        total = math.prod(self.shape)
        return "" if len(self.sites) == total else f"{len(self.sites)} of {total} sites"

    @property
    def relative_mcse(self) -> Array:
        """Standard error of the mean in units of the standard deviation, of each site."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.figures["mcse"] / self.figures["sd"]

    def median(self) -> Figures:
        """The median over sites of each figure, NaNs left out."""
        return Figures(**{name: _without_nan(np.median, v) for name, v in self.figures.items()})

    def worst(self) -> Figures:
        """The worst over sites of each figure by itself; NaN for mean and sd if they are many."""
        one = len(self.sites) == 1
        return Figures(
            mean=float(self.figures["mean"][0]) if one else math.nan,
            sd=float(self.figures["sd"][0]) if one else math.nan,
            mcse=_without_nan(np.max, self.figures["mcse"]),
            ess_bulk=_without_nan(np.min, self.figures["ess_bulk"]),
            ess_tail=_without_nan(np.min, self.figures["ess_tail"]),
            rhat=_without_nan(np.max, self.figures["rhat"]),
        )

    def where(self, values: Array) -> tuple[int, ...]:
        """The site at which ``values``, of shape ``(evaluated,)``, are largest."""
        flat = self.sites[int(np.argmax(np.where(np.isnan(values), -np.inf, values)))]
        return tuple(int(index) for index in np.unravel_index(flat, self.shape))


def summarise_field(values: Any, max_sites: int | None = None) -> FieldSummary:
    """Mean, sd, standard error, effective sample sizes and R-hat of the sites of a field.

    Of a field with many sites a random choice is looked at, the same one each time: ArviZ takes
    about 0.8 s for each million numbers.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws) + site shape``.
        max_sites: sites to look at, at most; None takes as many as have four million numbers (65
            for 64 chains of 1000 draws), at least eight.

    Returns:
        A :class:`FieldSummary`; all but mean and sd are NaN of fewer than four draws.

    Raises:
        ValueError: if ``values`` has no chains, draws or sites.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, "Rank-normalization, folding, and
        localization: an improved R-hat", Bayesian Analysis 16 (2021).

    Example:
        >>> import numpy as np
        >>> field = np.random.default_rng(0).normal(size=(4, 500, 3, 3))
        >>> found = summarise_field(field)
        >>> found.worst().rhat < 1.02, found.worst().ess_bulk > 1000
        (True, True)
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    array = np.asarray(detached, dtype=np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"values has shape {array.shape}; accepted: (chains, draws, ...), >= 1")
    chains, draws, shape = array.shape[0], array.shape[1], array.shape[2:]
    flat = array.reshape(chains, draws, -1)
    sites = _choose(flat.shape[2], chains * draws, max_sites)
    rows = [_figures(flat[..., site]) for site in sites]
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in Figures._fields}
    return FieldSummary(shape, sites, columns)


def bfmi(energy: Any) -> Array:
    """Bayesian fraction of missing information of each chain (Betancourt 2016), by ArviZ.

    Mean squared change of the Hamiltonian from draw to draw over its variance: about 1 if fresh
    momenta take the chain anywhere in energy, small if they do not.

    Args:
        energy: the Hamiltonian of each draw, numpy array or torch tensor ``(chains, draws)``.

    Returns:
        Shape ``(chains,)``; NaN of a constant chain.

    Example:
        >>> import numpy as np
        >>> walk = np.random.default_rng(0).normal(size=(2, 1000)).cumsum(1)
        >>> bool((bfmi(walk) < 0.3).all())
        True
    """
    detached = energy.detach().cpu() if hasattr(energy, "detach") else energy
    array = np.asarray(detached, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"energy has shape {array.shape}; accepted: (chains, draws)")
    az = arviz_module()
    with quiet():
        return np.atleast_1d(np.asarray(az.bfmi(array), dtype=np.float64))


def rank_counts(values: Any, bins: int = 20) -> Array:
    """Counts of the ranks of each chain's draws among all draws, for a rank plot.

    Chains that sample the same distribution have about ``draws / bins`` in each bin.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws)``; equal draws share the
            ranks between them in turn.
        bins: of equal width from the lowest to the highest rank.

    Returns:
        Shape ``(chains, bins)``, summing to the draws of each chain.

    Raises:
        ValueError: if ``values`` has another number of dimensions or fewer draws than bins.

    Example:
        >>> rank_counts([[1.0, 2.0], [3.0, 4.0]], bins=2)
        array([[2., 0.],
               [0., 2.]])
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    array = np.asarray(detached, dtype=np.float64)
    if array.ndim != 2 or not 1 <= bins <= array.size:
        raise ValueError(
            f"values has shape {array.shape} and bins is {bins}; accepted: (chains, draws), and "
            "from 1 bin to as many as there are draws in all"
        )
    # draw by draw, so that equal values of different chains take turns
    order = np.argsort(array.T.reshape(-1), kind="stable")
    ranks = np.empty(array.size, dtype=np.intp)
    ranks[order] = np.arange(array.size)
    bin_of = (ranks * bins // array.size).reshape(array.shape[1], array.shape[0]).T
    return np.stack([np.bincount(row, minlength=bins) for row in bin_of]).astype(np.float64)


def _figures(series: Array) -> Figures:
    """Of one site, shape ``(chains, draws)``."""
    az = arviz_module()
    chains, draws = series.shape
    mcse = ess_bulk = ess_tail = rhat = math.nan
    with quiet():
        if draws >= MIN_DRAWS:
            # ArviZ 0.23 returns some of its figures as arrays of one number
            mcse = np.asarray(az.mcse(series, method="mean")).item()
            ess_bulk = np.asarray(az.ess(series, method="bulk")).item()
            ess_tail = np.asarray(az.ess(series, method="tail", prob=TAILS)).item()
        if draws >= MIN_DRAWS and chains > 1:
            rhat = np.asarray(az.rhat(series)).item()
        sd = float(series.std(ddof=1)) if series.size > 1 else math.nan
    return Figures(float(series.mean()), sd, mcse, ess_bulk, ess_tail, rhat)


def _choose(total: int, numbers: int, max_sites: int | None) -> NDArray[np.intp]:
    """Flat indices of the sites to look at; random, since a regular choice may follow a column."""
    count = max(LEAST_SITES, BUDGET // numbers) if max_sites is None else max(1, max_sites)
    if count >= total:
        return np.arange(total, dtype=np.intp)
    chosen = np.random.default_rng(0).choice(total, size=count, replace=False)
    return np.sort(chosen).astype(np.intp)


def _without_nan(function: Any, values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(function(known)) if known.size else math.nan
