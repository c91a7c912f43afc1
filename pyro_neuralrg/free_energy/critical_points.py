# SPDX-License-Identifier: Apache-2.0
r"""Critical points and :math:`\nu` from dimensionless quantities of several lattice sizes.

References:
    K. Binder, Z. Phys. B 43, 119 (1981).
    J. Salas and A. D. Sokal, J. Stat. Phys. 98, 551 (2000), for corrections to scaling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import polynomial
from pyro.distributions.conditional import ConditionalTransformModule
from scipy.optimize import least_squares
from torch import Tensor

from pyro_neuralrg.arguments import check_array, check_integer, check_number, check_type
from pyro_neuralrg.free_energy.importance import MEANS_REMEDY, weighted_samples, without_undefined
from pyro_neuralrg.free_energy.reweighting import weighted_mean
from pyro_neuralrg.observables import binder_cumulant, correlation_length
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.statistics import Estimate, FloatArray, LogWeights

FIRST_EXPONENTS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Values of 1 / nu from the best of which the fit of a collapse starts."""
CORRECTION_TERMS = 2
"""Of the correction's own scaling function: a constant and a slope."""

CURVES = "a mapping of two sides >= 2 or more to triples of parameters, values and errors"
"""What curves may be, for messages."""


class Curve(NamedTuple):
    """A quantity at several values of a parameter, with errors independent of each other.

    Attributes:
        parameter: such as the temperature or kappa, ``(n,)``.
        values: of the quantity.
        standard_error: of each value, or zero throughout for exact ones.
    """

    parameter: FloatArray
    values: FloatArray
    standard_error: FloatArray


class ScalingCurves(NamedTuple):
    r"""Two quantities of one lattice that do not depend on its size at criticality.

    Attributes:
        binder: cumulant :math:`1 - \langle m^4\rangle / (3 \langle m^2\rangle^2)`.
        length_ratio: second-moment correlation length over the side, from all axes.
        ess: effective sample size of the weights at each parameter, as a fraction.
        pareto_k: of the weights; above 0.7 neither values nor errors can be trusted.
    """

    binder: Curve
    length_ratio: Curve
    ess: FloatArray
    pareto_k: FloatArray


@dataclass(frozen=True)
class Crossing:
    r"""Where the curves of two sizes cross.

    Attributes:
        sides: of both lattices.
        parameter: an estimate of the critical one, off by corrections of order :math:`L^{-1/\nu -
            \omega}`, which are not in the error: the drift from pair to pair shows them.
        value: of the quantity there.
        nu: from the slopes R' there, :math:`1/\nu = \ln(R_2' / R_1') / \ln(L_2 / L_1)`.
    """

    sides: tuple[int, int]
    parameter: Estimate
    value: Estimate
    nu: Estimate


@dataclass(frozen=True)
class ScalingCollapse:
    r"""A fit of one scaling function to the curves of all sizes.

    Attributes:
        parameter: the critical one.
        nu: exponent of the correlation length.
        value: of the quantity at criticality in the limit of large sizes.
        chi_square: of the fit; NaN of exact curves, whose errors come from its residuals.
        degrees_of_freedom: likewise; a chi_square far above says that the curves do not collapse
            within their errors. Corrections to scaling are in neither: leave the smallest size
            out to see them.
    """

    parameter: Estimate
    nu: Estimate
    value: Estimate
    chi_square: float
    degrees_of_freedom: int


