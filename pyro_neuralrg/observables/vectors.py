# SPDX-License-Identifier: Apache-2.0
r"""Observables of one configuration of a vector field :math:`\vec v_i`, sums over its components.

Normalised as those of scalar fields: with :math:`\vec m = \sum_i \vec v_i / N`, :math:`S(0) =
|\vec m|^2`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_values
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.configurations import Observable, lowest_mode


def vector_observables(
    shape: Iterable[int], components: int, boundary: str = "periodic"
) -> dict[str, Observable]:
    """Observables of any vector field, by name.

    Functions ``batch + shape + (components,) -> batch``, which can be pickled: ``mean_square`` of
    the vectors' lengths; ``abs_magnetisation``, ``structure_factor`` and ``fourth_moment``, the
    length of their mean and its powers; and, on a periodic lattice, ``structure_factor_axis0``,
    ...: S at k = 2 pi / L along each axis of more than one site.

    Args:
        shape: lattice shape.
        components: of each vector.
        boundary: "periodic" or "open".

    Example:
        >>> import torch
        >>> vector_observables((2, 2), 2)["structure_factor"](torch.ones(2, 2, 2))
        tensor(2.)
    """
    sides = check_shape(shape)
    field = (*sides, check_integer("components", components, 1))
    functions: dict[str, Observable] = {
        "mean_square": functools.partial(_mean_square, field),
        "abs_magnetisation": functools.partial(_length_of_mean, field, 1),
        "structure_factor": functools.partial(_length_of_mean, field, 2),
        "fourth_moment": functools.partial(_length_of_mean, field, 4),
    }
    if check_boundary(boundary) == "periodic":
        for axis, side in enumerate(sides):
            if side > 1:
                functions[f"structure_factor_axis{axis}"] = functools.partial(_mode, axis, field)
    return functions


def _mean_square(field: tuple[int, ...], v: Tensor) -> Tensor:
    return field[-1] * check_values("v", v, field).square().flatten(-len(field)).mean(-1)


def _length_of_mean(field: tuple[int, ...], power: int, v: Tensor) -> Tensor:
    mean = check_values("v", v, field).flatten(-len(field), -2).mean(-2)
    return mean.square().sum(-1) ** (power / 2)


def _mode(axis: int, field: tuple[int, ...], v: Tensor) -> Tensor:
    """S at the smallest wave vector along one axis."""
    parts = check_values("v", v, field).movedim(-1, 0)
    return lowest_mode(axis, field[:-1], parts).sum(0)
