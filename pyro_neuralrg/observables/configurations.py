# SPDX-License-Identifier: Apache-2.0
r"""Observables of one configuration: the magnetisation, its powers, two-point functions.

All take, beside the lattice's ``shape``,

* ``mean``: of every site, shape ``batch + shape``, of a floating dtype;
* ``variance``: likewise, where the sites are independent spins of +1 and -1, over which the average
  is then taken: :math:`\sigma^2 = 1 - t^2` for spins of mean t. None: the values are known.

Two-point functions have one normalisation: ``S(k) = E|sum_i v_i exp(-i k r_i)|^2 / N^2``, so that
S(0) is the uniform structure factor, and ``C(r) = mean over i of E[v_i v_(i + r)]``, so that C(0) =
1 of spins. They are one another's Fourier transforms, ``S = FFT(C) / N``. Nothing is subtracted:
C(r) - <m>^2 is the connected one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_values
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.spectral import computable

Observable = Callable[..., Tensor]


def field_observables(shape: Iterable[int], boundary: str = "periodic") -> dict[str, Observable]:
    """Observables of any field, or of spins of given means and variances, by name.

    Functions of ``(mean, variance=None)``, ``batch + shape -> batch``, which can be pickled:
    ``magnetisation``, ``abs_magnetisation``, ``structure_factor``, ``fourth_moment`` and, on a
    periodic lattice, ``structure_factor_axis0``, ...: S at k = 2 pi / L along each axis of more
    than one site.

    Example:
        >>> field_observables((2, 2))["abs_magnetisation"](-torch.ones(2, 2))
        tensor(1.)
    """
    sides = check_shape(shape)
    functions: dict[str, Observable] = {
        function.__name__: functools.partial(_measure, function, sides)
        for function in (magnetisation, abs_magnetisation, structure_factor, fourth_moment)
    }
    if check_boundary(boundary) == "periodic":
        for axis, side in enumerate(sides):
            if side > 1:
                name = f"structure_factor_axis{axis}"
                functions[name] = functools.partial(lowest_mode, axis, sides)
    return functions


def _measure(
    function: Observable, shape: tuple[int, ...], mean: Tensor, variance: Tensor | None = None
) -> Tensor:
    return function(mean, variance, shape)


def lowest_mode(
    axis: int, shape: tuple[int, ...], mean: Tensor, variance: Tensor | None = None
) -> Tensor:
    """S at the smallest wave vector along one axis."""
    modes = mode_structure_factor(mean, variance, shape).flatten(-len(shape))
    return modes[..., math.prod(shape[axis + 1 :])]


def magnetisation(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Mean over the lattice, of batch shape; the variance is not needed.

    Example:
        >>> magnetisation(torch.tensor([[1.0, 1.0, 1.0, -1.0]]), None, (4,))
        tensor([0.5000])
    """
    return _flattened(mean, shape).mean(-1)


