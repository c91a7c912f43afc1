# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The energy of Ising spins and its square, of spins and averaged over them given x."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.sites import as_bias, checked, flat, spin_mean

__all__ = ["internal_energy", "squared_internal_energy"]


def internal_energy(
    spins: Tensor,
    shape: Iterable[int],
    couplings: Sequence[float] | None = None,
    field: float | Tensor = 0.0,
    boundary: str = "periodic",
) -> Tensor:
    r"""Energy per site of the Ising Hamiltonian, in units of J.

    :math:`H = -\sum_{<ij>} J_{ij} s_i s_j - \sum_i h_i s_i`.

    It is linear in each spin, so conditional means ``spin_mean(x)`` in place of spins give the
    Rao-Blackwellised estimator. A periodic side of 2 counts both bonds of a pair, a side of 1 has
    none.

    Args:
        spins: shape ``batch_shape + shape``.
        shape: of the lattice.
        couplings: J of each axis; ones if None.
        field: h, a number or of shape ``shape``, in units of J.
        boundary: "periodic" or "open".

    Returns:
        <H> / N of each configuration, shape ``batch_shape``.

    Raises:
        TypeError: if ``spins`` are no floating numbers.
        ValueError: if a shape or the number of couplings does not fit.

    Example:
        >>> import torch
        >>> internal_energy(torch.ones(4, 4), (4, 4))
        tensor(-2.)
    """
    sides = check_shape(shape)
    total = -flat(checked(spins, sides, "spins") * as_bias(field, spins), sides, "spins").sum(-1)
    for axis, strength in bonds_of(sides, couplings, boundary):
        left, right = _ends(spins, axis - len(sides), boundary)
        total = total - strength * (left * right).flatten(-len(sides)).sum(-1)
    return total / math.prod(sides)


def squared_internal_energy(
    x: Tensor,
    shape: Iterable[int],
    couplings: Sequence[float] | None = None,
    field: float | Tensor = 0.0,
    boundary: str = "periodic",
    bias: float | Tensor = 0.0,
) -> Tensor:
    r"""E[H^2 | x] / N^2 of the spins from the dual field x, exactly, in O(N); in units of J^2.

    Given x the spins are independent, of mean t. About it H is a sum of terms without correlation,

    .. math:: H(s) = H(t) - \sum_i g_i (s_i - t_i) - \sum_{(ij)} J_{ij} (s_i - t_i)(s_j - t_j),

    with :math:`g_i = h_i + \sum_j J_{ij} t_j` and pairs (ij) of neighbours (whose two bonds along a
    periodic side of 2 make one :math:`J_{ij}`), so that its variance is :math:`\sum_i g_i^2 (1 -
    t_i^2) + \sum_{(ij)} J_{ij}^2 (1 - t_i^2)(1 - t_j^2)`. Of sampled spins take
    ``internal_energy(...).square()``.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        couplings: J of each axis; ones if None.
        field: h, a number or of shape ``shape``, in units of J.
        boundary: "periodic" or "open".
        bias: h / T, a number or of shape ``shape``.

    Returns:
        Shape ``batch_shape``.

    Raises:
        TypeError: if ``x`` are no floating numbers.
        ValueError: if a shape or the number of couplings does not fit.

    Example:
        >>> import torch
        >>> squared_internal_energy(torch.zeros(2), (2,), boundary="open")  # H = -s_0 s_1
        tensor(0.2500)
    """
    sides = check_shape(shape)
    mean = spin_mean(checked(x, sides, "x"), bias)
    energy = internal_energy(mean, sides, couplings, field, boundary)
    rest = 1 - mean.square()
    local = torch.zeros_like(mean) + as_bias(field, mean)
    variance = x.new_zeros(())
    for axis, strength in bonds_of(sides, couplings, boundary):
        dim = axis - len(sides)
        local = local + strength * _neighbours(mean, dim, boundary)
        left, right = _ends(rest, dim, boundary)
        # both bonds of a pair: (2 J)^2 of one pair, of which each bond brings half
        weight = 2 if boundary == "periodic" and sides[axis] == 2 else 1
        variance = variance + weight * strength**2 * (left * right).flatten(-len(sides)).sum(-1)
    variance = variance + (rest * local.square()).flatten(-len(sides)).sum(-1)
    return energy.square() + variance / math.prod(sides) ** 2


def bonds_of(
    sides: tuple[int, ...], couplings: Sequence[float] | None, boundary: str
) -> list[tuple[int, float]]:
    """Axes that have bonds, with their J.

    Raises:
        ValueError: if the boundary is unknown or the number of couplings does not fit.

    Example:
        >>> bonds_of((3, 1), None, "open")
        [(0, 1.0)]
    """
    check_boundary(boundary)
    strengths = [1.0] * len(sides) if couplings is None else [float(value) for value in couplings]
    if len(strengths) != len(sides):
        raise ValueError(
            f"couplings has {len(strengths)} entries; accepted: {len(sides)}, one per axis"
        )
    return [(axis, strengths[axis]) for axis, side in enumerate(sides) if side > 1]


def _ends(values: Tensor, dim: int, boundary: str) -> tuple[Tensor, Tensor]:
    """What stands at both ends of every bond along one dimension."""
    if boundary == "periodic":
        return values, values.roll(1, dim)
    last = values.shape[dim] - 1
    return values.narrow(dim, 0, last), values.narrow(dim, 1, last)


def _neighbours(values: Tensor, dim: int, boundary: str) -> Tensor:
    """Sum over the neighbours of each site along one dimension."""
    if boundary == "periodic":
        return values.roll(1, dim) + values.roll(-1, dim)
    before, after = _ends(values, dim, boundary)
    edge = torch.zeros_like(values.narrow(dim, 0, 1))
    return torch.cat([edge, before], dim) + torch.cat([after, edge], dim)
