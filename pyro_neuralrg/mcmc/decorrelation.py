# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The length of microcanonical trajectories, learned from the widths and memory of the chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import Mass, Trajectory
from pyro_neuralrg.mcmc.learning import LengthLearner


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
        self._steps = 0
        self.restart(length)

    def restart(self, length: float) -> None:
        """Forget the draws; the length is kept, for none that is given says more."""
        self._window, self._is_first = self.FIRST_WINDOW, True
        self._clear()

    @property
    def average(self) -> float:
        """The length to be used for the draws."""
        return self.value

    def update(
        self,
        trajectory: Trajectory,
        acceptance: Tensor,
        mass: Mass,
        step_size: float,
        max_steps: float = math.inf,
    ) -> None:
        """Take in where the trajectories of all chains began."""
        self._steps += 1
        self._add(mass.whitened(trajectory.start).double(), trajectory.time)
        variance, is_full = self._variance(), self._count == self._window
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
        self.value = min(max(self._multiple * width, step_size), step_size * max_steps)

    def _clear(self) -> None:
        """Begin a window."""
        self._origin: Tensor | None = None
        self._sum = self._squares = torch.zeros(())
        self._count, self._time = 0, 0.0

    def _add(self, positions: Tensor, time: float) -> None:
        origin = positions.mean(0) if self._origin is None else self._origin
        self._origin = origin.to(positions)  # a file's is on the CPU
        shifted = positions - self._origin
        self._sum = self._sum.to(positions) + shifted
        self._squares = self._squares.to(positions) + shifted.square().sum(0)
        self._count, self._time = self._count + 1, self._time + time

    def _variance(self) -> Tensor:
        total = self._count * len(self._sum)
        mean = self._sum.sum(0) / total
        return (self._squares / total - mean.square()).clamp(min=0.0)
