# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What warm-up learns from the steps of chains: a step size, a mass, a trajectory length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import Mass, Trajectory

CRITERIA = ("chees", "snaper")
"""Criteria of trajectory lengths: all of the position, or its widest component."""


class Learner:
    """Something learned during warm-up: plain numbers, tensors and other learners."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers and tensors."""
        return {
            name: value.state_dict() if isinstance(value, Learner) else value
            for name, value in vars(self).items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as the one whose ``state_dict`` this is."""
        for name, value in state.items():
            own = getattr(self, name)
            if isinstance(own, Learner):
                own.load_state_dict(value)
            else:
                setattr(self, name, value)


class LearnedNumber(Learner):
    """A positive number that follows the steps, and its average, which is used for the draws."""

    _log_average: float
    _value: float
    _count: int

    def restart(self, value: float) -> None:
        """Forget everything and begin at another value."""
        self._value = value
        self._log_average = math.log(value)
        self._count = 0

    @property
    def value(self) -> float:
        """The present one."""
        return self._value

    @property
    def average(self) -> float:
        """The average over the steps."""
        return math.exp(self._log_average)


class DualAveraging(LearnedNumber):
    """Step size whose acceptance tends to a target.

    Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2.

    Args:
        step_size: where to begin; the first trials go ten times higher.
        target_acceptance: to be reached.
    """

    SHRINKAGE = 0.05  # gamma of the paper, as are its other constants
    DELAY = 10.0  # t_0
    FORGETTING = 0.75  # kappa

    def __init__(self, step_size: float, target_acceptance: float) -> None:
        self.target = target_acceptance
        self.restart(step_size)

    def restart(self, value: float) -> None:
        """Forget everything and begin at another step size."""
        super().restart(value)
        self._attractor = math.log(10 * value)
        self._error = 0.0

    def update(self, acceptance: float) -> None:
        """Take in the acceptance at the present step size."""
        self._count += 1
        weight = 1 / (self._count + self.DELAY)
        self._error += weight * (self.target - acceptance - self._error)
        log_step = self._attractor - math.sqrt(self._count) / self.SHRINKAGE * self._error
        weight = self._count**-self.FORGETTING
        self._log_average += weight * (log_step - self._log_average)
        self._value = math.exp(log_step)


class PooledCovariance(Learner):
    """Running covariance of positions over chains and steps together.

    Args:
        dense: the whole matrix ``(dim, dim)``; else the variances ``(dim,)``.
    """

    def __init__(self, dense: bool = False) -> None:
        self._dense = dense
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._count = 0
        self._mean: Tensor | None = None
        self._sum_of_squares: Tensor | None = None

    def update(self, positions: Tensor) -> None:
        """Add a batch of positions ``(chains, dim)``."""
        chains = len(positions)
        values = positions.double()
        mean = values.mean(0)
        squares = self._squares(values - mean)
        if self._mean is None or self._sum_of_squares is None:
            self._count, self._mean, self._sum_of_squares = chains, mean, squares
            return
        total = self._count + chains
        self._mean, self._sum_of_squares = self._mean.to(mean), self._sum_of_squares.to(mean)
        shift = mean - self._mean
        between = self._squares(shift.unsqueeze(0)) * (self._count * chains / total)
        self._sum_of_squares = self._sum_of_squares + squares + between
        self._mean = self._mean + shift * (chains / total)
        self._count = total

    def _squares(self, deviations: Tensor) -> Tensor:
        return deviations.mT @ deviations if self._dense else deviations.square().sum(0)

    def regularised(self) -> Tensor | None:
        """The covariance, shrunk towards 1e-3 by five pseudo-observations as in Stan.

        None of fewer than two values.
        """
        if self._sum_of_squares is None or self._count < 2:
            return None
        covariance = self._sum_of_squares / (self._count - 1)
        prior = torch.full_like(covariance, 5e-3)
        if self._dense:
            prior = prior.diagonal().diag()
        return (self._count * covariance + prior) / (self._count + 5)


class TrajectoryLength(LearnedNumber):
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
        self.direction = PrincipalDirection() if criterion == "snaper" else None
        self.restart(length)

    def restart(self, value: float) -> None:
        """Forget everything and begin at another length."""
        super().restart(value)
        self._log_length = math.log(value)
        self._slope = self._scale = 0.0
        if self.direction is not None:
            self.direction.clear()

    @property
    def value(self) -> float:
        """The present one."""
        return math.exp(self._log_length)

    def update(
        self,
        trajectory: Trajectory,
        acceptance: Tensor,
        mass: Mass,
        shortest: float,
        longest: float,
    ) -> None:
        """Take in the trajectories of all chains, of these acceptances."""
        start, end, velocity = map(mass.whitened, trajectory[:3])
        whitened = Trajectory(start, end, velocity, trajectory.time)
        if self.direction is not None:
            whitened = self.direction.projected(whitened)
        slope, value = criterion_slope(whitened, acceptance)
        if math.isfinite(slope) and math.isfinite(value):
            self._count += 1
            self._slope += (1 - self.FORGETTING) * (slope - self._slope)
            self._scale += (1 - self.FORGETTING) * (value - self._scale)
        if self._scale > 0:
            left = max(0.0, 1 - self._count / self.FALLING)
            rate = self.LAST_RATE + left * (self.FIRST_RATE - self.LAST_RATE)
            self._log_length += rate * min(max(self._slope / self._scale, -1.0), 1.0)
        self._log_length = min(max(self._log_length, math.log(shortest)), math.log(longest))
        weight = max(self._count, 1) ** -self.AVERAGING
        self._log_average += weight * (self._log_length - self._log_average)


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
