# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The magnetisation, its powers and its distribution."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_neuralrg.observables.sites import computable, flat


def magnetisation(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Mean over the lattice.

    Args:
        mean: of every site, shape ``batch + shape``.
        variance: not needed; an argument of all observables.
        shape: of the lattice.

    Returns:
        Shape ``batch``.

    Example:
        >>> magnetisation(torch.tensor([[1.0, 1.0, 1.0, -1.0]]), None, (4,))
        tensor([0.5000])
    """
    return flat(mean, shape).mean(-1)


def abs_magnetisation(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Absolute value of the magnetisation; of spins with a variance in O(N log^2 N).

    Args:
        mean: of every site, shape ``batch + shape``.
        variance: of every site, where these are spins; None of known values.
        shape: of the lattice.

    Returns:
        Shape ``batch``.

    Example:
        >>> abs_magnetisation(-torch.ones(2, 3), None, (2, 3))
        tensor(1.)
        >>> abs_magnetisation(torch.zeros(2, 1), torch.ones(2, 1), (2, 1))
        tensor(0.5000)
    """
    if variance is None:
        return magnetisation(mean, None, shape).abs()
    probabilities = magnetisation_probabilities(mean, shape)
    size = probabilities.shape[-1] - 1
    ups = torch.arange(size + 1, device=mean.device)
    return (probabilities * ((2 * ups - size).abs() / size).to(mean.dtype)).sum(-1)


def structure_factor(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    r"""Uniform structure factor, :math:`E[(\sum_i v_i)^2] / N^2`.

    :math:`\overline{t}^2 + \sum_i \sigma_i^2 / N^2` (paper Fig. 3), where spins of mean t have the
    variance :math:`\sigma^2 = 1 - t^2`.

    Args:
        mean: of every site, shape ``batch + shape``.
        variance: of every site; None of known values.
        shape: of the lattice.

    Returns:
        Shape ``batch``.

    Example:
        >>> structure_factor(torch.tensor([1.0, 1.0, -1.0, 1.0]), None, (4,))
        tensor(0.2500)
        >>> structure_factor(torch.zeros(2, 2), torch.ones(2, 2), (2, 2))  # free spins: 1 / N
        tensor(0.2500)
    """
    values = flat(mean, shape)
    square = values.mean(-1).square()
    if variance is None:
        return square
    return square + flat(variance, shape, "variance").sum(-1) / values.shape[-1] ** 2


def fourth_moment(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    r"""Fourth power of the magnetisation, :math:`E[(\sum_i v_i)^4] / N^4`, in O(N).

    Cumulants of independent spins add up: those of one of mean t and variance :math:`\sigma^2` are
    :math:`t,\ \sigma^2,\ -2t\sigma^2,\ -2\sigma^2(1 - 3t^2)`, and with their sums
    :math:`\kappa_n` the moment is :math:`\kappa_4 + 4\kappa_3\kappa_1 + 3\kappa_2^2 +
    6\kappa_2\kappa_1^2 + \kappa_1^4`.

    Args:
        mean: of every site, shape ``batch + shape``.
        variance: of every site, where these are spins; None of known values.
        shape: of the lattice.

    Returns:
        Shape ``batch``.

    Example:
        >>> fourth_moment(torch.zeros(2, 1), torch.ones(2, 1), (2, 1))  # 1 or 0, evenly
        tensor(0.5000)
    """
    values = flat(mean, shape)
    size = values.shape[-1]
    first = values.mean(-1)
    if variance is None:
        return first.square().square()
    rest = flat(variance, shape, "variance")
    second = rest.sum(-1) / size**2
    third = -2 * (values * rest).sum(-1) / size**3
    fourth = -2 * (rest * (1 - 3 * values.square())).sum(-1) / size**4
    moment = fourth + 4 * third * first + 3 * second.square()
    return moment + 6 * second * first.square() + first.square().square()


def magnetisation_probabilities(mean: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Distribution of the magnetisation of independent spins, O(N log^2 N).

    The number of spins up is a sum of independent ones: the distributions of two halves of the
    lattice, convolved by FFT, from single sites up. Errors are of the order of the precision
    relative to 1, not to each probability.

    Args:
        mean: of every spin, from -1 to 1, shape ``batch + shape``.
        shape: of the lattice.

    Returns:
        Probabilities of :math:`m = (2n - N) / N`, n = 0 .. N; shape ``batch + (N + 1,)``.

    Example:
        >>> magnetisation_probabilities(torch.zeros(2, 1), (2, 1))  # m = -1, 0, 1
        tensor([0.2500, 0.5000, 0.2500])
    """
    up = computable((1 + flat(mean, shape)) / 2)
    size = up.shape[-1]
    padding = 2 ** (size - 1).bit_length() - size  # sites that are never up
    up = torch.cat([up, up.new_zeros(*up.shape[:-1], padding)], -1)
    table = torch.stack([1 - up, up], -1)  # batch, sites, numbers of spins up
    while table.shape[-2] > 1:
        table = _convolve(table[..., 0::2, :], table[..., 1::2, :])
    return table[..., 0, : size + 1].to(mean.dtype)


def _convolve(left: Tensor, right: Tensor) -> Tensor:
    """Distribution of the sum of two independent counts, each at most n: at most 2 n."""
    length = left.shape[-1] + right.shape[-1] - 1
    if left.numel() == 0:  # torch.fft rejects empty tensors
        return left.new_zeros(*left.shape[:-1], length)
    waves = torch.fft.rfft(left, n=length) * torch.fft.rfft(right, n=length)
    return torch.fft.irfft(waves, n=length)
