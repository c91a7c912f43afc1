# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A monotone map of one variable, for coarse variables that turn bimodal in the ordered phase."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.elementwise import AffineSteps

__all__ = ["MonotoneMap"]


class MonotoneMap(LatticeTransform):
    r"""The same monotone map on every entry: a line plus steps.

    .. math:: f(y) = e^a y + \sum_i \frac{w_i}{2} [\tanh(b_i (y - c_i)) + \tanh(b_i (y + c_i))]

    with all w_i, b_i > 0: smooth, increasing and odd. Without ``odd`` each step stands alone,
    :math:`w_i \tanh(b_i (y - c_i))`, and a shift is learned. A narrow pair of steps around zero
    turns one hump into two.

    Args:
        event_shape: shape of the tensors it acts on; the map is shared by all entries.
        steps: number of tanh steps.
        odd: make f(-y) = -f(y) exactly.

    Example:
        >>> f = MonotoneMap((3,), steps=2)
        >>> y = torch.tensor([-1.0, 0.0, 1.0])
        >>> bool(torch.allclose(f.inv(f(y)), y, atol=1e-5))
        True
    """

    def __init__(self, event_shape: tuple[int, ...], steps: int = 8, odd: bool = True) -> None:
        super().__init__(event_shape)
        self.odd = odd
        self.log_slope = nn.Parameter(torch.zeros(()))
        self.raw_weight = nn.Parameter(torch.full((steps,), -5.0))
        self.raw_steepness = nn.Parameter(torch.zeros(steps))
        span = torch.linspace(0.0, 2.0, steps) if odd else torch.linspace(-2.0, 2.0, steps)
        self.centre = nn.Parameter(span)
        self.shift = None if odd else nn.Parameter(torch.zeros(()))

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to x."""
        x, log_slope = self._map().generate(h)
        return x, log_slope.flatten(0, -2).sum(0)

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to z."""
        z, log_slope = self._map().renormalize(h)
        return z, log_slope.flatten(0, -2).sum(0)

    def _map(self) -> AffineSteps:
        """The map with its steps on a leading dimension, each in both places if it is odd."""
        height, steepness = F.softplus(self.raw_weight), F.softplus(self.raw_steepness)
        steps = torch.stack([height, self.centre, steepness])
        if self.odd:
            halves = [
                torch.stack([0.5 * height, c, steepness]) for c in (self.centre, -self.centre)
            ]
            steps = torch.cat(halves, dim=1)
        shift = torch.zeros_like(self.log_slope) if self.shift is None else self.shift
        behind = [1] * (len(self.event_shape) + 1)
        return AffineSteps(shift, self.log_slope, *steps.reshape(3, -1, *behind))
