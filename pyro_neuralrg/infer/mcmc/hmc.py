# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo over a batch of chains."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo, TargetLike, metropolis

__all__ = ["HMC"]

#: An energy error (nats) beyond which a trajectory counts as divergent, as in Stan and Pyro.
DIVERGENCE_THRESHOLD = 1000.0


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
        inverse_mass: diagonal of the inverse mass, shape ``(dim,)``; None for ones.
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
        self.inverse_mass = None if inverse_mass is None else _check_mass(inverse_mass)

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Integrate one trajectory of every chain and accept or reject its end."""
        n_steps = self._draw_num_steps(generator)
        evaluations = n_steps
        if state.gradient is None:
            state = self.init(state.position)
            evaluations += 1
        inverse_mass = self._inverse_mass(state.position)
        momentum = (
            torch.randn(
                state.position.shape,
                generator=generator,
                dtype=state.position.dtype,
                device=state.position.device,
            )
            / inverse_mass.sqrt()
        )
        before = state.energy + _kinetic_energy(momentum, inverse_mass)
        proposal, momentum = self._leapfrog(state, momentum, inverse_mass, n_steps)
        after = proposal.energy + _kinetic_energy(momentum, inverse_mass)
        new, probability, accepted = metropolis(state, proposal, before - after, generator)
        return new, StepInfo(
            acceptance_rate=probability,
            accepted=accepted,
            diverging=~(torch.isfinite(after) & (after - before < DIVERGENCE_THRESHOLD)),
            hamiltonian=torch.where(accepted, after, before),
            n_steps=n_steps,
            gradient_evaluations=evaluations,
        )

    def _leapfrog(
        self, state: ChainState, momentum: Tensor, inverse_mass: Tensor, n_steps: int
    ) -> tuple[ChainState, Tensor]:
        position, energy, gradient = state
        assert gradient is not None
        momentum = momentum - 0.5 * self.step_size * gradient
        for index in range(n_steps):
            position = position + self.step_size * (inverse_mass * momentum)
            energy, gradient = self.target.energy_and_grad(position)
            last = index == n_steps - 1
            momentum = momentum - (0.5 if last else 1.0) * self.step_size * gradient
        return ChainState(position, energy, gradient), momentum

    def _draw_num_steps(self, generator: torch.Generator | None) -> int:
        spread = math.floor(self.num_steps * self.jitter)
        if spread == 0:
            return self.num_steps
        low, high = max(1, self.num_steps - spread), self.num_steps + spread
        device = None if generator is None else generator.device
        return int(torch.randint(low, high + 1, (), generator=generator, device=device))

    def _inverse_mass(self, position: Tensor) -> Tensor:
        dim = position.shape[-1]
        if self.inverse_mass is None:
            return position.new_ones(dim)
        if tuple(self.inverse_mass.shape) != (dim,):
            raise ValueError(
                f"inverse_mass has shape {tuple(self.inverse_mass.shape)}; accepted: ({dim},)"
            )
        return self.inverse_mass.to(position)


def _check_mass(inverse_mass: Tensor) -> Tensor:
    if not isinstance(inverse_mass, Tensor) or inverse_mass.dim() != 1:
        raise ValueError(
            f"inverse_mass is {inverse_mass!r}; accepted: a tensor of shape (dim,), or None"
        )
    bad = ~(torch.isfinite(inverse_mass) & (inverse_mass > 0))
    if bool(bad.any()):
        raise ValueError(
            f"inverse_mass has entries such as {float(inverse_mass[bad][0])}; accepted: finite "
            "ones > 0"
        )
    return inverse_mass


def _kinetic_energy(momentum: Tensor, inverse_mass: Tensor) -> Tensor:
    return 0.5 * (momentum.square() * inverse_mass).sum(-1).double()
