# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo of spins whose bonds may be frustrated: heat bath, tempering and clusters."""

from __future__ import annotations

import math

import numpy as np

from pyro_neuralrg.potentials import cluster
from pyro_neuralrg.statistics import FloatArray

MAX_REPLICAS = 32
"""Temperatures at once; more than that takes longer than it helps."""


def tempered_spins(
    couplings: FloatArray,
    field: FloatArray,
    bonds: cluster.Bonds,
    *,
    chains: int,
    rounds: int,
    seed: int,
) -> cluster.Spins:
    r"""Draw spin configurations of :math:`p(s) \propto e^{w(s)}`, w = s.K.s / 2 + h.s.

    Replicas of :math:`e^{b w}`, from b = 1 down to where the heat bath mixes at once (the bonds of
    no spin add up to more than 1), are swept site by site, exchanged with their neighbours, and
    that of b = 1 also flipped by clusters. Warm-up and distance of configurations are those of
    :func:`~pyro_neuralrg.potentials.cluster.swendsen_wang`.

    Returns:
        Spins of +1 and -1, shape ``(rounds, chains, sites)``.

    References:
        K. Hukushima and K. Nemoto, J. Phys. Soc. Jpn. 65, 1604 (1996).
    """
    rng, sites = np.random.default_rng(seed), len(field)
    strongest = max(1.0, float(np.abs(couplings).sum(1).max()))
    number = min(MAX_REPLICAS, 1 + math.ceil(math.sqrt(sites) * math.log(strongest)))
    scales = np.geomspace(1.0, 1 / strongest, number)
    near = [np.nonzero(row)[0] for row in couplings]
    spins = rng.choice([-1.0, 1.0], size=(sites, number, chains))
    own_field = field if field.any() else None
    configurations = []
    for index in range(rounds):
        for step in range(cluster.SWEEPS_BETWEEN if index else cluster.WARMUP_SWEEPS):
            for site, others in enumerate(near):
                local = np.tensordot(couplings[site, others], spins[others], 1) + field[site]
                up = rng.logistic(size=local.shape) < 2 * scales[:, None] * local
                spins[site] = np.where(up, 1.0, -1.0)
            _exchange(spins, couplings, field, scales, step % 2, rng)
            coldest = spins[:, 0].T.astype(np.int8)
            spins[:, 0] = cluster.sweep(coldest, bonds, own_field, rng).T
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
