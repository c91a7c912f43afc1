# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Estimators of the mutual information of two continuous variables.

Each gives a contribution of every sample, whose mean is the estimate, so that means over parts of
the samples tell its error. Samples are replaced by their ranks, which leaves mutual information as
it is: all variables then have one distribution, and independent ones one bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.statistics import FloatArray as Array

STRICTLY_LESS = 1.0 - 1e-10  # leaves the neighbour at the very distance out of a count


class Estimator(Protocol):
    """Estimator of a mutual information: define the two methods and ``least_samples``."""

    @property
    def least_samples(self) -> int:
        """The smallest number of samples for an estimate."""

    def prepare(self, ranks: NDArray[np.int64]) -> Any:
        """Prepare a variable for ``contributions``, from its ranks 0 .. n - 1."""

    def contributions(self, first: Any, second: Any) -> Array:
        """Contribution of each sample in nats, shape ``(samples,)``; their mean is the estimate."""


@dataclass(frozen=True)
class Neighbours:
    r"""Estimator from distances to nearest neighbours (A. Kraskov et al., PRE 69, 066138, Eq. 8).

    .. math:: I = \psi(k) + \psi(n) - \langle \psi(n_x + 1) + \psi(n_y + 1) \rangle

    with the numbers :math:`n_x`, :math:`n_y` of samples closer in one variable than the k-th
    neighbour is in both (the larger of the two distances), between values that normal variables
    would have at these ranks. Free of bias for independent variables; O(n log n) a pair.

    Args:
        k: neighbours; more lower the noise and wash out what is finer.

    Example:
        >>> estimator = Neighbours(k=3)
        >>> x = estimator.prepare(np.arange(1000))
        >>> round(float(estimator.contributions(x, x).mean()), 2)  # psi(n) - psi(k)
        5.98
    """

    k: int = 5

    def __post_init__(self) -> None:
        check_integer("k", self.k, 1)

    @property
    def least_samples(self) -> int:
        """More than there are neighbours."""
        return self.k + 1

    def prepare(self, ranks: NDArray[np.int64]) -> tuple[Array, Array]:
        """Normal scores, and the same sorted."""
        scores = ndtri((np.arange(ranks.size) + 0.5) / ranks.size)
        return scores[ranks], scores

    def contributions(self, first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
        """See :meth:`Estimator.contributions`."""
        size = first[0].size
        points = np.column_stack([first[0], second[0]])
        distances = cKDTree(points).query(points, k=[self.k + 1], p=np.inf)[0][:, 0]
        distances *= STRICTLY_LESS
        psi = digamma(np.arange(1, size + 1))
        inside = [
            np.searchsorted(scores, values + distances, "right")
            - np.searchsorted(scores, values - distances, "left")
            for values, scores in (first, second)
        ]  # counts the sample itself: n_x + 1
        return digamma(self.k) + digamma(size) - psi[inside[0] - 1] - psi[inside[1] - 1]


@dataclass(frozen=True)
class Bins:
    r"""Estimator from the frequencies of equally likely bins, a lower bound.

    .. math:: I = \sum_{ab} p_{ab} \ln \frac{p_{ab}}{p_a p_b}

    Thirty times as fast as neighbours and with less noise, but blind to what is finer than a bin:
    at most ln(bins). The bias of independent variables is about :math:`(b - 1)^2 / 2n`.

    Args:
        count: bins b of each variable.

    Example:
        >>> estimator = Bins(4)
        >>> x = estimator.prepare(np.arange(1000))
        >>> round(float(estimator.contributions(x, x).mean()), 4)  # ln 4
        1.3863
    """

    count: int = 8

    def __post_init__(self) -> None:
        check_integer("count", self.count, 2)

    @property
    def least_samples(self) -> int:
        """One in each bin of a pair."""
        return self.count**2

    def prepare(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bin of each sample."""
        return ranks * self.count // ranks.size

    def contributions(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
        """See :meth:`Estimator.contributions`."""
        cells = first * self.count + second
        joint = np.bincount(cells, minlength=self.count**2).reshape(self.count, self.count)
        expected = np.outer(joint.sum(1), joint.sum(0)) / first.size
        ratios = np.log(np.maximum(joint, 1) / expected)  # empty cells are not looked up
        return ratios.ravel()[cells]
