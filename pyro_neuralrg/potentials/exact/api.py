# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The exact quantities of a finite Ising lattice, by whichever method reaches it."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials.exact.correlations import torus_correlations
from pyro_neuralrg.potentials.exact.torus import kaufman_log_partition, ring_log_partition
from pyro_neuralrg.potentials.exact.transfer import (
    MAX_SECTION_OPEN,
    MAX_SECTION_PERIODIC,
    cross_section,
    reaches_correlations,
    transfer_correlations,
    transfer_log_partition,
)

__all__ = [
    "correlations",
    "internal_energy",
    "log_partition",
    "specific_heat",
    "structure_factor",
]


@dataclass(frozen=True)
class _Lattice:
    """A checked Ising lattice in units of J; sides of one are dropped."""

    shape: tuple[int, ...]
    couplings: tuple[float, ...]
    boundary: str
    fields: Tensor

    @property
    def sites(self) -> int:
        return math.prod(self.shape)

    @property
    def has_field(self) -> bool:
        return bool((self.fields != 0).any())

    def log_partition(self, beta: Tensor, extra: Tensor | None = None) -> Tensor:
        """ln Z at the inverse temperature ``beta``; ``extra`` is added to h_i / T."""
        couplings = beta * torch.tensor(self.couplings, dtype=torch.float64)
        if extra is None and not self.has_field and self.boundary == "periodic":
            if len(self.shape) == 1:
                return ring_log_partition(self.shape[0], couplings[0])
            if len(self.shape) == 2 and 0.0 in self.couplings:
                return self._uncoupled_rings(couplings)
            if len(self.shape) == 2 and not self._frustrated():
                return kaufman_log_partition(self.shape, couplings.abs())
        self._require_transfer()
        fields = beta * self.fields + (0.0 if extra is None else extra)
        return transfer_log_partition(self.shape, couplings, fields, self.boundary)

    def _uncoupled_rings(self, couplings: Tensor) -> Tensor:
        axis = 0 if self.couplings[1] == 0.0 else 1
        return self.shape[1 - axis] * ring_log_partition(self.shape[axis], couplings[axis])

    def _frustrated(self) -> bool:
        """An antiferromagnetic bond along an odd side cannot be gauged away."""
        pairs = zip(self.shape, self.couplings, strict=True)
        return any(coupling < 0 and side % 2 for side, coupling in pairs)

    def _sums_correlations(self) -> bool:
        """The structure factor is the mean of correlations that are known."""
        if len(self.shape) > 2 or self.boundary == "open" or self.has_field:
            return False
        slow = self._frustrated() and not reaches_correlations(self.shape)
        return not slow or cross_section(self.shape) > MAX_SECTION_PERIODIC

    def _require_transfer(self, what: str = "ln Z") -> None:
        section = cross_section(self.shape)
        limit = MAX_SECTION_OPEN if self.boundary == "open" else MAX_SECTION_PERIODIC
        if section > limit:
            raise NotImplementedError(
                f"{what} of the {self.boundary} Ising lattice {self.shape}"
                f"{' in a field' if self.has_field else ''} is not known exactly: accepted are "
                "periodic lattices of one or two dimensions without field and frustration, and any "
                f"with at most "
                f"{limit} spins across the longest side (here {section})"
            )


def _lattice(
    shape: Iterable[int],
    couplings: Iterable[float] | None,
    boundary: str,
    field: ArrayLike | None,
) -> _Lattice:
    sides = check_shape(shape)
    values = check_couplings(couplings, sides)
    fields = check_site_field(field, sides)
    if fields is None:
        fields = torch.zeros(sides, dtype=torch.float64)
    kept = [axis for axis, side in enumerate(sides) if side > 1] or [0]
    shape_kept = tuple(sides[axis] for axis in kept)
    return _Lattice(
        shape_kept,
        tuple(values[axis] for axis in kept),
        check_boundary(boundary),
        fields.reshape(shape_kept),
    )


def check_couplings(couplings: Iterable[float] | None, shape: tuple[int, ...]) -> tuple[float, ...]:
    """J of each axis; 1 each for None.

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.
    """
    if couplings is None:
        return (1.0,) * len(shape)
    accepted = f"one finite J for each side of {shape}"
    try:
        values = tuple(couplings)
    except TypeError:
        raise TypeError(f"couplings is {couplings!r}; accepted: {accepted}") from None
    if len(values) != len(shape):
        raise ValueError(f"couplings is {couplings!r}; accepted: {accepted}")
    return tuple(check_number("couplings", value, accepted, given=couplings) for value in values)


