# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What all observables share: fields of a checked shape, the mean of each spin, plane waves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_neuralrg.lattice import check_shape

__all__ = ["as_bias", "batch_of", "checked", "computable", "flat", "power", "spin_mean"]


def spin_mean(x: Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """E[s_i | x] = tanh(x_i + h_i / T) of the dual field (paper Eq. 7 and below).

    Args:
        x: dual field of any shape.
        bias: h / T, a number or of the lattice's shape; used in x's precision.

    Returns:
        Of x's shape, in (-1, 1).

    Example:
        >>> import torch
        >>> spin_mean(torch.zeros(3))
        tensor([0., 0., 0.])
    """
    return (x + as_bias(bias, x)).tanh()


def as_bias(values: float | Tensor, x: Tensor) -> float | Tensor:
    """Numbers of each site in the dtype and on the device of the field they are added to.

    Example:
        >>> as_bias(torch.zeros(2, dtype=torch.float64), torch.zeros(3, 2)).dtype
        torch.float32
    """
    return values.to(x) if isinstance(values, Tensor) else values


def checked(values: Tensor, shape: Iterable[int], name: str) -> Tensor:
    """Return ``values`` if it is a field of floating dtype, of shape ``batch_shape + shape``.

    Raises:
        TypeError: if it is of another dtype.
        ValueError: if it is of another shape.

    Example:
        >>> checked(torch.zeros(5, 2, 3), (2, 3), "x").shape
        torch.Size([5, 2, 3])
    """
    sides = check_shape(shape)
    if values.dim() < len(sides) or tuple(values.shape[values.dim() - len(sides) :]) != sides:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; accepted: any batch shape followed by {sides}"
        )
    if not values.is_floating_point():
        raise TypeError(f"{name} has dtype {values.dtype}; accepted: a floating dtype")
    return values


def batch_of(values: Tensor, shape: Iterable[int]) -> tuple[int, ...]:
    """The batch shape of a field.

    Example:
        >>> batch_of(torch.zeros(5, 2, 3), (2, 3))
        (5,)
    """
    return tuple(values.shape[: values.dim() - len(check_shape(shape))])


def flat(values: Tensor, shape: Iterable[int], name: str) -> Tensor:
    """A checked field with all sites in one last dimension.

    Example:
        >>> flat(torch.zeros(5, 2, 3), (2, 3), "x").shape
        torch.Size([5, 6])
    """
    sides = check_shape(shape)
    return checked(values, sides, name).reshape(*batch_of(values, sides), math.prod(sides))


def computable(values: Tensor) -> Tensor:
    """The same in a precision that has Fourier transforms: float32 for what is shorter.

    Example:
        >>> computable(torch.zeros(2, dtype=torch.float16)).dtype
        torch.float32
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def power(values: Tensor, shape: Iterable[int]) -> Tensor:
    r"""Squared plane waves of a field, :math:`|\sum_i v_i e^{-i k r_i}|^2 / N^2`, in FFT order.

    Example:
        >>> power(torch.tensor([1.0, -1.0]), (2,))
        tensor([0., 1.])
    """
    sides = check_shape(shape)
    if values.numel() == 0:  # there is no FFT of nothing
        return values.clone()
    dim = tuple(range(-len(sides), 0))
    waves = torch.view_as_real(torch.fft.fftn(computable(values), dim=dim, norm="forward"))
    return waves.square().sum(-1).to(values.dtype)
