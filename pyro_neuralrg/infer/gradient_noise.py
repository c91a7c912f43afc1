# SPDX-License-Identifier: Apache-2.0
"""Which of two gradients of the loss has the smaller variance, measured now and then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EVERY = 64
"""Evaluations from one measurement to the next, which costs as much as two or three; before, it is
made at the evaluations 1, 2, 4, 8, ..."""


class GradientNoise:
    """The variances of the plain gradient and of the path gradient, of the same draws.

    Attributes:
        is_path_better: whether the path gradient had the smaller variance, for evaluations
            between measurements.
    """

    def __init__(self) -> None:
        self.is_path_better = True
        self.evaluations = 0
        self._excess: Tensor | float | None = None

    def begin(self) -> bool:
        """Count an evaluation and decide for it; True if it is to be measured, too."""
        self.evaluations += 1
        number = self.evaluations
        if number % EVERY == 0 or (number < EVERY and number.bit_count() == 1):
            return True
        if self._excess is not None:
            self.is_path_better = float(self._excess) <= 0.0  # not if it is NaN
            self._excess = None
        return False

    def choose(self, plain: Tensor, path: Tensor) -> Tensor:
        """The sum over particles with the better graph, without reading a number.

        The particles' gradients, with alternating signs, add up to a vector whose squared norm
        measures their variance; each entry counts relative to the sum of both, as it does for Adam.
        """
        if not (plain.requires_grad and path.requires_grad):
            return path.sum()
        signs = torch.ones_like(plain)
        signs[1::2] = -1.0
        leaves, squares = _leaves(plain, path), []
        for losses in (plain, path):
            parts = torch.autograd.grad(
                losses @ signs, leaves, retain_graph=True, materialize_grads=True
            )
            squares.append(torch.cat([part.reshape(-1) for part in parts]).square())
        both = squares[0] + squares[1]
        self._excess = ((squares[1] - squares[0]) / both.where(both != 0.0, 1.0)).sum()
        return torch.where(self._excess <= 0.0, path.sum(), plain.sum())

    def state_dict(self) -> dict[str, Any]:
        """The state between two evaluations."""
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        vars(self).update(state)


def _leaves(*losses: Tensor) -> list[Tensor]:
    """The parameters behind the losses."""
    seen = {loss.grad_fn: None for loss in losses}
    nodes: list[Any] = list(seen)
    for node in nodes:  # which grows
        new = {before: None for before, _ in node.next_functions if before not in seen}
        new.pop(None, None)
        seen |= new
        nodes += new
    return [node.variable for node in nodes if hasattr(node, "variable")]
