# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One trajectory of every chain, and its acceptance: what all Hamiltonian kernels share.

Duane et al., "Hybrid Monte Carlo" (1987); Neal, "MCMC using Hamiltonian dynamics" (2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.base import ChainState, Kernel, StepInfo, Trajectory, metropolis
from pyro_neuralrg.mcmc.mass import Mass
from pyro_neuralrg.mcmc.target import Target

__all__ = ["hamiltonian_step", "leapfrog"]

#: An energy error (nats) beyond which a trajectory counts as divergent, as in Stan and Pyro.
DIVERGENCE_THRESHOLD = 1000.0


def hamiltonian_step(
    kernel: Kernel, state: ChainState, n_steps: int, generator: torch.Generator | None
) -> tuple[ChainState, StepInfo]:
    """Draw momenta, integrate ``n_steps`` leapfrog steps, accept or reject their end.

    Args:
        kernel: its target, step size and mass are used.
        state: of all chains.
        n_steps: the same for all.
        generator: of momenta and of the acceptance.

    Returns:
        The new state, and an info with the trajectory.
    """
    assert kernel.step_size is not None
    evaluations = n_steps
    if state.gradient is None:
        energy, gradient = kernel.target.energy_and_grad(state.position)
        state, evaluations = state._replace(energy=energy, gradient=gradient), n_steps + 1
    mass = kernel.mass(state.position)
    position = state.position
    normal = torch.randn(
        position.shape, generator=generator, dtype=position.dtype, device=position.device
    )
    momentum = mass.momentum(normal)
    before = state.energy + mass.kinetic_energy(momentum)
    proposal, momentum = leapfrog(kernel.target, state, momentum, mass, kernel.step_size, n_steps)
    after = proposal.energy + mass.kinetic_energy(momentum)
    new, probability, accepted = metropolis(state, proposal, before - after, generator)
    return new, StepInfo(
        acceptance_rate=probability,
        accepted=accepted,
        diverging=~(torch.isfinite(after) & (after - before < DIVERGENCE_THRESHOLD)),
        hamiltonian=torch.where(accepted, after, before),
        n_steps=n_steps,
        gradient_evaluations=evaluations,
        trajectory=Trajectory(
            position, proposal.position, mass.velocity(momentum), n_steps * kernel.step_size
        ),
    )


def leapfrog(
    target: Target,
    state: ChainState,
    momentum: Tensor,
    mass: Mass,
    step_size: float,
    n_steps: int,
) -> tuple[ChainState, Tensor]:
    """Integrate Hamilton's equations; return the end and its momentum."""
    gradient = state.gradient
    assert gradient is not None
    energy = state.energy
    position = state.position.clone()  # the two are this function's own, and changed in place
    momentum = momentum.sub(gradient, alpha=0.5 * step_size)
    for index in range(n_steps):
        position.add_(mass.velocity(momentum), alpha=step_size)
        energy, gradient = target.energy_and_grad(position)
        last = index == n_steps - 1
        momentum.sub_(gradient, alpha=(0.5 if last else 1.0) * step_size)
    return state._replace(position=position, energy=energy, gradient=gradient), momentum
