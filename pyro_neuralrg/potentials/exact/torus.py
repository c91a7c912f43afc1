# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Kaufman's partition function of the two-dimensional torus, in logarithms throughout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["kaufman_log_partition", "ring_log_partition"]


def ring_log_partition(length: int, coupling: Tensor) -> Tensor:
    """ln Z of a ring of spins: ln[(2 cosh K)^n + (2 sinh K)^n]; a ring of one spin has no bond.

    Args:
        length: number of spins n.
        coupling: K = J / T, a float64 scalar of either sign.
    """
    if length == 1:
        return 0.0 * coupling + math.log(2.0)
    return length * _log_2cosh(coupling) + torch.log1p(torch.tanh(coupling) ** length)


def kaufman_log_partition(shape: tuple[int, int], couplings: Tensor) -> Tensor:
    r"""ln Z of the M x L torus with K_0 along the M rows, K_1 along the L columns, both positive.

    .. math:: Z = \tfrac12 (2 \sinh 2K_0)^{ML/2} \Big[
        \prod_r 2\cosh \tfrac{M}{2}\gamma_{2r+1} + \prod_r 2\sinh \tfrac{M}{2}\gamma_{2r+1}
        + \prod_r 2\cosh \tfrac{M}{2}\gamma_{2r} + \prod_r 2\sinh \tfrac{M}{2}\gamma_{2r} \Big],

    .. math:: \cosh\gamma_l = \cosh 2K_1 \coth 2K_0 - \cos(\pi l / L) \sinh 2K_1 / \sinh 2K_0,
        \qquad \gamma_0 = 2K_1 + \ln\tanh K_0 .

    gamma_0 is signed: negative above Tc, where the last product is then negative, and zero at Tc,
    where it vanishes.

    Args:
        shape: (M, L), both sides at least 2.
        couplings: (K_0, K_1), float64 of shape (2,).

    References:
        B. Kaufman, Phys. Rev. 76, 1232 (1949), Eq. 68.
    """
    rows, columns = shape
    k0, k1 = couplings.unbind()
    log_tanh = torch.log(-torch.expm1(-2 * k0)) - torch.log1p(torch.exp(-2 * k0))
    gamma_zero = 2 * k1 + log_tanh
    # ln(2 sinh 2K), without overflow
    log_sinh0, log_sinh1 = (2 * k + torch.log(-torch.expm1(-4 * k)) for k in (k0, k1))
    mode = torch.arange(2 * columns, dtype=torch.float64)
    # cosh(gamma) - 1, free of cancellation
    excess = 2 * torch.sinh(gamma_zero / 2) ** 2 + 2 * torch.exp(log_sinh1 - log_sinh0) * (
        torch.sin(math.pi * mode[1:] / (2 * columns)) ** 2
    )
    gamma = 2 * torch.asinh(torch.sqrt(excess / 2))  # of the modes 1, 2, ...
    odd, even = 0.5 * rows * gamma[0::2], 0.5 * rows * gamma[1::2]
    # the zero mode apart: with a = M gamma_0 / 2, one analytic branch on either side of a = 0
    a = 0.5 * rows * gamma_zero
    above = a >= 0
    size = torch.where(above, a, -a)
    fraction = torch.where(above, -torch.expm1(-2 * size), torch.expm1(-2 * size))
    logs = torch.stack(
        [
            _log_2cosh(odd).sum(),
            _log_2sinh(odd).sum(),
            _log_2cosh(even).sum() + size + torch.log1p(torch.exp(-2 * size)),
            _log_2sinh(even).sum() + size,
        ]
    )
    factors = torch.stack([torch.ones_like(fraction)] * 3 + [fraction])
    top = logs.max().detach()
    total = top + torch.log((factors * torch.exp(logs - top)).sum())
    return total - math.log(2.0) + 0.5 * rows * columns * log_sinh0


def _log_2cosh(x: Tensor) -> Tensor:
    size = torch.where(x >= 0, x, -x)
    return size + torch.log1p(torch.exp(-2 * size))


def _log_2sinh(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-2 * x))
