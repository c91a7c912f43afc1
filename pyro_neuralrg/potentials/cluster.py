# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo of spins, and of fields whose signs are such: clusters, tempering, no flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pyro_neuralrg.statistics import FloatArray

Spins = NDArray[np.int8]

SITES_AT_ONCE = 2**16
"""Sites of all chains that run side by side."""

# Autocorrelation times of Swendsen-Wang at criticality are 3-6 sweeps up to L = 64 (2-d) and 8-10
# up to L = 16 (3-d): U. Wolff, Phys. Lett. B 228, 379 (1989), and measured here. Of vector spins
# reflections in one mirror each take 18 of them for Potts at Tc, 9 and 6 for clocks of two and six
# states, 3 for XY at T = 0.9, all at 16 x 16: four mirrors are a sweep.
WARMUP_SWEEPS = 100
SWEEPS_BETWEEN = 15
MIRRORS_A_SWEEP = 4

MAX_REPLICAS = 32
"""Temperatures at once; more than that takes longer than it helps."""

# for fields: a round is an HMC trajectory and a sweep of the signs
WARMUP_ROUNDS = 100
ROUNDS_BETWEEN = 10
LEAPFROG_STEPS = 5
FIRST_STEP_SIZE = 0.2
ACCEPTANCE = 0.8
TUNING_RATE = 0.1
"""Change of the logarithm of the step size per unit of acceptance, in half of the warm-up."""


class Bonds(NamedTuple):
    """Bonds of nearest neighbours: both ends, as indices into the flattened lattice, and K.

    The last has the shape ``(bonds,)`` or ``(chains, bonds)``.
    """

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    strength: FloatArray


def lattice_bonds(
    shape: tuple[int, ...], strengths: Sequence[float] | FloatArray, boundary: str
) -> Bonds:
    """Bonds of a lattice: none along a side of 1, two between a side of 2, none that are zero.

    K of each axis, or of each site's bond to the next one along each axis, ``(axes,) + shape``.
    """
    index = np.arange(math.prod(shape)).reshape(shape)
    parts = [(index[:0].reshape(-1), index[:0].reshape(-1), np.zeros(0))]
    for axis, (side, bonds) in enumerate(zip(shape, strengths, strict=True)):
        if side > 1:
            inside = np.arange(side if boundary == "periodic" else side - 1)
            tables = index, np.roll(index, -1, axis), np.broadcast_to(bonds, shape)
            left, right, strength = (table.take(inside, axis).reshape(-1) for table in tables)
            parts.append((left[strength != 0], right[strength != 0], strength[strength != 0]))
    return Bonds(*map(np.concatenate, zip(*parts, strict=True)))


