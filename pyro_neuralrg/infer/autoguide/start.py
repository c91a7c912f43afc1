# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The start of a guide: the Gaussian nearest to the posterior, and the density it is found by."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_neuralrg.infer.autoguide.gaussians import (
    LARGE_DIM,
    Density,
    LatticeGaussian,
    MatrixGaussian,
    nearest_gaussian,
)
from pyro_neuralrg.infer.autoguide.sites import LatentOrder
from pyro_neuralrg.infer.model_sites import FillMasked
from pyro_neuralrg.infer.pyro_internals import check_no_subsampling, num_plate_dims
from pyro_neuralrg.runtime.console import warn_user

INIT_SCALE = 0.1
"""Standard deviation, in unconstrained space, to begin with."""

MAX_DENSE = 2048
"""Unknowns up to which the Gaussian has a covariance matrix; beyond, widths of sites and modes."""

MIN_RELATIVE_VARIANCE = 1e-7
"""Variance of fields, relative to the largest, below which it is rounding."""

ROUNDING = 1e3
"""Machine precisions by which energies may differ that are the same."""


class GaussianStart(NamedTuple):
    """The Gaussian that a guide begins as, globals first; a vector ``factor`` is one of widths.

    ``log_modes`` are logarithms of the widths of the modes of each field.
    """

    mean: Tensor
    factor: Tensor
    log_modes: Tensor | None = None


def posterior_start(
    program: Callable[[], Any],
    prototype: Any,
    mean: Tensor,
    latents: LatentOrder,
    options: Mapping[str, Any],
) -> GaussianStart | None:
    """The Gaussian nearest to the posterior of a model's latents, or None, with a warning.

    ``program`` is the model with its arguments, ``prototype`` a trace of its latent sites; ``mean``
    is where to begin, globals first. Of the flow's options ``odd`` and ``boundary`` count.
    """
    found, reason = None, "no Gaussian is nearer to the posterior"
    mean, odd = mean.cpu(), options.get("odd", False)
    try:
        with warnings.catch_warnings(), poutine.block():
            warnings.simplefilter("ignore")
            density = model_density(program, prototype, latents.order)
            if odd and latents.fields:
                density = _mirrored_density(density, mean, latents.globals_dim)
            found = _start(density, mean, latents, odd, options.get("boundary", "periodic"))
    except Exception as error:  # whatever the model raises where it is evaluated
        reason = f"{type(error).__name__}: {error}"
    if found is None:
        warn_user(
            f"the guide begins at init_loc_fn with standard deviations of {INIT_SCALE}: {reason}"
        )
    return found


def _start(
    density: Density, mean: Tensor, latents: LatentOrder, odd: bool, boundary: str
) -> GaussianStart | None:
    start, globals_dim = None, latents.globals_dim
    if len(mean) <= MAX_DENSE:
        dtype = torch.float64 if len(mean) <= LARGE_DIM else density.dtype
        dense = nearest_gaussian(density, MatrixGaussian.isotropic(mean.to(dtype), INIT_SCALE))
        if dense is not None:
            start = GaussianStart(dense.mean, blocks(dense.factor.double(), globals_dim, odd))
    elif latents.fields:
        log_modes = mean.new_zeros(len(latents.fields), *latents.lattice)
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
    return Density(lambda u: 0.5 * (energy(u) + energy(sign * u + shift)), density.dtype)


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


def model_density(program: Callable[[], Any], prototype: Any, order: Tensor) -> Density:
    """The density of a model's unconstrained latents, for points on the CPU.

    ``order`` is for each coordinate of the points its place in the order of the prototype's sites.
    A ValueError says if the model subsamples data, or its density is random.
    """
    joint = ModelEnergy(program, prototype)
    energy_of, back = joint.fastest(), order.argsort()
    density = Density(lambda u: energy_of(u[:, back].to(joint.device)).cpu(), joint.dtype)
    points = torch.zeros(2, len(order), dtype=joint.dtype)
    if not torch.equal(density.energy(points), density.energy(points)):
        raise ValueError("the model's density is another each time")
    return density


