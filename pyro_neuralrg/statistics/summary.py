# SPDX-License-Identifier: Apache-2.0
"""Convergence and accuracy of chains by ArviZ: of one series, of the sites of a field, as a table.

Values of a wrong shape raise a ValueError that names the argument.

References:
    A. Vehtari, A. Gelman, D. Simpson, B. Carpenter and P.-C. Buerkner, Rank-normalization, folding,
    and localization: an improved R-hat, Bayesian Analysis 16 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.statistics.draws import (
    MIN_DRAWS,
    FloatArray,
    arviz_module,
    as_array,
    as_draws,
    is_constant,
    quiet,
)

LARGEST_RHAT = 1.01
"""R-hat above which chains are said not to have converged (Vehtari et al.)."""

TAIL_PROBABILITIES = (0.05, 0.95)
"""Quantiles whose effective sample size is reported (Vehtari et al.)."""

MAX_EVALUATED, MIN_SITES = 2**22, 8
"""Numbers of one variable that are evaluated, and sites in any case; ArviZ takes about 0.05 s for
64 chains x 1000 draws of one site, so a field of 16 x 16 would take 12 s."""

MAX_LINES = 12
"""A variable of more entries is shown in a table by its worst entry and the median."""

COLUMNS = {
    "mean": "mean",
    "sd": "sd",
    "mcse": "mcse_mean",
    "ess_bulk": "ess_bulk",
    "ess_tail": "ess_tail",
    "rhat": "r_hat",
}
"""ArviZ's names of the figures, in its order."""

DECIMALS, EXACT = {"ess_bulk": 0, "ess_tail": 0, "rhat": 4}, 300
"""Digits after the point of figures in a table, and of what has no width."""


class Summary(NamedTuple):
    """Figures of one series, or of the worst or median site of a field.

    Of a series that is constant but for rounding sd and mcse are zero. What is not known is NaN.

    Attributes:
        mean: over chains and draws.
        mcse: Monte Carlo standard error of the mean.
        rhat: rank-normalised split R-hat; NaN for a single chain, infinite if every chain is
            constant but they differ.
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

    Of an array or tensor ``(chains, draws)``; of fewer than four draws, or some that are not
    finite, all but mean and sd are NaN.

    Example:
        >>> result = summarise(np.random.default_rng(0).normal(size=(4, 500)))
        >>> abs(result.mean) < 4 * result.mcse and result.rhat < 1.01 and result.ess_bulk > 1500
        True
    """
    series = as_draws(values)
    chains, draws = series.shape
    with quiet():
        mean, sd = float(series.mean()), float(series.std(ddof=1)) if series.size > 1 else math.nan
        if draws < MIN_DRAWS or not np.isfinite(series).all():
            return Summary(mean, math.nan, math.nan, math.nan, sd=sd)
        if is_constant(series):  # its mean would be rounded
            return Summary(float(np.median(series)), 0.0, math.nan, math.nan, sd=0.0)
        az = arviz_module()
        figures = (
            az.mcse(series, method="mean"),
            az.rhat(series) if chains > 1 else math.nan,
            az.ess(series, method="bulk"),
            az.ess(series, method="tail", prob=TAIL_PROBABILITIES),
        )
    # ArviZ 0.23 returns some of its figures as arrays of one number
    mcse, rhat, ess_bulk, ess_tail = (np.asarray(figure).item() for figure in figures)
    return Summary(mean, mcse, rhat, ess_bulk, ess_tail, sd)


@dataclass(frozen=True)
class FieldSummary:
    """Figures of the sites of a field that were evaluated.

    Attributes:
        shape: of the sites, ``()`` for a scalar.
        sites: flat indices of the sites evaluated, shape ``(evaluated,)``.
        figures: one array of shape ``(evaluated,)`` for each field of :class:`Summary`.
    """

    shape: tuple[int, ...]
    sites: NDArray[np.intp]
    figures: dict[str, FloatArray]

    @property
    def coverage(self) -> str:
        """Number of sites evaluated, in words such as "3 of 16 sites"; empty if all were."""
        total = math.prod(self.shape)
        return "" if len(self.sites) == total else f"{len(self.sites)} of {total} sites"

    @property
    def constant(self) -> NDArray[np.bool_]:
        """True for each site evaluated whose draws are equal but for rounding."""
        return self.figures["sd"] == 0

    @property
    def relative_mcse(self) -> FloatArray:
        """Standard error of the mean in units of the standard deviation, of each site."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.figures["mcse"] / self.figures["sd"]

    def median(self) -> Summary:
        """The median over sites of each figure, NaNs left out."""
        with quiet():
            return Summary(**{name: float(np.nanmedian(x)) for name, x in self.figures.items()})

    def worst(self) -> Summary:
        """The worst over sites of each figure by itself; NaN for mean and sd if they are many."""
        with quiet():
            found = {
                name: float(np.nanmin(values) if "ess" in name else np.nanmax(values))
                for name, values in self.figures.items()
            }
        neither = {} if len(self.sites) == 1 else {"mean": math.nan, "sd": math.nan}
        return Summary(**found | neither)

    def where(self, values: FloatArray) -> tuple[int, ...]:
        """The site at which ``values``, of shape ``(evaluated,)``, are largest."""
        flat = self.sites[int(np.argmax(np.where(np.isnan(values), -np.inf, values)))]
        return tuple(int(index) for index in np.unravel_index(flat, self.shape))


def summarise_field(values: Any, max_sites: int | None = None) -> FieldSummary:
    """Figures of :func:`summarise` for the sites of a field ``(chains, draws) + site shape``.

    Of a field with many sites a random choice is evaluated, the same one each time: at most
    ``max_sites``, or as many as have four million numbers (65 for 64 chains of 1000 draws), at
    least eight.

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