def scaling_curves(
    family: PotentialFamily,
    flow: Any,
    parameters: Any,
    num_samples: int = 10_000,
    *,
    batch_size: int = 1000,
) -> ScalingCurves:
    r"""Binder's cumulant and :math:`\xi / L` of the members of a family, by importance weights.

    Whatever the gap of the flow, they are those of the target (but for a bias of order 1 / n); of
    an Ising dual those of the spins, averaged over the spins given x.

    Args:
        family: of potentials on a periodic lattice of equal sides, with ``contexts(values)``, as
            :class:`~pyro_neuralrg.potentials.IsingDualFamily` and ``Phi4Family`` have.
        flow: a conditional flow trained on it, such as ``fit(family).flow``; or one flow or
            distribution that serves for all parameters.
        parameters: values of the family's parameter, within its range.
        num_samples: fresh samples of the flow at each parameter, at least 2.
        batch_size: samples in memory at a time.

    Warns:
        UserWarning: if the weights of a member cannot be trusted.

    Example:
        >>> from pyro_neuralrg.potentials import Phi4Family
        >>> family = Phi4Family((4,), kappa=(0.0, 0.1), lam=0.1)
        >>> found = scaling_curves(family, family.flow(), [0.0, 0.1], 2000)
        >>> bool((abs(found.binder.values) < 0.2).all())  # far in the symmetric phase
        True
    """
    check_integer("num_samples", num_samples, 2)
    side = _side_of(family)
    values = np.atleast_1d(check_array("parameters", parameters))
    if values.ndim != 1 or not len(values):
        raise ValueError(f"parameters has shape {values.shape}; accepted: a sequence of numbers")
    rows = []
    for context in family.contexts(values):  # type: ignore[attr-defined]
        member = family.at(context)
        density = flow
        if isinstance(flow, ConditionalTransformModule):
            density = flow.condition(context.to(next(flow.parameters(), context)))
        moments, weights = _weighted_moments(member, density, num_samples, batch_size)
        weights.warn_if_poor(remedy=MEANS_REMEDY)
        uniform, fourth, lowest = (weighted_mean(moment, weights) for moment in moments)
        length = correlation_length(uniform, lowest, side)
        ratio = (one / side for one in length)
        rows.append((*binder_cumulant(uniform, fourth), *ratio, weights.ess, weights.pareto_k))
    binder, its_error, ratio, ratio_error, ess, pareto_k = np.array(rows).T
    curves = Curve(values, binder, its_error), Curve(values, ratio, ratio_error)
    return ScalingCurves(*curves, ess, pareto_k)


def crossings(
    curves: Mapping[int, Any], *, degree: int = 3, resamples: int = 500, seed: int = 0
) -> list[Crossing]:
    r"""Find where the curves of consecutive sizes cross, and :math:`\nu` from their slopes there.

    Each curve is fitted by a polynomial, weighted with its errors. The errors of the results are
    the scatter of fits to values resampled from normals of the given errors, NaN if one of these
    has no crossing or no nu. Of several crossings the one of the steepest difference counts.

    Args:
        curves: by the side of the lattice, two or more, triples of parameters, values and standard
            errors, such as :class:`Curve`, from a flow, from chains, or exact (errors of zero).
        degree: of the polynomials, at least 1; each curve needs more points.
        resamples: of all values, at least 2.
        seed: of the resampling.

    Raises:
        ValueError: also if curves do not cross where both are known.

    Example:
        >>> t = np.linspace(-0.1, 0.1, 5)
        >>> curves = {L: (2.27 + t, 0.6 - 0.1 * L * t, 0 * t) for L in (8, 16)}
        >>> print(crossings(curves)[0].parameter, crossings(curves)[0].nu)
        2.27(0) 1(0)
    """
    degree = check_integer("degree", degree, 1)
    checked = check_curves(curves, degree + 1)
    resamples = check_integer("resamples", resamples, 2)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    return [
        _crossing(dict(pair), degree, resamples, rng)
        for pair in itertools.pairwise(checked.items())
    ]


def scaling_collapse(
    curves: Mapping[int, Any], *, degree: int = 3, correction: float | None = None
) -> ScalingCollapse:
    r"""Fit the critical parameter and :math:`\nu` to the curves of all sizes at once.

    .. math:: R(L, p) = f(x) + L^{-\omega} g(x), \qquad x = (p - p_c) L^{1/\nu}

    with f a polynomial and g linear, or none, by least squares. The parameter should be one in
    which the Boltzmann weight is smooth at the scale of its window: 1 / T rather than T. From exact
    :math:`\xi / L` of the Ising model at L = 8, 16, 32, in 1 / T within 0.64 / L of Tc, the fit
    finds Tc to 0.1 % and nu to 2 % without a correction, to 0.01 % and 0.5 % with 7 / 4; crossings
    of 8 with 16 are off by 0.25 % and 5 %, of 16 with 32 by 0.04 % and 1.5 %.

    Args:
        curves: as of :func:`crossings`.
        degree: of f, at least 1.
        correction: :math:`\omega`, > 0, which needs three sizes; None: no correction. In two
            dimensions 7 / 4, :math:`2 - \eta` of the Ising model, by its background.

    Warns:
        UserWarning: if the critical parameter is outside of the curves.

    Example:
        >>> t = np.linspace(-0.1, 0.1, 5)
        >>> curves = {L: (2.27 + t, 0.6 - 0.1 * L * t, 0 * t + 0.01) for L in (8, 16)}
        >>> found = scaling_collapse(curves, degree=1)
        >>> round(found.parameter.value, 6), round(found.nu.value, 6)
        (2.27, 1.0)
    """
    degree = check_integer("degree", degree, 1)
    checked = check_curves(curves, 2)
    if correction is not None:
        accepted = "a finite number > 0 with three sizes or more, or None"
        correction = check_number("correction", correction, accepted, above=0)
        if len(checked) < 3:
            raise ValueError(f"correction is {correction} with 2 sizes; accepted: {accepted}")
    found = _collapse(checked, degree, correction)
    low = min(float(curve.parameter.min()) for curve in checked.values())
    high = max(float(curve.parameter.max()) for curve in checked.values())
    if not low <= found.parameter.value <= high:
        warn_user(
            f"the critical parameter {found.parameter} is outside of the curves, from {low:g} to "
            f"{high:g}: take others"
        )
    return found


