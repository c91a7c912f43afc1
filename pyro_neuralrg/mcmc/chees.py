# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo whose trajectory length is learned across chains."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.mcmc.adapters import Learner
from pyro_neuralrg.mcmc.hmc import hamiltonian_step
from pyro_neuralrg.mcmc.kernel import ChainState, LocalKernel, StepInfo, TargetLike, Trajectory
from pyro_neuralrg.mcmc.mass import Mass

CRITERIA = ("chees", "snaper")
"""Criteria of trajectory lengths: all of the position, or its widest component."""


class ChEESHMC(LocalKernel):
    r"""HMC with trajectories of quasi-random length, up to one that warm-up learns.

    Step n integrates for the time :math:`h_n T`, rounded up to whole leapfrog steps, with h the
    Halton (van der Corput) sequence of base 2 in (0, 1) and T the ``trajectory_length``. During
    warm-up T climbs the criterion ChEES, the change in the estimator of the expected square, for
    each unit of time:

    .. math:: \tfrac14 E\big[(|x' - E x'|^2 - |x - E x|^2)^2\big] / T,

    means taken over the chains (:class:`TrajectoryLength`); the step size aims at a
    harmonic mean acceptance of 0.651. So it takes at least two chains, better 32 or more, all of
    which make steps of the same length: no chain waits for another. Without the division, as in the
    first paper, the criterion of a normal target has a maximum in every half period, and T came to
    rest at the third: on 20 standard normals 64 effective samples of the squares for each 1000
    gradients, with it 345.

    With ``criterion="snaper"`` x is not the whole position but its projection on the direction in
    which the chains spread most, which is learned as well (:class:`PrincipalDirection`). That is
    the better choice where a few directions are much wider than all others, whose sum of squares
    does not see them: the hyper-parameters of a large field, say.

    Args:
        target: as for :class:`~pyro_neuralrg.mcmc.HMC`.
        step_size: leapfrog step, > 0, to begin with.
        trajectory_length: longest time of a trajectory, > 0; the mean is half of it. None begins
            with one leapfrog step.
        max_steps: leapfrog steps that no trajectory exceeds, >= 1.
        criterion: "chees" or "snaper", see above.
        inverse_mass: as for ``HMC``; the criterion is that of positions in units of it.
        shape: lattice shape of a plain energy.
        flow: sample in the latent space of this flow.

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
        accepted = "a finite number > 0"
        self.trajectory_length = check_number("trajectory_length", length, accepted, above=0)
        self.max_steps = check_integer("max_steps", max_steps, 1)
        if criterion not in CRITERIA:
            raise ValueError(f"criterion is {criterion!r}; accepted: {', '.join(CRITERIA)}")
        self.criterion = criterion

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """Integrate the next trajectory of the sequence; accept or reject its end."""
        assert self.trajectory_length is not None
        state = state._replace(sequence=state.sequence + 1)
        time = halton(state.sequence) * self.trajectory_length
        n_steps = min(max(1, math.ceil(time / self.step_size)), self.max_steps)
        return hamiltonian_step(self, state, n_steps, generator)

    def acceptance(self, info: StepInfo) -> float:
        """The harmonic mean over the chains, which no stuck chain hides behind others."""
        return float(1 / (1 / info.acceptance_rate.clamp(min=1e-12)).mean())


class TrajectoryLength(Learner):
    """Ascent of the criterion in ln T, by its relative slope d ln(C / T) / d ln T.

    Numerator and denominator of the slope are averaged over the last steps, which together see the
    whole of (0, T). Adam, as in the paper, divides by the root of averaged squares instead, which
    lag behind while T grows: it led beyond the first maximum, to others.

    Args:
        length: where to begin.
        criterion: "chees", of whole positions, or "snaper", of their principal component.
    """

    FIRST_RATE, LAST_RATE, FALLING = 0.15, 0.03, 100  # step in ln T for a slope of one
    FORGETTING = 0.9  # of numerators and denominators
    AVERAGING = 0.5  # the n-th value of ln T enters the average with the weight n ** -0.5

    def __init__(self, length: float, criterion: str = "chees") -> None:
        self._direction = PrincipalDirection() if criterion == "snaper" else None
        self.restart(length)

    def restart(self, length: float) -> None:
        """Forget everything and begin at another length."""
        self._log_length = self._log_average = math.log(length)
        self._slope = self._value = 0.0
        self._count = 0
        if self._direction is not None:
            self._direction.clear()

    def update(
        self,
        trajectory: Trajectory,
        acceptance: Tensor,
        mass: Mass,
        shortest: float,
        longest: float,
    ) -> float:
        """Take in the trajectories of all chains, of these acceptances; return the next length."""
        start, end, velocity = map(mass.whitened, trajectory[:3])
        whitened = Trajectory(start, end, velocity, trajectory.time)
        if self._direction is not None:
            whitened = self._direction.projected(whitened)
        slope, value = criterion_slope(whitened, acceptance)
        if math.isfinite(slope) and math.isfinite(value):
            self._count += 1
            self._slope += (1 - self.FORGETTING) * (slope - self._slope)
            self._value += (1 - self.FORGETTING) * (value - self._value)
        if self._value > 0:
            left = max(0.0, 1 - self._count / self.FALLING)
            rate = self.LAST_RATE + left * (self.FIRST_RATE - self.LAST_RATE)
            self._log_length += rate * min(max(self._slope / self._value, -1.0), 1.0)
        self._log_length = min(max(self._log_length, math.log(shortest)), math.log(longest))
        weight = max(self._count, 1) ** -self.AVERAGING
        self._log_average += weight * (self._log_length - self._log_average)
        return self.length

    @property
    def length(self) -> float:
        """The present one."""
        return math.exp(self._log_length)

    @property
    def average(self) -> float:
        """The averaged length, to be used for the draws."""
        return math.exp(self._log_average)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers and tensors."""
        own = super().state_dict()
        direction = own.pop("_direction")
        return own | ({} if direction is None else {"direction": direction.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as the one whose ``state_dict`` this is."""
        super().load_state_dict({k: value for k, value in state.items() if k != "direction"})
        if self._direction is not None and "direction" in state:
            self._direction.load_state_dict(state["direction"])


class PrincipalDirection(Learner):
    r"""The direction in which chains spread most, by Oja's rule over the steps of warm-up.

    The mean and the vector :math:`v \leftarrow (1 - r) v + r\, C v / |C v|` forget as 1 / n; C is
    the covariance of the present positions about that mean.
    """

    DELAY = 8.0  # steps after which the n-th counts as 1 / n, as in the paper

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._count = 0
        self._mean: Tensor | None = None
        self._vector: Tensor | None = None

    def projected(self, trajectory: Trajectory) -> Trajectory:
        """Take in its starts; return its components along the direction, ``(chains, 1)``."""
        start = trajectory.start.double()
        sound = torch.isfinite(start).all(-1)
        self._update(start[sound])
        if self._vector is None:  # nothing is known yet: all of the position
            return trajectory
        vector = (self._vector / self._vector.norm()).unsqueeze(-1)
        start, end, velocity = (part.double() @ vector for part in trajectory[:3])
        return Trajectory(start, end, velocity, trajectory.time)

    def _update(self, positions: Tensor) -> None:
        if len(positions) < 2:
            return
        self._count += 1
        rate = self.DELAY / (self._count + self.DELAY)
        mean = positions.mean(0)
        known = mean if self._mean is None else self._mean.to(mean)  # a file's is on the CPU
        self._mean = known + rate * (mean - known)
        deviations = positions - self._mean
        if self._vector is None:  # the farthest chain, unless all are at one point
            farthest = deviations[deviations.square().sum(-1).argmax()]
            if not float(farthest.norm()) > 0:
                return
            self._vector = farthest
        self._vector = self._vector.to(mean)
        image = deviations.mT @ (deviations @ self._vector)
        if float(image.norm()) > 0:
            unit = self._vector / self._vector.norm()
            self._vector = (1 - rate) * unit + rate * image / image.norm()


def criterion_slope(trajectory: Trajectory, acceptance: Tensor) -> tuple[float, float]:
    """The criterion C, and t dC / dt - C, whose ratio is the slope of ln(C / t) in ln t.

    Averaged over the chains with their acceptance probabilities as weights; chains that ran away
    have none. Positions and velocities are those of unit mass.

    Returns:
        The numerator, and C.
    """
    start, end, velocity = (part.double() for part in trajectory[:3])
    sound = torch.isfinite(end).all(-1) & torch.isfinite(velocity).all(-1)
    weight = torch.where(sound, acceptance, torch.zeros_like(acceptance))
    total = float(weight.sum())
    if total == 0:
        return 0.0, 0.0
    weight = weight / total
    end = torch.where(sound.unsqueeze(-1), end, start)
    velocity = torch.where(sound.unsqueeze(-1), velocity, torch.zeros_like(velocity))
    moved = end - (weight.unsqueeze(-1) * end).sum(0)
    rested = start - start.mean(0)
    growth = moved.square().sum(-1) - rested.square().sum(-1)
    value = float((weight * 0.25 * growth.square()).sum())
    change = float((weight * growth * (moved * velocity).sum(-1)).sum())
    return trajectory.time * change - value, value


def halton(index: int, base: int = 2) -> float:
    """The ``index``-th number (from 1) of the van der Corput sequence, in (0, 1).

    >>> [halton(index) for index in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    value, scale = 0.0, 1.0
    while index:
        scale /= base
        index, digit = divmod(index, base)
        value += scale * digit
    return value
