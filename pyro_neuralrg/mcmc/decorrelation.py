# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The length of microcanonical trajectories, learned from the widths and memory of the chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import Mass, Trajectory
from pyro_neuralrg.mcmc.learning import Learner

AUTOCORRELATION = "autocorrelation"
"""Name of the criterion, beside those of :class:`TrajectoryLength`."""


class DecorrelationLength(Learner):
    r"""A share of the autocorrelation time, once that is known; before, the width of the chains.

    In windows of doubling length, n draws each, the time is that of a draw multiplied by
    :math:`\tau = n B / V`, averaged over the coordinates: V is the variance of the draws of all
    chains, B that of the chains' means. It is known if the window is ten such times long and draws
    are correlated, for else the time of a draw hides it. The width is the root of the mean of V, in
    units of the mass. Both as in Robnik, De Luca, Silverstein, Seljak (2023).
    """

    SHARE = 0.4  # of the autocorrelation time, as in the paper
    FIRST_WINDOW = 10
    TIMES, CORRELATED = 10.0, 2.0
    FIRST_STEPS = 10  # of a trajectory at the beginning, one more with each draw

    def __init__(self, length: float) -> None:
        self.value = length
        self.restart(length)

    def restart(self, length: float) -> None:
        """Forget the draws; the length is kept, for none that is given says more."""
        self._draws, self._window, self._is_first = 0, self.FIRST_WINDOW, True
        self._origin: Tensor | None = None

    @property
    def most_steps(self) -> int:
        """Steps that a trajectory may have by now: a chain far out is not waited for."""
        return self.FIRST_STEPS + self._draws

    def skip(self) -> None:
        """Take in a step whose trajectory was cut short."""
        self._draws += 1

    @property
    def average(self) -> float:
        """The length to be used for the draws."""
        return self.value

    def update(
        self,
        trajectory: Trajectory,
        acceptance: Tensor,
        mass: Mass,
        shortest: float,
        longest: float,
    ) -> None:
        """Take in where the trajectories of all chains began."""
        self._draws += 1
        self._add(mass.whitened(trajectory.start).double(), trajectory.time)
        variance = self._variance()
        width = math.sqrt(float(variance.mean()))
        if not width > 0 or not (self._is_first or self._count == self._window):
            return
        self.value = min(max(width, shortest), longest)
        if self._count == self._window:
            memory = self._count * (self._sum / self._count).var(0) / variance
            tau = float(memory[variance > 0].mean())
            if self.CORRELATED <= tau <= self._count / self.TIMES:
                length = self.SHARE * tau * self._time / self._count
                self.value = min(max(length, shortest), longest)
            self._window, self._is_first, self._origin = 2 * self._window, False, None

    def _add(self, positions: Tensor, time: float) -> None:
        if self._origin is None:  # of a new window
            self._origin = positions.mean(0)
            self._sum = torch.zeros_like(positions)
            self._squares = torch.zeros_like(self._origin)
            self._count, self._time = 0, 0.0
        self._origin = self._origin.to(positions)  # a file's is on the CPU
        shifted = positions - self._origin
        self._sum = self._sum.to(positions) + shifted
        self._squares = self._squares.to(positions) + shifted.square().sum(0)
        self._count, self._time = self._count + 1, self._time + time

    def _variance(self) -> Tensor:
        total = self._count * len(self._sum)
        mean = self._sum.sum(0) / total
        return (self._squares / total - mean.square()).clamp(min=0.0)
