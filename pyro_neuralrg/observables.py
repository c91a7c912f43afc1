# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Observables of lattice configurations: batched, torch in, torch out, differentiable.

The dual field gives each spin's exact conditional mean, E[s_i | x] = tanh(x_i + h_i / T),
independently of the other spins. The estimators that take ``x`` average over the spins with it
(Rao-Blackwell): the same mean as from sampled spins, less variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from pyro_neuralrg.lattice import check_boundary, check_shape

__all__ = [
    "abs_magnetisation",
    "internal_energy",
    "magnetisation",
    "spin_mean",
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
    return _flat(spins, shape, "spins").mean(-1)


def abs_magnetisation(spins: Tensor, shape: Iterable[int]) -> Tensor:
    """Absolute value of :func:`magnetisation`; not linear in the spins, so take sampled ones.

    Example:
        >>> import torch
        >>> abs_magnetisation(-torch.ones(2, 3), (2, 3))
        tensor(1.)
    """
    return magnetisation(spins, shape).abs()


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
        ValueError: if a shape or the number of couplings does not fit.

    Example:
        >>> import torch
        >>> internal_energy(torch.ones(4, 4), (4, 4))
        tensor(-2.)
    """
    sides = check_shape(shape)
    check_boundary(boundary)
    size = math.prod(sides)
    total = -(_checked(spins, sides, "spins") * field).reshape(*_batch(spins, sides), size).sum(-1)
    strengths = [1.0] * len(sides) if couplings is None else [float(value) for value in couplings]
    if len(strengths) != len(sides):
        raise ValueError(
            f"couplings has {len(strengths)} entries; accepted: {len(sides)}, one per axis"
        )
    for axis, (side, strength) in enumerate(zip(sides, strengths, strict=True)):
        if side == 1:
            continue
        dim = axis - len(sides)
        if boundary == "periodic":
            bonds = spins * spins.roll(1, dim)
        else:
            bonds = spins.narrow(dim, 0, side - 1) * spins.narrow(dim, 1, side - 1)
        total = total - strength * bonds.flatten(-len(sides)).sum(-1)
    return total / size


def spin_mean(x: Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """E[s_i | x] = tanh(x_i + h_i / T) of the dual field (paper Eq. 7 and below).

    Args:
        x: dual field of any shape.
        bias: h / T, a number or of the lattice's shape.

    Returns:
        Of x's shape, in (-1, 1).

    Example:
        >>> import torch
        >>> spin_mean(torch.zeros(3))
        tensor([0., 0., 0.])
    """
    return (x + bias).tanh()


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
    mean = _flat(spin_mean(_checked(x, check_shape(shape), "x"), bias), shape, "x")
    size = mean.shape[-1]
    return mean.mean(-1).square() - mean.square().sum(-1) / size**2 + 1 / size


def _checked(values: Tensor, sides: tuple[int, ...], name: str) -> Tensor:
    if values.dim() < len(sides) or tuple(values.shape[values.dim() - len(sides) :]) != sides:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; accepted: any batch shape followed by {sides}"
        )
    return values


def _batch(values: Tensor, sides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(values.shape[: values.dim() - len(sides)])


def _flat(values: Tensor, shape: Iterable[int], name: str) -> Tensor:
    sides = check_shape(shape)
    return _checked(values, sides, name).reshape(*_batch(values, sides), math.prod(sides))
