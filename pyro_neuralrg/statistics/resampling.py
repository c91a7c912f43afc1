# SPDX-License-Identifier: Apache-2.0
"""Functions of the means of several series, with a standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeVar

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.statistics.autocorrelation import windowed_time
from pyro_neuralrg.statistics.draws import MIN_DRAWS, FloatArray, as_finite_draws

NUM_BLOCKS = 32
"""With as many blocks the error is itself known to 13 %; one more block needs no more draws."""

MIN_BLOCKS = 8
"""With fewer blocks (an error known to 27 %) a warning says so."""

MAX_BLOCKS = 1000
"""Blocks of weighted samples, at most; each calls the function once more."""

TIMES_PER_BLOCK = 10
"""Length of a block in integrated autocorrelation times: the error is then about 5 % low."""


Value = TypeVar("Value", float, Tensor, default=float)


@dataclass(frozen=True, repr=False)
class Estimate(Generic[Value]):
    """A value and its standard error: numbers, or float64 tensors of one shape.

    Example:
        >>> value, error = Estimate(0.545123, 0.00161)
        >>> Estimate(value, error), Estimate(torch.zeros(3), torch.ones(3))
        (Estimate(0.5451(16)), Estimate(of shape (3,)))
    """

    value: Value
    standard_error: Value

    def __iter__(self) -> Iterator[Value]:
        return iter((self.value, self.standard_error))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, {"value": self})

    def __str__(self) -> str:
        if isinstance(self.value, Tensor) and self.value.dim():
            return f"of shape {tuple(self.value.shape)}"
        return with_error(float(self.value), float(self.standard_error))


def with_error(value: float, error: float) -> str:
    """A value with two digits of its standard error in brackets, in units of its last digits.

    Example:
        >>> with_error(0.545123, 0.00161), with_error(622.267, 13.395), with_error(-1.22, 2.0)
        ('0.5451(16)', '622(13)', '-1.2(2.0)')
    """
    if not (math.isfinite(value) and 0 < error < math.inf):
        return f"{value:.6g}({error:.2g})"
    rounded, exponent = float(f"{error:.1e}"), int(f"{error:.1e}".partition("e")[2])
    digits = max(0, 1 - exponent)
    shown = f"{rounded:.{digits}f}" if exponent >= 0 else f"{rounded * 10**digits:.0f}"
    return f"{value:.{digits}f}({shown})"


class WeightedGroups(NamedTuple):
    """Weighted samples in independent groups, in order: sums of their weights w, and of w v."""

    masses: Tensor  # up to one factor, float64, (groups,)
    sums: Tensor  # (groups, ...)


_Blocks = tuple[NDArray[np.int64], FloatArray, list[FloatArray]]
"""Of each block, the number of samples, the sum of their weights w, and the sums of w v."""


def sample_mean(values: Tensor) -> Estimate:
    """Mean of independent values of any shape; NaN as the error of a single one."""
    number = values.numel()
    error = float(values.std()) / math.sqrt(number) if number > 1 else math.nan
    return Estimate(float(values.mean()), error)


def jackknife(function: Callable[..., float], *series: Any, blocks: int | None = None) -> Estimate:
    r"""Estimate ``function(mean of the first series, mean of the second, ...)``.

    With :math:`\theta` of all n draws and :math:`\theta_{(j)}` of all but the :math:`n_j` of block
    j, :math:`h_j = n / n_j`, the pseudo-values are :math:`h_j \theta - (h_j - 1) \theta_{(j)}`;
    their mean weighted with :math:`n_j / n` is the estimate, free of the bias of order 1 / n, and
    their scatter gives its error.

    Args:
        function: of as many numbers as there are series; if it returns NaN, so does the jackknife.
        series: numpy arrays or torch tensors of one shape ``(chains, draws)``, measured on the same
            draws; or weighted means of numbers, all of the same samples, such as
            ``expectations(...).observables[name]`` and what ``reweight`` returns.
        blocks: number that each chain, or all weighted samples, are cut into. None takes whole
            chains if there are at least 32; else blocks of at least ten integrated autocorrelation
            times of the slowest series; up to 1000 of weighted samples.

    Raises:
        TypeError, ValueError: if there is no series, shapes or weights differ, an entry is not
            finite, or there are fewer than two blocks.

    Warns:
        UserWarning: if the choice left fewer than eight blocks.

    References:
        F. M. T. A. Busing, E. Meijer and R. van der Leeden, Stat. Comput. 9, 3 (1999).

    Example:
        >>> x = np.random.default_rng(0).normal(size=(40, 100))
        >>> value, error = jackknife(lambda mean, square: square - mean**2, x, x**2)
        >>> abs(value - 1) < 4 * error
        True
    """
    if not series:
        raise ValueError("series is empty; accepted: one series or more")
    weighted = [getattr(values, "groups", None) for values in series]
    if any(isinstance(groups, WeightedGroups) for groups in weighted):
        return _delete_one(function, *_blocks_of_weights(weighted, blocks))
    return _delete_one(function, *_blocks_of_chains(series, blocks))


def _blocks_of_chains(series: Sequence[Any], blocks: int | None) -> _Blocks:
    """The sums over the blocks of each chain; each draw has a weight of one."""
    arrays = [as_finite_draws(values, f"series[{index}]") for index, values in enumerate(series)]
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"series[{index}] has shape {array.shape}; accepted: that of the first, "
                f"{arrays[0].shape}"
            )
    chains, draws = arrays[0].shape
    cuts = choose_cuts(arrays) if blocks is None else check_integer("blocks", blocks, 1, draws)
    if chains * cuts < 2:
        raise ValueError(
            f"series has {chains} chains of {draws} draws, one block; accepted: two blocks or more"
        )
    if blocks is None and chains * cuts < MIN_BLOCKS:
        warn_user(
            f"the standard error comes from {chains * cuts} blocks only: run more or longer chains"
        )
    edges = np.linspace(0, draws, cuts + 1).astype(int)
    sums = [np.add.reduceat(array, edges[:-1], axis=1).reshape(-1) for array in arrays]
    sizes = np.tile(np.diff(edges), chains)
    return sizes, sizes.astype(np.float64), sums


def _blocks_of_weights(series: Sequence[Any], blocks: int | None) -> _Blocks:
    """The sums of w and w v over blocks of weighted samples."""
    for index, groups in enumerate(series):
        same = isinstance(groups, WeightedGroups) and isinstance(series[0], WeightedGroups)
        if not same or not torch.equal(groups.masses, series[0].masses):
            raise ValueError(
                f"series[{index}] is not of the weighted samples of the first; accepted: draws "
                "alone, or weighted means alone, all of one call of expectations or of the same "
                "log_weights"
            )
        if groups.sums.dim() != 1:
            raise ValueError(
                f"series[{index}] is the mean of values of shape {tuple(groups.sums.shape[1:])}; "
                "accepted: the mean of one number of each sample"
            )
    number = len(series[0].masses)
    if number < 2:
        raise ValueError("series is of one weighted sample or group; accepted: two or more")
    cuts = min(number, MAX_BLOCKS) if blocks is None else check_integer("blocks", blocks, 2, number)
    edges = np.linspace(0, number, cuts + 1).astype(int)
    parts = [series[0].masses, *(groups.sums for groups in series)]
    masses, *sums = (np.add.reduceat(part.numpy(), edges[:-1]) for part in parts)
    return np.diff(edges), masses, sums


def _delete_one(
    function: Callable[..., float],
    sizes: NDArray[np.int64],
    masses: FloatArray,
    sums: Sequence[FloatArray],
) -> Estimate:
    """Estimate from numbers of samples and sums of each block; NaN if one has all the weight."""

    def of_means(mass: float, *totals: float) -> float:
        return float(function(*(float(total / mass) for total in totals))) if mass > 0 else math.nan

    n, parts = sizes.sum(), (masses, *sums)
    whole = of_means(*(part.sum() for part in parts))
    left_out = zip(*(part.sum() - part for part in parts), strict=True)
    ratio = n / sizes
    pseudo = ratio * whole - (ratio - 1) * np.array([of_means(*totals) for totals in left_out])
    value = float((pseudo / ratio).sum())
    variance = float((np.square(pseudo - value) / (ratio - 1)).mean())
    return Estimate(value, math.sqrt(variance))


def choose_cuts(arrays: Sequence[FloatArray]) -> int:
    """Blocks of each chain: enough for an error, each long against the autocorrelations."""
    chains, draws = arrays[0].shape
    wanted = -(-NUM_BLOCKS // chains)
    if wanted == 1 or draws < MIN_DRAWS:
        return 1
    times = [windowed_time(array)[0].time for array in arrays if np.ptp(array) > 0]
    longest = int(draws / (TIMES_PER_BLOCK * max([0.5, *times])))
    return max(2 if chains == 1 else 1, min(wanted, longest))
