# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Two-point functions, in wave vectors and in distances, of spins and averaged over them given x.

One normalisation: ``S(k) = E|sum_i s_i exp(-i k r_i)|^2 / N^2``, so that S(0) is the uniform
structure factor, and ``C(r) = mean over i of E[s_i s_(i + r)]``, so that C(0) = 1 of spins. They
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
from pyro_neuralrg.observables.sites import checked, computable, power, spin_mean

__all__ = [
    "axis_correlations",
    "correlations",
    "mode_structure_factor",
    "spin_axis_correlations",
    "spin_correlations",
    "spin_mode_structure_factor",
]


def spin_mode_structure_factor(spins: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Structure factor of sampled spins at every wave vector, O(N log N).

    .. math:: S(k) = \left|\sum_i s_i e^{-i k r_i}\right|^2 / N^2

    Args:
        spins: or any field, shape ``batch_shape + shape``.
        shape: of the lattice.

    Returns:
        S(k) at :math:`k_a = 2\pi n_a / L_a`, n in FFT order; shape ``batch_shape + shape``. The
        entry of index 0 is :func:`spin_structure_factor`.

    Raises:
        TypeError: if ``spins`` are no floating numbers.
        ValueError: if ``spins`` is not of that shape.

    Example:
        >>> import torch
        >>> spin_mode_structure_factor(torch.tensor([1.0, -1.0, 1.0, -1.0]), (4,))
        tensor([0., 0., 1., 0.])
    """
    return power(checked(spins, shape, "spins"), shape)


def mode_structure_factor(x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0) -> Tensor:
    r"""Structure factor of the spins at every wave vector, from the dual field x, O(N log N).

    With t = tanh(x + h/T), averaged exactly over the spins given x:

    .. math:: S(k) = \left|\sum_i t_i e^{-i k r_i}\right|^2 / N^2 + \sum_i (1 - t_i^2) / N^2

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        S(k) at :math:`k_a = 2\pi n_a / L_a`, n in FFT order; shape ``batch_shape + shape``. The
        entry of index 0 is :func:`structure_factor`.

    Raises:
        TypeError: if ``x`` are no floating numbers.
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> mode_structure_factor(torch.zeros(4), (4,))  # free spins: 1 / N
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    sides = check_shape(shape)
    mean = spin_mean(checked(x, sides, "x"), bias)
    dim = tuple(range(-len(sides), 0))
    return power(mean, sides) + _missing(mean, dim) / math.prod(sides)


def spin_correlations(spins: Tensor, shape: Iterable[int]) -> Tensor:
    """Two-point function of sampled spins on a periodic lattice at every displacement, O(N log N).

    Args:
        spins: or any field, shape ``batch_shape + shape``.
        shape: of the lattice.

    Returns:
        C(r), r_a = 0 .. L_a - 1: the mean over sites i of s_i s_(i + r); shape ``batch_shape +
        shape``.

    Raises:
        TypeError: if ``spins`` are no floating numbers.
        ValueError: if ``spins`` is not of that shape.

    Example:
        >>> import torch
        >>> spin_correlations(torch.tensor([1.0, -1.0, 1.0, -1.0]), (4,))
        tensor([ 1., -1.,  1., -1.])
    """
    return _to_displacements(spin_mode_structure_factor(spins, shape), shape)


def correlations(x: Tensor, shape: Iterable[int], bias: float | Tensor = 0.0) -> Tensor:
    """Two-point function of the spins on a periodic lattice, from the dual field x, O(N log N).

    Averaged exactly over the spins given x: the mean over sites of t_i t_(i + r), t = tanh(x +
    h/T), and 1 at r = 0. Its expectation is ``IsingDual.exact_correlations()``.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        C(r), r_a = 0 .. L_a - 1, shape ``batch_shape + shape``.

    Raises:
        TypeError: if ``x`` are no floating numbers.
        ValueError: if ``x`` is not of that shape.

    Example:
        >>> import torch
        >>> correlations(torch.full((3,), 50.0), (3,))
        tensor([1., 1., 1.])
    """
    return _to_displacements(mode_structure_factor(x, shape, bias), shape)


def spin_axis_correlations(
    spins: Tensor, shape: Iterable[int], axis: int = 0, boundary: str = "periodic"
) -> Tensor:
    """Two-point function of sampled spins along one axis, O(N log L).

    Args:
        spins: or any field, shape ``batch_shape + shape``.
        shape: of the lattice.
        axis: 0 .. d - 1.
        boundary: "periodic", or "open": the mean is over the L - r pairs of each line.

    Returns:
        C(r), r = 0 .. L - 1 with the axis' side L, shape ``batch_shape + (L,)``.

    Raises:
        TypeError: if ``spins`` are no floating numbers or ``axis`` is no integer.
        ValueError: if a shape, axis or boundary is not accepted.

    Example:
        >>> import torch
        >>> spin_axis_correlations(torch.tensor([1.0, 1.0, -1.0]), (3,), boundary="open")
        tensor([ 1.,  0., -1.])
    """
    sides = check_shape(shape)
    lines = checked(spins, sides, "spins").movedim(_dim(axis, sides), -1)
    return _along_lines(lines, len(sides), boundary)


def axis_correlations(
    x: Tensor,
    shape: Iterable[int],
    axis: int = 0,
    boundary: str = "periodic",
    bias: float | Tensor = 0.0,
) -> Tensor:
    """Two-point function of the spins along one axis, from the dual field x, O(N log L).

    Averaged exactly over the spins given x: the mean of t_i t_(i + r), t = tanh(x + h/T), and 1
    at r = 0.

    Args:
        x: dual field, shape ``batch_shape + shape``.
        shape: of the lattice.
        axis: 0 .. d - 1.
        boundary: "periodic", or "open": the mean is over the L - r pairs of each line.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        C(r), r = 0 .. L - 1 with the axis' side L, shape ``batch_shape + (L,)``.

    Raises:
        TypeError: if ``x`` are no floating numbers or ``axis`` is no integer.
        ValueError: if a shape, axis or boundary is not accepted.

    Example:
        >>> import torch
        >>> axis_correlations(torch.zeros(2, 3), (2, 3), axis=1)
        tensor([1., 0., 0.])
    """
    sides = check_shape(shape)
    mean = spin_mean(checked(x, sides, "x"), bias)
    lines = mean.movedim(_dim(axis, sides), -1)
    result = _along_lines(lines, len(sides), boundary)
    same_site = torch.zeros_like(result)
    same_site[..., 0] = 1.0
    return result + same_site * _missing(mean, tuple(range(-len(sides), 0))).flatten(-len(sides))


def _missing(mean: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Mean of 1 - t^2 over the lattice, sides kept: what t^2 lacks of the square of a spin."""
    return (1 - mean.square()).mean(dim, keepdim=True)


def _dim(axis: int, sides: tuple[int, ...]) -> int:
    return check_integer("axis", axis, 0, len(sides) - 1) - len(sides)


def _to_displacements(modes: Tensor, shape: Iterable[int]) -> Tensor:
    """C(r) = sum over k of S(k) exp(i k r), a forward FFT since S(-k) = S(k)."""
    sides = check_shape(shape)
    if modes.numel() == 0:  # there is no FFT of nothing
        return modes
    dim = tuple(range(-len(sides), 0))
    return torch.fft.fftn(computable(modes), dim=dim).real.to(modes.dtype)


def _along_lines(lines: Tensor, dimension: int, boundary: str) -> Tensor:
    """Products at distances along the last dimension, averaged over those of the lattice."""
    side = lines.shape[-1]
    periodic = check_boundary(boundary) == "periodic"
    length = side if periodic else 2 * side  # zeros behind the end: no distance wraps round
    if lines.numel() == 0:  # there is no FFT of nothing
        return lines.sum(tuple(range(-dimension, -1))) if dimension > 1 else lines
    waves = torch.view_as_real(torch.fft.rfft(computable(lines), n=length))
    squares = waves.square().sum(-1)
    sums = torch.fft.irfft(squares.to(waves.dtype), n=length)[..., :side]
    pairs = side if periodic else torch.arange(side, 0, -1, device=lines.device)
    means = sums / pairs
    if dimension > 1:
        means = means.mean(tuple(range(-dimension, -1)))
    return means.to(lines.dtype)