def swendsen_wang(
    bonds: Bonds,
    field: FloatArray | None,
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
    as a whole (R. H. Swendsen and J.-S. Wang, Phys. Rev. Lett. 58, 86 (1987)). ``field`` is h / T
    of each site, shape ``(sites,)``. Chains from random starts run side by side, with ``warmup``
    sweeps before the first configuration and ``between`` from one to the next, to spins of +1 and
    -1, shape ``(rounds, chains, sites)``.
    """
    rng = np.random.default_rng(seed)
    spins = rng.choice(np.array([-1, 1], dtype=np.int8), size=(chains, sites))
    configurations = []
    for index in range(rounds):
        for _ in range(between if index else warmup):
            spins = sweep(spins, bonds, field, rng)
        configurations.append(spins)
    return np.stack(configurations)


def sweep(spins: Spins, bonds: Bonds, field: FloatArray | None, rng: np.random.Generator) -> Spins:
    """One Swendsen-Wang sweep of spins of shape ``(chains, sites)``."""
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


def reflected_clusters(
    bonds: Bonds,
    mirrors: Callable[[np.random.Generator, int], FloatArray],
    start: FloatArray,
    *,
    rounds: int,
    seed: int,
) -> FloatArray:
    r"""Draw spins that are unit vectors.

    .. math:: p(s) \propto \exp(\sum_{\langle ij\rangle} K_{ij}\, s_i \cdot s_j)

    For a direction r the signs of :math:`s_i \cdot r` are Ising spins of couplings
    :math:`K_{ij} |s_i \cdot r| |s_j \cdot r|`, which :func:`sweep` moves: each cluster is reflected
    in the plane normal to r (U. Wolff, Phys. Rev. Lett. 62, 361 (1989)). Directions ``(chains,
    components)``, whose planes reflect states into states, are drawn by ``mirrors(rng, chains)``.
    From ``start``, ``(chains, sites, components)``, to spins with ``rounds`` in front; warm-up and
    distance of configurations as of :func:`swendsen_wang`, of four mirrors for a sweep.
    """
    rng, spins = np.random.default_rng(seed), start
    left, right, strength = bonds
    configurations = []
    for index in range(rounds):
        for _ in range(MIRRORS_A_SWEEP * (SWEEPS_BETWEEN if index else WARMUP_SWEEPS)):
            normals = mirrors(rng, len(spins))[:, None]
            along = (spins * normals).sum(-1)
            size, signs = np.abs(along), np.where(along < 0, -1, 1).astype(np.int8)
            embedded = Bonds(left, right, strength * size[:, left] * size[:, right])
            turned = sweep(signs, embedded, None, rng) * size
            spins = spins + (turned - along)[..., None] * normals
        configurations.append(spins)
    return np.stack(configurations)


def tempered_spins(
    couplings: FloatArray,
    own_field: FloatArray | None,
    bonds: Bonds,
    *,
    chains: int,
    rounds: int,
    seed: int,
) -> Spins:
    r"""Draw spin configurations of :math:`p(s) \propto e^{w(s)}`, w = s.K.s / 2 + h.s.

    Replicas of :math:`e^{b w}`, from b = 1 down to where the heat bath mixes at once (the bonds of
    no spin add up to more than 1), are swept site by site, exchanged with their neighbours (K.
    Hukushima and K. Nemoto, J. Phys. Soc. Jpn. 65, 1604 (1996)), and that of b = 1 also flipped by
    clusters. Results, warm-up and distance of configurations as of :func:`swendsen_wang`.
    """
    rng, sites = np.random.default_rng(seed), len(couplings)
    field = np.zeros(sites) if own_field is None else own_field
    strongest = max(1.0, float(np.abs(couplings).sum(1).max()))
    number = min(MAX_REPLICAS, 1 + math.ceil(math.sqrt(sites) * math.log(strongest)))
    scales = np.geomspace(1.0, 1 / strongest, number)
    near = [np.nonzero(row)[0] for row in couplings]
    spins = rng.choice([-1.0, 1.0], size=(sites, number, chains))
    configurations = []
    for index in range(rounds):
        for step in range(SWEEPS_BETWEEN if index else WARMUP_SWEEPS):
            for site, others in enumerate(near):
                local = np.tensordot(couplings[site, others], spins[others], 1) + field[site]
                up = rng.logistic(size=local.shape) < 2 * scales[:, None] * local
                spins[site] = np.where(up, 1.0, -1.0)
            _exchange(spins, couplings, field, scales, step % 2, rng)
            coldest = spins[:, 0].T.astype(np.int8)
            spins[:, 0] = sweep(coldest, bonds, own_field, rng).T
        configurations.append(spins[:, 0].T.astype(np.int8))
    return np.stack(configurations)


def _exchange(
    spins: FloatArray,
    couplings: FloatArray,
    field: FloatArray,
    scales: FloatArray,
    first: int,
    rng: np.random.Generator,
) -> None:
    """Exchange every second pair of neighbouring replicas, by Metropolis."""
    flat = spins.reshape(len(field), -1)
    weights = ((couplings @ flat / 2 + field[:, None]) * flat).sum(0).reshape(spins.shape[1:])
    for colder in range(first, len(scales) - 1, 2):
        gain = weights[colder + 1] - weights[colder]
        log_ratio = (scales[colder] - scales[colder + 1]) * gain
        swap = -rng.exponential(size=log_ratio.shape) < log_ratio
        pair = spins[:, colder : colder + 2]
        pair[:] = np.where(swap, pair[:, ::-1], pair)


def sample_with_clusters(
    energy_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    shape: tuple[int, ...],
    bond: float,
    boundary: str,
    n: int,
    generator: torch.Generator,
) -> Tensor:
    r"""Draw fields of an even energy whose only coupling of sites is ``-bond * phi_x phi_y``.

    At given sizes the signs are Ising spins with :math:`K_{xy} = b |\phi_x| |\phi_y|`, which
    Swendsen-Wang moves (R. C. Brower and P. Tamayo, Phys. Rev. Lett. 62, 1087 (1989)); a short HMC
    trajectory of all sites moves sizes. Chains from random starts run side by side:
    ``energy_and_gradient``, in nats, takes float64 fields ``(chains,) + shape``.
    """
    chains = max(1, min(n, SITES_AT_ONCE // math.prod(shape)))
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    left, right, strength = lattice_bonds(shape, (bond,) * len(shape), boundary)
    x = torch.randn(chains, *shape, generator=generator, dtype=torch.float64)
    rounds = []
    log_step = math.log(FIRST_STEP_SIZE)
    for index in range(-(-n // chains)):
        for step in range(ROUNDS_BETWEEN if index else WARMUP_ROUNDS):
            x, acceptance = _trajectory(energy_and_gradient, x, math.exp(log_step), generator)
            if index == 0 and step < WARMUP_ROUNDS // 2:
                log_step += TUNING_RATE * (acceptance - ACCEPTANCE)
            size = x.abs().flatten(1).numpy()
            spins = np.where(x.flatten(1).numpy() < 0, -1, 1).astype(np.int8)
            bonds = Bonds(left, right, strength * size[:, left] * size[:, right])
            spins = sweep(spins, bonds, None, rng)
            x = torch.from_numpy(spins * size).view(x.shape)
        rounds.append(x)
    return torch.cat(rounds)[:n]


def _trajectory(
    energy_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    step: float,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """One HMC trajectory of every chain, and the mean acceptance probability."""
    momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    position = x
    before, gradient = energy_and_gradient(position)
    start = before + 0.5 * momentum.square().flatten(1).sum(1)
    for _ in range(LEAPFROG_STEPS):
        momentum = momentum - 0.5 * step * gradient
        position = position + step * momentum
        after, gradient = energy_and_gradient(position)
        momentum = momentum - 0.5 * step * gradient
    change = after + 0.5 * momentum.square().flatten(1).sum(1) - start
    probability = (-change).exp().clamp(max=1.0).nan_to_num(0.0)
    accepted = torch.rand(len(x), generator=generator, dtype=x.dtype) < probability
    keep = accepted.view(-1, *(1,) * (x.dim() - 1))
    return torch.where(keep, position, x), float(probability.mean())
