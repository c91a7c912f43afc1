# SPDX-License-Identifier: Apache-2.0
"""Increasing maps of one variable, for each entry of a field.

A map is a named tuple of its parameters, which broadcast with the field, with ``forward(v) -> (x,
log_slope)`` and ``inverse(x) -> (v, log_slope)``, the *same* ``log_slope = ln dx/dv``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.compiled import INVERSE_STEPS

COMPILED_STEPS = 48
"""Steps of the inverse under ``torch.compile``, which cannot stop early: the most seen is 42."""


class Affine(NamedTuple):
    """A line, :math:`x = e^s v + t`, with the shift t and the log-scale s."""

    shift: Tensor
    log_scale: Tensor

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """From v to x."""
        return v * self.log_scale.exp() + self.shift, self.log_scale

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From x to v."""
        return (x - self.shift) * (-self.log_scale).exp(), self.log_scale


class SinhArcsinh(NamedTuple):
    r"""A skewness and a weight of the tails: :math:`x = \sinh(\epsilon + e^t \sinh^{-1} v)`.

    Attributes:
        skew: :math:`\epsilon`; the identity at zero of both.
        log_tail: t; above zero the tails of x are heavier than those of v.

    References:
        Jones, Pewsey, "Sinh-arcsinh distributions", Biometrika 96 (2009), Eq. 1.
    """

    skew: Tensor
    log_tail: Tensor

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """From v to x."""
        x = torch.sinh(self.skew + self.log_tail.exp() * torch.asinh(v))
        return x, self._log_slope(v, x)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From x to v."""
        v = torch.sinh((torch.asinh(x) - self.skew) * (-self.log_tail).exp())
        return v, self._log_slope(v, x)

    def _log_slope(self, v: Tensor, x: Tensor) -> Tensor:
        return self.log_tail + 0.5 * (torch.log1p(x.square()) - torch.log1p(v.square()))


class AffineTanh(NamedTuple):
    r"""A line plus tanh terms: :math:`x = e^s v + t + \sum_k a_k \tanh(b_k (v - c_k))`.

    With all a_k, b_k > 0. One term turns one hump of a density into two, with weights that its
    centre decides. The inverse is a bracketed Newton iteration; its first and second derivatives
    are those of the implicit function theorem.

    Attributes:
        shift, log_scale: t and s.
        height, centre, steepness: a_k, c_k and b_k, terms on the leading dimension.
    """

    shift: Tensor
    log_scale: Tensor
    height: Tensor
    centre: Tensor
    steepness: Tensor

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """From v to x."""
        x, slope = self._evaluate(v)
        return x, slope.log()

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From x to v."""
        with torch.no_grad():
            v = self._solve(x)
        for _ in range(2):  # each Newton step makes one more derivative of v exact
            value, slope = self._evaluate(v)
            v = v - (value - x) / slope.detach()
        _, slope = self._evaluate(v)
        return v, slope.log()

    def _evaluate(self, v: Tensor) -> tuple[Tensor, Tensor]:
        rise = torch.tanh(self.steepness * (v - self.centre))
        scale = self.log_scale.exp()
        slope = scale + (self.height * self.steepness * (1 - rise * rise)).sum(0)
        return scale * v + self.shift + (self.height * rise).sum(0), slope

    def _solve(self, x: Tensor) -> Tensor:
        """Newton's iteration kept inside a shrinking bracket, to half of the digits.

        It is halved where Newton's step would leave it, or is not half as long as the last: between
        flat and steep parts the steps could go to and fro without an end.
        """
        reach, middle = self.height.sum(0), x - self.shift
        lower = (middle - reach) * (-self.log_scale).exp()
        upper = (middle + reach) * (-self.log_scale).exp()
        v = 0.5 * (lower + upper)
        last = upper - lower
        for _ in range(COMPILED_STEPS if torch.compiler.is_compiling() else INVERSE_STEPS):
            value, slope = self._evaluate(v)
            excess = value - x
            lower = torch.where(excess <= 0, v, lower)
            upper = torch.where(excess >= 0, v, upper)
            newton = v - excess / slope
            step = (newton - v).abs()
            good = (newton > lower) & (newton < upper) & (2 * step < last)
            # once settled an entry stays: rounding alone could send it back into its bracket
            good = good | _is_small(step, v)
            previous, v = v, torch.where(good, newton, 0.5 * (lower + upper))
            last = (v - previous).abs()
            if _is_true(_is_small(last, v).all()):
                break
        return v


Elementwise = Affine | AffineTanh


def _is_small(step: Tensor, v: Tensor) -> Tensor:
    """True where a step leaves half of the digits alone; Newton's next step doubles them."""
    return step <= 0.1 * math.sqrt(torch.finfo(v.dtype).eps) * (1 + v.abs())


def _is_true(condition: Tensor) -> bool:
    """True if it holds and can be read; else False, and all steps are taken."""
    if torch.compiler.is_compiling():  # would end the graph there
        return False
    try:
        return bool(condition)
    except RuntimeError:  # inside vmap
        return False