def check_curves(curves: Any, points: int = 1, name: str = "curves") -> dict[int, Curve]:
    """The curves by side in float64, the smallest side first, of so many points at least."""
    check_type(name, curves, Mapping, CURVES)
    if len(curves) < 2:
        raise ValueError(f"{name} has {len(curves)} sizes; accepted: {CURVES}")
    checked = {}
    for key, given in curves.items():
        own = f"{name}[{key!r}]"
        table = check_array(own, given, CURVES)
        if table.ndim != 2 or len(table) != 3 or len(set(table[0])) < points:
            raise ValueError(
                f"{own} has shape {table.shape}; accepted: (3, n), of {points} different "
                "parameters or more"
            )
        if not np.isfinite(table).all() or not ((table[2] > 0).all() or (table[2] == 0).all()):
            raise ValueError(
                f"{own} is {given!r}; accepted: finite numbers, errors > 0 or zero throughout"
            )
        checked[check_integer(f"a key of {name}", key, 2)] = Curve(*table)
    if len({bool(curve.standard_error.all()) for curve in checked.values()}) > 1:
        raise ValueError(f"{name} has errors of some sizes; accepted: of all, or zero of all")
    return dict(sorted(checked.items()))


def _side_of(family: Any) -> int:
    """The side of the family's lattice, checked."""
    accepted = "a family with contexts(values), such as an IsingDualFamily or a Phi4Family"
    check_type("family", family, PotentialFamily, accepted)
    if not hasattr(family, "contexts"):
        raise TypeError(f"family is {family!r}; accepted: {accepted}")
    if len(set(family.shape)) > 1 or family.shape[0] < 2 or family.boundary != "periodic":
        raise ValueError(
            f"family is {family!r}; accepted: on a periodic lattice of equal sides of 2 or more"
        )
    return family.shape[0]


def _weighted_moments(
    member: Any, density: Any, num_samples: int, batch_size: int
) -> tuple[list[Tensor], LogWeights]:
    """Of each sample m^2, m^4, and S of the lowest wave vectors, with the weights."""
    functions = member.observables()
    names = ["structure_factor", "fourth_moment"]
    names += [f"structure_factor_axis{axis}" for axis in range(len(member.shape))]
    measured, log_weights = [], []
    for x, part in weighted_samples(member, density, num_samples, batch_size):
        measured.append(torch.stack([functions[name](x.double()) for name in names]))
        log_weights.append(part)
    uniform, fourth, *lowest = torch.cat(measured, 1)
    weights = LogWeights(without_undefined(torch.cat(log_weights)))
    return [uniform, fourth, torch.stack(lowest).mean(0)], weights


def _weights(curve: Curve) -> FloatArray:
    """Reciprocal errors; ones of exact values."""
    return 1 / np.where(curve.standard_error > 0, curve.standard_error, 1.0)


