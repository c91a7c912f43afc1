# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Warm-up: the step size and mass of kernels, which know nothing of it, before the draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo

__all__ = ["Adaptation", "Warmup"]

MIN_STEPS = 10
"""Fewer steps tell less of a step size, or of a mass, than the rough guess at the beginning."""


@dataclass(frozen=True)
class Adaptation:
    """What is adapted during warm-up.

    A warm-up of fewer than ten steps only finds the order of magnitude of the step size; the mass
    needs ten steps of positions and ten more for the step size that belongs to it.

    Attributes:
        target_acceptance: mean acceptance probability over the chains that the step size aims at,
            in (0, 1).
        step_size: adapt the step size, shared by the chains, by dual averaging.
        mass: adapt a diagonal mass to the variances pooled over chains and over windows of doubling
            length.
    """

    target_acceptance: float = 0.8
    step_size: bool = True
    mass: bool = False

    def __post_init__(self) -> None:
        check_number(
            "target_acceptance", self.target_acceptance, "a number in (0, 1)", above=0, below=1
        )


class DualAveraging:
    """Step size whose mean acceptance tends to a target.

    Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2.

    Args:
        step_size: where to begin; the first trials go ten times higher.
        target_acceptance: to be reached.
    """

    SHRINKAGE = 0.05  # gamma of the paper, as are its other constants
    DELAY = 10.0  # t_0
    FORGETTING = 0.75  # kappa

    def __init__(self, step_size: float, target_acceptance: float) -> None:
        self._target = target_acceptance
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        """Forget everything and begin at another step size."""
        self._attractor = math.log(10 * step_size)
        self._error = 0.0
        self._log_average = math.log(step_size)
        self._count = 0
        self.step_size = step_size

    def update(self, acceptance: float) -> float:
        """Take in the mean acceptance at the present step size; return the next one."""
        self._count += 1
        weight = 1 / (self._count + self.DELAY)
        self._error += weight * (self._target - acceptance - self._error)
        log_step = self._attractor - math.sqrt(self._count) / self.SHRINKAGE * self._error
        weight = self._count**-self.FORGETTING
        self._log_average += weight * (log_step - self._log_average)
        self.step_size = math.exp(log_step)
        return self.step_size

    @property
    def average(self) -> float:
        """The averaged step size, to be used for the draws."""
        return math.exp(self._log_average)


