# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Where a guide begins: the Gaussian nearest to the posterior, found by a fixed point."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from pyro import poutine
from torch import Tensor

from pyro_neuralrg.infer.autoguide.density import Density, model_density
from pyro_neuralrg.infer.autoguide.gaussians import (
    Gaussian,
    LatticeGaussian,
    MatrixGaussian,
    Moments,
)
from pyro_neuralrg.infer.autoguide.sites import Layout

INIT_SCALE = 0.1
"""Standard deviation, in unconstrained space, to begin with."""

MAX_DENSE = 2048
"""Unknowns up to which the Gaussian has a covariance matrix; beyond, widths of sites and modes."""

STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.003)
"""Parts of the full step that are tried."""

TRIAL_DRAWS = 16
"""Draws, and as many mirrored ones, that compare these."""

MOST_STEPS, SETTLING_STEPS = 60, 12
"""Steps until the bound stops rising, and steps that are averaged then."""

ENOUGH = 0.03
"""Nats; a step that gains less is the last of its kind."""

LARGE = 512
"""Unknowns from which on matrices have the dtype of the model, and fewer steps are tried."""

NUMBERS_AT_ONCE, MOST_POINTS = 2**20, 512
"""Coordinates, and points, at which the model is evaluated together at most."""

LEAST_VARIANCE = 1e-7
"""Of fields, relative to the largest: below it is rounding."""

AnyGaussian = TypeVar("AnyGaussian", bound=Gaussian)


class Start(NamedTuple):
    """Where a guide begins, globals first.

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
    layout: Layout,
    options: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Start | None:
    """The Gaussian nearest to the posterior of a model's latents, unconstrained.

    Args:
        model: a Pyro model.
        prototype: a trace of its latent sites.
        loc: where to begin, shape ``(dim,)``, in their order.
        layout: of the flow.
        options: of the flow; ``odd`` and ``boundary`` are used.
        args: of the model.
        kwargs: likewise by keyword.

    Returns:
        the start, or None where there is none.

    Warns:
        UserWarning: if there is none, with the reason.
    """
    reason = "no Gaussian is nearer to the posterior"
    try:
        with warnings.catch_warnings(), poutine.block():
            warnings.simplefilter("ignore")
            density: Density = model_density(model, args, kwargs, prototype)
            density = _Reordered(density, layout.order)
            mean = loc[layout.order].cpu()
            if options.get("odd", False) and layout.channels:
                density = _Symmetric(density, mean, layout.globals_dim)
            found = _start(density, mean, layout, options)
    except Exception as error:  # whatever the model raises where it is evaluated
        found, reason = None, f"{type(error).__name__}: {error}"
    if found is None:
        warnings.warn(
            f"the guide begins at init_loc_fn with standard deviations of {INIT_SCALE}: {reason}",
            stacklevel=2,
        )
    return found


def _start(density: Density, mean: Tensor, layout: Layout, options: dict[str, Any]) -> Start | None:
    odd = options.get("odd", False)
    if len(mean) <= MAX_DENSE:
        dtype = torch.float64 if len(mean) <= LARGE else density.dtype
        dense = nearest_gaussian(density, MatrixGaussian.isotropic(mean.to(dtype), INIT_SCALE))
        if dense is None:
            return None
        start = Start(dense.mean, blocks(dense.factor.double(), layout.globals_dim, odd))
    elif layout.channels:
        boundary = options.get("boundary", "periodic")
        wide = nearest_gaussian(
            density,
            LatticeGaussian.isotropic(mean, INIT_SCALE, layout.lattice, layout.channels, boundary),
        )
        if wide is None:
            return None
        start = Start(wide.mean, wide.widths, wide.log_modes)
    else:
        raise ValueError(f"there are {len(mean)} globals; a matrix takes {MAX_DENSE} at most")
    if odd:
        start.mean[layout.globals_dim :] = mean[layout.globals_dim :]
    return start


class _Reordered:
    """A density of the same latents in another order, for tensors on the CPU."""

    def __init__(self, density: Density, order: Tensor) -> None:
        self.density, self.order, self.back = density, order, order.argsort()
        self.dtype, self.device = density.dtype, torch.device("cpu")

    def energy(self, positions: Tensor) -> Tensor:
        """See :class:`Density`."""
        return self.density.energy(positions[:, self.back].to(self.density.device)).cpu()

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Density`."""
        there = positions[:, self.back].to(self.density.device)
        energy, gradient = self.density.energy_and_grad(there)
        return energy.cpu(), gradient.cpu()[:, self.order]


