# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The usual observables by name, for what measures every draw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.energy import bonds_of, internal_energy, squared_internal_energy
from pyro_neuralrg.observables.order_parameter import (
    abs_magnetisation,
    expected_abs_magnetisation,
    fourth_moment,
    magnetisation,
    spin_fourth_moment,
    spin_structure_factor,
    structure_factor,
)
from pyro_neuralrg.observables.sites import checked, spin_mean
from pyro_neuralrg.observables.two_point import mode_structure_factor, spin_mode_structure_factor

__all__ = ["dual_observables", "field_observables"]

Observable = Callable[[Tensor], Tensor]


def dual_observables(
    shape: Iterable[int],
    temperature: float | None = None,
    couplings: Sequence[float] | None = None,
    field: ArrayLike | Tensor | None = None,
    boundary: str = "periodic",
) -> dict[str, Observable]:
    """Observables of the Ising spins as functions of the dual field, averaged over spins given x.

    Args:
        shape: of the lattice.
        temperature: T in units of J / k_B; needed with a field only.
        couplings: J of each axis; ones if None.
        field: h in units of J, one number or one per site; None for none.
        boundary: "periodic" or "open".

    Returns:
        Functions ``batch_shape + shape -> batch_shape``, which can be pickled:

        * ``magnetisation``: m, the mean spin;
        * ``abs_magnetisation``: E[|m| | x], O(N log^2 N);
        * ``structure_factor``: E[m^2 | x];
        * ``fourth_moment``: E[m^4 | x];
        * ``internal_energy``: E[H | x] / N, in units of J;
        * ``squared_internal_energy``: E[H^2 | x] / N^2;
        * ``structure_factor_axis0``, ...: S at k = 2 pi / L along each axis of more than one site,
          on a periodic lattice.

        These are what the functions of means (:func:`susceptibility`, :func:`binder_cumulant`,
        :func:`specific_heat`, :func:`correlation_length`) are taken of.

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.

    Example:
        >>> functions = dual_observables((4, 4))
        >>> functions["structure_factor"](torch.zeros(3, 4, 4))
        tensor([0.0625, 0.0625, 0.0625])
    """
    sides = check_shape(shape)
    bonds_of(sides, couplings, boundary)  # complains now, not at the first draw
    h, bias = _site_fields(sides, field, temperature)

    def energies(function: Callable[..., Tensor]) -> Observable:
        return functools.partial(
            function, shape=sides, couplings=couplings, field=h, boundary=boundary, bias=bias
        )

    functions: dict[str, Observable] = {
        "magnetisation": functools.partial(_magnetisation, shape=sides, bias=bias),
        "abs_magnetisation": functools.partial(expected_abs_magnetisation, shape=sides, bias=bias),
        "structure_factor": functools.partial(structure_factor, shape=sides, bias=bias),
        "fourth_moment": functools.partial(fourth_moment, shape=sides, bias=bias),
        "internal_energy": energies(_internal_energy),
        "squared_internal_energy": energies(squared_internal_energy),
    }
    for axis, side in enumerate(sides):
        if side > 1 and boundary == "periodic":
            functions[f"structure_factor_axis{axis}"] = functools.partial(
                _lowest_mode, shape=sides, axis=axis, bias=bias
            )
    return functions


def field_observables(shape: Iterable[int], boundary: str = "periodic") -> dict[str, Observable]:
    """The same of any field itself, without the energies: of phi^4, or of sampled spins.

    Args:
        shape: of the lattice.
        boundary: "periodic" or "open".

    Returns:
        Functions ``batch_shape + shape -> batch_shape``: ``magnetisation``,
        ``abs_magnetisation``, ``structure_factor``, ``fourth_moment`` and, on a periodic lattice,
        ``structure_factor_axis0``, ...

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.

    Example:
        >>> field_observables((2, 2))["abs_magnetisation"](-torch.ones(2, 2))
        tensor(1.)
    """
    sides = check_shape(shape)
    functions: dict[str, Observable] = {
        "magnetisation": functools.partial(magnetisation, shape=sides),
        "abs_magnetisation": functools.partial(abs_magnetisation, shape=sides),
        "structure_factor": functools.partial(spin_structure_factor, shape=sides),
        "fourth_moment": functools.partial(spin_fourth_moment, shape=sides),
    }
    periodic = check_boundary(boundary) == "periodic"
    for axis, side in enumerate(sides):
        if side > 1 and periodic:
            functions[f"structure_factor_axis{axis}"] = functools.partial(
                _lowest_spin_mode, shape=sides, axis=axis
            )
    return functions


def _magnetisation(x: Tensor, shape: tuple[int, ...], bias: float | Tensor) -> Tensor:
    return magnetisation(spin_mean(checked(x, shape, "x"), bias), shape)


def _internal_energy(
    x: Tensor,
    shape: tuple[int, ...],
    couplings: Sequence[float] | None,
    field: float | Tensor,
    boundary: str,
    bias: float | Tensor,
) -> Tensor:
    return internal_energy(
        spin_mean(checked(x, shape, "x"), bias), shape, couplings, field, boundary
    )


def _lowest_mode(x: Tensor, shape: tuple[int, ...], axis: int, bias: float | Tensor) -> Tensor:
    return mode_structure_factor(x, shape, bias)[_lowest(shape, axis)]


def _lowest_spin_mode(spins: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    return spin_mode_structure_factor(spins, shape)[_lowest(shape, axis)]


def _lowest(shape: tuple[int, ...], axis: int) -> tuple[Any, ...]:
    """Index of the smallest wave vector along one axis."""
    return (..., *(int(other == axis) for other in range(len(shape))))


def _site_fields(
    sides: tuple[int, ...], field: ArrayLike | Tensor | None, temperature: float | None
) -> tuple[float | Tensor, float | Tensor]:
    """Zeros, or h and h / T of each site in float64."""
    if temperature is not None:
        temperature = check_number("temperature", temperature, "a finite number > 0", above=0)
    if field is None:
        return 0.0, 0.0
    if temperature is None:
        raise ValueError("temperature is None; accepted: a number > 0, where there is a field")
    accepted = f"accepted: a finite number, or one per site, of shape {sides}"
    try:  # a copy, since torch takes no array that is reversed and warns of one that is read-only
        values = torch.as_tensor(field if isinstance(field, Tensor) else np.array(field, order="C"))
        h = values.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"field is {field!r}; {accepted}") from None
    if tuple(h.shape) not in ((), sides) or not bool(h.isfinite().all()):
        raise ValueError(f"field is {field!r}; {accepted}")
    return h, h / temperature
