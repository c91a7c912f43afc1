# Copyright the pyro_neuralrg contributors.
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

    The particles' gradients, with alternating signs, add up to a vector whose squared norm measures
    their variance; each entry counts relative to the sum of both, as it does for Adam.

    Attributes:
        is_path_better: whether the path gradient had the smaller variance, for evaluations
            between measurements.
    """

    def __init__(self) -> None:
        self.is_path_better = True
        self.evaluations = self._particles = 0
        self._excess: Tensor | float | None = None
        self._sums: list[Tensor] = []

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

    def add(self, plain: Tensor, path: Tensor) -> None:
        """Take the losses of particles, each with either graph."""
        if not (plain.requires_grad and path.requires_grad):
            return
        leaves = _leaves(plain, path)
        numbers = torch.arange(self._particles, self._particles + len(plain), device=plain.device)
        signs = (1 - 2 * (numbers % 2)).to(plain)
        self._particles += len(plain)
        sums = []
        for losses in (plain, path):
            parts = torch.autograd.grad(
                (signs * losses).sum(), leaves, retain_graph=True, materialize_grads=True
            )
            sums.append(torch.cat([part.reshape(-1) for part in parts]))
        if self._sums:  # of the particles before
            sums = [one + other for one, other in zip(self._sums, sums, strict=True)]
        self._sums = sums

    def choose(self, plain: Tensor, path: Tensor) -> Tensor:
        """The better one, without reading a number, once all particles have been taken."""
        if not self._sums:
            return path
        one, other = (vector.square() for vector in self._sums)
        both = one + other
        self._excess = ((other - one) / both.where(both != 0.0, 1.0)).sum()
        self._particles, self._sums = 0, []
        return torch.where(self._excess <= 0.0, path, plain)

    def state_dict(self) -> dict[str, Any]:
        """The state between two evaluations."""
        excess = None if self._excess is None else float(self._excess)
        return {"excess": excess, "evaluations": self.evaluations, "path": self.is_path_better}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._excess, self.evaluations = state["excess"], state["evaluations"]
        self.is_path_better = state["path"]


def _leaves(*losses: Tensor) -> list[Tensor]:
    """The parameters behind the losses."""
    found, seen = [], set()
    nodes: list[Any] = [loss.grad_fn for loss in losses]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [before for before, _ in node.next_functions]
    return found