class _Symmetric:
    """The mean of ln pi over a field and its mirror image, which a symmetric q sees of it."""

    def __init__(self, density: Density, centre: Tensor, globals_dim: int) -> None:
        self.density = density
        self.dtype, self.device = density.dtype, density.device
        self.sign = torch.ones(len(centre), dtype=self.dtype)
        self.sign[globals_dim:] = -1
        self.shift = (1 - self.sign) * centre.to(self.dtype)

    def energy(self, positions: Tensor) -> Tensor:
        """See :class:`Density`."""
        mirrored = self.sign * positions + self.shift
        return 0.5 * (self.density.energy(positions) + self.density.energy(mirrored))

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Density`."""
        energy, gradient = self.density.energy_and_grad(positions)
        mirrored = self.density.energy_and_grad(self.sign * positions + self.shift)
        return 0.5 * (energy + mirrored[0]), 0.5 * (gradient + self.sign * mirrored[1])


def nearest_gaussian(target: Density, first: AnyGaussian) -> AnyGaussian | None:
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
    for _ in range(MOST_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:  # too wide: it reaches where the density has no finite gradients
            present = present.narrower()  # type: ignore[assignment]
            continue
        bound = _bound(target, present, trials)
        found, of_found = _best_step(target, present, bound, moments, trials)
        present, settled = found, settled + 1 if of_found < bound + ENOUGH else 0
        if settled == 2:
            break
    for step in range(SETTLING_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:
            break
        present = present.stepped(moments, 1 / (step + 2))  # type: ignore[assignment]
    fresh = _trials(4 * TRIAL_DRAWS, first, generator)
    return present if _bound(target, present, fresh) > _bound(target, first, fresh) else None


def _best_step(
    target: Density, present: AnyGaussian, bound: float, moments: Moments, trials: Tensor
) -> tuple[AnyGaussian, float]:
    """The step that gains most; beyond LARGE unknowns the first that the next does not beat."""
    best, of_best = present, bound
    for step in STEPS:
        candidate = present.stepped(moments, step)
        of_candidate = _bound(target, candidate, trials)
        if of_candidate > of_best:
            best, of_best = candidate, of_candidate  # type: ignore[assignment]
        elif best is not present and len(present.mean) > LARGE:
            break
    return best, of_best


def _moments(target: Density, q: Gaussian, generator: torch.Generator) -> Moments | None:
    """Of gradients at draws and their mirror images; None where the density has none."""
    z = q.latents(generator)
    moved = q.moved(z)
    up, down = (_gradients(target, q.mean + sign * moved) for sign in (1, -1))
    usable = (up + down).isfinite().all(-1)
    if 2 * int(usable.sum()) < len(z):
        return None
    return q.moments(z[usable], 0.5 * (up + down)[usable], 0.5 * (up - down)[usable])


def _gradients(target: Density, points: Tensor) -> Tensor:
    """Of ln pi, a part of the points at a time; NaN where the model raises an error."""
    found = []
    for part in _parts(target, points):
        try:
            found.append(-target.energy_and_grad(part)[1].to(points.dtype))
        except (ArithmeticError, RuntimeError, ValueError):  # a matrix that is singular, say
            found.append(torch.full_like(part, math.nan, dtype=points.dtype))
    return torch.cat(found)


def _trials(number: int, q: Gaussian, generator: torch.Generator) -> Tensor:
    """Standard normal vectors and their mirror images."""
    z = torch.randn(number, len(q.mean), generator=generator, dtype=q.mean.dtype)
    return torch.cat([z, -z])


def _bound(target: Density, q: Gaussian, z: Tensor) -> float:
    """E_q[ln pi] + entropy, up to a constant, by the latents z; -inf where the model raises."""
    try:
        parts = [target.energy(part).double() for part in _parts(target, q.mean + q.moved(z))]
    except (ArithmeticError, RuntimeError, ValueError):
        return -math.inf
    value = q.log_det - float(torch.cat(parts).mean())
    return value if math.isfinite(value) else -math.inf


def _parts(target: Density, points: Tensor) -> tuple[Tensor, ...]:
    """As many points at once as memory likes, also where a model makes matrices of them."""
    number = min(MOST_POINTS, NUMBERS_AT_ONCE // points.shape[-1])
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
    least = LEAST_VARIANCE * values.max() if len(values) else 0.0
    root = (vectors * values.clamp(min=least).sqrt()) @ vectors.T
    above = factor.new_zeros(globals_dim, len(rest))
    top = torch.cat([of_globals, above], 1)
    return torch.cat([top, torch.cat([0 * tied if odd else tied, root], 1)])
