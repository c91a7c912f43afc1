# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The local moves that HMC is measured against: random walk and Langevin."""

from __future__ import annotations

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.mcmc.base import ChainState, Kernel, StepInfo, TargetLike, metropolis
from pyro_neuralrg.mcmc.hamiltonian import hamiltonian_step
from pyro_neuralrg.mcmc.mass import check_inverse_mass

__all__ = ["MALA", "RandomWalkMetropolis"]


class RandomWalkMetropolis(Kernel):
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
    step_size: float

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(target, shape=shape, flow=flow)
        self.step_size = check_number("step_size", step_size, "a finite number > 0", above=0)
        self.inverse_mass = check_inverse_mass(inverse_mass)

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Propose one displacement to every chain."""
        here = state.position
        normal = torch.randn(here.shape, generator=generator, dtype=here.dtype, device=here.device)
        proposal, sound = self.proposed(
            state, here + self.step_size * self.mass(here).displacement(normal)
        )
        log_ratio = torch.where(sound, state.energy - proposal.energy, -torch.inf)
        new, probability, accepted = metropolis(state, proposal, log_ratio, generator)
        return new, StepInfo(
            acceptance_rate=probability,
            accepted=accepted,
            diverging=~torch.isfinite(log_ratio),
            hamiltonian=new.energy,
            n_steps=0,
            gradient_evaluations=1,
        )


class MALA(Kernel):
    r"""Metropolis-adjusted Langevin: HMC of a single leapfrog step.

    The proposal :math:`x - \tfrac12 \epsilon^2 M^{-1} \nabla E(x) + \epsilon M^{-1/2} \xi` is that
    of the Langevin equation with the time step :math:`\epsilon^2`, epsilon being ``step_size``.
    Warm-up aims at an acceptance of 0.574, the optimum in many dimensions.

    Args:
        target: as for :class:`~pyro_neuralrg.mcmc.HMC`.
        step_size: epsilon, > 0.
        inverse_mass: as for ``HMC``.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.

    References:
        Roberts & Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions"
        (1998); Neal (2011), section 5.2, on the equality with HMC.

    Example:
        >>> import torch
        >>> langevin = MALA(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        >>> state, info = langevin.step(langevin.init(torch.zeros(5, 3)))
        >>> info.n_steps, info.gradient_evaluations
        (1, 1)
    """

    name = "mala"
    needs_gradient = True
    target_acceptance = 0.574
    step_size: float

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(target, shape=shape, flow=flow)
        self.step_size = check_number("step_size", step_size, "a finite number > 0", above=0)
        self.inverse_mass = check_inverse_mass(inverse_mass)

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Propose one Langevin move to every chain."""
        return hamiltonian_step(self, state, 1, generator)
