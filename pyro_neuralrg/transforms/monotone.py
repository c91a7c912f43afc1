# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A monotone map of one variable, for coarse variables that turn bimodal in the ordered phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = ["MonotoneMap"]

_INVERSE_STEPS = 60


class MonotoneMap(LatticeTransform):
    r"""The same monotone map on every entry: a line plus steps.

    .. math:: f(y) = e^a y + \sum_i \frac{w_i}{2} [\tanh(b_i (y - c_i)) + \tanh(b_i (y + c_i))]

    with all w_i, b_i > 0: smooth, increasing and odd. Without ``odd`` each step stands alone,
    :math:`w_i \tanh(b_i (y - c_i))`, and a shift is learned. A narrow pair of steps around zero
    turns one hump into two. The inverse is a bracketed Newton iteration; its first and second
    derivatives are those of the implicit function theorem.

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
        self.raw_width = nn.Parameter(torch.zeros(steps))
        span = torch.linspace(0.0, 2.0, steps) if odd else torch.linspace(-2.0, 2.0, steps)
        self.centre = nn.Parameter(span)
        self.shift = None if odd else nn.Parameter(torch.zeros(()))

    def generate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """z to x."""
        x, slope = self._map(h)
        return x, slope.log().flatten(0, -2).sum(0)

    def renormalize(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """x to z."""
        with torch.no_grad():
            z = self._solve(h)
        for _ in range(2):  # each Newton step makes one more derivative of z exact
            x, slope = self._map(z)
            z = z - (x - h) / slope.detach()
        _, slope = self._map(z)
        return z, slope.log().flatten(0, -2).sum(0)

    def _map(self, y: Tensor) -> tuple[Tensor, Tensor]:
        weight, width = F.softplus(self.raw_weight), F.softplus(self.raw_width)
        up = torch.tanh(width * (y.unsqueeze(-1) - self.centre))
        slope = self.log_slope.exp() + (1 - up * up) @ (weight * width) * (0.5 if self.odd else 1.0)
        steps = up
        if self.odd:
            down = torch.tanh(width * (y.unsqueeze(-1) + self.centre))
            slope = slope + (1 - down * down) @ (0.5 * weight * width)
            steps = 0.5 * (up + down)
        x = self.log_slope.exp() * y + steps @ weight
        return (x if self.shift is None else x + self.shift), slope

    def _solve(self, x: Tensor) -> Tensor:
        """Newton's iteration kept inside a shrinking bracket, to half of the digits.

        The bracket: the steps add at most the sum of their weights.
        """
        reach = F.softplus(self.raw_weight).sum()
        middle = x if self.shift is None else x - self.shift
        lower = (middle - reach) * (-self.log_slope).exp()
        upper = (middle + reach) * (-self.log_slope).exp()
        y = 0.5 * (lower + upper)
        for _ in range(_INVERSE_STEPS):
            value, slope = self._map(y)
            excess = value - x
            lower = torch.where(excess <= 0, y, lower)
            upper = torch.where(excess >= 0, y, upper)
            newton = y - excess / slope
            inside = (newton > lower) & (newton < upper)
            previous, y = y, torch.where(inside, newton, 0.5 * (lower + upper))
            if _is_settled(previous, y):
                break
        return y


def _is_settled(previous: Tensor, y: Tensor) -> bool:
    """Whether the last step left half of the digits alone; Newton's next step doubles them."""
    precision = 0.1 * math.sqrt(torch.finfo(y.dtype).eps)
    settled = ((y - previous).abs() <= precision * (1 + y.abs())).all()
    try:
        return bool(settled)
    except RuntimeError:  # inside vmap no value can be read: all steps are taken
        return False
