# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Two-point functions, in wave vectors and in distances.

One normalisation: ``S(k) = E|sum_i v_i exp(-i k r_i)|^2 / N^2``, so that S(0) is the uniform
structure factor, and ``C(r) = mean over i of E[v_i v_(i + r)]``, so that C(0) = 1 of spins. They
are one another's Fourier transforms, ``S = FFT(C) / N``. Nothing is subtracted: C(r) - <m>^2 is the
connected one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.sites import check_values, computable, flat, power


def mode_structure_factor(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    r"""Structure factor at every wave vector, O(N log N).

    .. math:: S(k) = \left|\sum_i t_i e^{-i k r_i}\right|^2 / N^2 + \sum_i \sigma_i^2 / N^2

    Args:
        mean: t of every site, shape ``batch + shape``.
        variance: :math:`\sigma^2` of every site; None of known values.
        shape: of the lattice.

    Returns:
        S(k) at :math:`k_a = 2\pi n_a / L_a`, n in FFT order; shape ``batch + shape``. The entry of
        index 0 is :func:`~pyro_neuralrg.observables.structure_factor`.

    Example:
        >>> mode_structure_factor(torch.tensor([1.0, -1.0, 1.0, -1.0]), None, (4,))
        tensor([0., 0., 1., 0.])
        >>> mode_structure_factor(torch.zeros(4), torch.ones(4), (4,))  # free spins: 1 / N
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    sides = check_shape(shape)
    dim = tuple(range(-len(sides), 0))
    modes = power(check_values("mean", mean, sides), dim)
    if variance is None:
        return modes
    scatter = check_values("variance", variance, sides).mean(dim, keepdim=True)
    return modes + scatter / math.prod(sides)


def correlations(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Two-point function on a periodic lattice at every displacement, O(N log N).

    The mean over sites of t_i t_(i + r), to which the variance is added at r = 0.

    Args:
        mean: t of every site, shape ``batch + shape``.
        variance: of every site; None of known values.
        shape: of the lattice.

    Returns:
        C(r), r_a = 0 .. L_a - 1, shape ``batch + shape``.

    Example:
        >>> correlations(torch.tensor([1.0, -1.0, 1.0, -1.0]), None, (4,))
        tensor([ 1., -1.,  1., -1.])
    """
    modes = mode_structure_factor(mean, variance, shape)
    if modes.numel() == 0:  # torch.fft rejects empty tensors
        return modes
    dim = tuple(range(-len(check_shape(shape)), 0))
    # the sum over k of S(k) exp(i k r), a forward FFT since S(-k) = S(k)
    return torch.fft.fftn(computable(modes), dim=dim).real.to(modes.dtype)


def axis_correlations(
    mean: Tensor,
    variance: Tensor | None,
    shape: Iterable[int],
    axis: int = 0,
    boundary: str = "periodic",
) -> Tensor:
    """Two-point function along one axis, O(N log L).

    Args:
        mean: of every site, shape ``batch + shape``.
        variance: of every site; None of known values.
        shape: of the lattice.
        axis: 0 .. d - 1.
        boundary: "periodic", or "open": the mean is over the L - r pairs of each line.

    Returns:
        C(r), r = 0 .. L - 1 with the axis' side L, shape ``batch + (L,)``.

    Example:
        >>> axis_correlations(torch.tensor([1.0, 1.0, -1.0]), None, (3,), boundary="open")
        tensor([ 1.,  0., -1.])
    """
    sides = check_shape(shape)
    dim = check_integer("axis", axis, 0, len(sides) - 1) - len(sides)
    lines = check_values("mean", mean, sides).movedim(dim, -1)
    result = _along_lines(lines, len(sides), check_boundary(boundary) == "periodic")
    if variance is None:
        return result
    same_site = torch.zeros_like(result)
    same_site[..., 0] = 1.0
    return result + same_site * flat(variance, sides, "variance").mean(-1, keepdim=True)


def _along_lines(lines: Tensor, dimension: int, periodic: bool) -> Tensor:
    """Products at distances along the last dimension, averaged over those of the lattice."""
    across = tuple(range(-dimension, -1))
    if lines.numel() == 0:  # torch.fft rejects empty tensors
        return lines.sum(across) if across else lines
    side = lines.shape[-1]
    length = side if periodic else 2 * side  # zeros behind the end: no distance wraps round
    waves = torch.view_as_real(torch.fft.rfft(computable(lines), n=length))
    squares = waves.square().sum(-1)
    sums = torch.fft.irfft(squares.to(waves.dtype), n=length)[..., :side]
    means = sums / (side if periodic else torch.arange(side, 0, -1, device=lines.device))
    return (means.mean(across) if across else means).to(lines.dtype)
