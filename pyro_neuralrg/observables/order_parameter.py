# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The magnetisation, its powers and its distribution, of spins and averaged over them given x."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_neuralrg.observables.sites import as_bias, checked, computable, flat, spin_mean

__all__ = [
    "abs_magnetisation",
    "expected_abs_magnetisation",
    "fourth_moment",
    "magnetisation",
    "magnetisation_distribution",
    "spin_fourth_moment",
    "spin_structure_factor",
    "structure_factor",
]


def magnetisation(spins: Tensor, shape: Iterable[int]) -> Tensor:
    """Mean over the lattice of spins, of conditional spin means or of any field.

    Args:
        spins: shape ``batch_shape + shape``.
        shape: of the lattice.

    Returns:
        Shape ``batch_shape``.

    Raises:
        ValueError: if ``spins`` is not of that shape.

    Example:
        >>> import torch
        >>> magnetisation(torch.tensor([[1.0, 1.0, 1.0, -1.0]]), (4,))
        tensor([0.5000])
    """
    return flat(spins, shape, "spins").mean(-1)


def abs_magnetisation(spins: Tensor, shape: Iterable[int]) -> Tensor:
    """Absolute value of :func:`magnetisation`; not linear in the spins, so take sampled ones.

    Example:
        >>> import torch
        >>> abs_magnetisation(-torch.ones(2, 3), (2, 3))
        tensor(1.)
    """
    return magnetisation(spins, shape).abs()


def spin_structure_factor(spins: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Uniform structure factor of sampled spins, :math:`(\sum_i s_i)^2 / N^2`.

    Args:
        spins: or any field, shape ``batch_shape + shape``.
        shape: of the lattice.

    Returns:
        Shape ``batch_shape``.

    Example:
        >>> import torch
        >>> spin_structure_factor(torch.tensor([1.0, 1.0, -1.0, 1.0]), (4,))
        tensor(0.2500)
    """
    return magnetisation(spins, shape).square()


def structure_factor(x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0) -> Tensor:
    r"""Uniform structure factor of the spins from the dual field x, E[(sum s)^2 | x] / N^2.

    With :math:`t = \tanh(x + h/T)` and independent spins given x, averaged over exactly,
    :math:`(\overline{t})^2 - \sum_i t_i^2 / N^2 + 1/N` (paper Fig. 3): a spin's square is 1, not
    :math:`t_i^2`.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        Shape ``batch_shape``.

    Raises:
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> structure_factor(torch.full((2, 2), 50.0), (2, 2))  # all spins up
        tensor(1.)
        >>> structure_factor(torch.zeros(2, 2), (2, 2))  # free spins: 1 / N
        tensor(0.2500)
    """
    mean = flat(spin_mean(checked(x, shape, "x"), bias), shape, "x")
    size = mean.shape[-1]
    return mean.mean(-1).square() - mean.square().sum(-1) / size**2 + 1 / size


def spin_fourth_moment(spins: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Fourth power of the magnetisation of sampled spins, :math:`(\sum_i s_i)^4 / N^4`.

    Args:
        spins: or any field, shape ``batch_shape + shape``.
        shape: of the lattice.

    Returns:
        Shape ``batch_shape``.

    Example:
        >>> import torch
        >>> spin_fourth_moment(torch.tensor([1.0, 1.0, -1.0, 1.0]), (4,))
        tensor(0.0625)
    """
    return magnetisation(spins, shape).square().square()


def fourth_moment(x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0) -> Tensor:
    r"""E[(sum s)^4 | x] / N^4 of the spins from the dual field x, exactly, in O(N).

    Given x the spins are independent, so that cumulants add up: those of one spin of mean t are
    :math:`t,\ 1 - t^2,\ -2t(1 - t^2),\ -2(1 - t^2)(1 - 3t^2)`, and with their sums
    :math:`\kappa_n` the moment is :math:`\kappa_4 + 4\kappa_3\kappa_1 + 3\kappa_2^2 +
    6\kappa_2\kappa_1^2 + \kappa_1^4`.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        Shape ``batch_shape``.

    Raises:
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> fourth_moment(torch.zeros(2, 1), (2, 1))  # 1 with probability 1/2, else 0
        tensor(0.5000)
    """
    mean = flat(spin_mean(checked(x, shape, "x"), bias), shape, "x")
    square = mean.square()
    rest = 1 - square
    size = mean.shape[-1]
    first = mean.mean(-1)
    second = rest.sum(-1) / size**2
    third = -2 * (mean * rest).sum(-1) / size**3
    fourth = -2 * (rest * (1 - 3 * square)).sum(-1) / size**4
    moment = fourth + 4 * third * first + 3 * second.square()
    return moment + 6 * second * first.square() + first.square().square()


def magnetisation_distribution(
    x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0
) -> Tensor:
    r"""Distribution of the magnetisation of the spins given x, O(N log^2 N).

    The number of spins up is a sum of independent ones: the distributions of two halves of the
    lattice, convolved by FFT, from single sites up. Errors are of the order of the precision
    relative to 1, not to each probability.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        Probabilities of :math:`m = (2n - N) / N`, n = 0 .. N; shape ``batch_shape + (N + 1,)``.

    Raises:
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> magnetisation_distribution(torch.zeros(2, 1), (2, 1))  # m = -1, 0, 1
        tensor([0.2500, 0.5000, 0.2500])
    """
    field = flat(checked(x, shape, "x") + as_bias(bias, x), shape, "x")
    up = computable(2 * field).sigmoid()
    table = torch.stack([1 - up, up], -1)  # batch, sites, numbers of spins up
    size = up.shape[-1]
    missing = 2 ** (size - 1).bit_length() - size
    none = torch.stack([torch.ones_like(up[..., :1]), torch.zeros_like(up[..., :1])], -1)
    table = torch.cat([table, none.expand(*none.shape[:-2], missing, 2)], -2)
    while table.shape[-2] > 1:
        table = _convolve(table[..., 0::2, :], table[..., 1::2, :])
    return table[..., 0, : size + 1].to(x.dtype)


def expected_abs_magnetisation(
    x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0
) -> Tensor:
    """E[|sum s| | x] / N of the spins from the dual field x, exactly, in O(N log^2 N).

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        Shape ``batch_shape``.

    Raises:
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> expected_abs_magnetisation(torch.zeros(2, 1), (2, 1))
        tensor(0.5000)
    """
    probabilities = magnetisation_distribution(x, shape, bias)
    size = probabilities.shape[-1] - 1
    ups = torch.arange(size + 1, device=x.device)
    return (probabilities * ((2 * ups - size).abs() / size).to(x.dtype)).sum(-1)


def _convolve(left: Tensor, right: Tensor) -> Tensor:
    """Distribution of the sum of two independent counts, each at most n: at most 2 n."""
    length = left.shape[-1] + right.shape[-1] - 1
    if left.numel() == 0:  # there is no FFT of nothing
        return left.new_zeros(*left.shape[:-1], length)
    waves = torch.fft.rfft(left, n=length) * torch.fft.rfft(right, n=length)
    return torch.fft.irfft(waves, n=length)