class PooledVariance:
    """Running variance of positions over chains and steps together, shape ``(dim,)``."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._sum_of_squares: Tensor | None = None

    def update(self, positions: Tensor) -> None:
        """Add a batch of positions ``(chains, dim)``."""
        chains = len(positions)
        values = positions.double()
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self._mean is None or self._sum_of_squares is None:
            self._count, self._mean, self._sum_of_squares = chains, mean, squares
            return
        total = self._count + chains
        shift = mean - self._mean
        self._sum_of_squares = (
            self._sum_of_squares + squares + shift.square() * (self._count * chains / total)
        )
        self._mean = self._mean + shift * (chains / total)
        self._count = total

    def regularised(self) -> Tensor | None:
        """The variance, shrunk towards 1e-3 by five pseudo-observations as in Stan.

        None of fewer than two values.
        """
        if self._sum_of_squares is None or self._count < 2:
            return None
        variance = self._sum_of_squares / (self._count - 1)
        return (self._count * variance + 5e-3) / (self._count + 5)


class Warmup:
    """Adapts the kernels with a step size within a kernel, one step at a time.

    Args:
        kernel: to be adapted; it is not changed, :attr:`kernel` is the present one.
        adaptation: what to adapt.
        steps: length of the warm-up.
    """

    def __init__(self, kernel: Kernel, adaptation: Adaptation, steps: int) -> None:
        self.kernel = kernel
        self._adaptation = adaptation
        self._averaging = steps >= MIN_STEPS
        self._averages = {
            name: DualAveraging(member.step_size, adaptation.target_acceptance)
            for name, member in kernel.members.items()
            if member.step_size is not None and adaptation.step_size and steps > 0
        }
        self._window_ends = _window_ends(steps) if adaptation.mass else []
        self._window_start = self._window_ends[0] if self._window_ends else steps
        self._variance = PooledVariance()

    def begin(self, state: ChainState, generator: torch.Generator) -> int:
        """Find the order of magnitude of each step size; return the gradients per chain spent."""
        evaluations = 0
        for name, average in self._averages.items():
            member = self.kernel.members[name]
            step_size, cost = _rough_step_size(
                member, state, generator, self._adaptation.target_acceptance
            )
            average.restart(step_size)
            evaluations += cost
        self._tune({name: average.step_size for name, average in self._averages.items()})
        return evaluations

    def update(self, index: int, state: ChainState, info: StepInfo) -> None:
        """Take in the ``index``-th warm-up step."""
        for name, average in self._averages.items() if self._averaging else ():
            average.update(float(info.part(name).acceptance_rate.mean()))
        sizes = {name: average.step_size for name, average in self._averages.items()}
        if self._window_ends and index >= self._window_start:
            self._variance.update(state.position)
            if index + 1 in self._window_ends[1:]:
                self._set_mass(state)
                sizes = {name: average.step_size for name, average in self._averages.items()}
        self._tune(sizes)

    def finish(self) -> Kernel:
        """Return the kernel for the draws, with averaged step sizes."""
        self._tune({name: average.average for name, average in self._averages.items()})
        return self.kernel

    def _set_mass(self, state: ChainState) -> None:
        variance = self._variance.regularised()
        self._variance = PooledVariance()
        if variance is None:
            return
        variance = variance.to(state.position)
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return
        members = self.kernel.members
        for name in members:
            if members[name].step_size is not None:
                members[name] = members[name].tuned(inverse_mass=variance)
        self.kernel = self.kernel.with_members(members)
        for average in self._averages.values():
            average.restart(average.average)

    def _tune(self, step_sizes: dict[str, float]) -> None:
        members = self.kernel.members
        for name, step_size in step_sizes.items():
            members[name] = members[name].tuned(step_size=step_size)
        if step_sizes:
            self.kernel = self.kernel.with_members(members)


def _window_ends(steps: int) -> list[int]:
    """Where windows of the mass begin and end.

    The first 15 % adapt without it, then come windows of doubling length, then 10 % more without,
    but at least ``MIN_STEPS``; no windows where that leaves fewer than ``MIN_STEPS`` for them. As
    in Stan, a window after which the next one would not fit takes the rest as well.

    >>> _window_ends(200)
    [30, 55, 180]
    >>> _window_ends(20)
    []
    """
    start, stop = round(0.15 * steps), min(round(0.9 * steps), steps - MIN_STEPS)
    length = max(1, min(25, (stop - start) // 2))
    ends = [start]
    while ends[-1] + 3 * length < stop:
        ends.append(ends[-1] + length)
        length *= 2
    return [*ends, stop] if stop - start >= MIN_STEPS else []


def _rough_step_size(
    kernel: Kernel, state: ChainState, generator: torch.Generator, target_acceptance: float
) -> tuple[float, int]:
    """Double or halve the step size until the acceptance of one step crosses the target.

    Returns the largest size tried whose acceptance was above the target, and the gradients spent.
    """
    size = kernel.step_size
    if size is None:
        raise ValueError(f"kernel {kernel.name!r} has no step size")
    evaluations = 0
    direction = 0
    for _ in range(30):
        _, info = kernel.tuned(step_size=size).step(state, generator)
        evaluations += info.gradient_evaluations
        higher = float(info.acceptance_rate.mean()) > target_acceptance
        if direction == 0:
            direction = 1 if higher else -1
        elif (direction == 1) != higher:
            return (size / 2 if direction == 1 else size), evaluations
        size *= 2.0**direction
    return size, evaluations
