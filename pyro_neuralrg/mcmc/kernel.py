# SPDX-License-Identifier: Apache-2.0
"""The contract of kernels: ``init(positions) -> state``, ``step(state) -> (state, info)``."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.mcmc.model_target import TargetLike, as_target
from pyro_neuralrg.mcmc.target import Target

TUNED = ("step_size", "inverse_mass", "trajectory_length")
"""What warm-up sets of a kernel."""

RIGHT_ANGLE = 1e-3
"""Cosines of the directions of a mass of low rank are below it."""


class ChainState(NamedTuple):
    """All that the next step of the chains needs.

    Attributes:
        position: unconstrained position of each chain, shape ``(chains, dim)``.
        energy: -ln of the unnormalised density of the position, nats, float64, shape ``(chains,)``.
        gradient: of the energy, shape ``(chains, dim)``, or None if no kernel of the run needs it.
        sequence: numbers taken so far from a kernel's quasi-random sequence.
        log_q: ln of the density of the position as a jump's proposal, which the next jump of the
            same flow needs; None if another kernel has moved since.
        direction: in which the chains of a microcanonical kernel move, unit vectors in units of the
            mass, shape ``(chains, dim)``; None before its first step.
    """

    position: Tensor
    energy: Tensor
    gradient: Tensor | None
    sequence: int = 0
    log_q: Tensor | None = None
    direction: Tensor | None = None


def gradient_of(state: ChainState) -> Tensor:
    """The gradient that a state carries for a kernel with ``needs_gradient``."""
    if state.gradient is None:
        raise ValueError("state has no gradient; accepted: one of this kernel's init and step")
    return state.gradient


class Trajectory(NamedTuple):
    """The trajectories of one step: positions ``(chains, dim)`` at both ends, the last velocities.

    All chains move for the same ``time``; ``before`` is that of earlier turns of the same step.
    """

    start: Tensor
    end: Tensor
    velocity: Tensor
    time: float
    before: float = 0.0

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Trajectory:
        """Apply a function to positions and velocities."""
        start, end, velocity = (function(part) for part in self[:3])
        return Trajectory(start, end, velocity, self.time, self.before)


class StepInfo(NamedTuple):
    """Report on one step, for readers and for adaptation.

    Attributes:
        acceptance_rate: acceptance probability of each chain's proposal, shape ``(chains,)``.
        accepted: whether it was accepted, shape ``(chains,)``.
        diverging: whether its energy was not finite, or far off, shape ``(chains,)``.
        hamiltonian: energy of the new position plus kinetic energy, nats, shape ``(chains,)``.
        n_steps: leapfrog steps, the same for every chain; 0 for a kernel without.
        gradient_evaluations: per chain; a jump counts as one.
        parts: for a composed kernel, the info of each member that moved, by its name; empty else.
        trajectory: of a Hamiltonian kernel, from which adaptation learns.
        energy_error: of a kernel without Metropolis' rule, mean square of the energy error of one
            step of its integrator, nats^2, shape ``(chains,)``.
    """

    acceptance_rate: Tensor
    accepted: Tensor
    diverging: Tensor
    hamiltonian: Tensor
    n_steps: int
    gradient_evaluations: int
    parts: Mapping[str, StepInfo] = {}
    trajectory: Trajectory | None = None
    energy_error: Tensor | None = None

    def part(self, name: str) -> StepInfo | None:
        """Info of the member ``name``: None if it did not move, this one if there are no parts."""
        return self.parts.get(name) if self.parts else self


Step: TypeAlias = tuple[ChainState, StepInfo]
"""State after a step, and the report on it."""


class Kernel(ABC):
    """A Markov transition of many chains at once, leaving ``exp(-energy)`` of its target invariant.

    To write another one: derive, define ``step`` (draw random numbers from ``generator`` only, let
    no chain affect another, reject what is not finite), set ``name`` and whether the state must
    carry ``needs_gradient``, and add a line to ``tests/mcmc/registry.py``, whose laws check that
    exact samples stay exact. One with a step size to be adapted derives from :class:`LocalKernel`;
    adaptation itself stands outside (:mod:`pyro_neuralrg.mcmc.adaptation`).

    Args:
        target: a :class:`Target` or what :func:`as_target` makes one of; None if a :class:`Cycle`
            is to supply it.
        shape: lattice shape, if ``target`` is a batched energy ``(chains,) + shape -> (chains,)``.
        flow: sample in the latent space of this flow instead of the physical one.
    """

    name: str = "kernel"
    needs_gradient: bool = False
    step_size: float | None = None
    trajectory_length: float | None = None
    inverse_mass: Tensor | None = None
    target_acceptance: float = 0.8

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

    def on(self, target: Target) -> Self:
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
        self,
        *,
        step_size: float | None = None,
        inverse_mass: Tensor | None = None,
        trajectory_length: float | None = None,
    ) -> Self:
        """Return this kernel with another step size, inverse mass, length (None: as it is)."""
        given = dict(zip(TUNED, (step_size, inverse_mass, trajectory_length), strict=True))
        return self._changed(**{name: value for name, value in given.items() if value is not None})

    @property
    def tuning(self) -> dict[str, dict[str, Any]]:
        """Present values of what :meth:`tuned` sets, of each member by its name."""
        members = self.members.items()
        return {name: {key: getattr(member, key) for key in TUNED} for name, member in members}

    def with_tuning(self, tuning: Mapping[str, Mapping[str, Any]]) -> Kernel:
        """Return this kernel with some of the :attr:`tuning` of its members changed."""
        members = self.members
        for name, values in tuning.items():
            members[name] = members[name].tuned(**values)
        return self.with_members(members)

    @property
    def is_biased(self) -> bool:
        """Whether the draws are of another density than the target's, as nothing is rejected."""
        return any(one.is_biased for one in self.members.values() if one is not self)

    def acceptance(self, info: StepInfo) -> float:
        """Acceptance over the chains that ``target_acceptance`` is about."""
        return float(info.acceptance_rate.mean())

    def init(self, positions: Tensor) -> ChainState:
        """Evaluate the starting positions, shape ``(chains, dim)``.

        Raises:
            ValueError: if they have another shape.
        """
        if self.target.sites and positions.shape[1:] != (self.target.dim,):
            raise ValueError(
                f"positions has shape {tuple(positions.shape)}; accepted: (chains, "
                f"{self.target.dim}), chains flattened as by target.pack()"
            )
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
    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        """Make one transition of every chain."""

    def steps_at_once(self, chains: int) -> int:
        """Number of steps of so many chains that are best made together, by :meth:`steps`."""
        return 1

    def steps(
        self, state: ChainState, generator: torch.Generator | None = None, count: int = 1
    ) -> list[Step]:
        """Make so many transitions, one after the other."""
        found = []
        for _ in range(count):
            found.append(self.step(state, generator))
            state = found[-1][0]
        return found

    def _changed(self, **changes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(changes)
        return other


class LocalKernel(Kernel):
    """A kernel that moves around the present position, with a step size and a mass to be tuned.

    Warm-up aims at the acceptance ``target_acceptance``, and tunes a ``trajectory_length`` if the
    kernel has one. The arguments are those of :class:`HMC`.
    """

    step_size: float
    max_steps: float = math.inf
    _mass: tuple[Tensor | None, Mass] | None = None

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
        self.step_size = check_positive("step_size", step_size)
        if inverse_mass is not None and not is_covariance(inverse_mass):
            raise ValueError(
                f"inverse_mass is {inverse_mass!r}; accepted: finite variances > 0 of shape "
                "(dim,), these beside directions at right angles (dim, 1 + rank), a symmetric "
                "matrix (dim, dim) of positive eigenvalues, or None"
            )
        self.inverse_mass = inverse_mass

    def length_learner(self) -> Any:
        """Learner of the trajectory length, if the kernel has one."""
        raise NotImplementedError

    def mass(self, like: Tensor) -> Mass:
        """The mass of momenta for positions such as ``like``; computed once."""
        given, mass = self._mass or (None, None)
        if mass is None or given is not self.inverse_mass or mass.inverse.dtype != like.dtype:
            mass = Mass.of(self.inverse_mass, like)
            self._mass = self.inverse_mass, mass
        return mass


@dataclass(frozen=True)
class Mass:
    """Momenta p ~ N(0, M), M^-1 being about the covariance of the target: here variances.

    ``inverse`` is M^-1 as a kernel has it, ``factor`` the square roots of its variances, or the
    lower Cholesky factor of a matrix; ``unit`` says that M is the identity.
    """

    inverse: Tensor
    factor: Tensor
    unit: bool = False

    @staticmethod
    def of(inverse: Tensor | None, like: Tensor) -> Mass:
        """The mass of an inverse (None: the identity) for positions such as ``like``."""
        dim = like.shape[-1]
        if inverse is None:
            ones = like.new_ones(dim)
            return Mass(ones, ones, unit=True)
        if inverse.shape[0] != dim or inverse.shape[-1] > dim:
            raise ValueError(
                f"inverse_mass has shape {tuple(inverse.shape)}; accepted: ({dim},), "
                f"({dim}, {dim}), or ({dim}, 1 + rank) of low rank"
            )
        exact = inverse.double()
        if inverse.dim() == 1:
            return Mass(inverse.to(like), exact.sqrt().to(like))
        if inverse.shape == (dim, dim):
            return DenseMass(inverse.to(like), torch.linalg.cholesky(exact).to(like))
        return LowRankMass(inverse.to(like), exact[:, 0].sqrt().to(like))

    def momentum(self, normal: Tensor) -> Tensor:
        """Momenta ``(chains, dim)`` of standard normals of that shape."""
        return normal if self.unit else normal / self.factor

    def displacement(self, normal: Tensor) -> Tensor:
        """Normals of covariance M^-1 of standard ones, ``(chains, dim)`` each."""
        return normal * self.factor

    def velocity(self, momentum: Tensor) -> Tensor:
        """M^-1 p, shape ``(chains, dim)``."""
        return momentum if self.unit else self.inverse * momentum

    def kinetic_energy(self, momentum: Tensor) -> Tensor:
        """p M^-1 p / 2 in nats, float64, shape ``(chains,)``."""
        return 0.5 * (momentum * self.velocity(momentum)).sum(-1).double()

    def scaled(self, gradient: Tensor) -> Tensor:
        """Gradient by whitened coordinates, shape ``(chains, dim)``."""
        return gradient * self.factor

    def whitened(self, positions: Tensor) -> Tensor:
        """Coordinates in which M is the identity, shape ``(chains, dim)``."""
        return positions / self.factor


class DenseMass(Mass):
    """The mass of a whole covariance matrix."""

    def momentum(self, normal: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.mT, normal.mT, upper=True).mT

    def displacement(self, normal: Tensor) -> Tensor:
        return normal @ self.factor.mT

    def velocity(self, momentum: Tensor) -> Tensor:
        return momentum @ self.inverse

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient @ self.factor

    def whitened(self, positions: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, positions.mT, upper=False).mT


class LowRankMass(Mass):
    r"""Variances s^2, and what is known of a few directions: two thin products a step.

    :math:`M^{-1} = s\,[1 + V (\Lambda - 1) V^T]\,s` with orthonormal directions V. Its
    ``inverse``, of shape ``(dim, 1 + rank)``, holds :math:`s^2` beside :math:`V \Lambda`.
    """

    @cached_property
    def _directions(self) -> tuple[Tensor, Tensor]:
        """V ``(dim, rank)`` and Lambda ``(rank,)``."""
        columns = self.inverse[:, 1:]
        variances = columns.norm(dim=0)
        return columns / variances, variances

    @cached_property
    def _changes(self) -> dict[float, Tensor]:
        """(Lambda^p - 1) V^T for the powers p that are asked for."""
        directions, variances = self._directions
        return {p: ((variances**p - 1) * directions).mT.contiguous() for p in (-0.5, 0.5, 1.0)}

    def _stretched(self, x: Tensor, power: float) -> Tensor:
        return torch.addmm(x, x @ self._directions[0], self._changes[power])

    def momentum(self, normal: Tensor) -> Tensor:
        return self._stretched(normal, -0.5) / self.factor

    def displacement(self, normal: Tensor) -> Tensor:
        return self._stretched(normal, 0.5) * self.factor

    def velocity(self, momentum: Tensor) -> Tensor:
        return self._stretched(momentum * self.factor, 1.0) * self.factor

    def scaled(self, gradient: Tensor) -> Tensor:
        return self._stretched(gradient * self.factor, 0.5)

    def whitened(self, positions: Tensor) -> Tensor:
        return self._stretched(positions / self.factor, -0.5)


def check_positive(name: str, value: Any) -> float:
    """Return a step size or the like as a float, if it is one."""
    return check_number(name, value, "a finite number > 0", above=0)


def normals_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals of this shape, dtype and device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def uniforms_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in (0, 1) likewise."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def is_covariance(values: Any) -> bool:
    """Report whether these can be an inverse mass, in one of the forms that :class:`HMC` takes."""
    if not isinstance(values, Tensor) or not bool(values.isfinite().all()):
        return False
    if values.dim() == 1:
        return bool((values > 0).all())
    if values.dim() != 2 or not 0 < values.shape[1] <= len(values):
        return False
    if values.shape[1] == len(values):
        return bool(constraints.positive_definite.check(values.double()))
    lengths = values[:, 1:].double().norm(dim=0)
    if not (bool((values[:, 0] > 0).all()) and bool((lengths > 0).all())):
        return False
    directions = values[:, 1:].double() / lengths
    turned = directions.mT @ directions - torch.eye(len(lengths)).to(directions)
    return not turned.numel() or float(turned.abs().max()) < RIGHT_ANGLE
