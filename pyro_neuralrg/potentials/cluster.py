# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cluster Monte Carlo of Ising spins: the yardstick that knows nothing of flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Spins = NDArray[np.int8]

# Autocorrelation times of Swendsen-Wang at criticality are 3-6 sweeps up to L = 64 (2-d) and 8-10
# up to L = 16 (3-d): U. Wolff, Phys. Lett. B 228, 379 (1989), and measured here.
WARMUP_SWEEPS = 100
SWEEPS_BETWEEN = 15
SITES_AT_ONCE = 2**16


class Bonds(NamedTuple):
    """Bonds of nearest neighbours.

    Attributes:
        left: one end of every bond, an index into the flattened lattice.
        right: the other end.
        strength: K of every bond, shape ``(bonds,)`` or ``(chains, bonds)``.
    """

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    strength: NDArray[np.float64]


def lattice_bonds(shape: tuple[int, ...], strengths: Sequence[float], boundary: str) -> Bonds:
    """Bonds of a lattice with K of each axis: none along a side of 1, two between a side of 2.

    Example:
        >>> lattice_bonds((3,), (0.5,), "open").left
        array([0, 1])
    """
    index = np.arange(math.prod(shape)).reshape(shape)
    left, right, strength = [index[:0].reshape(-1)], [index[:0].reshape(-1)], [np.zeros(0)]
    for axis, (side, bond) in enumerate(zip(shape, strengths, strict=True)):
        if side == 1 or bond == 0:
            continue
        last = side if boundary == "periodic" else side - 1
        left.append(index.take(np.arange(last), axis).reshape(-1))
        right.append(index.take(np.arange(1, last + 1) % side, axis).reshape(-1))
        strength.append(np.full(left[-1].size, float(bond)))
    return Bonds(np.concatenate(left), np.concatenate(right), np.concatenate(strength))


def swendsen_wang(
    bonds: Bonds,
    field: NDArray[np.float64] | None,
    sites: int,
    *,
    chains: int,
    rounds: int,
    seed: int = 0,
    warmup: int = WARMUP_SWEEPS,
    between: int = SWEEPS_BETWEEN,
) -> Spins:
    r"""Draw spin configurations of an Ising model.

    .. math:: p(s) \propto \exp(\sum_{\langle ij\rangle} K_{ij} s_i s_j + \sum_i h_i s_i)

    Every bond whose energy is low (:math:`K_{ij} s_i s_j > 0`, either sign of K, frustrated or not)
    is closed with probability :math:`1 - e^{-2|K_{ij}|}`; each cluster of closed bonds keeps its
    spins with probability :math:`1/(1 + e^{-2 h \cdot s})`, with the sum over its sites, else flips
    as a whole. Chains from random starts run side by side.

    Args:
        bonds: see :func:`lattice_bonds`.
        field: h / T of each site, shape ``(sites,)``, or None.
        sites: number of spins.
        chains: number of independent chains.
        rounds: configurations of each chain.
        seed: of the random numbers.
        warmup: sweeps of each chain before its first configuration.
        between: sweeps between two configurations of a chain.

    Returns:
        Spins of +1 and -1, shape ``(rounds, chains, sites)``.

    References:
        R. H. Swendsen and J.-S. Wang, Nonuniversal critical dynamics in Monte Carlo simulations,
        Phys. Rev. Lett. 58, 86 (1987).

    Example:
        >>> bonds = lattice_bonds((8, 8), (0.4, 0.4), "periodic")
        >>> swendsen_wang(bonds, None, 64, chains=5, rounds=2).shape
        (2, 5, 64)
    """
    rng = np.random.default_rng(seed)
    spins = rng.choice(np.array([-1, 1], dtype=np.int8), size=(chains, sites))
    configurations = []
    for index in range(rounds):
        for _ in range(between if index else warmup):
            spins = sweep(spins, bonds, field, rng)
        configurations.append(spins)
    return np.stack(configurations)


def sweep(
    spins: Spins, bonds: Bonds, field: NDArray[np.float64] | None, rng: np.random.Generator
) -> Spins:
    """One Swendsen-Wang sweep of all chains, of spins of shape ``(chains, sites)``."""
    left, right, strength = bonds
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
