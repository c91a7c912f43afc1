# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cluster Monte Carlo of Ising spins: the yardstick that knows nothing of flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.lattice import check_boundary, check_shape

__all__ = ["MonteCarlo", "bonds_of", "structure_factor", "sweep", "swendsen_wang"]

Spins = NDArray[np.int8]

# Autocorrelation times of Swendsen-Wang at criticality are 3-6 sweeps up to L = 64 (2-d) and 8-10
# up to L = 16 (3-d): U. Wolff, Phys. Lett. B 228, 379 (1989), and measured here.
WARMUP_SWEEPS = 100
SWEEPS_BETWEEN = 15
SITES_AT_ONCE = 2**16
LEAST_CHAINS = 32  # for an error bar


def swendsen_wang(
    shape: Sequence[int],
    bonds: Sequence[float],
    n: int,
    *,
    boundary: str = "periodic",
    field: NDArray[Any] | None = None,
    seed: int = 0,
    chains: int | None = None,
    warmup: int = WARMUP_SWEEPS,
    between: int = SWEEPS_BETWEEN,
) -> Spins:
    r"""Draw spin configurations of an Ising model.

    .. math:: p(s) \propto \exp(\sum_{\langle ij\rangle} K_{ij} s_i s_j + \sum_i h_i s_i)

    Every bond whose energy is low (:math:`K_{ij} s_i s_j > 0`, either sign of K, frustrated or not)
    is closed with probability :math:`1 - e^{-2|K_{ij}|}`; each cluster of closed bonds keeps its
    spins with probability :math:`1/(1 + e^{-2 h \cdot s})`, with the sum over its sites, else flips
    as a whole. Many chains from random starts run side by side; each gives ``ceil(n / chains)``
    configurations, with ``between`` sweeps from one to the next.

    Args:
        shape: lattice shape.
        bonds: K = J / T of the nearest-neighbour bonds of each axis; a periodic side of 2 has two
            bonds between its sites, a side of 1 has none.
        n: number of configurations.
        boundary: "periodic" or "open".
        field: h / T of each site, or None.
        seed: of the random numbers.
        chains: number of independent chains; default: as many as fit 65536 sites, at most n.
        warmup: sweeps of each chain before its first configuration.
        between: sweeps between two configurations of a chain.

    Returns:
        Spins of +1 and -1, shape ``(n,) + shape``.

    References:
        R. H. Swendsen and J.-S. Wang, Nonuniversal critical dynamics in Monte Carlo simulations,
        Phys. Rev. Lett. 58, 86 (1987).

    Example:
        >>> swendsen_wang((8, 8), (0.4, 0.4), 10).shape
        (10, 8, 8)
    """
    sides = check_shape(shape)
    sites = math.prod(sides)
    if chains is None:
        chains = max(1, min(n, SITES_AT_ONCE // sites))
    left, right, strength = bonds_of(sides, bonds, check_boundary(boundary))
    h = None if field is None else np.broadcast_to(np.asarray(field, float), sides).reshape(-1)
    rng = np.random.default_rng(seed)
    spins = rng.choice(np.array([-1, 1], dtype=np.int8), size=(chains, sites))
    rounds = []
    for index in range(-(-n // chains)):
        for _ in range(between if index else warmup):
            spins = sweep(spins, left, right, strength, h, rng)
        rounds.append(spins)
    return np.concatenate(rounds)[:n].reshape(n, *sides)


class MonteCarlo(NamedTuple):
    """A mean over Monte Carlo configurations.

    Attributes:
        mean: the estimate.
        standard_error: of the mean, from the scatter of independent chains.
    """

    mean: float
    standard_error: float


def structure_factor(
    shape: Sequence[int],
    bonds: Sequence[float],
    n: int,
    *,
    boundary: str = "periodic",
    field: NDArray[Any] | None = None,
    seed: int = 0,
) -> MonteCarlo:
    r"""Uniform structure factor :math:`E[(\sum_i s_i)^2] / N^2` by :func:`swendsen_wang`.

    From at least 32 chains that share nothing (as many as fit 65536 sites, if these are more; ``n``
    if that is less), of equal length and ``n`` configurations or a few more in all. The standard
    error is the scatter of the chains' means over the square root of their number, so that no
    autocorrelation time is needed; with 32 chains it is itself known to 13 %. It knows nothing of
    what all chains miss alike: where clusters do not help (frustrated or in opposing fields, cold)
    100 sweeps may be too few to reach equilibrium.

    Args:
        shape: lattice shape.
        bonds: as for :func:`swendsen_wang`.
        n: number of configurations, at least 2.
        boundary: "periodic" or "open".
        field: h / T of each site, or None.
        seed: of the random numbers.

    Example:
        >>> found = structure_factor((8, 8), (0.44, 0.44), 320)
        >>> abs(found.mean - 0.643) < 4 * found.standard_error
        True
    """
    sites = math.prod(check_shape(shape))
    chains = min(check_integer("n", n, 2), max(LEAST_CHAINS, SITES_AT_ONCE // sites))
    rounds = -(-n // chains)
    spins = swendsen_wang(
        shape, bonds, rounds * chains, boundary=boundary, field=field, seed=seed, chains=chains
    )
    magnetisation = spins.reshape(rounds, chains, sites).mean(2, dtype=np.float64)
    means = np.square(magnetisation).mean(0)
    return MonteCarlo(float(means.mean()), float(means.std(ddof=1) / math.sqrt(chains)))


def bonds_of(
    shape: tuple[int, ...], couplings: Sequence[float], boundary: str
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Sites at both ends of every bond, as indices into the flattened lattice, and its K.

    Example:
        >>> bonds_of((3,), (0.5,), "open")[0]
        array([0, 1])
    """
    index = np.arange(math.prod(shape)).reshape(shape)
    ends: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    strength = []
    for axis, (side, coupling) in enumerate(zip(shape, couplings, strict=True)):
        if side == 1 or coupling == 0:
            continue
        last = side if boundary == "periodic" else side - 1
        left = index.take(np.arange(last), axis)
        right = index.take(np.arange(1, last + 1) % side, axis)
        ends.append((left.reshape(-1), right.reshape(-1)))
        strength.append(np.full(left.size, float(coupling)))
    if not ends:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    return (
        np.concatenate([left for left, _ in ends]),
        np.concatenate([right for _, right in ends]),
        np.concatenate(strength),
    )


def sweep(
    spins: Spins,
    left: NDArray[np.intp],
    right: NDArray[np.intp],
    strength: NDArray[np.float64],
    field: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> Spins:
    """One Swendsen-Wang sweep of all chains.

    Args:
        spins: shape ``(chains, sites)``.
        left: one end of every bond.
        right: the other.
        strength: K of every bond, shape ``(bonds,)`` or ``(chains, bonds)``.
        field: h / T of each site, or None.
        rng: random numbers.

    Returns:
        New spins, of the same shape.
    """
    sites = spins.shape[1]
    satisfied = spins[:, left] * spins[:, right] == np.sign(strength).astype(np.int8)
    closed = satisfied & (rng.random(satisfied.shape) < -np.expm1(-2 * np.abs(strength)))
    chain, bond = np.nonzero(closed)
    ends = (left[bond] + chain * sites, right[bond] + chain * sites)
    graph = coo_matrix((np.ones(len(bond), np.int8), ends), shape=(spins.size, spins.size))
    count, cluster = connected_components(graph, directed=False)
    log_odds = np.zeros(count)  # of keeping the spins of a cluster
    if field is not None:
        log_odds = 2 * np.bincount(cluster, weights=(spins * field).reshape(-1), minlength=count)
    keeps = rng.logistic(size=count) < log_odds
    return np.where(keeps[cluster].reshape(spins.shape), spins, -spins)