class ModelEnergy:
    """Energies of a model's latents by one run of it: at one point, or at many together.

    Many points have a leading dimension of their own, as particles in Pyro's vectorised losses.
    """

    def __init__(self, program: Callable[[], Any], prototype: Any) -> None:
        self.program = FillMasked()(program)
        self.sites, self.sizes, values = [], [], {}
        for name, site in prototype.iter_stochastic_nodes():
            values[name] = value = site["value"]
            transform = biject_to(site["fn"].support)
            shape = transform.inv(value).shape
            self.sites.append((name, transform, len(site["fn"].batch_shape), shape))
            self.sizes.append(shape.numel())
            self.dtype, self.device = value.dtype, value.device
        trace = self._run(values)
        check_no_subsampling(trace)
        sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        self.num_plate_dims = num_plate_dims(sites)

    def fastest(self) -> Callable[[Tensor], Tensor]:
        """Energies of points ``(n, dim)``: together, or by vmap, or one by one."""
        if self.takes_many():
            return self.of_many
        by_vmap = torch.func.vmap(self.of_one, randomness="different")  # refused by the caller
        try:
            with torch.no_grad():
                by_vmap(torch.zeros(2, sum(self.sizes), dtype=self.dtype, device=self.device))
        except Exception:  # a branch that depends on a value, say
            return lambda points: torch.stack([self.of_one(point) for point in points])
        return by_vmap

    def takes_many(self) -> bool:
        """Report whether energies of points together are those of each, and of each alone."""
        generator = torch.Generator().manual_seed(0)
        points = 0.3 * torch.randn(2, sum(self.sizes), generator=generator, dtype=self.dtype)
        points = points.to(self.device).requires_grad_()
        try:
            with torch.enable_grad():
                together = self.of_many(points)
                (gradient,) = torch.autograd.grad(together[0], points)
            with torch.no_grad():
                alone = torch.stack([self.of_one(point) for point in points])
        except Exception:  # whatever a model raises that knows of no particles
            return False
        rounding = ROUNDING * torch.finfo(self.dtype).eps
        is_same = torch.allclose(together.detach(), alone, rtol=rounding)
        return is_same and not bool(gradient[1].any())

    def of_many(self, points: Tensor) -> Tensor:
        """Energies of points ``(n, dim)``."""
        trace, total = self._at(points)
        with pyro.validation_enabled(False):
            trace.compute_log_prob()
        for node in trace.nodes.values():
            if node["type"] == "sample" and "log_prob" in node:
                log_prob = node["log_prob"]
                if log_prob.dim() <= self.num_plate_dims:  # the same for all points
                    total = total + log_prob.sum()
                else:
                    total = total + log_prob.reshape(log_prob.shape[0], -1).sum(-1)
        return -total

    def of_one(self, point: Tensor) -> Tensor:
        """The energy of a point ``(dim,)``."""
        trace, total = self._at(point)
        with pyro.validation_enabled(False):
            return -total - trace.log_prob_sum()

    def _at(self, points: Tensor) -> tuple[Any, Tensor]:
        """The trace at one point or many, and ln |det| of the constraints."""
        batch = points.shape[:-1]
        values, total = {}, points.new_zeros(batch)
        for site, part in zip(self.sites, points.split(self.sizes, -1), strict=True):
            name, transform, batch_dim, shape = site
            plates = (1,) * (self.num_plate_dims - batch_dim) if batch else ()
            u = part.reshape((*batch, *plates, *shape))
            values[name] = value = transform(u)
            ladj = transform.log_abs_det_jacobian(u, value)
            total = total + (ladj.reshape(*batch, -1).sum(-1) if batch else ladj.sum())
        return self._run(values), total

    def _run(self, values: dict[str, Tensor]) -> Any:
        with pyro.validation_enabled(False):
            return poutine.trace(poutine.condition(self.program, values)).get_trace()
