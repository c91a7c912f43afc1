# SPDX-License-Identifier: Apache-2.0
"""The start of a guide: the Gaussian nearest to the posterior, and the density it is found by."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_neuralrg.infer.autoguide.curved import curved_gaussian
from pyro_neuralrg.infer.autoguide.gaussians import (
    LARGE_DIM,
    Density,
    LatticeGaussian,
    MatrixGaussian,
    nearest_gaussian,
)
from pyro_neuralrg.infer.autoguide.sites import LatentOrder
from pyro_neuralrg.infer.log_joint import UnconstrainedModel
from pyro_neuralrg.infer.model_sites import latent_sites
from pyro_neuralrg.infer.pyro_internals import subsampled_plates
from pyro_neuralrg.runtime.console import warn_user

INIT_SCALE = 0.1
"""Standard deviation, in unconstrained space, to begin with."""

UNIFORM_POINTS = 16
"""Points of (-2, 2) of which the likeliest is a start."""

MAX_DENSE = 2048
"""Unknowns up to which the Gaussian has a covariance matrix; beyond, widths of sites and modes."""

MIN_RELATIVE_VARIANCE = 1e-7
"""Variance of fields, relative to the largest, below which it is rounding."""


class GaussianStart(NamedTuple):
    """The Gaussian that a guide begins as, globals first; a vector ``factor`` is one of widths.

    ``log_modes``, ``slopes`` and ``curve`` are as of :class:`CurvedGaussian`; a ``narrow`` one
    has a width that was given, not found.
    """

    mean: Tensor
    factor: Tensor
    log_modes: Tensor | None = None
    slopes: Tensor | None = None
    curve: Tensor | None = None
    narrow: bool = False


def posterior_start(
    program: Callable[[], Any],
    trace: Any,
    mean: Tensor,
    latents: LatentOrder,
    options: Mapping[str, Any],
    init_scale: float | None = None,
) -> GaussianStart:
    """The Gaussian nearest to the posterior of a model, or a narrow one, with a warning.

    ``program`` is the model with its arguments, ``trace`` one of its runs; ``mean`` is where to
    begin, globals first. Where that leads to none, another point of (-2, 2) is tried; where the
    density has no gradient there, it is that. Of the flow's options ``odd`` and ``boundary`` count.
    With ``init_scale``, and of subsampled data, only the place is looked at.
    """
    found, reason = None, "no Gaussian is nearer to the posterior"
    place, mean, odd = "init_loc_fn", mean.cpu(), options.get("odd", False)
    try:
        with warnings.catch_warnings(), poutine.block():
            warnings.simplefilter("ignore")
            density = model_density(program, trace, latents.order)
            if odd and latents.fields:
                density = _mirrored_density(density, mean, latents.globals_dim)
            boundary, reason = options.get("boundary", "periodic"), density.subsampled or reason
            is_narrow = init_scale is not None or bool(density.subsampled)
            found = None if is_narrow else _start(density, mean, latents, odd, boundary)
            if found is None and not (is_narrow and _has_gradient(density, mean[None]).all()):
                point = _likely_point(density, mean, latents.globals_dim if odd else len(mean))
                found = None if is_narrow else _start(density, point, latents, odd, boundary)
                if found is None and not _has_gradient(density, mean[None]).all():
                    mean, place = point, "the likeliest of some points, with a gradient,"
    except Exception as error:  # whatever the model raises where it is evaluated
        reason = f"{type(error).__name__}: {error}"
    width = INIT_SCALE if init_scale is None else init_scale
    if found is None and (init_scale is None or place != "init_loc_fn"):
        warn_user(
            f"the guide begins at {place} with standard deviations of {width} (init_scale= sets "
            f"them): {reason}"
        )
    return found or GaussianStart(mean, torch.full_like(mean, width), narrow=True)


def _likely_point(density: Density, mean: Tensor, free: int) -> Tensor:
    """The likeliest of some points of (-2, 2) with gradients; what is not ``free`` stays."""
    generator = torch.Generator().manual_seed(0)
    points = mean.repeat(UNIFORM_POINTS, 1)
    points[:, :free].uniform_(-2.0, 2.0, generator=generator)
    energies = density.energy(points.to(density.dtype))
    energies = energies.where(_has_gradient(density, points), torch.inf).nan_to_num(torch.inf)
    return points[int(energies.argmin())] if energies.isfinite().any() else mean


def _has_gradient(density: Density, points: Tensor) -> Tensor:
    """Report for each point whether the gradient there is finite."""
    return density.gradient(points.to(density.dtype)).isfinite().all(-1)


def _start(
    density: Density, mean: Tensor, latents: LatentOrder, odd: bool, boundary: str
) -> GaussianStart | None:
    start, globals_dim = None, latents.globals_dim
    if len(mean) <= MAX_DENSE:
        dtype = torch.float64 if len(mean) <= LARGE_DIM else density.dtype
        factor = INIT_SCALE * torch.eye(len(mean), dtype=dtype)
        dense = nearest_gaussian(density, MatrixGaussian(mean.to(dtype), factor))
        if dense is not None:
            start = GaussianStart(dense.mean, blocks(dense.factor.double(), globals_dim, odd))
            flat = torch.zeros(latents.channels, *latents.lattice, dtype=torch.float64)
            given = (density, start.mean.double(), start.factor, flat, boundary)
            bent = None if odd else curved_gaussian(*given)
            if bent is not None:
                parts = bent.mean, bent.factor, bent.log_modes, bent.slopes, bent.curve
                start = GaussianStart(*parts)
    elif latents.fields:
        log_modes = mean.new_zeros(latents.channels, *latents.lattice)
        first = LatticeGaussian(mean, torch.full_like(mean, INIT_SCALE), log_modes, boundary)
        wide = nearest_gaussian(density, first)
        if wide is not None:
            start = GaussianStart(wide.mean, wide.widths, wide.log_modes)
    else:
        raise ValueError(f"there are {len(mean)} globals; a matrix takes {MAX_DENSE} at most")
    if odd and start is not None:
        start.mean[globals_dim:] = mean[globals_dim:]
    return start


def _mirrored_density(density: Density, centre: Tensor, globals_dim: int) -> Density:
    """The mean of ln pi over a field and its mirror image, which a symmetric q sees of it."""
    sign = torch.ones(len(centre), dtype=density.dtype)
    sign[globals_dim:] = -1
    shift = (1 - sign) * centre.to(density.dtype)
    energy = density.energy_of
    return replace(density, energy_of=lambda u: 0.5 * (energy(u) + energy(sign * u + shift)))


def blocks(factor: Tensor, globals_dim: int, odd: bool) -> Tensor:
    """Another factor of the same covariance: block triangular, of the fields a symmetric root.

    So what belongs to a site stays there. With ``odd`` fields do not depend on the globals.
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


