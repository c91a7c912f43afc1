# SPDX-License-Identifier: Apache-2.0
r"""Microcanonical kernels: one that never rejects and is biased, and one that is exact.

Chains move at constant speed, and are turned by the gradient.
With positions in units of the mass, directions u (unit vectors of d components) and time in units
in which the speed is :math:`\sqrt d`, as that of HMC is on average,

.. math:: \dot x = \sqrt d\, u, \qquad
    \dot u = -\sqrt d\, (1 - u u^T)\, \nabla E(x) / (d - 1).

This, and random turns of u, keep :math:`e^{-E(x)}` times the uniform density of u. A step of an
integrator keeps it up to its *energy error*: the change of E, and ln of the volume of its turns.
Times of the papers on microcanonical sampling, whose speed is 1, are :math:`\sqrt d` times ours.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_choice, check_integer
from pyro_neuralrg.mcmc.hmc import DIVERGENCE_THRESHOLD, QuasiRandomLengths
from pyro_neuralrg.mcmc.kernel import (
    ChainState,
    LocalKernel,
    Mass,
    Step,
    StepInfo,
    Trajectory,
    check_positive,
    gradient_of,
    normals_like,
)
from pyro_neuralrg.mcmc.learning import DecorrelationLength
from pyro_neuralrg.mcmc.metropolis import chosen_chains, metropolis
from pyro_neuralrg.mcmc.model_target import TargetLike
from pyro_neuralrg.mcmc.target import Target

INTEGRATORS = {
    "leapfrog": ((0.5, 0.5), (1.0,)),
    "minimal_norm": ((0.1931833275037836, 0.6136333449924328, 0.1931833275037836), (0.5, 0.5)),
}
"""Parts of a step for which the gradient turns, and the chain moves, in turns (McLachlan 1995)."""

LONGEST_TURN = 25.0
"""Decoherence times after which nothing is left of a direction."""

LARGEST_RATIO = 100.0
"""In units of the variance aimed at: more of one chain's energy error tells nothing more."""


class Microcanonical(LocalKernel):
    """Common part of :class:`MCLMC` and :class:`MAMS`, whose arguments are documented there."""

    needs_gradient = True
    trajectory_length: float
    integrator: str

    def length_learner(self) -> DecorrelationLength:
        return DecorrelationLength(self.trajectory_length)

    def init(self, positions: Tensor) -> ChainState:
        if self.target.dim < 2:  # there is no direction to turn in
            name = type(self).__name__
            raise ValueError(f"target has 1 dimension; accepted by {name}: at least 2")
        return super().init(positions)

    def _path(
        self,
        state: ChainState,
        direction: Tensor,
        n_steps: int,
        decoherence: float,
        generator: torch.Generator | None,
        barrier: float = math.inf,
    ) -> tuple[ChainState, StepInfo, Tensor]:
        """Integrate, each step after a random turn; return the sum of the energy errors as well.

        A chain stays, and turns round, where a step is not finite or its error above the barrier;
        one that made all steps is accepted. Directions have a time of ``decoherence``.
        """
        start, zero = state.position, torch.zeros_like(state.energy)
        mass = self.mass(start)
        total, squares, is_sound = zero, zero, zero == 0
        for _ in range(n_steps):
            direction = turned_at_random(direction, self.step_size / decoherence, generator)
            moved, turned, error = isokinetic_step(
                self.target, mass, state, direction, self.step_size, self.integrator
            )
            assert moved.gradient is not None
            sound = torch.isfinite(error) & torch.isfinite(moved.gradient).all(-1)
            sound &= torch.isfinite(turned).all(-1) & (error < barrier)
            state = chosen_chains(sound, moved, state)
            direction = torch.where(sound.unsqueeze(-1), turned, -direction)
            total = total + torch.where(sound, error, zero)
            squares = squares + torch.where(sound, error.square(), math.inf)
            is_sound = is_sound & sound
        velocity = math.sqrt(start.shape[-1]) * mass.displacement(direction)
        path = Trajectory(start, state.position, velocity, n_steps * self.step_size)
        info = StepInfo(
            acceptance_rate=is_sound.to(zero),
            accepted=is_sound,
            diverging=~is_sound,
            hamiltonian=state.energy,
            n_steps=n_steps,
            gradient_evaluations=n_steps * len(INTEGRATORS[self.integrator][1]),
            trajectory=path,
            energy_error=squares / n_steps,
        )
        return state._replace(direction=direction), info, total


