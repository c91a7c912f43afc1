# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A step size and a mass, learned from the steps of warm-up; trajectory lengths: chees.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Learner:
    """Something learned during warm-up, whose attributes are plain numbers and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers and tensors."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as the one whose ``state_dict`` this is."""
        vars(self).update(state)


class DualAveraging(Learner):
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

    def restart(self, step_size: float) -> None:
        """Forget everything and begin at another step size."""
        self._attractor = math.log(10 * step_size)
        self._error = 0.0
        self._log_average = math.log(step_size)
        self._count = 0
        self.step_size = step_size

    def update(self, acceptance: float) -> float:
        """Take in the acceptance at the present step size; return the next one."""
        self._count += 1
        weight = 1 / (self._count + self.DELAY)
        self._error += weight * (self.target - acceptance - self._error)
        log_step = self._attractor - math.sqrt(self._count) / self.SHRINKAGE * self._error
        weight = self._count**-self.FORGETTING
        self._log_average += weight * (log_step - self._log_average)
        self.step_size = math.exp(log_step)
        return self.step_size

    @property
    def average(self) -> float:
        """The averaged step size, to be used for the draws."""
        return math.exp(self._log_average)


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
