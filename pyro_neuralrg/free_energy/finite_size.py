# SPDX-License-Identifier: Apache-2.0
"""Finite-size scaling: the power of the side with which a quantity of several lattices grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_neuralrg.arguments import as_integer, check_integer, check_number, check_type
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.statistics import Estimate, FloatArray


@dataclass(frozen=True)
class FiniteSizeScaling:
    """A fit of y = a L^p to a quantity y of lattices of sides L.

    Attributes:
        exponent: p and its standard error.
        log_amplitude: ln a and its standard error.
        chi_square: of the fit; NaN where no errors were given.
        degrees_of_freedom: lattices less two; a chi_square far above says that the power law does
            not hold within the errors.
        without_smallest: the exponent without the smallest lattice: the difference shows the
            corrections to scaling, which are not in the errors; None of two lattices.
    """

    exponent: Estimate
    log_amplitude: Estimate
    chi_square: float
    degrees_of_freedom: int
    without_smallest: Estimate | None


def finite_size_scaling(values: Mapping[Any, Any]) -> FiniteSizeScaling:
    r"""Fit the power law :math:`y = a L^p` of a quantity at a critical point.

    At Tc the susceptibility grows with :math:`p = \gamma / \nu` (7 / 4 of the two-dimensional Ising
    model), the mean of \|m\| with :math:`-\beta / \nu`, slopes of the Binder cumulant with :math:`1
    / \nu`. By least squares of ln y against ln L, weighted with the relative errors, which the
    error of the exponent comes from; without errors from the scatter of the points (NaN of two).

    Args:
        values: for each lattice, by its side or its shape (L is then the geometric mean of the
            sides), the quantity, > 0, as an :class:`~pyro_neuralrg.statistics.Estimate`, a pair of
            value and standard error > 0, or a number; two lattices or more.

    References:
        M. E. Fisher and M. N. Barber, Phys. Rev. Lett. 28, 1516 (1972).

    Example:
        >>> from pyro_neuralrg.potentials import IsingModel
        >>> chi = {L: L**2 * IsingModel((L, L)).structure_factor() for L in (8, 16, 32)}
        >>> found = finite_size_scaling(chi)  # exact for large L: 1.75
        >>> f"{found.exponent.value:.4f} {found.without_smallest.value:.4f}"
        '1.7524 1.7511'
    """
    check_type("values", values, Mapping, "a mapping of sides or shapes to a quantity > 0")
    if len(values) < 2:
        raise ValueError(f"values has {len(values)} lattices; accepted: two or more")
    points = sorted(_point(key, given) for key, given in values.items())
    sides, means, errors = np.array(points).T
    if len(set(sides)) < 2 or len(set(np.isnan(errors))) > 1:
        raise ValueError(
            f"values is {values!r}; accepted: two different sides or more, all with an error or "
            "none"
        )
    parts = np.log(sides), np.log(means), errors / means
    exponent, log_amplitude, chi_square = _fit(*parts)
    larger, rest = sides > sides[0], None
    if len(set(sides[larger])) > 1:
        rest = _fit(*(part[larger] for part in parts))[0]
    return FiniteSizeScaling(exponent, log_amplitude, chi_square, len(sides) - 2, rest)


def _point(key: Any, given: Any) -> tuple[float, float, float]:
    """Side, value and error (NaN if there is none) of one lattice."""
    if as_integer(key) is None:
        shape = check_shape(key, "a key of values")
        side = round(math.prod(shape) ** (1 / len(shape)), 9)  # 512^(1/3) is 8, but for rounding
    else:
        side = float(check_integer("a key of values", key, 1))
    pair = tuple(given) if isinstance(given, Estimate | tuple) else (given, None)
    name, accepted = f"values[{key!r}]", "a number > 0, or a pair of it and its error > 0"
    if len(pair) != 2:
        raise ValueError(f"{name} is {given!r}; accepted: {accepted}")
    value = check_number(name, pair[0], accepted, above=0, given=given)
    if pair[1] is None:
        return side, value, math.nan
    return side, value, check_number(name, pair[1], accepted, above=0, given=given)


def _fit(x: FloatArray, y: FloatArray, errors: FloatArray) -> tuple[Estimate, Estimate, float]:
    """Slope, intercept and chi^2 of a line, by weighted least squares."""
    known = not bool(np.isnan(errors).any())
    weights = 1 / errors if known else np.ones_like(x)
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=weights, cov="unscaled")
    squares = float(np.square(weights * (y - slope * x - intercept)).sum())
    if not known:
        free = len(x) - 2
        covariance = covariance * (squares / free if free else math.nan)
    slope_error, intercept_error = np.sqrt(covariance.diagonal())
    of_slope = Estimate(float(slope), float(slope_error))
    of_intercept = Estimate(float(intercept), float(intercept_error))
    return of_slope, of_intercept, squares if known else math.nan
