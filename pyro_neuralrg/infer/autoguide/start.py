# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The start of a guide: the Gaussian nearest to the posterior, found by a fixed point."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from pyro import poutine
from torch import Tensor

from pyro_neuralrg.infer.autoguide.density import Density, model_density
from pyro_neuralrg.infer.autoguide.gaussians import LatticeGaussian, MatrixGaussian, Moments
from pyro_neuralrg.infer.autoguide.sites import LatentOrder

INIT_SCALE = 0.1
"""Standard deviation, in unconstrained space, to begin with."""

MAX_DENSE = 2048
"""Unknowns up to which the Gaussian has a covariance matrix; beyond, widths of sites and modes."""

STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.003)
"""Parts of the full step that are tried."""

TRIAL_DRAWS = 16
"""Draws, and as many mirrored ones, that compare these."""

MAX_STEPS, SETTLING_STEPS = 60, 12
"""Steps until the bound stops rising, and steps that are averaged then."""

MIN_GAIN = 0.03
"""Nats; a step that gains less is the last of its kind."""

LARGE_DIM = 512
"""Unknowns from which on matrices have the dtype of the model, and fewer steps are tried."""

MAX_NUMBERS, MAX_POINTS = 2**20, 512
"""Coordinates, and points, at which the model is evaluated together at most."""

MODEL_ERRORS = (ArithmeticError, RuntimeError, ValueError)
"""Raised by models far out: a matrix that is singular, say."""

MIN_RELATIVE_VARIANCE = 1e-7
"""Variance of fields, relative to the largest, below which it is rounding."""

Gaussian = TypeVar("Gaussian", MatrixGaussian, LatticeGaussian)


class GaussianStart(NamedTuple):
    """The Gaussian that a guide begins as, globals first.

    Attributes:
        mean: shape ``(dim,)``.
        factor: shape ``(dim, dim)``, or ``(dim,)`` for widths.
        log_modes: logarithms of the widths of the modes of each field, or None.
    """

    mean: Tensor
    factor: Tensor
    log_modes: Tensor | None = None


