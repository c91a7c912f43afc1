# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a kernel is: ``init(positions) -> state``, ``step(state) -> (state, info)``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.infer.mcmc.model_target import as_target
from pyro_neuralrg.infer.mcmc.target import Target
from pyro_neuralrg.potentials.base import LatticePotential

__all__ = ["ChainState", "Kernel", "StepInfo", "TargetLike"]

TargetLike: TypeAlias = "Target | LatticePotential | Callable[..., Any]"
AnyKernel = TypeVar("AnyKernel", bound="Kernel")


class ChainState(NamedTuple):
    """What the next step of every chain needs.

    Attributes:
        position: unconstrained position of each chain, shape ``(chains, dim)``.
        energy: -ln of the unnormalised density of the position, nats, float64, shape ``(chains,)``.
        gradient: of the energy, shape ``(chains, dim)``, or None if no kernel of the run needs it.
    """

    position: Tensor
    energy: Tensor
    gradient: Tensor | None


class StepInfo(NamedTuple):
    """What a human wants to know about one step.

    Attributes:
        acceptance_rate: acceptance probability of each chain's proposal, shape ``(chains,)``.
        accepted: whether it was accepted, bool, shape ``(chains,)``.
        diverging: whether the proposal's energy was not finite, or far off (bool, shape
            ``(chains,)``).
        hamiltonian: energy of the new position plus kinetic energy, if the kernel has momenta
            (nats, shape ``(chains,)``).
        n_steps: leapfrog steps, the same for every chain; 0 for a kernel without.
        gradient_evaluations: per chain; a jump counts as one.
        parts: for a composed kernel, the info of each member by its name; empty else.
    """

    acceptance_rate: Tensor
    accepted: Tensor
    diverging: Tensor
    hamiltonian: Tensor
    n_steps: int
    gradient_evaluations: int
    parts: Mapping[str, StepInfo] = {}

    def part(self, name: str) -> StepInfo:
        """Info of the member ``name``, or this one if the kernel is not composed."""
        return self.parts.get(name, self)


class Kernel(ABC):
    """A Markov transition of many chains at once, leaving ``exp(-energy)`` of its target invariant.

    To write another one: derive, define ``step`` (draw random numbers from ``generator`` only, let
    no chain affect another, reject what is not finite), set ``name`` and whether the state must
    carry ``needs_gradient``, and add a line to ``tests/infer/mcmc/registry.py``: the laws there
    check that exact samples stay exact. A kernel with a step size or mass to be adapted accepts
    them in ``tuned``. Adaptation itself lives in :mod:`pyro_neuralrg.infer.mcmc.adaptation`.

    Args:
        target: a :class:`Target` or what :func:`as_target` makes one of; None if a :class:`Cycle`
            is to supply it.
        shape: lattice shape, if ``target`` is a plain batched energy
            ``(chains,) + shape -> (chains,)``.
        flow: sample in the latent space of this flow instead of the physical one.
    """

    name: str = "kernel"
    needs_gradient: bool = False
    step_size: float | None = None
    inverse_mass: Tensor | None = None

    def __init__(
        self,
        target: TargetLike | None,
        *,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        self._target = None if target is None else as_target(target, shape=shape, flow=flow)

    @property
    def target(self) -> Target:
        """The target, once known."""
        if self._target is None:
            raise ValueError(
                f"target of {type(self).__name__} is None; give one, or use it in a Cycle"
            )
        return self._target

    def on(self: AnyKernel, target: Target) -> AnyKernel:
        """Return this kernel for another target."""
        return self._changed(_target=target)

    @property
    def members(self) -> dict[str, Kernel]:
        """The kernels this one is composed of, by name; itself if it is not composed."""
        return {self.name: self}

    def with_members(self, members: Mapping[str, Kernel]) -> Kernel:
        """Return the same composition of other members."""
        return members[self.name]

    def tuned(
        self: AnyKernel, *, step_size: float | None = None, inverse_mass: Tensor | None = None
    ) -> AnyKernel:
        """Return this kernel with another step size or diagonal inverse mass (None: as it is)."""
        changes: dict[str, Any] = {"step_size": step_size, "inverse_mass": inverse_mass}
        return self._changed(**{key: value for key, value in changes.items() if value is not None})

    def init(self, positions: Tensor) -> ChainState:
        """Evaluate the starting positions, shape ``(chains, dim)``."""
        if self.needs_gradient:
            return ChainState(positions, *self.target.energy_and_grad(positions))
        return ChainState(positions, self.target.energy(positions), None)

    @abstractmethod
    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Make one transition of every chain."""

    def _changed(self: AnyKernel, **changes: Any) -> AnyKernel:
        other = copy.copy(self)
        for key, value in changes.items():
            setattr(other, key, value)
        return other


def metropolis(
    state: ChainState, proposal: ChainState, log_ratio: Tensor, generator: torch.Generator | None
) -> tuple[ChainState, Tensor, Tensor]:
    """Accept or reject each chain's proposal by itself.

    Args:
        state: current state.
        proposal: proposed state.
        log_ratio: ln of the Metropolis-Hastings ratio, shape ``(chains,)``; a chain whose ratio is
            not finite rejects.
        generator: source of the uniform numbers.

    Returns:
        The new state, the acceptance probabilities and which chains accepted.
    """
    finite = torch.isfinite(log_ratio)
    probability = torch.where(finite, log_ratio.clamp(max=0.0).exp(), torch.zeros_like(log_ratio))
    uniform = torch.rand(
        probability.shape, generator=generator, dtype=probability.dtype, device=probability.device
    )
    accepted = uniform < probability
    rows = accepted.unsqueeze(-1)
    gradient = None
    if state.gradient is not None and proposal.gradient is not None:
        gradient = torch.where(rows, proposal.gradient, state.gradient)
    new = ChainState(
        torch.where(rows, proposal.position, state.position),
        torch.where(accepted, proposal.energy, state.energy),
        gradient,
    )
    return new, probability, accepted
