# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo over a batch of chains: trajectories of given, one, or learned length."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_choice, check_integer, check_number
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
    uniforms_like,
)
from pyro_neuralrg.mcmc.learning import CRITERIA, TrajectoryLength
from pyro_neuralrg.mcmc.metropolis import metropolis
from pyro_neuralrg.mcmc.model_target import TargetLike
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.runtime.processes import processes

DIVERGENCE_THRESHOLD = 1000.0
"""Energy error (nats) beyond which a trajectory counts as divergent, as in Stan and Pyro."""

SMALL_STEP = 0.2
"""Size of small leapfrog steps, in units of the others."""


class HMC(LocalKernel):
    """Hamiltonian Monte Carlo with a jittered or fixed number of leapfrog steps.

    All chains take the same number of steps of the same size; each accepts or rejects by itself.
    Momenta are drawn from N(0, M) with M the inverse of ``inverse_mass``. A step costs as many
    gradient evaluations as it has leapfrog steps.

    Args:
        target: a ``LatticePotential``, a Pyro model (also one under ``poutine.reparam``), a
            :class:`Target`, or a batched energy with ``shape``.
        step_size: leapfrog step, > 0.
        num_steps: mean number of leapfrog steps a trajectory, >= 1.
        jitter: in [0, 1): each trajectory draws its number of steps, shared by the chains,
            uniformly from the integers within ``num_steps * (1 +- jitter)``; guards against
            trajectories of one period, after which chains are where they were. 0 for one length.
        small_steps: in [0, 1): share of the trajectories, drawn for each chain, whose leapfrog
            steps are a fifth as long: chains get out of narrow corners, where longer ones diverge.
            Warm-up takes these for accepted, and looks at the others.
        inverse_mass: its diagonal, shape ``(dim,)``, the whole matrix, shape ``(dim, dim)``, or
            variances beside a few directions, shape ``(dim, 1 + rank)``, as warm-up learns of
            ``mass="low_rank"``; None for the identity.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.

    Raises:
        TypeError, ValueError: naming the argument, or as :func:`as_target`.

    References:
        Duane, Kennedy, Pendleton, Roweth, "Hybrid Monte Carlo" (1987); Neal, "MCMC using
        Hamiltonian dynamics" (2011).

    Example:
        >>> import torch
        >>> kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,), step_size=0.5, num_steps=4)
        >>> state = kernel.init(torch.zeros(100, 3))
        >>> state, info = kernel.step(state, torch.Generator().manual_seed(0))
        >>> state.position.shape, 2 <= info.n_steps <= 6
        (torch.Size([100, 3]), True)
    """

    name = "hmc"
    needs_gradient = True

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        num_steps: int = 10,
        jitter: float = 0.5,
        small_steps: float = 0.0,
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(
            target, step_size=step_size, inverse_mass=inverse_mass, shape=shape, flow=flow
        )
        self.num_steps = check_integer("num_steps", num_steps, 1)
        share = "a number in [0, 1)"
        self.jitter = check_number("jitter", jitter, share, least=0, below=1)
        self.small_steps = check_number("small_steps", small_steps, share, least=0, below=1)

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        """Integrate one trajectory of every chain and accept or reject its end."""
        n_steps, spread = self.num_steps, math.floor(self.num_steps * self.jitter)
        if spread:
            bounds = max(1, n_steps - spread), n_steps + spread + 1
            device = None if generator is None else generator.device
            drawn = int(torch.randint(*bounds, (), generator=generator, device=device))
            n_steps = processes().first(drawn)  # no process waits for another
        scale = None
        if self.small_steps:
            uniform = uniforms_like(state.position[:, :1], generator)
            scale = torch.where(uniform < self.small_steps, SMALL_STEP, 1.0).to(uniform)
        return hamiltonian_step(self, state, n_steps, generator, scale)

    def acceptance(self, info: StepInfo) -> float:
        """That of trajectories of full steps."""
        share = self.small_steps
        return max(0.0, (super().acceptance(info) - share) / (1 - share))


