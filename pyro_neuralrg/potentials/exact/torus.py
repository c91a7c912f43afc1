# SPDX-License-Identifier: Apache-2.0
r"""Partition functions of the ring and of the two-dimensional torus, in logarithms throughout.

Every term is written so that nothing overflows, underflows into a logarithm or cancels at any
temperature: the derivatives in the inverse temperature are as good as the values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WARM = 0.5
"""Below this K, 1 - tanh(K)^n is computed as it stands; above, from the small 1 - tanh K."""


def ring_log_partition(length: int, coupling: Tensor) -> Tensor:
    """ln Z of a ring of n spins, ln[(2 cosh K)^n + (2 sinh K)^n]; of one spin without a bond."""
    if length == 1:
        return 0.0 * coupling + math.log(2.0)
    free = length * (_log_cosh(coupling) + math.log(2.0))
    if length % 2 == 0 or float(coupling) >= 0:
        return free + torch.log1p(torch.tanh(coupling) ** length)
    return free + _frustration(-coupling, length)


def _frustration(coupling: Tensor, length: int) -> Tensor:
    """ln(1 - tanh(K)^n), K > 0; (1 - t)(1 + t + ... + t^(n - 1)) where 1 - t^n would cancel."""
    tangent = torch.tanh(coupling)
    if float(coupling) < WARM:
        return torch.log1p(-(tangent**length))
    log_complement = math.log(2.0) - 2 * coupling - torch.log1p(torch.exp(-2 * coupling))
    return log_complement + torch.log(_geometric_sum(tangent, length))


def kaufman_log_partition(shape: tuple[int, int], couplings: Tensor) -> Tensor:
    r"""ln Z of the M x L torus with K_0 along the M rows, K_1 along the L columns, both positive.

    .. math:: Z = \tfrac12 (2 \sinh 2K_0)^{ML/2} \Big[
        \prod_r 2\cosh \tfrac{M}{2}\gamma_{2r+1} + \prod_r 2\sinh \tfrac{M}{2}\gamma_{2r+1}
        + \prod_r 2\cosh \tfrac{M}{2}\gamma_{2r} + \prod_r 2\sinh \tfrac{M}{2}\gamma_{2r} \Big],

    .. math:: \cosh\gamma_l = \cosh 2K_1 \coth 2K_0 - \cos(\pi l / L) \sinh 2K_1 / \sinh 2K_0,
        \qquad \gamma_0 = 2K_1 + \ln\tanh K_0 .

    gamma_0, and so the last product, is negative above Tc and zero at Tc. What is large is factored
    out by hand: (2 cosh K_0 cosh K_1)^{ML} above Tc, exp(ML (K_0 + K_1)) below, and the rest is a
    function of (tanh K_0, tanh K_1), or below Tc the same function of (exp(-2 K_1), exp(-2 K_0)),
    by duality. Values, energies and specific heats so keep their digits from T -> 0 to T ->
    infinity. Both sides of ``shape`` = (M, L) are at least 2.

    References:
        B. Kaufman, Phys. Rev. 76, 1232 (1949), Eq. 68.
        H. A. Kramers and G. H. Wannier, Phys. Rev. 60, 252 (1941).
    """
    sites = math.prod(shape)
    k0, k1 = couplings.unbind()
    if float(2 * k1 + _log_tanh(k0)) > 0:
        small, complement = (torch.exp(-2 * k1), torch.exp(-2 * k0)), -torch.expm1(-2 * k0)
        return sites * (k0 + k1) + _log_sectors(shape, *small, complement, zero_mode=1.0)
    factor = math.log(2.0) + _log_cosh(k0) + _log_cosh(k1)
    small = (torch.tanh(k0), torch.tanh(k1))
    complement = 2 * torch.exp(-2 * k1) / (1 + torch.exp(-2 * k1))
    return sites * factor + _log_sectors(shape, *small, complement, zero_mode=-1.0)


def _log_sectors(
    shape: tuple[int, int], u: Tensor, v: Tensor, complement: Tensor, zero_mode: float
) -> Tensor:
    r"""Logarithm of half the sum of Kaufman's four products over what is factored out.

    With :math:`P_l = |1 - v e^{i\phi}|^2`, :math:`\phi = \pi l / L`, :math:`\prod_l P_l = (1 \pm
    v^L)^2` over the odd and the even modes, and :math:`e^{\gamma_l} = P_l (1 + \delta_l) / [u (1 -
    v^2)]` defines a small :math:`\delta_l` without cancellation. (u, v) is (tanh K_0, tanh K_1) or
    (exp(-2 K_1), exp(-2 K_0)), with u (1 + v) <= 1 - v, the ``complement``; ``zero_mode`` is the
    sign of the last product.
    """
    rows, columns = shape
    angle = math.pi * torch.arange(1, 2 * columns, dtype=torch.float64) / columns
    half = 4 * v * torch.sin(angle / 2) ** 2
    below, above = complement**2 + half, (1 + v) ** 2 - half
    gap = below - u**2 * above
    delta = 8 * (u * v * torch.sin(angle)) ** 2
    delta = delta / (below * (torch.sqrt(gap**2 + 2 * delta) + gap))
    decay = (u * complement * (1 + v) / (below * (1 + delta))) ** rows  # exp(-M gamma)
    decay_zero = (u * (1 + v) / complement) ** rows
    odd, even = slice(0, None, 2), slice(1, None, 2)
    grown = 0.5 * rows * torch.log1p(delta)
    wound = v**columns
    unwound = torch.log(complement * _geometric_sum(v, columns))  # ln(1 - v^L)
    first = rows * torch.log1p(wound) + (grown + torch.log1p(decay))[odd].sum()
    second = (torch.log1p(-decay) - torch.log1p(decay))[odd].sum()
    third = rows * unwound + grown[even].sum() - first
    fourth = third + torch.log1p(-decay)[even].sum()
    third = third + torch.log1p(decay)[even].sum() + torch.log1p(decay_zero)
    # the mode of gamma_0 in the last product, plus one: what is left of it where it is near -1
    last = decay_zero if zero_mode < 0 else 2 - decay_zero
    rest = torch.expm1(second) + torch.expm1(third) + (last - 1) * torch.expm1(fourth) + last
    return first + torch.log1p(0.5 * rest)


def _geometric_sum(ratio: Tensor, count: int) -> Tensor:
    """1 + r + ... + r^(n - 1)."""
    return (ratio ** torch.arange(count, dtype=torch.float64)).sum()


def _log_tanh(x: Tensor) -> Tensor:
    return torch.log(-torch.expm1(-2 * x)) - torch.log1p(torch.exp(-2 * x))


def _log_cosh(x: Tensor) -> Tensor:
    """Ln cosh x, with derivatives that keep their digits at small and at large x."""
    if float(x.abs()) < 1:
        return -0.5 * torch.log1p(-(torch.tanh(x) ** 2))
    size = x if float(x) >= 0 else -x
    return size + torch.log1p(torch.exp(-2 * size)) - math.log(2.0)
