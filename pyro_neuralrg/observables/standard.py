# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The usual observables of any field by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

from torch import Tensor

from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.order_parameter import (
    abs_magnetisation,
    fourth_moment,
    magnetisation,
    structure_factor,
)
from pyro_neuralrg.observables.two_point import mode_structure_factor

Observable = Callable[..., Tensor]


def field_observables(shape: Iterable[int], boundary: str = "periodic") -> dict[str, Observable]:
    """Observables of any field, or of spins of given means and variances, by name.

    Args:
        shape: of the lattice.
        boundary: "periodic" or "open".

    Returns:
        Functions of ``(mean, variance=None)``, ``batch + shape -> batch``, which can be pickled:
        ``magnetisation``, ``abs_magnetisation``, ``structure_factor``, ``fourth_moment`` and, on a
        periodic lattice, ``structure_factor_axis0``, ...: S at k = 2 pi / L along each axis of
        more than one site.

    Example:
        >>> import torch
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
                lowest = functools.partial(_lowest_mode, axis)
                functions[f"structure_factor_axis{axis}"] = functools.partial(
                    _measure, lowest, sides
                )
    return functions


def _measure(
    function: Observable, shape: tuple[int, ...], mean: Tensor, variance: Tensor | None = None
) -> Tensor:
    return function(mean, variance, shape)


def _lowest_mode(
    axis: int, mean: Tensor, variance: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """S at the smallest wave vector along one axis."""
    modes = mode_structure_factor(mean, variance, shape).flatten(-len(shape))
    return modes[..., math.prod(shape[axis + 1 :])]
