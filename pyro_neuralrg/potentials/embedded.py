# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo of fields whose signs are Ising spins: clusters flip signs, HMC moves the rest."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.potentials.cluster import SITES_AT_ONCE, Bonds, lattice_bonds, sweep

WARMUP_ROUNDS = 100
ROUNDS_BETWEEN = 10
LEAPFROG_STEPS = 5
FIRST_STEP_SIZE = 0.2
ACCEPTANCE = 0.8
TUNING_RATE = 0.1
"""Of the logarithm of the step size, in the first half of the warm-up."""


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
    Swendsen-Wang moves; a short HMC trajectory of all sites moves sizes. Many chains run side by
    side from random starts, each giving ``ceil(n / chains)`` fields.

    Args:
        energy_and_gradient: in nats; takes float64 fields ``(chains,) + shape``.
        shape: lattice shape.
        bond: b for every bond, of either sign.
        boundary: "periodic" or "open".
        n: number of fields.
        generator: of the random numbers, on the CPU.

    Returns:
        float64 fields of shape ``(n,) + shape``.

    References:
        R. C. Brower and P. Tamayo, Embedded dynamics for phi^4 theory, Phys. Rev. Lett. 62, 1087
        (1989).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> def energy_and_gradient(x):  # of two independent sites
        ...     return x.pow(4).sum(-1), 4 * x.pow(3)
        >>> sample_with_clusters(energy_and_gradient, (2,), 0.0, "periodic", 3, generator).shape
        torch.Size([3, 2])
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
