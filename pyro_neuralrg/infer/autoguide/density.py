# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The density of a model's unconstrained latents at many points at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_neuralrg.infer.pyro_internals import check_no_subsampling, num_plate_dims

ROUNDING = 1e3
"""Machine precisions by which energies may differ that are the same."""


@dataclass(frozen=True)
class Density:
    """An unnormalised density by its energy.

    Attributes:
        energy_of: -ln pi, differentiable, of points ``(n, dim)``; shape ``(n,)``.
        dtype: of the points.
    """

    energy_of: Callable[[Tensor], Tensor]
    dtype: torch.dtype

    def energy(self, points: Tensor) -> Tensor:
        """Energies without a graph."""
        with torch.no_grad():
            return self.energy_of(points)

    def gradient(self, points: Tensor) -> Tensor:
        """Gradients of the energies, shape ``(n, dim)``."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy_of(leaf).sum(), leaf)
        return gradient


def model_density(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    prototype: Any,
    order: Tensor,
) -> Density:
    """The density of a model's latents, for points on the CPU.

    Points have a leading dimension of their own, as particles in Pyro's vectorised losses. Of a
    model that does not work so, ``torch.func.vmap`` evaluates them; where that fails, too, they are
    evaluated one by one.

    Args:
        model: a Pyro model.
        args: of the model.
        kwargs: likewise by keyword.
        prototype: a trace of its latent sites, whose values and supports are used.
        order: for each coordinate of the points, its place in the order of the sites.

    Raises:
        ValueError: if the model subsamples data, if its density is random (of latents that are
            hidden, say).
    """
    joint = ModelEnergy(model, args, kwargs, prototype)
    of_many = _of_many(joint, len(order))
    back = order.argsort()
    density = Density(lambda u: of_many(u[:, back].to(joint.device)).cpu(), joint.dtype)
    points = torch.zeros(2, len(order), dtype=joint.dtype)
    if not torch.equal(density.energy(points), density.energy(points)):
        raise ValueError("the model's density is another each time")
    return density


def _of_many(joint: ModelEnergy, dim: int) -> Callable[[Tensor], Tensor]:
    """The fastest way that the model takes."""
    if joint.takes_many():
        return joint.of_many
    by_vmap = torch.func.vmap(joint.of_one, randomness="different")  # refused by the caller
    try:
        with torch.no_grad():
            by_vmap(torch.zeros(2, dim, dtype=joint.dtype, device=joint.device))
    except Exception:  # a branch that depends on a value, say
        return lambda points: torch.stack([joint.of_one(point) for point in points])
    return by_vmap


class _Site(NamedTuple):
    name: str
    transform: Any
    batch_dim: int
    shape: torch.Size


class ModelEnergy:
    """Energies of a model's latents by one run of it: at one point, or at many together."""

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        prototype: Any,
    ) -> None:
        self.model = model
        self.args, self.kwargs = args, kwargs
        self.sites: list[_Site] = []
        values = {name: site["value"] for name, site in prototype.iter_stochastic_nodes()}
        for name, site in prototype.iter_stochastic_nodes():
            transform = biject_to(site["fn"].support)
            shape = transform.inv(site["value"]).shape
            self.sites.append(_Site(name, transform, len(site["fn"].batch_shape), shape))
            self.dtype, self.device = site["value"].dtype, site["value"].device
        trace = self._run(values)
        check_no_subsampling(trace)
        sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        self.num_plate_dims = num_plate_dims(sites)

    def takes_many(self) -> bool:
        """Report whether energies of points together are those of each, and of each alone."""
        generator = torch.Generator().manual_seed(0)
        dim = sum(site.shape.numel() for site in self.sites)
        points = 0.3 * torch.randn(2, dim, generator=generator, dtype=self.dtype)
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
        sizes = [site.shape.numel() for site in self.sites]
        for site, part in zip(self.sites, points.split(sizes, -1), strict=True):
            plates = (1,) * (self.num_plate_dims - site.batch_dim) if batch else ()
            u = part.reshape((*batch, *plates, *site.shape))
            values[site.name] = value = site.transform(u)
            ladj = site.transform.log_abs_det_jacobian(u, value)
            total = total + (ladj.reshape(*batch, -1).sum(-1) if batch else ladj.sum())
        return self._run(values), total

    def _run(self, values: dict[str, Tensor]) -> Any:
        with pyro.validation_enabled(False):
            return poutine.trace(poutine.condition(self.model, values)).get_trace(
                *self.args, **self.kwargs
            )
