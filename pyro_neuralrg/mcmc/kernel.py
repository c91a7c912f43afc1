# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The contract of kernels: ``init(positions) -> state``, ``step(state) -> (state, info)``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.mcmc.mass import Mass, check_inverse_mass
from pyro_neuralrg.mcmc.model_target import as_target
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.potentials.base import LatticePotential

TargetLike: TypeAlias = "Target | LatticePotential | Callable[..., Any]"
AnyKernel = TypeVar("AnyKernel", bound="Kernel")


class ChainState(NamedTuple):
    """State of all chains, all that the next step needs.

    Attributes:
        position: unconstrained position of each chain, shape ``(chains, dim)``.
        energy: -ln of the unnormalised density of the position, nats, float64, shape ``(chains,)``.
        gradient: of the energy, shape ``(chains, dim)``, or None if no kernel of the run needs it.
        sequence: numbers taken so far from a kernel's quasi-random sequence, if it has one.
    """

    position: Tensor
    energy: Tensor
    gradient: Tensor | None
    sequence: int = 0


class Trajectory(NamedTuple):
    """The trajectories of one step, before the ends were accepted or not.

    Attributes:
        start: positions, shape ``(chains, dim)``.
        end: likewise.
        velocity: at the end, likewise.
        time: from start to end, the same for every chain.
    """

    start: Tensor
    end: Tensor
    velocity: Tensor
    time: float


class StepInfo(NamedTuple):
    """Report on one step, for humans and for adaptation.

    Attributes:
        acceptance_rate: acceptance probability of each chain's proposal, shape ``(chains,)``.
        accepted: whether it was accepted, bool, shape ``(chains,)``.
        diverging: whether the proposal's energy was not finite, or far off (bool, shape
            ``(chains,)``).
        hamiltonian: energy of the new position plus kinetic energy, if the kernel has momenta
            (nats, shape ``(chains,)``).
        n_steps: leapfrog steps, the same for every chain; 0 for a kernel without.
        gradient_evaluations: per chain; a jump counts as one.
        parts: for a composed kernel, the info of each member that moved, by its name; empty else.
        trajectory: of a Hamiltonian kernel; adaptation learns from it.
    """

    acceptance_rate: Tensor
    accepted: Tensor
    diverging: Tensor
    hamiltonian: Tensor
    n_steps: int
    gradient_evaluations: int
    parts: Mapping[str, StepInfo] = {}
    trajectory: Trajectory | None = None

    def part(self, name: str) -> StepInfo | None:
        """Info of the member ``name``: None if it did not move, this one if there are no parts."""
        return self.parts.get(name) if self.parts else self


class Kernel(ABC):
    """A Markov transition of many chains at once, leaving ``exp(-energy)`` of its target invariant.

    To write another one: derive, define ``step`` (draw random numbers from ``generator`` only, let
    no chain affect another, reject what is not finite), set ``name`` and whether the state must
    carry ``needs_gradient``, and add a line to ``tests/mcmc/registry.py``: the laws there
    check that exact samples stay exact. Kernels with a step size to be adapted derive from
    :class:`LocalKernel`. Adaptation itself lives in :mod:`pyro_neuralrg.mcmc.adaptation`.

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
    trajectory_length: float | None = None
    inverse_mass: Tensor | None = None
    target_acceptance: float = 0.8
    _mass: Mass | None = None

    def __init__(
        self,
        target: TargetLike | None,
        *,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        self._target = None if target is None else as_target(target, shape=shape, flow=flow)

    def __repr__(self) -> str:
        tuned = {"step_size": self.step_size, "trajectory_length": self.trajectory_length}
        parts = [f"{name}={value:.3g}" for name, value in tuned.items() if value is not None]
        target = [] if self._target is None else [repr(self._target)]
        return f"{type(self).__name__}({', '.join(target + parts)})"

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
        self: AnyKernel,
        *,
        step_size: float | None = None,
        inverse_mass: Tensor | None = None,
        trajectory_length: float | None = None,
    ) -> AnyKernel:
        """Return this kernel with another step size, inverse mass, length (None: as it is)."""
        changes: dict[str, Any] = {
            "step_size": step_size,
            "inverse_mass": inverse_mass,
            "trajectory_length": trajectory_length,
        }
        changes = {key: value for key, value in changes.items() if value is not None}
        if inverse_mass is not None:
            changes["_mass"] = None
        return self._changed(**changes)

    def mass(self, like: Tensor) -> Mass:
        """The mass of momenta for positions such as ``like``."""
        if self._mass is None or self._mass.inverse.dtype != like.dtype:
            self._mass = Mass.of(self.inverse_mass, like)
        return self._mass

    def acceptance(self, info: StepInfo) -> float:
        """Acceptance over the chains that ``target_acceptance`` is about."""
        return float(info.acceptance_rate.mean())

    def init(self, positions: Tensor) -> ChainState:
        """Evaluate the starting positions, shape ``(chains, dim)``."""
        if self.needs_gradient:
            return ChainState(positions, *self.target.energy_and_grad(positions))
        return ChainState(positions, self.target.energy(positions), None)

    def evaluated(self, state: ChainState, positions: Tensor) -> tuple[ChainState, Tensor]:
        """Evaluate proposed positions; say of each chain whether it could go on from there.

        With a gradient if the state has one: one that is not finite would poison the moves to come.
        """
        if state.gradient is None:
            energy = self.target.energy(positions)
            return state._replace(position=positions, energy=energy), torch.isfinite(energy)
        energy, gradient = self.target.energy_and_grad(positions)
        proposal = state._replace(position=positions, energy=energy, gradient=gradient)
        return proposal, torch.isfinite(energy) & torch.isfinite(gradient).all(-1)

    @abstractmethod
    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Make one transition of every chain."""

    def _changed(self: AnyKernel, **changes: Any) -> AnyKernel:
        other = copy.copy(self)
        vars(other).update(changes)
        return other


class LocalKernel(Kernel):
    """A kernel that moves around the present position, with a step size and a mass to be tuned.

    Warm-up aims at the acceptance ``target_acceptance``, and tunes a ``trajectory_length`` if the
    kernel has one.

    Args:
        target: as for :class:`Kernel`.
        step_size: > 0.
        inverse_mass: its diagonal, shape ``(dim,)``, or the whole matrix, shape ``(dim, dim)``;
            None for the identity.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.
    """

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
    new = state._replace(
        position=torch.where(rows, proposal.position, state.position),
        energy=torch.where(accepted, proposal.energy, state.energy),
        gradient=gradient,
    )
    return new, probability, accepted


def metropolis_step(
    state: ChainState, proposal: ChainState, log_ratio: Tensor, generator: torch.Generator | None
) -> tuple[ChainState, StepInfo]:
    """As :func:`metropolis`, with the info of a kernel without momenta."""
    new, probability, accepted = metropolis(state, proposal, log_ratio, generator)
    return new, StepInfo(
        acceptance_rate=probability,
        accepted=accepted,
        diverging=~torch.isfinite(log_ratio),
        hamiltonian=new.energy,
        n_steps=0,
        gradient_evaluations=1,
    )
