# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Random-walk Metropolis, the local move without gradients."""

from __future__ import annotations

import torch

from pyro_neuralrg.mcmc.kernel import ChainState, LocalKernel, StepInfo, metropolis_step


class RandomWalkMetropolis(LocalKernel):
    """Metropolis with normal proposals around where the chain is.

    The proposal is ``x + step_size * N(0, inverse_mass)``. It needs no gradient; one energy counts
    as one gradient evaluation, so that tables compare like with like. Warm-up aims at an acceptance
    of 0.234, the optimum in many dimensions.

    Args:
        target: as for :class:`~pyro_neuralrg.mcmc.HMC`.
        step_size: width of the proposals, > 0.
        inverse_mass: their covariance up to the step size, shape ``(dim,)`` or ``(dim, dim)``.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.

    References:
        Roberts, Gelman, Gilks, "Weak convergence and optimal scaling of random walk Metropolis
        algorithms" (1997).

    Example:
        >>> import torch
        >>> walk = RandomWalkMetropolis(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        >>> state, info = walk.step(walk.init(torch.zeros(5, 3)))
        >>> info.n_steps, info.gradient_evaluations
        (0, 1)
    """

    name = "random_walk"
    target_acceptance = 0.234

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Propose one displacement to every chain."""
        here = state.position
        normal = torch.randn(here.shape, generator=generator, dtype=here.dtype, device=here.device)
        proposal, is_sound = self.evaluated(
            state, here + self.step_size * self.mass(here).displacement(normal)
        )
        log_ratio = torch.where(is_sound, state.energy - proposal.energy, -torch.inf)
        return metropolis_step(state, proposal, log_ratio, generator)