# The density of a model ---------------------------------------------------------------------------


def model_density(program: Callable[[], Any], trace: Any, order: Tensor) -> Density:
    """The density of a model's unconstrained latents, for points on the CPU.

    ``order`` is for each coordinate of the points its place in the order of the trace's sites.
    Points are evaluated together by vmap, or one by one if that does not take the model. Data that
    are subsampled are those of one run. A ValueError says if the density is random.
    """
    subsampled = subsampled_plates(trace)
    if subsampled:
        subsampled = f"data are subsampled ({subsampled}), so that each step sees another posterior"
    nodes = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    parts = {name: site["value"] for name, site in nodes.items() if site_is_subsample(site)}
    numbers = sum(torch.as_tensor(site["value"]).numel() for site in nodes.values())
    joint = UnconstrainedModel(poutine.condition(program, parts), trace)
    values = latent_sites(trace)
    shapes = {name: joint.transforms[name](site["value"]).shape for name, site in values.items()}
    sizes, back = [shape.numel() for shape in shapes.values()], order.argsort()
    first = next(iter(values.values()))["value"]

    def of_one(point: Tensor) -> Tensor:
        parts = zip(shapes.items(), point.split(sizes), strict=True)
        return joint.energy({name: part.reshape(shape) for (name, shape), part in parts})

    def one_by_one(points: Tensor) -> Tensor:
        return torch.stack([of_one(point) for point in points])

    def energies(points: Tensor, each: Callable[[Tensor], Tensor]) -> Tensor:
        with pyro.validation_enabled(False):
            return each(points[:, back].to(first.device)).cpu()

    points = torch.zeros(2, len(order), dtype=first.dtype)
    together: Callable[[Tensor], Tensor] = one_by_one
    with contextlib.suppress(Exception):  # a branch that depends on a value, say
        by_vmap = torch.func.vmap(of_one, randomness="different")  # random ones are refused below
        with torch.no_grad():
            energies(points, by_vmap)
        together = by_vmap
    energy_of = functools.partial(energies, each=together)
    density = Density(energy_of, first.dtype, numbers, subsampled)
    if not torch.equal(density.energy(points), density.energy(points)):
        raise ValueError("the model's density is another each time")
    return density
