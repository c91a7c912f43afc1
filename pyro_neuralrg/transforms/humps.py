# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One normal variable into two humps: the order parameter of a target that has two phases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = ["BehindHumps", "TwoHumps"]

MOST_DISTANCE = 4.0
"""Farther apart, what lies between the humps is lost in the digits of a double."""
Change = Callable[[Tensor], tuple[Tensor, Tensor]]
NEWTON_STEPS = 12
"""From a normal to the humps; 10 are the most that were needed, for the largest distance."""
FAR = 8.0
"""Where a tail probability is no longer inverted directly."""


class TwoHumps(LatticeTransform):
    r"""The first entry z of a field, a standard normal, into y of two normal humps; others stay.

    .. math:: p(y) = \tfrac12 N(y; -m, 1) + \tfrac12 N(y; m, 1)

    An increasing, odd map between the two distribution functions. It is very steep at z = 0: there
    lies what separates the two phases of a magnet, and a smooth map would have to be bent to
    follow. Sampled in y instead of z, the rest of a flow is smooth.

    Args:
        event_shape: shape of the fields; the first entry is the one at index (0, ..., 0).
        distance: m, in standard deviations, of the humps from zero.

    Raises:
        TypeError, ValueError: if the distance is not a number in (0, 4].

    Example:
        >>> humps = TwoHumps((2,), distance=3.0)
        >>> humps(torch.tensor([1.0, 0.5]))
        tensor([3.4752, 0.5000])
    """

    def __init__(self, event_shape: tuple[int, ...], distance: float) -> None:
        super().__init__(event_shape)
        accepted = f"a number in (0, {MOST_DISTANCE:g}]"
        self.distance = check_number("distance", distance, accepted, above=0, most=MOST_DISTANCE)

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to y."""
        return self._on_first(h, self._from_normal)

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y to z."""
        return self._on_first(h, self._to_normal)

    def _on_first(self, h: Tensor, change: Change) -> tuple[Tensor, Tensor]:
        flat = h.flatten(0, -2)
        value = flat[0].double()
        sign = torch.where(value < 0, -1.0, 1.0)
        size, log_slope = change(sign * value)
        first = (sign * size).to(h.dtype).unsqueeze(0)
        return torch.cat([first, flat[1:]]).view(h.shape), log_slope.to(h.dtype)

    def _from_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z >= 0 to y >= 0: Newton's iteration for equal logarithms of the tails.

        That of the humps is concave and falls, so that it converges from the right. The last two
        steps make first and second derivatives those of the implicit function theorem.
        """
        goal = _log_upper(z)
        with torch.no_grad():
            y = z + self.distance
            for _ in range(NEWTON_STEPS):
                y = y + (self._log_tail(y) - goal) / self._hazard(y)
        for _ in range(2):
            y = y + (self._log_tail(y) - goal) / self._hazard(y).detach()
        return y, self._log_slope(z, y)

    def _to_normal(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """From y >= 0 to z >= 0, likewise."""
        goal = self._log_tail(y)
        with torch.no_grad():
            z = -torch.special.ndtri(goal.exp())
            far = (y - self.distance).clamp(min=0.0)
            z = torch.where(far > FAR, (far.square() + 2 * math.log(2.0)).sqrt(), z)
        for _ in range(3):
            tail = _log_upper(z)
            hazard = (_log_normal(z) - tail).detach().exp()
            z = z + (tail - goal) / hazard
        return z, self._log_slope(z, y)

    def _log_tail(self, y: Tensor) -> Tensor:
        """ln of the probability of more than y >= 0."""
        tails = _log_upper(y - self.distance), _log_upper(y + self.distance)
        return torch.logaddexp(*tails) - math.log(2.0)

    def _log_density(self, y: Tensor) -> Tensor:
        """ln p(y) for y >= 0."""
        folded = torch.log1p(torch.exp(-2 * self.distance * y)) - math.log(2.0)
        return _log_normal(y - self.distance) + folded

    def _hazard(self, y: Tensor) -> Tensor:
        return (self._log_density(y) - self._log_tail(y)).exp()

    def _log_slope(self, z: Tensor, y: Tensor) -> Tensor:
        """ln dy/dz, from the densities."""
        return _log_normal(z) - self._log_density(y)


class BehindHumps(LatticeTransform):
    """A HierarchicalFlow behind its humps, x from y."""

    def __init__(self, flow: Any) -> None:
        super().__init__(flow.event_shape)
        self.flow = flow

    @property
    def shape(self) -> tuple[int, ...]:
        """The lattice shape."""
        return self.event_shape

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y to x."""
        return self.flow.generate_local(h, context)

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to y."""
        return self.flow.renormalize_local(h, context)


def _log_upper(z: Tensor) -> Tensor:
    """ln of the probability that a standard normal exceeds z (torch's log_ndtr knows no vmap)."""
    return torch.special.erfcx(z / math.sqrt(2.0)).log() - math.log(2.0) - 0.5 * z.square()


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
