# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The best parameters of a training so far, and when it has left them for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

RUNNING_STEPS = 50
"""Of the running mean of the loss: the batch's noise falls by seven, and a divergence is seen
within as many steps."""

LEAST_STEPS = 10
"""Before a running mean is compared: a single batch of heavy tails is no divergence."""

DIVERGED_SPREADS = 10.0
"""By how many standard deviations of one sample's log-weight, as they were at the best, a running
mean is above the best one where the training has diverged. The noise of a mean is at most a seventh
of one of them; where q is near the target, with a gap of v / 2 for the variance v, losing ten of
them is far more than noise of the optimiser takes from a training and gives back."""

DIVERGED_NATS = 1.0
"""And by so much at least: of a flow that is nearly exact the spread is next to nothing."""


class Best:
    """The parameters with the lowest running mean of the loss at one temperature.

    Args:
        parameters: those of the beginning, joined.

    Attributes:
        parameters: the best ones; after another temperature has begun, those of the one before
            until there is a loss.
        loss: running mean there, infinite before there is one.
        spread: of the log-weights there.

    Example:
        >>> import torch
        >>> best = Best(torch.zeros(1))
        >>> descent = [3.0 - 0.1 * step for step in range(20)]
        >>> any(best.add(loss, 0.5, lambda: torch.ones(1)) for loss in descent)
        False
        >>> any(best.add(loss, 50.0, lambda: torch.full((1,), 2.0)) for loss in 20 * [100.0])
        True
        >>> best.parameters.item()
        1.0
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.loss = self.spread = math.inf
        self._mean = self._mean_spread = 0.0
        self._steps = 0

    def add(self, loss: float, spread: float, parameters: Callable[[], Tensor]) -> bool:
        """Add a step at this temperature.

        Args:
            loss: of the step, finite.
            spread: standard deviation of its log-weights.
            parameters: returns a copy of those that the loss is of.

        Returns:
            Whether the training has diverged from its best parameters.
        """
        self._steps += 1
        weight = 1.0 / min(self._steps, RUNNING_STEPS)
        self._mean += weight * (loss - self._mean)
        self._mean_spread += weight * (spread - self._mean_spread)
        if self._mean < self.loss:
            self.loss, self.spread = self._mean, self._mean_spread
            self.parameters = parameters()
            return False
        allowed = max(DIVERGED_NATS, DIVERGED_SPREADS * self.spread)
        return self._steps >= LEAST_STEPS and self._mean > self.loss + allowed

    def begin(self) -> None:
        """Begin another record, at another temperature."""
        self.loss = self.spread = math.inf
        self.restart()

    def begin_with(self, loss: float, spread: float, parameters: Tensor) -> None:
        """Begin one in which these parameters are the best, until there are better ones."""
        self.loss, self.spread, self.parameters = loss, spread, parameters
        self.restart()

    def restart(self) -> None:
        """Begin another running mean, from the best parameters."""
        self._mean = self._mean_spread = 0.0
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and numbers."""
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another record was."""
        like = self.parameters
        vars(self).update(state)
        self.parameters = self.parameters.to(like, copy=True)
