# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo over a batch of chains."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.mcmc.base import ChainState, Kernel, StepInfo, TargetLike
from pyro_neuralrg.mcmc.hamiltonian import hamiltonian_step
from pyro_neuralrg.mcmc.mass import check_inverse_mass
from pyro_neuralrg.runtime.processes import processes

__all__ = ["HMC"]


class HMC(Kernel):
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
    step_size: float

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
        super().__init__(target, shape=shape, flow=flow)
        self.step_size = check_number("step_size", step_size, "a finite number > 0", above=0)
        self.num_steps = check_integer("num_steps", num_steps, 1)
        self.jitter = check_number("jitter", jitter, "a number in [0, 1)", least=0, below=1)
        self.inverse_mass = check_inverse_mass(inverse_mass)

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