def _crossing(pair: dict[int, Curve], degree: int, resamples: int, rng: Any) -> Crossing:
    """The crossing of two curves, at index 0 of arrays, and of their resamples."""
    small, large = pair
    low = max(float(curve.parameter.min()) for curve in pair.values())
    high = min(float(curve.parameter.max()) for curve in pair.values())
    middle, half = (low + high) / 2, (high - low) / 2
    if half <= 0:
        raise ValueError(f"curves of {small} and {large} have no range in common; accepted: one")
    fits = []
    for curve in pair.values():
        design = polynomial.polyvander((curve.parameter - middle) / half, degree)
        weights = _weights(curve)
        noise = curve.standard_error * rng.normal(size=(resamples + 1, len(weights)))
        noise[0] = 0.0
        fit = np.linalg.pinv(design * weights[:, None]) * weights
        fits.append((curve.values + noise) @ fit.T)
    rows = [_meeting(*polynomials) for polynomials in zip(*fits, strict=True)]
    place, value, slope, other = np.array(rows).T
    if math.isnan(place[0]):
        raise ValueError(f"curves of {small} and {large} do not cross; accepted: those that do")
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = _with_resamples(np.log(other / slope) / math.log(large / small))
    return Crossing(
        (small, large),
        _with_resamples(middle + half * place),
        _with_resamples(value),
        Estimate(1 / inverse.value, inverse.standard_error / inverse.value**2),
    )


def _meeting(one: FloatArray, other: FloatArray) -> tuple[float, ...]:
    """Where two polynomials cross most steeply in [-1, 1], value and slopes there, or NaN."""
    roots = polynomial.polyroots(other - one)
    real = roots.real[(abs(roots.imag) < 1e-9) & (abs(roots.real) <= 1)]
    if not len(real):
        return (math.nan,) * 4
    slopes = [polynomial.polyval(real, polynomial.polyder(each)) for each in (one, other)]
    best = abs(slopes[1] - slopes[0]).argmax()
    return real[best], polynomial.polyval(real[best], one), slopes[0][best], slopes[1][best]


def _with_resamples(values: FloatArray) -> Estimate:
    """The first value, with the scatter of the others, NaN if one of them is."""
    return Estimate(float(values[0]), float((values[1:] - values[0]).std()))


def _collapse(curves: dict[int, Curve], degree: int, correction: float | None) -> ScalingCollapse:
    """The fit, by least squares in p_c, 1 / nu and the coefficients of f and g."""
    p, y, errors = (np.concatenate(parts) for parts in zip(*curves.values(), strict=True))
    weights = np.concatenate([_weights(curve) for curve in curves.values()])
    sides = np.repeat(np.array(list(curves), float), [len(c.parameter) for c in curves.values()])
    powers, amplitudes = np.arange(degree + 1), np.ones((len(p), 1))
    if correction is not None:
        powers = np.append(powers, np.arange(CORRECTION_TERMS))
        amplitudes = np.where(np.arange(len(powers)) > degree, sides[:, None] ** -correction, 1.0)
    free = len(p) - len(powers) - 2
    if free < 1:
        raise ValueError(f"curves have {len(p)} points; accepted: {len(powers) + 3} or more")
    unit = float((abs(p - p.mean()) * sides).max())

    def design(p_c: float, exponent: float) -> FloatArray:
        x = (p - p_c) * sides**exponent / unit
        return weights[:, None] * amplitudes * x[:, None] ** powers

    def residuals(theta: FloatArray) -> FloatArray:
        return design(*theta[:2]) @ theta[2:] - weights * y

    def linear(start: tuple[float, float]) -> FloatArray:
        return np.append(start, np.linalg.lstsq(design(*start), weights * y, rcond=None)[0])

    grid = itertools.product(np.linspace(p.min(), p.max(), 7), FIRST_EXPONENTS)
    start = min(map(linear, grid), key=lambda theta: float(np.square(residuals(theta)).sum()))
    found = least_squares(residuals, start, method="lm", x_scale="jac")
    if np.linalg.matrix_rank(found.jac) < len(start):
        raise ValueError("curves leave p_c or nu open; accepted: those that depend on the size")
    known, squares = bool(errors.all()), 2 * float(found.cost)
    covariance = np.linalg.inv(found.jac.T @ found.jac) * (1 if known else squares / free)
    error = np.sqrt(covariance.diagonal())
    return ScalingCollapse(
        Estimate(float(found.x[0]), float(error[0])),
        Estimate(float(1 / found.x[1]), float(error[1] / found.x[1] ** 2)),
        Estimate(float(found.x[2]), float(error[2])),
        squares if known else math.nan,
        free,
    )
