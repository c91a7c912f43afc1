# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Convergence of the chains of a variable with many sites: the worst site and the median."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.statistics.draws import as_array, as_draws
from pyro_neuralrg.statistics.summary import Summary, arviz_module, quiet, summarise

LARGEST_RHAT = 1.01
"""R-hat above which chains are said not to have converged (Vehtari et al. 2021)."""

MAX_NUMBERS = 2**22
"""Numbers of one variable that are evaluated; ArviZ takes about 0.05 s for 64 chains x 1000 draws
of one site, so a field of 16 x 16 would take 12 s."""

MIN_SITES = 8
"""Sites that are evaluated in any case."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FieldSummary:
    """Figures of the sites of a field that were evaluated.

    Attributes:
        shape: of the sites, ``()`` for a scalar.
        sites: flat indices of the sites evaluated, shape ``(evaluated,)``.
        figures: one array of shape ``(evaluated,)`` for each field of
            :class:`~pyro_neuralrg.statistics.Summary`.
    """

    shape: tuple[int, ...]
    sites: NDArray[np.intp]
    figures: dict[str, Array]

    @property
    def coverage(self) -> str:
        """Number of sites evaluated, in words; empty if all were.

        Example:
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

    def median(self) -> Summary:
        """The median over sites of each figure, NaNs left out."""
        return Summary(**{name: _without_nan(np.median, v) for name, v in self.figures.items()})

    def worst(self) -> Summary:
        """The worst over sites of each figure by itself; NaN for mean and sd if they are many."""
        found = {}
        for name, values in self.figures.items():
            if name in ("mean", "sd"):
                found[name] = float(values[0]) if len(values) == 1 else math.nan
            else:
                found[name] = _without_nan(np.min if "ess" in name else np.max, values)
        return Summary(**found)

    def where(self, values: Array) -> tuple[int, ...]:
        """The site at which ``values``, of shape ``(evaluated,)``, are largest."""
        flat = self.sites[int(np.argmax(np.where(np.isnan(values), -np.inf, values)))]
        return tuple(int(index) for index in np.unravel_index(flat, self.shape))


def summarise_field(values: Any, max_sites: int | None = None) -> FieldSummary:
    """Mean, sd, standard error, effective sample sizes and R-hat of the sites of a field.

    Of a field with many sites a random choice is evaluated, the same one each time: ArviZ takes
    about 0.8 s for each million numbers.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws) + site shape``.
        max_sites: sites to evaluate, at most; None takes as many as have four million numbers (65
            for 64 chains of 1000 draws), at least eight.

    Returns:
        A :class:`FieldSummary`; all but mean and sd are NaN of fewer than four draws.

    Raises:
        ValueError: if ``values`` has no chains, draws or sites.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, "Rank-normalization, folding, and
        localization: an improved R-hat", Bayesian Analysis 16 (2021).

    Example:
        >>> field = np.random.default_rng(0).normal(size=(4, 500, 3, 3))
        >>> found = summarise_field(field)
        >>> found.worst().rhat < 1.02, found.worst().ess_bulk > 1000
        (True, True)
    """
    array = as_array(values)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"values has shape {array.shape}; accepted: (chains, draws, ...), >= 1")
    chains, draws, shape = array.shape[0], array.shape[1], array.shape[2:]
    flat = array.reshape(chains, draws, -1)
    sites = _choose_sites(flat.shape[2], chains * draws, max_sites)
    rows = [summarise(flat[..., site]) for site in sites]
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in Summary._fields}
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
        >>> walk = np.random.default_rng(0).normal(size=(2, 1000)).cumsum(1)
        >>> bool((bfmi(walk) < 0.3).all())
        True
    """
    array = as_draws(energy, "energy")
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
    array = as_array(values)
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


def _choose_sites(total: int, numbers: int, max_sites: int | None) -> NDArray[np.intp]:
    """Flat indices of the sites to evaluate; random, since a regular choice may follow a column."""
    count = max(MIN_SITES, MAX_NUMBERS // numbers) if max_sites is None else max(1, max_sites)
    if count >= total:
        return np.arange(total, dtype=np.intp)
    chosen = np.random.default_rng(0).choice(total, size=count, replace=False)
    return np.sort(chosen).astype(np.intp)


def _without_nan(function: Any, values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(function(known)) if known.size else math.nan