def check_site_field(field: ArrayLike | Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The field of each site in float64, or None if it is zero everywhere.

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.
    """
    if field is None:
        return None
    accepted = f"accepted: a finite number, or one per site, of shape {shape}"
    try:
        # a copy, since torch takes no array that is reversed and warns of one that is read-only
        value = field.detach().cpu() if isinstance(field, Tensor) else np.array(field, order="C")
        tensor = torch.as_tensor(value)
        if tensor.is_complex():
            raise TypeError
        values = tensor.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"field is {field!r}; {accepted}") from None
    if tuple(values.shape) not in ((), shape):
        raise ValueError(f"field has shape {tuple(values.shape)}; {accepted}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"field has entries that are not finite; {accepted}")
    return values.expand(shape).clone() if bool(values.any()) else None


def _beta(temperature: float) -> Tensor:
    beta = 1.0 / check_number("temperature", temperature, "a finite number > 0", above=0)
    if math.isinf(beta):
        raise ValueError(
            f"temperature is {temperature}; accepted: a finite number > 0, as is 1 / T"
        )
    return torch.tensor(beta, dtype=torch.float64)


def log_partition(
    shape: Iterable[int],
    temperature: float,
    couplings: Iterable[float] | None = None,
    boundary: str = "periodic",
    field: ArrayLike | None = None,
) -> float:
    """ln Z of the Ising spins, in nats.

    Rings in closed form, two-dimensional tori by Kaufman's formula (stable to sides of 1024 and
    beyond), all else by the transfer matrix.

    Args:
        shape: lattice shape, one to three sides.
        temperature: T in J / k_B, > 0.
        couplings: J of each axis, of either sign; default: 1 each.
        boundary: "periodic" or "open".
        field: h in units of J, one number or one per site.

    Raises:
        NotImplementedError: if no method reaches the lattice; says which are reached.
        TypeError, ValueError: naming the argument, the value and what is accepted.

    References:
        B. Kaufman, Phys. Rev. 76, 1232 (1949).

    Example:
        >>> round(log_partition((8, 8), 2.269185314213022), 6)
        60.141781
    """
    lattice = _lattice(shape, couplings, boundary, field)
    with torch.no_grad():
        return float(lattice.log_partition(_beta(temperature)))


def internal_energy(
    shape: Iterable[int],
    temperature: float,
    couplings: Iterable[float] | None = None,
    boundary: str = "periodic",
    field: ArrayLike | None = None,
) -> float:
    """<H> per site in units of J: -d ln Z / d beta / N, by differentiating :func:`log_partition`.

    Arguments and errors are those of :func:`log_partition`.

    Example:
        >>> round(internal_energy((8, 8), 2.269185314213022), 6)
        -1.491589
    """
    lattice = _lattice(shape, couplings, boundary, field)
    return -_derivative(lattice.log_partition)(_beta(temperature)).item() / lattice.sites


def specific_heat(
    shape: Iterable[int],
    temperature: float,
    couplings: Iterable[float] | None = None,
    boundary: str = "periodic",
    field: ArrayLike | None = None,
) -> float:
    """Specific heat per site in units of k_B: beta^2 d^2 ln Z / d beta^2 / N.

    Arguments and errors are those of :func:`log_partition`.

    Example:
        >>> round(specific_heat((2,), 1.0), 6)  # two spins with both bonds of the pair
        0.141302
    """
    lattice = _lattice(shape, couplings, boundary, field)
    beta = _beta(temperature)
    second = _derivative(_derivative(lattice.log_partition))(beta)
    return (beta * (beta * second)).item() / lattice.sites


def correlations(
    shape: Iterable[int],
    temperature: float,
    couplings: Iterable[float] | None = None,
    boundary: str = "periodic",
) -> NDArray[np.float64]:
    """<s_0 s_r> on the periodic lattice without field, an array of shape ``shape``.

    Rings in closed form, two-dimensional tori by Pfaffians (below, at and above Tc), narrow
    lattices that are frustrated or have three dimensions by the transfer matrix. The Pfaffians of
    wide frustrated tori cancel at low temperature, which is refused.

    Args:
        shape: as for :func:`log_partition`.
        temperature: T in J / k_B, > 0.
        couplings: J of each axis, of either sign; default: 1 each.
        boundary: "periodic"; the open lattice is not translation invariant.

    Raises:
        NotImplementedError: if no method reaches the lattice.
        TypeError, ValueError: naming the argument.

    Example:
        >>> correlations((4,), 1.0).round(4).tolist()
        [1.0, 0.9004, 0.868, 0.9004]
    """
    full = check_shape(shape)
    lattice = _lattice(full, couplings, boundary, None)
    beta = float(_beta(temperature))
    if lattice.boundary == "open":
        raise NotImplementedError(
            "correlations of the open lattice depend on both sites; accepted: boundary='periodic'"
        )
    if len(lattice.shape) == 1:
        table = _ring_correlations(lattice.shape[0], beta * lattice.couplings[0])
    elif len(lattice.shape) == 2:
        table = _plane_correlations(lattice, beta)
    else:
        table = _transfer_correlations(lattice, beta)
    return table.reshape(full)


def _plane_correlations(lattice: _Lattice, beta: float) -> NDArray[np.float64]:
    shape = (lattice.shape[0], lattice.shape[1])
    if 0.0 not in lattice.couplings:
        if lattice._frustrated() and reaches_correlations(shape):
            return _transfer_correlations(lattice, beta)
        return torus_correlations(shape, beta * np.array(lattice.couplings))
    axis = 0 if lattice.couplings[1] == 0.0 else 1
    table = np.zeros(shape)
    ring = _ring_correlations(shape[axis], beta * lattice.couplings[axis])
    np.moveaxis(table, axis, 0)[:, 0] = ring
    return table


def _ring_correlations(length: int, coupling: float) -> NDArray[np.float64]:
    """(t^r + t^(n-r)) / (1 + t^n) with t = tanh K.

    On an odd antiferromagnetic ring numerator and denominator vanish at low temperature: there
    their common factor 1 - |t| is divided out.
    """
    if length == 1:
        return np.ones(1)
    distance = np.arange(length)
    near, size = np.minimum(distance, length - distance), abs(math.tanh(coupling))
    signs = (math.copysign(1.0, coupling)) ** near
    if coupling >= 0 or length % 2 == 0:
        return signs * (size**near + size ** (length - near)) / (1 + size**length)
    sums = np.concatenate([[0.0], np.cumsum(size**distance)])  # 1 + |t| + ... + |t|^(m - 1)
    return signs * size**near * sums[length - 2 * near] / sums[length]


def _transfer_correlations(lattice: _Lattice, beta: float) -> NDArray[np.float64]:
    if not reaches_correlations(lattice.shape):
        raise NotImplementedError(
            f"correlations of the periodic lattice {lattice.shape} are not known exactly: "
            "accepted are one and two dimensions, and at most "
            f"{MAX_SECTION_PERIODIC} spins across the longest side (fewer if that is very long)"
        )
    couplings = beta * torch.tensor(lattice.couplings, dtype=torch.float64)
    return transfer_correlations(lattice.shape, couplings).numpy()


def structure_factor(
    shape: Iterable[int],
    temperature: float,
    couplings: Iterable[float] | None = None,
    boundary: str = "periodic",
    field: ArrayLike | None = None,
) -> float:
    """Uniform structure factor E[(sum_i s_i)^2] / N^2 of the spins.

    The mean of :func:`correlations` where these are known, else the second derivative of the
    transfer matrix's ln Z in a uniform field. Arguments and errors are those of
    :func:`log_partition`.

    Example:
        >>> round(structure_factor((8, 8), 2.269185314213022), 6)
        0.646912
    """
    lattice = _lattice(shape, couplings, boundary, field)
    if lattice._sums_correlations():
        return float(correlations(shape, temperature, couplings, boundary).mean())
    lattice._require_transfer("the structure factor")
    of_field: Callable[[Tensor], Tensor] = functools.partial(
        lattice.log_partition, _beta(temperature)
    )
    zero = torch.zeros((), dtype=torch.float64)
    mean = _derivative(of_field)(zero)
    variance = _derivative(_derivative(of_field))(zero)
    return float(variance + mean**2) / lattice.sites**2


def _derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Forward-mode derivative in a scalar: no memory beyond that of the function itself."""

    def derivative(point: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # at its first forward-mode derivative torch itself calls torch.jit.script
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.func.jvp(function, (point,), (torch.ones_like(point),))[1]

    return derivative