def _choose_sites(total: int, numbers: int, max_sites: int | None) -> NDArray[np.intp]:
    """Flat indices of the sites to evaluate; random, since a regular choice may follow a column."""
    count = max(MIN_SITES, MAX_EVALUATED // numbers) if max_sites is None else max(1, max_sites)
    if count >= total:
        return np.arange(total, dtype=np.intp)
    chosen = np.random.default_rng(0).choice(total, size=count, replace=False)
    return np.sort(chosen).astype(np.intp)


def summary_table(draws: Mapping[str, Any], max_sites: int | None = None) -> Any:
    """Mean, sd, standard error, effective sample sizes and R-hat of each variable.

    A pandas DataFrame with ArviZ's column names, of arrays or tensors ``(chains, draws) + shape``
    by name, or of a :class:`FieldSummary` of each. Variables of at most twelve entries have one
    line per entry; a larger field has two: ``x[worst]``, the worst over sites of each figure by
    itself, and ``x[median]``. If only a choice of sites was evaluated (``max_sites`` as for
    :func:`summarise_field`), or some are constant, the column ``note`` says how many. Means and
    widths have two digits of the standard error.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draws = {"m": rng.normal(size=(4, 100)), "x": rng.normal(size=(4, 100, 4, 4))}
        >>> list(summary_table(draws).index)
        ['m', 'x[worst]', 'x[median]']
    """
    import pandas as pd  # type: ignore[import-untyped]  # a dependency of ArviZ, slow to import

    lines = {
        label: {**_rounded(figures), "note": note}
        for name, values in draws.items()
        for label, figures, note in _lines(
            name,
            values if isinstance(values, FieldSummary) else summarise_field(values, max_sites),
        )
    }
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table if any(table.get("note", [])) else table.drop(columns="note", errors="ignore")


def _rounded(figures: Summary) -> dict[str, float]:
    """The digits that mean something, by ArviZ's names, so that a table fits on a screen."""
    widths = [x for x in (figures.mcse, figures.sd) if 0 < x < math.inf]
    digits = 1 - math.floor(math.log10(min(widths))) if widths else EXACT
    return {
        title: round(getattr(figures, key), DECIMALS.get(key, digits))
        for key, title in COLUMNS.items()
    }


def _lines(name: str, found: FieldSummary) -> Iterator[tuple[str, Summary, str]]:
    """Label, figures and note of each line."""
    still = int(found.constant.sum())
    if math.prod(found.shape) > MAX_LINES or found.coverage:
        constant = "constant" if still == len(found.sites) else f"{still} constant"
        note = ", ".join(filter(None, [found.coverage, constant if still else ""]))
        yield f"{name}[worst]", found.worst(), note
        yield f"{name}[median]", found.median(), ""
        return
    for place, flat in enumerate(found.sites):
        words = map(str, np.unravel_index(flat, found.shape))
        figures = Summary(**{key: float(values[place]) for key, values in found.figures.items()})
        note = "constant" if found.constant[place] else ""
        yield f"{name}[{', '.join(words)}]" if found.shape else name, figures, note


def bfmi(energy: Any) -> FloatArray:
    """Bayesian fraction of missing information of each chain (Betancourt 2016).

    Mean squared change of the Hamiltonian ``(chains, draws)`` from draw to draw over its variance,
    shape ``(chains,)``: about 1 if fresh momenta take the chain anywhere in energy, small if they
    do not, NaN of a constant chain.

    Example:
        >>> walk = np.random.default_rng(0).normal(size=(2, 1000)).cumsum(1)
        >>> bool((bfmi(walk) < 0.3).all())
        True
    """
    array = as_draws(energy, "energy")
    with quiet():
        return np.asarray(np.square(np.diff(array)).mean(1) / array.var(1, ddof=1))


def rank_counts(values: Any, bins: int = 20) -> FloatArray:
    """Counts of the ranks of each chain's draws among all draws, for a rank plot.

    Of values ``(chains, draws)``, in bins of equal width: shape ``(chains, bins)``. Chains of one
    distribution have about ``draws / bins`` in each; equal draws share their ranks in turn.
    """
    array = as_draws(values)
    check_integer("bins", bins, 1, array.size, f"from 1 to the number of draws, {array.size}")
    # draw by draw, so that equal values of different chains take turns
    ranks = np.argsort(np.argsort(array.T, axis=None, kind="stable")).reshape(array.T.shape).T
    rows = ranks * bins // array.size
    return np.stack([np.bincount(row, minlength=bins) for row in rows]).astype(np.float64)