class MCLMC(Microcanonical):
    r"""Microcanonical Langevin Monte Carlo: **biased**, for nothing is rejected.

    Chains move at constant speed, and keep their directions from draw to draw, which noise turns by
    and by. The draws are those of another density than the target's, by what falls as the square of
    the step size; where that matters, take :class:`MAMS`. Warm-up aims at a variance v of the
    energy error of a step of ``energy_variance`` for each dimension; v grows as the sixth power of
    the step size. (An ``Adaptation(target_acceptance=a)`` aims at the v for which
    :math:`a = 1 / (1 + (v / \mathtt{energy\_variance})^{1/3})`.) It takes as ``trajectory_length``
    the root mean square width of the chains, then 0.4 of their autocorrelation time.

    A chain whose step leads to numbers that are not finite, or has an energy error above 1000 nats,
    stays and turns round; it counts as divergent.

    Args:
        target, inverse_mass, shape, flow: as for :class:`HMC`.
        step_size: of the integrator, > 0; the speed is the mean one of HMC.
        trajectory_length: L, time in which noise turns directions by about a radian, > 0.
        num_steps: steps of a draw, >= 1: more need less memory, not fewer gradients.
        energy_variance: what warm-up aims at, nats^2, > 0.
        integrator: "minimal_norm", of two gradients a step, or "leapfrog", of one.

    Raises:
        TypeError, ValueError: as for ``HMC``.

    References:
        Robnik, De Luca, Silverstein, Seljak, "Microcanonical Hamiltonian Monte Carlo" (2023);
        Robnik, Seljak, "Fluctuation without dissipation: Microcanonical Langevin Monte Carlo"
        (2024).

    Example:
        >>> import torch
        >>> MCLMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        MCLMC(EnergyTarget(x (3,)), step_size=0.1, trajectory_length=1, biased)
    """

    name = "mclmc"
    target_acceptance = 0.5
    is_biased = True

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        trajectory_length: float = 1.0,
        num_steps: int = 1,
        energy_variance: float = 5e-4,
        integrator: str = "minimal_norm",
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(
            target, step_size=step_size, inverse_mass=inverse_mass, shape=shape, flow=flow
        )
        self.trajectory_length = check_positive("trajectory_length", trajectory_length)
        self.integrator = check_choice("integrator", integrator, INTEGRATORS)
        self.num_steps = check_integer("num_steps", num_steps, 1)
        self.energy_variance = check_positive("energy_variance", energy_variance)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, biased)"

    def acceptance(self, info: StepInfo) -> float:
        """A number that falls from 1 to 0 as the energy error grows, 0.5 where it is as wanted."""
        assert info.energy_error is not None
        ratio = info.energy_error / (self.target.dim * self.energy_variance)
        return 1 / (1 + float(ratio.clamp(max=LARGEST_RATIO).mean()) ** (1 / 3))

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        """Move every chain by ``num_steps`` steps."""
        direction = state.direction
        if direction is None:
            direction = random_direction(state.position, generator)
        options = self.num_steps, self.trajectory_length, generator, DIVERGENCE_THRESHOLD
        return self._path(state, direction, *options)[:2]