def abs_magnetisation(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Absolute value of the magnetisation, of batch shape; of spins in O(N log^2 N).

    Example:
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
    r"""Uniform structure factor :math:`E[(\sum_i v_i)^2] / N^2`, of batch shape.

    :math:`\overline{t}^2 + \sum_i \sigma_i^2 / N^2` (paper Fig. 3).

    Example:
        >>> structure_factor(torch.zeros(2, 2), torch.ones(2, 2), (2, 2))  # free spins: 1 / N
        tensor(0.2500)
    """
    values = _flattened(mean, shape)
    square = values.mean(-1).square()
    if variance is None:
        return square
    return square + _flattened(variance, shape, "variance").sum(-1) / values.shape[-1] ** 2


def fourth_moment(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    r"""Fourth power of the magnetisation, :math:`E[(\sum_i v_i)^4] / N^4`, of batch shape; O(N).

    Cumulants of independent spins add up: those of one of mean t and variance :math:`\sigma^2` are
    :math:`t,\ \sigma^2,\ -2t\sigma^2,\ -2\sigma^2(1 - 3t^2)`, and with their sums
    :math:`\kappa_n` the moment is :math:`\kappa_4 + 4\kappa_3\kappa_1 + 3\kappa_2^2 +
    6\kappa_2\kappa_1^2 + \kappa_1^4`.

    Example:
        >>> fourth_moment(torch.zeros(2, 1), torch.ones(2, 1), (2, 1))  # 1 or 0, evenly
        tensor(0.5000)
    """
    values = _flattened(mean, shape)
    size = values.shape[-1]
    first = values.mean(-1)
    if variance is None:
        return first.square().square()
    rest = _flattened(variance, shape, "variance")
    second = rest.sum(-1) / size**2
    third = -2 * (values * rest).sum(-1) / size**3
    fourth = -2 * (rest * (1 - 3 * values.square())).sum(-1) / size**4
    moment = fourth + 4 * third * first + 3 * second.square()
    return moment + 6 * second * first.square() + first.square().square()


def magnetisation_probabilities(mean: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Distribution of the magnetisation of independent spins of given means, O(N log^2 N).

    The distributions of the numbers of spins up in two halves of the lattice, convolved by FFT,
    from single sites up. Errors are relative to 1, not to each probability.

    Returns:
        Probabilities of :math:`m = (2n - N) / N`, n = 0 .. N; shape ``batch + (N + 1,)``.

    Example:
        >>> magnetisation_probabilities(torch.zeros(2, 1), (2, 1))  # m = -1, 0, 1
        tensor([0.2500, 0.5000, 0.2500])
    """
    up = computable((1 + _flattened(mean, shape)) / 2)
    size = up.shape[-1]
    padding = 2 ** (size - 1).bit_length() - size  # sites that are never up
    up = torch.cat([up, up.new_zeros(*up.shape[:-1], padding)], -1)
    table = torch.stack([1 - up, up], -1)  # batch, sites, numbers of spins up
    while table.shape[-2] > 1:
        table = _convolve(table[..., 0::2, :], table[..., 1::2, :])
    return table[..., 0, : size + 1].to(mean.dtype)


def _convolve(left: Tensor, right: Tensor) -> Tensor:
    """Distribution of the sum of two independent counts."""
    length = left.shape[-1] + right.shape[-1] - 1
    if left.numel() == 0:  # torch.fft rejects empty tensors
        return left.new_zeros(*left.shape[:-1], length)
    waves = torch.fft.rfft(left, n=length) * torch.fft.rfft(right, n=length)
    return torch.fft.irfft(waves, n=length)


def mode_structure_factor(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    r"""Structure factor at every wave vector, O(N log N).

    .. math:: S(k) = \left|\sum_i t_i e^{-i k r_i}\right|^2 / N^2 + \sum_i \sigma_i^2 / N^2

    At :math:`k_a = 2\pi n_a / L_a`, n in FFT order; shape ``batch + shape``.

    Example:
        >>> mode_structure_factor(torch.zeros(4), torch.ones(4), (4,))  # free spins: 1 / N
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    sides = check_shape(shape)
    dim = tuple(range(-len(sides), 0))
    modes = check_values("mean", mean, sides)
    if modes.numel() > 0:  # torch.fft rejects empty tensors
        waves = torch.view_as_real(torch.fft.fftn(computable(modes), dim=dim, norm="forward"))
        modes = waves.square().sum(-1).to(mean.dtype)
    if variance is None:
        return modes
    scatter = check_values("variance", variance, sides).mean(dim, keepdim=True)
    return modes + scatter / math.prod(sides)


def correlations(mean: Tensor, variance: Tensor | None, shape: Iterable[int]) -> Tensor:
    """Two-point function C(r) on a periodic lattice, r_a = 0 .. L_a - 1, O(N log N).

    The mean over sites of t_i t_(i + r), to which the variance is added at r = 0, of shape ``batch
    + shape``.

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
    """Two-point function C(r), r = 0 .. L - 1, along one axis (from 0) of side L, O(N log L).

    Of shape ``batch + (L,)``. On an open lattice the mean is over the L - r pairs of each line.

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
    same_site = torch.arange(result.shape[-1], device=result.device) == 0
    return result + same_site * _flattened(variance, sides, "variance").mean(-1, keepdim=True)


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


def _flattened(values: Tensor, shape: Iterable[int], name: str = "mean") -> Tensor:
    """A field, checked, with all its sites in one last dimension."""
    sides = check_shape(shape)
    return check_values(name, values, sides).flatten(-len(sides))
