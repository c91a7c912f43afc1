# SPDX-License-Identifier: Apache-2.0
"""Mutual information of all pairs of variables, with errors; of Gaussian groups, exact.

Paper Fig. 4(b), (c): a renormalization group has disentangled the field if its latents know little
of each other.

Estimators of the information of two continuous variables give a contribution of every sample, whose
mean is the estimate, so that means over parts of the samples tell its error. Samples are replaced
by their ranks, which leaves mutual information as it is: all variables then have one distribution,
and independent ones one bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri
from torch import Tensor

from pyro_neuralrg.analysis.scales import check_indices, scale_of_latents
from pyro_neuralrg.arguments import (
    LARGEST_SEED,
    check_array,
    check_integer,
    check_tensor,
    check_type,
)
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.statistics import FloatArray as Array
from pyro_neuralrg.transforms import HierarchicalFlow

NUM_PARTS = 32  # parts of the samples, from whose scatter the errors come: known to 13 %
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


@dataclass(frozen=True, repr=False)
class MutualInformation:
    """The mutual information of every pair of variables, in nats.

    Attributes:
        values: shape ``(variables, variables)``, symmetric, bias removed, so that values near zero
            may be negative; NaN on the diagonal.
        standard_error: of the values, same shape, without that of the bias.
        bias: the mean of shuffled pairs, which is subtracted; its error is shared by all pairs.
        num_samples: how many.
        parts: the values from each block of samples, shape ``(blocks, pairs)``, pairs i < j in the
            order of ``torch.triu_indices``; any sum of pairs takes its error from them.
        noise: factor on their scatter, which does not see that neighbours share samples.
    """

    values: Tensor
    standard_error: Tensor
    bias: Estimate
    num_samples: int
    parts: Tensor
    noise: float

    def __repr__(self) -> str:
        return f"MutualInformation({len(self.values)} variables, {self.num_samples} samples)"

    def total(self) -> Estimate:
        """The sum over all pairs i < j, in nats, with the error of the bias."""
        found = self.grouped(torch.zeros_like(self.values, dtype=torch.long))
        number = int(found.pairs[0])
        return Estimate(number * float(found.values[0]), number * float(found.standard_error[0]))

    def grouped(self, labels: Tensor, groups: int | None = None) -> GroupedInformation:
        """Means over groups of pairs.

        Args:
            labels: a group 0, 1, ... of each pair, integers of shape ``(variables, variables)``,
                read where i < j; negative: of no group.
            groups: number of groups; None for as many as the labels name.
        """
        check_type("labels", labels, Tensor, "a tensor of integers")
        if labels.shape != self.values.shape or labels.is_floating_point():
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; "
                f"accepted: integers of shape {tuple(self.values.shape)}"
            )
        own = labels[tuple(_upper_pairs(len(self.values)))]
        inside = own >= 0
        pairs = torch.bincount(own[inside], minlength=groups or 0)
        sums = self.parts.new_zeros(len(self.parts), len(pairs))
        sums.index_add_(1, own[inside], self.parts[:, inside])
        means = sums / pairs
        scatter = self.noise * _error_of_mean(means)
        error = (scatter.square() + self.bias.standard_error**2).sqrt()
        return GroupedInformation(means.mean(0), error, pairs)


@dataclass(frozen=True)
class GroupedInformation:
    """Mean mutual information of groups of pairs, in nats.

    Attributes:
        values: of each group, NaN of an empty one.
        standard_error: of the values, with that of the bias.
        pairs: how many there are.
        positions: of the groups, distances in sites, from ``by_distance``; or None.
    """

    values: Tensor
    standard_error: Tensor
    pairs: Tensor
    positions: Tensor | None = None


def mutual_information(
    samples: Any, *, estimator: Estimator | None = None, shuffles: int = 2000, seed: int = 0
) -> MutualInformation:
    r"""Estimate I(i : j) of all pairs of variables from samples (paper Fig. 4b, c).

    .. math:: I(i : j) = E\left[\ln \frac{p(x_i, x_j)}{p(x_i)\, p(x_j)}\right]

    256 variables take about 80 s on one core with ``Neighbours()`` and 2000 samples, 3 s with
    ``Bins()`` and ten times as many.

    Args:
        samples: array or tensor of shape ``(samples,) + shape``: fields or latents, of continuous
            variables (equal values are ordered at random).
        estimator: None for ``Neighbours()``.
        shuffles: pairs with one variable shuffled: their mean is the bias, which is subtracted.
        seed: of the shuffles.

    Example:
        >>> from torch.distributions import MultivariateNormal
        >>> pair = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
        >>> found = mutual_information(pair.sample((1000,)), shuffles=50)
        >>> abs(float(found.values[0, 1]) + 0.5 * math.log(1 - 0.8**2)) < 0.2
        True
    """
    method: Estimator = Neighbours() if estimator is None else estimator
    if isinstance(method, type) or not hasattr(method, "least_samples"):
        raise TypeError(f"estimator is {method!r}; accepted: Neighbours(), Bins() or the like")
    shuffles = check_integer("shuffles", shuffles, 2)
    rng = np.random.default_rng(check_integer("seed", seed, 0, LARGEST_SEED))
    columns = _columns(samples, max(method.least_samples, 2 * NUM_PARTS))
    order = np.lexsort((rng.random(columns.shape), columns))  # equal values at random
    ranks = order.argsort(axis=1)
    bias, noise = _shuffled(ranks, method, shuffles, rng)
    ready = [method.prepare(column) for column in ranks]
    size = columns.shape[1]
    edges = np.linspace(0, size, NUM_PARTS + 1).astype(int)
    first, second = _upper_pairs(len(ready))
    parts, lengths = np.empty((NUM_PARTS, len(first))), np.diff(edges)
    weights = NUM_PARTS * lengths / size  # the mean of the parts is that of the samples
    for pair, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        local = method.contributions(ready[i], ready[j])
        parts[:, pair] = np.add.reduceat(local, edges[:-1]) / lengths * weights
    unbiased = torch.from_numpy(parts - bias.value)
    tables = unbiased.new_full((2, len(ready), len(ready)), torch.nan)
    entries = torch.stack([unbiased.mean(0), noise * _error_of_mean(unbiased)])
    tables[:, first, second] = tables[:, second, first] = entries
    values, error = tables
    return MutualInformation(values, error, bias, size, unbiased, noise)


def by_distance(
    information: MutualInformation, shape: Any, boundary: str = "periodic"
) -> GroupedInformation:
    """Mean mutual information of the sites of a lattice, in row-major order, at each distance.

    The groups have ``positions``, the Euclidean distances in sites, increasing; with the boundary
    "periodic", not "open", by the shortest way round.

    Example:
        >>> found = by_distance(mutual_information(torch.randn(200, 4), shuffles=20), (4,))
        >>> found.positions, found.pairs
        (tensor([1., 2.], dtype=torch.float64), tensor([4, 2]))
    """
    sides = check_shape(shape)
    _check_variables(information, sides)
    sites = torch.cartesian_prod(*(torch.arange(side) for side in sides)).reshape(-1, len(sides))
    apart = (sites[:, None] - sites).abs()
    if check_boundary(boundary) == "periodic":
        apart = torch.minimum(apart, torch.tensor(sides) - apart)
    squares = apart.square().sum(-1)
    found, labels = squares.unique(return_inverse=True)  # the first is no distance at all: i = j
    return replace(information.grouped(labels - 1), positions=found[1:].double().sqrt())


def by_scale(information: MutualInformation, flow: HierarchicalFlow) -> GroupedInformation:
    """Mean mutual information of a flow's latents, in row-major order, for each pair of scales.

    Symmetric matrices of shape ``(scales, scales)``, NaN where there is no pair.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> found = mutual_information(torch.randn(200, 4), shuffles=20)
        >>> by_scale(found, hierarchical_flow((4,))).pairs
        tensor([[1, 2, 2],
                [2, 0, 1],
                [2, 1, 0]])
    """
    scales = scale_of_latents(flow).flatten()
    _check_variables(information, flow.shape)
    count = int(scales.max()) + 1
    k = torch.arange(count)
    group = torch.minimum(k[:, None], k) * count + torch.maximum(k[:, None], k)
    found = information.grouped(group[scales[:, None], scales], count**2)
    return GroupedInformation(found.values[group], found.standard_error[group], found.pairs[group])


def gaussian_mutual_information(
    covariance: Tensor, first: Sequence[int] | Tensor, second: Sequence[int] | Tensor
) -> float:
    r"""I(A : B) of two groups of jointly Gaussian variables, in nats.

    .. math:: I(A : B) = \tfrac12 \ln \frac{\det C_A \det C_B}{\det C_{AB}}

    Of the covariance of all variables, shape ``(n, n)``, and flat indices of those of A and of B,
    which have none in common. A step of a tree, whose blocks lie in A or in B, hands it on to the
    variables that it keeps: :math:`I(A : B) = I(R_A : R_B)`.

    Example:
        >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        >>> round(gaussian_mutual_information(covariance, [0], [1]), 4)  # -ln(1 - 0.8^2) / 2
        0.5108
    """
    check_tensor("covariance", covariance)
    matrix = covariance.double()
    fits = matrix.dim() == 2 and len(matrix) == matrix.shape[-1] and bool(matrix.isfinite().all())
    asymmetry = (matrix - matrix.T).abs().max() if fits else math.inf
    if not asymmetry <= 1e-6 * matrix.abs().max() or int(torch.linalg.cholesky_ex(matrix).info):
        raise ValueError(
            f"covariance, of shape {tuple(matrix.shape)}, is not symmetric and positive definite; "
            "accepted: a matrix (n, n) that is"
        )
    size = len(matrix)
    a, b = check_indices("first", first, size), check_indices("second", second, size)
    if len({*a, *b}) < len(a) + len(b):
        raise ValueError("first and second repeat or share a variable; accepted: disjoint groups")
    of_a, of_b, of_both = (torch.logdet(matrix[group][:, group]) for group in (a, b, a + b))
    return 0.5 * float(of_a + of_b - of_both)


def _upper_pairs(count: int) -> Tensor:
    """The pairs i < j, shape ``(2, pairs)``."""
    return torch.triu_indices(count, count, offset=1)


def _error_of_mean(parts: Tensor) -> Tensor:
    """Standard error of the mean over the first dimension (std() warns of empty ones)."""
    deviation = parts - parts.mean(0)
    return (deviation.square().sum(0) / (len(parts) * (len(parts) - 1))).sqrt()


def _check_variables(information: MutualInformation, shape: tuple[int, ...]) -> None:
    check_type("information", information, MutualInformation, "a MutualInformation")
    count = len(information.values)
    if math.prod(shape) != count:
        raise ValueError(
            f"information is of {count} variables; accepted: {math.prod(shape)}, the sites of "
            f"a lattice of shape {tuple(shape)}"
        )


def _columns(samples: Any, least: int) -> Array:
    """The samples of each variable, shape ``(variables, samples)``."""
    array = check_array("samples", samples)
    if array.ndim < 2 or len(array) < least or math.prod(array.shape[1:]) < 2:
        raise ValueError(
            f"samples has shape {array.shape}; accepted: (samples,) + shape with at least {least} "
            "samples of at least 2 variables"
        )
    columns = array.reshape(len(array), -1).T
    constant = columns.max(1) == columns.min(1)
    bad = np.flatnonzero(constant | ~np.isfinite(columns).all(1))
    if bad.size:
        raise ValueError(
            f"samples has {bad.size} variables that are constant or not finite, the first at flat "
            f"index {bad[0]}; accepted: finite numbers that vary"
        )
    return columns


def _shuffled(
    ranks: NDArray[np.int64], method: Estimator, shuffles: int, rng: np.random.Generator
) -> tuple[Estimate, float]:
    """The bias of independent variables, and the noise of theirs in units of its estimate."""
    size = ranks.shape[1]
    means, errors = np.empty(shuffles), np.empty(shuffles)
    for index in range(shuffles):
        i, j = rng.choice(len(ranks), 2, replace=False)
        shuffled = method.prepare(rng.permutation(ranks[j]))
        local = method.contributions(method.prepare(ranks[i]), shuffled)
        means[index], errors[index] = local.mean(), local.std() / math.sqrt(size)
    spread = means.std(ddof=1)
    seen = math.sqrt(np.square(errors).mean())
    noise = max(1.0, spread / seen) if seen > 0 else 1.0
    return Estimate(float(means.mean()), float(spread / math.sqrt(shuffles))), float(noise)