class MAMS(QuasiRandomLengths, Microcanonical):
    r"""Metropolis-adjusted microcanonical sampler: exact, and often ahead of HMC.

    A trajectory begins in a random direction, moves at constant speed for a quasi-random time,
    :math:`2 h_n L` rounded up to whole steps, with h the Halton sequence of base 2 and L the
    ``trajectory_length``, and is accepted with probability :math:`\min(1, e^{-\Delta})` of its
    energy error. Warm-up aims at a harmonic mean acceptance of 0.85, a mean of about 0.9, and takes
    as L the root mean square width of the chains, then 0.4 of their autocorrelation time. The steps
    it ends with are too long for chains that begin far out: these need a warm-up.

    Args:
        target, inverse_mass, shape, flow, step_size, integrator: as for :class:`MCLMC`; here the
            step biases nothing.
        trajectory_length: L, mean time of a trajectory, > 0.
        max_steps: steps that no trajectory exceeds, >= 1.

    Raises:
        TypeError, ValueError: as for ``HMC``.

    References:
        Robnik, Cohn-Gordon, Seljak, "Metropolis Adjusted Microcanonical Hamiltonian Monte Carlo"
        (2025).

    Example:
        >>> import torch
        >>> kernel = MAMS(lambda x: 0.5 * x.square().sum(-1), shape=(3,), step_size=0.5)
        >>> state, info = kernel.step(kernel.init(torch.zeros(5, 3)))
        >>> info.n_steps, info.gradient_evaluations
        (2, 4)
    """

    name = "mams"
    target_acceptance = 0.85

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        trajectory_length: float = 1.0,
        max_steps: int = 1000,
        integrator: str = "minimal_norm",
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(
            target, step_size=step_size, inverse_mass=inverse_mass, shape=shape, flow=flow
        )
        self.trajectory_length = check_positive("trajectory_length", trajectory_length)
        self.integrator = check_choice("integrator", integrator, INTEGRATORS)
        self.max_steps = check_integer("max_steps", max_steps, 1)

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        state, n_steps = self._next_length(state, 2 * self.trajectory_length)
        direction = random_direction(state.position, generator)
        end, path, error = self._path(state, direction, n_steps, math.inf, generator)
        log_ratio = torch.where(path.accepted, -error, -math.inf)
        new, info = metropolis(state, end, log_ratio, generator)
        return new, info._replace(
            diverging=path.diverging | ~(error < DIVERGENCE_THRESHOLD),
            n_steps=n_steps,
            gradient_evaluations=path.gradient_evaluations,
            trajectory=path.trajectory,
        )


# Isokinetic dynamics ------------------------------------------------------------------------------


def isokinetic_step(
    target: Target, mass: Mass, state: ChainState, u: Tensor, step_size: float, integrator: str
) -> tuple[ChainState, Tensor, Tensor]:
    """Move every chain; return its end, its direction there and its energy error in nats."""
    turns, moves = INTEGRATORS[integrator]
    time = step_size * math.sqrt(u.shape[-1])
    position, energy, gradient = state.position, state.energy, gradient_of(state)
    u, volume = turned(u, mass.scaled(gradient), turns[0] * time)
    for move, turn in zip(moves, turns[1:], strict=True):
        position = position.add(mass.displacement(u), alpha=move * time)
        energy, gradient = target.energy_and_grad(position)
        u, more = turned(u, mass.scaled(gradient), turn * time)
        volume = volume + more
    end = state._replace(position=position, energy=energy, gradient=gradient)
    return end, u, energy - state.energy + volume


def turned(u: Tensor, gradient: Tensor, time: float) -> tuple[Tensor, Tensor]:
    r"""Directions ``(chains, dim)`` after turning downhill, for a time in which they move by it.

    With :math:`e = -\nabla E / |\nabla E|`, :math:`\delta = t |\nabla E| / (d - 1)` and
    :math:`\zeta = e^{-\delta}`, which does not overflow, they are along
    :math:`2\zeta u + (1 - \zeta)(1 + \zeta + (1 - \zeta)\, e\cdot u)\, e`. Also returns -ln of the
    volume, :math:`(d - 1) \ln(\cosh\delta + e\cdot u \sinh\delta)`, float64, shape ``(chains,)``.
    """
    norm = gradient.norm(dim=-1, keepdim=True)
    downhill = -gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    cosine = (u * downhill).sum(-1, keepdim=True).double().clamp(-1.0, 1.0)
    delta = time * norm.double() / (u.shape[-1] - 1)
    decay = torch.exp(-delta)
    along = (1 - decay) * (1 + decay + (1 - decay) * cosine)
    end = (2 * decay).to(u) * u + along.to(u) * downhill
    log_growth = delta + torch.log1p(0.5 * (1 - cosine) * torch.expm1(-2 * delta))
    return end / end.norm(dim=-1, keepdim=True), (u.shape[-1] - 1) * log_growth.squeeze(-1)


def turned_at_random(u: Tensor, time: float, generator: torch.Generator | None) -> Tensor:
    r"""Directions whose cosine with those given is about :math:`e^{-t}`."""
    if time == 0:
        return u
    width = math.sqrt(math.expm1(2 * min(time, LONGEST_TURN)) / u.shape[-1])
    end = u.add(normals_like(u, generator), alpha=width)
    return end / end.norm(dim=-1, keepdim=True)


def random_direction(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform directions of this shape ``(chains, dim)``."""
    normals = normals_like(like, generator)
    return normals / normals.norm(dim=-1, keepdim=True)