def posterior_start(
    model: Callable[..., Any],
    prototype: Any,
    loc: Tensor,
    latents: LatentOrder,
    options: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> GaussianStart | None:
    """The Gaussian nearest to the posterior of a model's latents, unconstrained.

    Args:
        model: a Pyro model.
        prototype: a trace of its latent sites.
        loc: where to begin, shape ``(dim,)``, in their order.
        latents: their order in the flow.
        options: of the flow; ``odd`` and ``boundary`` are used.
        args: of the model.
        kwargs: likewise by keyword.

    Returns:
        the start, or None where there is none.

    Warns:
        UserWarning: if there is none, with the reason.
    """
    found, reason = None, "no Gaussian is nearer to the posterior"
    mean, odd = loc[latents.order].cpu(), options.get("odd", False)
    try:
        with warnings.catch_warnings(), poutine.block():
            warnings.simplefilter("ignore")
            density = model_density(model, args, kwargs, prototype, latents.order)
            if odd and latents.channels:
                density = mirrored(density, mean, latents.globals_dim)
            found = _start(density, mean, latents, odd, options.get("boundary", "periodic"))
    except Exception as error:  # whatever the model raises where it is evaluated
        reason = f"{type(error).__name__}: {error}"
    if found is None:
        warnings.warn(
            f"the guide begins at init_loc_fn with standard deviations of {INIT_SCALE}: {reason}",
            stacklevel=2,
        )
    return found


def _start(
    density: Density, mean: Tensor, latents: LatentOrder, odd: bool, boundary: str
) -> GaussianStart | None:
    globals_dim = latents.globals_dim
    if len(mean) <= MAX_DENSE:
        dtype = torch.float64 if len(mean) <= LARGE_DIM else density.dtype
        dense = nearest_gaussian(density, MatrixGaussian.isotropic(mean.to(dtype), INIT_SCALE))
        if dense is None:
            return None
        start = GaussianStart(dense.mean, blocks(dense.factor.double(), globals_dim, odd))
    elif latents.channels:
        lattice = latents.lattice, latents.channels, boundary
        wide = nearest_gaussian(density, LatticeGaussian.isotropic(mean, INIT_SCALE, *lattice))
        if wide is None:
            return None
        start = GaussianStart(wide.mean, wide.widths, wide.log_modes)
    else:
        raise ValueError(f"there are {len(mean)} globals; a matrix takes {MAX_DENSE} at most")
    if odd:
        start.mean[globals_dim:] = mean[globals_dim:]
    return start


def mirrored(density: Density, centre: Tensor, globals_dim: int) -> Density:
    """The mean of ln pi over a field and its mirror image, which a symmetric q sees of it."""
    sign = torch.ones(len(centre), dtype=density.dtype)
    sign[globals_dim:] = -1
    shift = (1 - sign) * centre.to(density.dtype)
    of, dtype = density.energy_of, density.dtype
    return Density(lambda u: 0.5 * (of(u) + of(sign * u + shift)), dtype)


def nearest_gaussian(target: Density, first: Gaussian) -> Gaussian | None:
    r"""The Gaussian q with the least KL(q || pi), by natural gradients of the target's density.

    At the optimum :math:`E_q[\nabla \ln \pi] = 0` and :math:`C^T E_q[-\nabla^2 \ln \pi]\, C = 1`
    for q = N(m, C C^T). Both expectations come from gradients at draws u = m + C z alone, the
    second by Stein's lemma, :math:`-E[C^T \nabla \ln \pi(u)\, z^T]`. The z of a step are
    orthogonal to one another and come with their mirror images: of a Gaussian target one full step
    finds the solution. Shorter steps are those of Lin et al., whose covariance stays positive.

    Args:
        target: of dimension ``dim``.
        first: where to begin.

    Returns:
        the Gaussian, or None if none was found that is better than the one to begin with.

    References:
        Opper, Archambeau, "The variational Gaussian approximation revisited", Neural Computation 21
        (2009), Eq. 8-9.
        Lin, Schmidt, Khan, "Handling the positive-definite constraint in the Bayesian learning
        rule", ICML (2020).
    """
    generator = torch.Generator().manual_seed(0)
    trials = _trials(TRIAL_DRAWS, first, generator)
    present, settled = first, 0
    for _ in range(MAX_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:  # too wide: it reaches where the density has no finite gradients
            present = present.narrower()
            continue
        bound = _bound(target, present, trials)
        found, of_found = _best_step(target, present, bound, moments, trials)
        present, settled = found, settled + 1 if of_found < bound + MIN_GAIN else 0
        if settled == 2:
            break
    for step in range(SETTLING_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:
            break
        present = present.stepped(moments, 1 / (step + 2))
    fresh = _trials(4 * TRIAL_DRAWS, first, generator)
    return present if _bound(target, present, fresh) > _bound(target, first, fresh) else None


def _best_step(
    target: Density, present: Gaussian, bound: float, moments: Moments, trials: Tensor
) -> tuple[Gaussian, float]:
    """The step that gains most; beyond LARGE_DIM unknowns the first that the next does not beat."""
    best, of_best = present, bound
    for step in STEPS:
        candidate = present.stepped(moments, step)
        of_candidate = _bound(target, candidate, trials)
        if of_candidate > of_best:
            best, of_best = candidate, of_candidate
        elif best is not present and len(present.mean) > LARGE_DIM:
            break
    return best, of_best


def _moments(target: Density, q: Gaussian, generator: torch.Generator) -> Moments | None:
    """Moments of gradients at draws and their mirror images; None where there are too few."""
    z = q.latents(generator)
    moved = q.moved(z)
    up, down = (_gradients(target, q.mean + sign * moved) for sign in (1, -1))
    usable = (up + down).isfinite().all(-1)
    if 2 * int(usable.sum()) < len(z):
        return None
    return q.moments(z[usable], 0.5 * (up + down)[usable], 0.5 * (up - down)[usable])


def _gradients(target: Density, points: Tensor) -> Tensor:
    """Gradients of ln pi; NaN where the model raises an error."""
    found = []
    for part in _split(target, points):
        try:
            found.append(-target.gradient(part).to(points.dtype))
        except MODEL_ERRORS:
            found.append(torch.full_like(part, math.nan, dtype=points.dtype))
    return torch.cat(found)


def _trials(number: int, q: Gaussian, generator: torch.Generator) -> Tensor:
    """Standard normal vectors and their mirror images."""
    z = torch.randn(number, len(q.mean), generator=generator, dtype=q.mean.dtype)
    return torch.cat([z, -z])


def _bound(target: Density, q: Gaussian, z: Tensor) -> float:
    """E_q[ln pi] + entropy, up to a constant, by the latents z; -inf where the model raises."""
    try:
        parts = [target.energy(part).double() for part in _split(target, q.mean + q.moved(z))]
    except MODEL_ERRORS:
        return -math.inf
    value = q.log_det - float(torch.cat(parts).mean())
    return value if math.isfinite(value) else -math.inf


def _split(target: Density, points: Tensor) -> tuple[Tensor, ...]:
    """Points in parts that fit into memory, also where a model makes matrices of them."""
    number = min(MAX_POINTS, MAX_NUMBERS // points.shape[-1])
    return points.to(target.dtype).split(max(1, number))


def blocks(factor: Tensor, globals_dim: int, odd: bool) -> Tensor:
    """Another factor of the same covariance: block triangular, of the fields a symmetric root.

    A symmetric root keeps what belongs to a site at its place. With ``odd`` fields do not depend on
    the globals, whose place would break the symmetry.
    """
    covariance = factor @ factor.T
    of_globals = torch.linalg.cholesky(covariance[:globals_dim, :globals_dim])
    across = covariance[globals_dim:, :globals_dim]
    tied = torch.linalg.solve_triangular(of_globals, across.T, upper=False).T
    rest = covariance[globals_dim:, globals_dim:] - tied @ tied.T
    values, vectors = torch.linalg.eigh(0.5 * (rest + rest.T))
    least = MIN_RELATIVE_VARIANCE * values.max() if len(values) else 0.0
    root = (vectors * values.clamp(min=least).sqrt()) @ vectors.T
    above = factor.new_zeros(globals_dim, len(rest))
    top = torch.cat([of_globals, above], 1)
    return torch.cat([top, torch.cat([0 * tied if odd else tied, root], 1)])
