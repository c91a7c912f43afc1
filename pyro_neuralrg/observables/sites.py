# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Fields of a checked shape, and their plane waves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.lattice import check_shape


def check_values(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    """Return ``values`` if it is a field of a floating dtype and of shape ``batch + shape``.

    Raises:
        TypeError: if it is no tensor of a floating dtype.
        ValueError: if it is of another shape.

    Example:
        >>> check_values("x", torch.zeros(5, 2, 3), (2, 3)).shape
        torch.Size([5, 2, 3])
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        is_tensor = isinstance(values, Tensor)
        seen = f"has dtype {values.dtype}" if is_tensor else f"is a {type(values).__name__}"
        raise TypeError(f"{name} {seen}; accepted: a tensor of a floating dtype")
    split = values.dim() - len(shape)
    if split < 0 or values.shape[split:] != shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; "
            f"accepted: any batch shape followed by the lattice's, {shape}"
        )
    return values


def flat(values: Tensor, shape: Iterable[int], name: str = "mean") -> Tensor:
    """Check a field and put all its sites in one last dimension.

    Example:
        >>> flat(torch.zeros(5, 2, 3), (2, 3)).shape
        torch.Size([5, 6])
    """
    sides = check_shape(shape)
    return check_values(name, values, sides).flatten(-len(sides))


def computable(values: Tensor) -> Tensor:
    """The same in a precision that has Fourier transforms: float32 for what is shorter.

    Example:
        >>> computable(torch.zeros(2, dtype=torch.float16)).dtype
        torch.float32
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def power(values: Tensor, dim: tuple[int, ...]) -> Tensor:
    r"""Squared plane waves of a field, :math:`|\sum_i v_i e^{-i k r_i}|^2 / N^2`, in FFT order.

    Example:
        >>> power(torch.tensor([1.0, -1.0]), (-1,))
        tensor([0., 1.])
    """
    if values.numel() == 0:  # torch.fft rejects empty tensors
        return values.clone()
    waves = torch.view_as_real(torch.fft.fftn(computable(values), dim=dim, norm="forward"))
    return waves.square().sum(-1).to(values.dtype)
