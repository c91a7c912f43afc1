# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Increasing maps of one variable: what is done to each entry of a field, and undone.

A map is a named tuple of its parameters, tensors that broadcast with the field. It has
``generate(v) -> (x, log_slope)`` and ``renormalize(x) -> (v, log_slope)``, with the *same*
``log_slope = ln dx/dv`` of every entry.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Affine", "AffineSteps", "Elementwise"]

INVERSE_STEPS = 60
"""Of the bracketed Newton iteration, at most."""


class Affine(NamedTuple):
    """A line, :math:`x = e^s v + t`.

    Attributes:
        shift: t.
        log_scale: s.
    """

    shift: Tensor
    log_scale: Tensor

    def generate(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """V to x."""
        return v * self.log_scale.exp() + self.shift, self.log_scale

    def renormalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X to v."""
        return (x - self.shift) * (-self.log_scale).exp(), self.log_scale


class AffineSteps(NamedTuple):
    r"""A line plus steps, :math:`x = e^s v + t + \sum_k a_k \tanh(b_k (v - c_k))`, a_k, b_k > 0.

    One step turns one hump of a density into two, with weights that its centre decides: what a line
    cannot do. The inverse is a bracketed Newton iteration; its first and second derivatives are
    those of the implicit function theorem.

    Attributes:
        shift: t.
        log_scale: s.
        height: a_k, steps on the leading dimension.
        centre: c_k, likewise.
        width: b_k, the inverse widths of the steps, likewise.
    """

    shift: Tensor
    log_scale: Tensor
    height: Tensor
    centre: Tensor
    width: Tensor

    def generate(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """V to x."""
        x, slope = self._evaluate(v)
        return x, slope.log()

    def renormalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X to v."""
        with torch.no_grad():
            v = self._solve(x)
        for _ in range(2):  # each Newton step makes one more derivative of v exact
            value, slope = self._evaluate(v)
            v = v - (value - x) / slope.detach()
        _, slope = self._evaluate(v)
        return v, slope.log()

    def _evaluate(self, v: Tensor) -> tuple[Tensor, Tensor]:
        rise = torch.tanh(self.width * (v - self.centre))
        scale = self.log_scale.exp()
        slope = scale + (self.height * self.width * (1 - rise * rise)).sum(0)
        return scale * v + self.shift + (self.height * rise).sum(0), slope

    def _solve(self, x: Tensor) -> Tensor:
        """Newton's iteration kept inside a shrinking bracket, to half of the digits.

        The bracket: the steps add at most the sum of their heights.
        """
        reach, middle = self.height.sum(0), x - self.shift
        lower = (middle - reach) * (-self.log_scale).exp()
        upper = (middle + reach) * (-self.log_scale).exp()
        v = 0.5 * (lower + upper)
        for _ in range(INVERSE_STEPS):
            value, slope = self._evaluate(v)
            excess = value - x
            lower = torch.where(excess <= 0, v, lower)
            upper = torch.where(excess >= 0, v, upper)
            newton = v - excess / slope
            inside = (newton > lower) & (newton < upper)
            previous, v = v, torch.where(inside, newton, 0.5 * (lower + upper))
            if _is_settled(previous, v):
                break
        return v


Elementwise = Affine | AffineSteps


def _is_settled(previous: Tensor, v: Tensor) -> bool:
    """Whether the last step left half of the digits alone; Newton's next step doubles them."""
    precision = 0.1 * math.sqrt(torch.finfo(v.dtype).eps)
    settled = ((v - previous).abs() <= precision * (1 + v.abs())).all()
    try:
        return bool(settled)
    except RuntimeError:  # inside vmap no value can be read: all steps are taken
        return False
