# SPDX-License-Identifier: Apache-2.0
"""Step size, mass and trajectory length, learned from the steps of warm-up."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import LocalKernel, Mass, Trajectory

CRITERIA = ("chees", "snaper")
"""Criteria of trajectory lengths: all of the position, or its widest component."""

TINY = torch.finfo(torch.float64).tiny


class Learner:
    """Something learned during warm-up, as plain numbers, tensors and other learners."""

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


class DualAveraging(Learner):
    """Step size whose acceptance tends to a target, at most twice the last one.

    Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2, but for two constants: many
    chains tell the acceptance better than one, so the step follows it less; and it is drawn to the
    first step size, not to ten times that. Where ChEES-HMC aims at a harmonic mean of 0.651, draws
    after 100 steps of 64 chains had 0.67 to 0.76; with the paper's constants 0.78 to 0.89.
    """

    SHRINKAGE = 0.1  # gamma of the paper, 0.05 there
    DELAY = 10.0  # t_0 of the paper, as below
    FORGETTING = 0.75  # kappa
    GROWTH = 2.0

    def __init__(self, step_size: float, target_acceptance: float) -> None:
        self.target = target_acceptance
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        """Forget everything and begin at another step size."""
        self.value = step_size
        self._attractor = math.log(step_size)
        self._error = 0.0
        self._log_average = math.log(step_size)
        self._count = 0

    def update(self, acceptance: float) -> None:
        """Take in the acceptance at the present step size."""
        self._count += 1
        weight = 1 / (self._count + self.DELAY)
        self._error += weight * (self.target - acceptance - self._error)
        log_step = self._attractor - math.sqrt(self._count) / self.SHRINKAGE * self._error
        log_step = min(log_step, math.log(self.GROWTH * self.value))
        weight = self._count**-self.FORGETTING
        self._log_average += weight * (log_step - self._log_average)
        self.value = math.exp(log_step)

    @property
    def average(self) -> float:
        """The averaged step size, to be used for the draws."""
        return math.exp(self._log_average)


class Arrival(Learner):
    """Notices that the energy of the farthest chain falls no more."""

    LAG = 10  # steps over which it does not fall

    def __init__(self) -> None:
        self._lowest: list[float] = []
        self.is_noticed = False

    def update(self, energy: float) -> bool:
        """Take in the largest energy over chains; report whether it falls no more."""
        before = self._lowest[-self.LAG :]
        self.is_noticed = len(before) == self.LAG and energy >= before[0]
        self._lowest = [*before, min([energy, *before])]
        return self.is_noticed


class Agreement(Learner):
    """R-hat, over the steps of warm-up, of how far chains are from their middle.

    From their mean at the first step, in units of their deviations there; unlike positions,
    distances are alike in the modes of a symmetric target.
    """

    def __init__(self) -> None:
        self._start: tuple[Tensor, Tensor] | None = None  # mean and variance
        self._distances: list[Tensor] = []

    def update(self, positions: Tensor) -> None:
        """Take in the positions ``(chains, dim)``."""
        values = positions.double().cpu()
        self._start = self._start or (values.mean(0), values.var(0) + TINY)
        middle, variance = self._start
        new = ((values - middle).square() / variance).mean(-1).sqrt()
        self._distances = [*self._distances, new]  # states that were handed out stay as they are

    @property
    def steps(self) -> int:
        """Number of steps taken in."""
        return len(self._distances)

    @property
    def rhat(self) -> float:
        """R-hat of the distances."""
        distances = torch.stack(self._distances, -1)
        return float(split_gelman_rubin(distances, chain_dim=0, sample_dim=1))


class PooledCovariance(Learner):
    """Covariance ``(dim, dim)`` of positions over chains and steps, or the variances ``(dim,)``."""

    def __init__(self, dense: bool = False) -> None:
        self._dense = dense
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._sum_of_squares: Tensor | float = 0.0

    def update(self, positions: Tensor) -> None:
        """Add a batch of positions ``(chains, dim)``."""
        values, chains = positions.double(), len(positions)
        mean, total = values.mean(0), self._count + chains
        known = torch.as_tensor(self._mean).to(mean)  # a file's is on the CPU
        shift = mean - known
        between = self._squares(shift.unsqueeze(0)) * (self._count * chains / total)
        squares = torch.as_tensor(self._sum_of_squares).to(mean) + self._squares(values - mean)
        self._sum_of_squares = squares + between
        self._mean = known + shift * (chains / total)
        self._count = total

    def _squares(self, deviations: Tensor) -> Tensor:
        return deviations.mT @ deviations if self._dense else deviations.square().sum(0)

    @property
    def variance(self) -> Tensor:
        """The mean squares of deviations from the mean of all."""
        return torch.as_tensor(self._sum_of_squares) / self._count

    def regularised(self) -> Tensor | None:
        """The covariance, shrunk towards 1e-3 as by five values (Stan); None of fewer than two."""
        if self._count < 2:
            return None
        covariance = torch.as_tensor(self._sum_of_squares) / (self._count - 1)
        prior = torch.full_like(covariance, 5e-3)
        if self._dense:
            prior = prior.diagonal().diag()
        return (self._count * covariance + prior) / (self._count + 5)


class LengthLearner(Learner):
    """Common part of what learns a trajectory length."""

    FIRST_STEPS = 10  # of a trajectory at the beginning
    _steps: int

    @property
    def most_steps(self) -> int:
        """Steps that the longest trajectory may have by now: ten, one more with each step."""
        return self.FIRST_STEPS + self._steps


class TrajectoryLength(LengthLearner):
    r"""Ascent of :math:`C^{1/3} D^{2/3} / T` in ln T, by its relative slope.

    C is the criterion, D the mean squared jump along the direction in which chains spread most. Of
    a normal of width s, C / T is largest at T = 1.57 s, best for the square of x, and D / T at
    3.14 s. In between, at 2.25 s, both x and its square have as many effective draws as can be; and
    2.2 s is where a C that does not see the direction at all lets D come to rest.

    Numerators and denominators of slopes are averaged over the last steps, which together see the
    whole of (0, T). Adam, as in the paper, divides by the root of averaged squares instead, which
    lag behind while T grows: it led beyond the first maximum, to others.
    """

    FIRST_RATE, LAST_RATE, FALLING = 0.15, 0.03, 100  # step in ln T for a slope of one
    FORGETTING = 0.9  # of numerators and denominators
    WEIGHTS = 1 / 3, 2 / 3  # of C and D
    AVERAGING = 0.5  # the n-th value of ln T enters the average with the weight n ** -0.5

    def __init__(self, length: float, criterion: str = "chees") -> None:
        self.direction = PrincipalDirection()
        self._projects = criterion == "snaper"
        self._steps = 0
        self.restart(length)

    def restart(self, length: float) -> None:
        """Forget everything but the number of steps, and begin at another length."""
        self._log_length = self._log_average = math.log(length)
        self._slopes = torch.zeros(2, 2, dtype=torch.float64)
        self._count = 0
        self.direction.clear()

    @property
    def value(self) -> float:
        """The present one."""
        return math.exp(self._log_length)

    @property
    def average(self) -> float:
        """The averaged length, to be used for the draws."""
        return math.exp(self._log_average)

    def update(self, trajectory: Trajectory, acceptance: Tensor, kernel: LocalKernel) -> None:
        """Take in the trajectories of all chains; of those cut short, only where they began."""
        mass, step_size = kernel.mass(trajectory.start), kernel.step_size
        whitened = trajectory.mapped(mass.whitened)
        self.direction.update(trajectory.start, mass)
        projected = self.direction.projected(whitened)
        if self.value <= step_size * self.most_steps:
            seen = projected if self._projects else whitened
            self._climb(criterion_slope(seen, acceptance), jump_slope(projected, acceptance))
        self._steps += 1
        floor = max(step_size, self.direction.width)
        length = min(max(self.value, floor), step_size * kernel.max_steps)
        self._log_length = math.log(length)
        weight = max(self._count, 1) ** -self.AVERAGING
        self._log_average += weight * (self._log_length - self._log_average)

    def _climb(self, *found: tuple[float, float]) -> None:
        """Make a step along the weighted mean of the relative slopes of the criteria."""
        if all(math.isfinite(number) for pair in found for number in pair):
            self._count += 1
            new = torch.tensor(found, dtype=torch.float64)
            self._slopes = self._slopes + (1 - self.FORGETTING) * (new - self._slopes)
        slope, value = self._slopes.unbind(-1)
        if bool((value > 0).all()):
            left = max(0.0, 1 - self._count / self.FALLING)
            rate = self.LAST_RATE + left * (self.FIRST_RATE - self.LAST_RATE)
            relative = (slope / value).clamp(-1.0, 1.0)
            self._log_length += rate * float(relative @ torch.tensor(self.WEIGHTS).to(relative))


class DecorrelationLength(LengthLearner):
    r"""A multiple of the width of the chains: 1 until their autocorrelation time is known.

    In windows of doubling length, n draws each, the time is that of a draw multiplied by
    :math:`\tau = n B / V`, averaged over the coordinates: V is the variance of the draws of all
    chains, B that of the chains' means. It is known if the window is ten such times long and draws
    are correlated, for else the time of a draw hides it; later, the time of a draw bounds it. The
    width is the root of the mean of V, in units of the mass. Both as in Robnik, De Luca,
    Silverstein, Seljak (2023). With a new mass, and in windows too short, the multiple is kept.
    """

    SHARE = 0.4  # of the autocorrelation time, as in the paper
    FIRST_WINDOW = 10
    TIMES, CORRELATED = 10.0, 2.0

    def __init__(self, length: float) -> None:
        self.value, self._multiple, self._is_known = length, 1.0, False
        self._draws, self._steps = PooledCovariance(), 0
        self.restart(length)

    def restart(self, length: float) -> None:
        """Forget the draws; the length is kept, for none that is given says more."""
        self._window, self._is_first = self.FIRST_WINDOW, True
        self._clear()

    def _clear(self) -> None:
        """Begin a window."""
        self._draws.clear()
        self._sum = torch.zeros(())
        self._count, self._time = 0, 0.0

    @property
    def average(self) -> float:
        """The length to be used for the draws."""
        return self.value

    def update(self, trajectory: Trajectory, acceptance: Tensor, kernel: LocalKernel) -> None:
        """Take in where the trajectories of all chains began."""
        self._steps += 1
        positions = kernel.mass(trajectory.start).whitened(trajectory.start).double()
        self._draws.update(positions)
        self._sum = self._sum.to(positions) + positions  # a file's is on the CPU
        self._count, self._time = self._count + 1, self._time + trajectory.before + trajectory.time
        variance, is_full = self._draws.variance, self._count == self._window
        width = math.sqrt(float(variance.mean()))
        if not width > 0 or not (self._is_first or is_full):
            return
        if is_full:
            memory = self._count * (self._sum / self._count).var(0) / variance
            tau = float(memory[variance > 0].mean())
            is_known = self._is_known or tau >= self.CORRELATED
            if is_known and tau <= self._count / self.TIMES:
                time = max(tau, 1.0) * self._time / self._count
                self._multiple, self._is_known = self.SHARE * time / width, True
            self._window, self._is_first = 2 * self._window, False
            self._clear()
        longest = kernel.step_size * kernel.max_steps
        self.value = min(max(self._multiple * width, kernel.step_size), longest)


class PrincipalDirection(Learner):
    r"""The direction in which chains spread most, by Oja's rule over the steps of warm-up.

    The mean and the vector :math:`v \leftarrow (1 - r) v + r\, C v / |C v|` forget as 1 / n; C is
    the covariance of the present positions about that mean. So do the mean of each chain, and how
    far it goes from there, as a share of how far all are from theirs: small if each chain stays at
    a mode of its own. With a new mass the shares are kept, for T begins at one step.
    """

    DELAY = 8.0  # steps after which the n-th counts as 1 / n, as in the paper

    def __init__(self) -> None:
        self._steps = 0
        self._means: Tensor | None = None  # of each chain
        self._shares = torch.zeros(1)
        self.clear()

    def clear(self) -> None:
        """Forget all but the means and shares of the chains."""
        self._count = 0
        self._spread = 0.0  # mean distance from the mean, along the direction
        self._mean: Tensor | None = None
        self._vector: Tensor | None = None

    @property
    def width(self) -> float:
        """Mean distance of a chain from its own mean along the direction: median over chains."""
        return self._spread * min(float(self._shares.median()), 1.0)

    def projected(self, trajectory: Trajectory) -> Trajectory:
        """Components along the direction, ``(chains, 1)``, of a trajectory in units of the mass."""
        if self._vector is None:  # nothing is known yet: all of the position
            return trajectory
        vector = (self._vector / self._vector.norm()).to(trajectory.start.device).unsqueeze(-1)
        return trajectory.mapped(lambda part: part.double() @ vector)

    def update(self, positions: Tensor, mass: Mass) -> None:
        """Take in the positions ``(chains, dim)``."""
        self._count, self._steps = self._count + 1, self._steps + 1
        rate, slow = (self.DELAY / (n + self.DELAY) for n in (self._count, self._steps))
        own = positions if self._means is None else self._means.to(positions)
        self._means = own + slow * (positions - own)
        moved, whitened = mass.whitened(positions - own).double(), mass.whitened(positions).double()
        mean = whitened.mean(0)
        known = mean if self._mean is None else self._mean.to(mean)  # a file's is on the CPU
        self._mean = known + rate * (mean - known)
        deviations = whitened - self._mean
        if self._vector is None:  # the farthest chain, unless all are at one point
            farthest = deviations[deviations.square().sum(-1).argmax()]
            if not float(farthest.norm()) > 0:
                return
            self._vector = farthest
        unit = self._vector.to(mean) / self._vector.norm()
        components = deviations @ unit
        spread = float(components.abs().mean())
        if self._count > 1 and spread > 0:  # those that found the direction say nothing of it
            self._spread += rate * (spread - self._spread)
            shares = self._shares.to(mean)
            self._shares = shares + slow * ((moved @ unit).abs() / spread - shares)
        image = deviations.mT @ components
        if float(image.norm()) > 0:
            self._vector = (1 - rate) * unit + rate * image / image.norm()


def criterion_slope(trajectory: Trajectory, acceptance: Tensor) -> tuple[float, float]:
    """t dC / dt - C of the criterion C, and C; their ratio is the slope of ln(C / t) in ln t.

    Averaged over the chains with their acceptance probabilities as weights; chains that ran away
    have none. Positions and velocities are those of unit mass.
    """
    (start, end, velocity, time, _), weight = _sound_paths(trajectory, acceptance)
    middle = (weight.unsqueeze(-1) * (start + end)).sum(0) / 2
    moved, rested = end - middle, start - middle
    growth = moved.square().sum(-1) - rested.square().sum(-1)
    value = float((weight * 0.25 * growth.square()).sum())
    return time * float((weight * growth * (moved * velocity).sum(-1)).sum()) - value, value


def jump_slope(trajectory: Trajectory, acceptance: Tensor) -> tuple[float, float]:
    """The same of the mean square of the distance of both ends."""
    (start, end, velocity, time, _), weight = _sound_paths(trajectory, acceptance)
    value = float((weight * (end - start).square().sum(-1)).sum())
    return time * float((weight * 2 * ((end - start) * velocity).sum(-1)).sum()) - value, value


def _sound_paths(trajectory: Trajectory, acceptance: Tensor) -> tuple[Trajectory, Tensor]:
    """Trajectories without those that ran away, and weights whose sum is 1, or 0 if all did."""
    start, end, velocity = (part.double() for part in trajectory[:3])
    sound = torch.isfinite(end).all(-1) & torch.isfinite(velocity).all(-1)
    weight = torch.where(sound, acceptance, torch.zeros_like(acceptance)).double()
    rows = sound.unsqueeze(-1)
    end, velocity = torch.where(rows, end, start), torch.where(rows, velocity, 0.0)
    total = weight.sum().clamp(min=TINY)
    return Trajectory(start, end, velocity, trajectory.time), weight / total