class MALA(LocalKernel):
    r"""Metropolis-adjusted Langevin: HMC of a single leapfrog step.

    The proposal :math:`x - \tfrac12 \epsilon^2 M^{-1} \nabla E(x) + \epsilon M^{-1/2} \xi` is that
    of the Langevin equation with the time step :math:`\epsilon^2`, epsilon being ``step_size``.
    Warm-up aims at an acceptance of 0.574, the optimum in many dimensions.

    Args:
        target, inverse_mass, shape, flow: as for :class:`HMC`.
        step_size: epsilon, > 0.

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

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        return hamiltonian_step(self, state, 1, generator)


class QuasiRandomLengths(LocalKernel):
    """Common part of kernels whose trajectories have quasi-random lengths."""

    trajectory_length: float
    max_steps: int

    def acceptance(self, info: StepInfo) -> float:
        """The harmonic mean over the chains, which no stuck chain hides behind others."""
        return float(1 / (1 / info.acceptance_rate.clamp(min=1e-12)).mean())

    def _next_length(self, state: ChainState, longest: float) -> tuple[ChainState, int]:
        """Number of steps of the next trajectory of a sequence that fills (0, ``longest``)."""
        state = state._replace(sequence=state.sequence + 1)
        n_steps = math.ceil(halton(state.sequence) * longest / self.step_size)
        return state, min(max(1, n_steps), self.max_steps)


class ChEESHMC(QuasiRandomLengths):
    r"""HMC with trajectories of quasi-random length, up to one that warm-up learns.

    Step n integrates for the time :math:`h_n T`, rounded up to whole leapfrog steps, with h the
    Halton (van der Corput) sequence of base 2 in (0, 1) and T the ``trajectory_length``. During
    warm-up T climbs :math:`C^{1/3} D^{2/3} / T`: C is the criterion ChEES, the change in the
    estimator of the expected square, and D the mean squared jump along the direction v in which
    the chains spread most:

    .. math:: C = \tfrac14 E\big[(|x' - E x'|^2 - |x - E x|^2)^2\big], \qquad
        D = E\big[(v \cdot (x' - x))^2\big],

    means taken over the chains; the step size aims at a harmonic mean acceptance of 0.651. So it
    takes at least two chains, better 32 or more, all of which make steps of the same length. C
    alone suits the squares of normals, and may not see one wide direction of many: on a Gaussian of
    variances from 1e-5 to 1 it took 940 gradients for each effective draw of the slowest moment,
    with D 530; on the Ising model at Tc, 16 x 16, 1,770 and 1,300. On 20 standard normals the
    squares have 288 effective samples for each 1000 gradients with D, and 346 without.

    T is at least the mean distance of a chain from its own middle along v. Once the farthest chain
    has come in, and with each mass, T begins anew, for a way down tells nothing of the target. The
    longest trajectory of the n-th step of warm-up has 10 + n leapfrog steps: a chain far out, which
    makes the step small for all, does not cost more.

    Without the division, as in the first paper, T came to rest at the third maximum of a normal
    target: on 20 standard normals 64 effective samples of the squares for each 1000 gradients.

    Args:
        target, shape, flow: as for :class:`HMC`.
        step_size: leapfrog step, > 0, to begin with.
        trajectory_length: longest time of a trajectory, > 0; the mean is half of it. None begins
            with one leapfrog step.
        max_steps: leapfrog steps that no trajectory exceeds, >= 1.
        criterion: "chees", or "snaper": C of the projection of the position on v.
        inverse_mass: as for ``HMC``; the criterion is that of positions in units of it.

    Raises:
        TypeError, ValueError: as for ``HMC``.

    References:
        Hoffman, Radul, Sountsov, "An Adaptive MCMC Scheme for Setting Trajectory Lengths in
        Hamiltonian Monte Carlo" (AISTATS 2021); for the division by the time and for SNAPER,
        Sountsov, Hoffman, "Focusing on Difficult Directions for Learning HMC Trajectory Lengths"
        (2021).

    Example:
        >>> from pyro_neuralrg import VectorizedMCMC
        >>> kernel = ChEESHMC(lambda x: 0.5 * x.square().sum(-1), shape=(10,))
        >>> mcmc = VectorizedMCMC(kernel, 10, 200, num_chains=32, seed=0, progress=False)
        >>> mcmc.run()
        >>> 0.7 < mcmc.kernel.trajectory_length < 3.0  # half a period of unit normals: pi
        True
    """

    name = "chees"
    needs_gradient = True
    target_acceptance = 0.651

    def __init__(
        self,
        target: TargetLike,
        *,
        step_size: float = 0.1,
        trajectory_length: float | None = None,
        max_steps: int = 1000,
        criterion: str = "chees",
        inverse_mass: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        flow: TransformModule | None = None,
    ) -> None:
        super().__init__(
            target, step_size=step_size, inverse_mass=inverse_mass, shape=shape, flow=flow
        )
        length = self.step_size if trajectory_length is None else trajectory_length
        self.trajectory_length = check_positive("trajectory_length", length)
        self.max_steps = check_integer("max_steps", max_steps, 1)
        self.criterion = check_choice("criterion", criterion, CRITERIA)

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        state, n_steps = self._next_length(state, self.trajectory_length)
        return hamiltonian_step(self, state, n_steps, generator)

    def length_learner(self) -> TrajectoryLength:
        return TrajectoryLength(self.trajectory_length, self.criterion)


def hamiltonian_step(
    kernel: LocalKernel,
    state: ChainState,
    n_steps: int,
    generator: torch.Generator | None,
    scale: Tensor | None = None,  # (chains, 1)
) -> Step:
    """Draw momenta, make leapfrog steps, ``scale`` times as long, accept or reject their end."""
    position, mass = state.position, kernel.mass(state.position)
    momentum = mass.momentum(normals_like(position, generator))
    before = state.energy + mass.kinetic_energy(momentum)
    step_size = kernel.step_size if scale is None else kernel.step_size * scale
    proposal, momentum = leapfrog(kernel.target, state, momentum, mass, step_size, n_steps)
    after = proposal.energy + mass.kinetic_energy(momentum)
    new, info = metropolis(state, proposal, before - after, generator)
    velocity, time = mass.velocity(momentum), n_steps * kernel.step_size
    return new, info._replace(
        diverging=~(torch.isfinite(after) & (after - before < DIVERGENCE_THRESHOLD)),
        hamiltonian=torch.where(info.accepted, after, before),
        n_steps=n_steps,
        gradient_evaluations=n_steps,
        trajectory=Trajectory(position, proposal.position, velocity, time),
    )


def leapfrog(
    target: Target,
    state: ChainState,
    momentum: Tensor,
    mass: Mass,
    step_size: float | Tensor,
    n_steps: int,
) -> tuple[ChainState, Tensor]:
    """Integrate Hamilton's equations; return the end and its momentum.

    Coordinates that are no longer finite are evaluated at zero; their momentum is not finite either
    and stays so, for which the end is refused.
    """
    energy, gradient = state.energy, gradient_of(state)
    # the two are this function's own, and changed in place
    position, momentum = state.position.clone(), momentum.clone()
    _shift_in_time(momentum, gradient, -0.5 * step_size)
    for index in range(n_steps):
        _shift_in_time(position, mass.velocity(momentum), step_size)
        position.nan_to_num_(0.0, 0.0, 0.0)
        energy, gradient = target.energy_and_grad(position)
        last = index == n_steps - 1
        _shift_in_time(momentum, gradient, (-0.5 if last else -1.0) * step_size)
    return state._replace(position=position, energy=energy, gradient=gradient), momentum


def _shift_in_time(x: Tensor, rate: Tensor, time: float | Tensor) -> None:
    """Add rate times time in place, the time one for all chains or ``(chains, 1)``."""
    if isinstance(time, Tensor):
        x.addcmul_(rate, time)
    else:
        x.add_(rate, alpha=time)


def halton(index: int) -> float:
    """The ``index``-th number (from 1) of the van der Corput sequence, in (0, 1).

    >>> [halton(index) for index in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    return int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length()
