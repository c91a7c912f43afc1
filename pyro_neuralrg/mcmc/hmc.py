# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo over a batch of chains, and Langevin moves, which are one step of it."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.mcmc.kernel import (
    ChainState,
    Kernel,
    LocalKernel,
    StepInfo,
    TargetLike,
    Trajectory,
    metropolis,
)
from pyro_neuralrg.mcmc.mass import Mass
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.runtime.processes import processes

DIVERGENCE_THRESHOLD = 1000.0
"""Energy error (nats) beyond which a trajectory counts as divergent, as in Stan and Pyro."""


class HMC(LocalKernel):
    """Hamiltonian Monte Carlo with a fixed or jittered number of leapfrog steps.

    Duane et al. (1987); Neal, "MCMC using Hamiltonian dynamics" (2011).

    All chains take the same number of steps of the same size; each accepts or rejects by itself.
    Momenta are drawn from N(0, M) with M the inverse of ``inverse_mass``, the identity by default.
    A step costs as many gradient evaluations as it has leapfrog steps.

    Args:
        target: a ``LatticePotential``, a Pyro model (also one under ``poutine.reparam``), a
            :class:`Target`, or a batched energy with ``shape``.
        step_size: leapfrog step, > 0.
        num_steps: mean number of leapfrog steps a trajectory, >= 1.
        jitter: in [0, 1): each trajectory draws its number of steps, shared by the chains,
            uniformly from the integers within ``num_steps * (1 - jitter)`` and
            ``num_steps * (1 + jitter)``; guards against trajectories of one period.
        inverse_mass: inverse mass: its diagonal, shape ``(dim,)``, or the whole matrix, shape
            ``(dim, dim)``; None for the identity.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.

    Raises:
        TypeError, ValueError: if a number is none or outside its range, or what :func:`as_target`
            raises.

    Example:
        >>> import torch
        >>> kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,), step_size=0.5, num_steps=4)
        >>> state = kernel.init(torch.zeros(100, 3))
        >>> state, info = kernel.step(state, torch.Generator().manual_seed(0))
        >>> state.position.shape, info.n_steps
        (torch.Size([100, 3]), 4)
    """

    name = "hmc"
    needs_gradient = True

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        num_steps: int = 10,
        jitter: float = 0.0,
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(
            target, step_size=step_size, inverse_mass=inverse_mass, shape=shape, flow=flow
        )
        self.num_steps = check_integer("num_steps", num_steps, 1)
        self.jitter = check_number("jitter", jitter, "a number in [0, 1)", least=0, below=1)

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Integrate one trajectory of every chain and accept or reject its end."""
        return hamiltonian_step(self, state, self._draw_num_steps(generator), generator)

    def _draw_num_steps(self, generator: torch.Generator | None) -> int:
        spread = math.floor(self.num_steps * self.jitter)
        if spread == 0:
            return self.num_steps
        low, high = max(1, self.num_steps - spread), self.num_steps + spread
        device = None if generator is None else generator.device
        drawn = int(torch.randint(low, high + 1, (), generator=generator, device=device))
        return processes().first(drawn)  # no process waits for another


class MALA(LocalKernel):
    r"""Metropolis-adjusted Langevin: HMC of a single leapfrog step.

    The proposal :math:`x - \tfrac12 \epsilon^2 M^{-1} \nabla E(x) + \epsilon M^{-1/2} \xi` is that
    of the Langevin equation with the time step :math:`\epsilon^2`, epsilon being ``step_size``.
    Warm-up aims at an acceptance of 0.574, the optimum in many dimensions.

    Args:
        target: as for :class:`HMC`.
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

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Propose one Langevin move to every chain."""
        return hamiltonian_step(self, state, 1, generator)


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
