# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The density of a model's unconstrained latents at many points at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_neuralrg.infer.model_checks import check_no_subsampling

ROUNDING = 1e3
"""Machine precisions by which energies may differ that are the same."""


class Density(Protocol):
    """Energies -ln pi(u) and their gradients at points ``(n, dim)``."""

    dtype: torch.dtype
    device: torch.device

    def energy(self, positions: Tensor) -> Tensor:
        """Shape ``(n,)``."""
        ...

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes ``(n,)`` and ``(n, dim)``."""
        ...


def model_density(
    model: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], prototype: Any
) -> Density:
    """The density of a model's latents.

    Points have a leading dimension of their own, as particles in Pyro's vectorised losses. Of a
    model that does not work so, ``torch.func.vmap`` evaluates them.

    Args:
        model: a Pyro model.
        args: of the model.
        kwargs: likewise by keyword.
        prototype: a trace of its latent sites, whose order, values and supports are used.

    Raises:
        ValueError: if the model subsamples data, if its density is random (of latents that are
            hidden, say).
    """
    density = ParticleDensity(model, args, kwargs, prototype)
    if not density.is_right():
        density.by_vmap = True
    points = torch.zeros(2, _dim(prototype), dtype=density.dtype, device=density.device)
    if not torch.equal(density.energy(points), density.energy(points)):
        raise ValueError("the model's density is another each time")
    return density


class _Site(NamedTuple):
    name: str
    transform: Any
    batch_dim: int
    shape: torch.Size


class ParticleDensity:
    """A :class:`Density` that runs the model once for all points; see :func:`model_density`."""

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        prototype: Any,
    ) -> None:
        self.model = model
        self.args, self.kwargs = args, kwargs
        self.by_vmap = False
        self.sites: list[_Site] = []
        for name, site in prototype.iter_stochastic_nodes():
            transform = biject_to(site["fn"].support)
            shape = transform.inv(site["value"]).shape
            self.sites.append(_Site(name, transform, len(site["fn"].batch_shape), shape))
            self.dtype, self.device = site["value"].dtype, site["value"].device
        values = {name: site["value"] for name, site in prototype.iter_stochastic_nodes()}
        trace = self._trace(values)
        check_no_subsampling(trace)
        frames: list[Any] = [
            frame
            for site in trace.nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
        ]
        self.nesting = max((-frame.dim for frame in frames if frame.vectorized), default=0)

    def is_right(self) -> bool:
        """Whether the energies of points together are those of each, and of each alone."""
        generator = torch.Generator().manual_seed(0)
        dim = sum(site.shape.numel() for site in self.sites)
        points = 0.3 * torch.randn(2, dim, generator=generator, dtype=self.dtype)
        points = points.to(self.device).requires_grad_()
        try:
            with torch.enable_grad():
                together = self._energy(points)
                (gradient,) = torch.autograd.grad(together[0], points)
            with torch.no_grad():
                alone = torch.stack([self._energy_alone(point) for point in points])
        except Exception:  # whatever a model raises that knows of no particles
            return False
        rounding = ROUNDING * torch.finfo(self.dtype).eps
        is_same = torch.allclose(together.detach(), alone, rtol=rounding)
        return is_same and not bool(gradient[1].any())

    def energy(self, positions: Tensor) -> Tensor:
        """See :class:`Density`."""
        if self.by_vmap:
            return torch.func.vmap(self._energy_alone)(positions)
        with torch.no_grad():
            return self._energy(positions)

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Density`."""
        if self.by_vmap:
            evaluate = torch.func.vmap(torch.func.grad_and_value(self._energy_alone))
            gradient, energy = evaluate(positions)
            return energy, gradient
        with torch.enable_grad():
            u = positions.detach().requires_grad_()
            energy = self._energy(u)
            (gradient,) = torch.autograd.grad(energy.sum(), u)
        return energy.detach(), gradient

    def _energy(self, positions: Tensor) -> Tensor:
        number = len(positions)
        values, total = {}, positions.new_zeros(number)
        sizes = [site.shape.numel() for site in self.sites]
        for site, part in zip(self.sites, positions.split(sizes, -1), strict=True):
            room = (1,) * (self.nesting - site.batch_dim)
            u = part.reshape(number, *room, *site.shape)
            values[site.name] = value = site.transform(u)
            ladj = site.transform.log_abs_det_jacobian(u, value)
            total = total + ladj.reshape(number, -1).sum(-1)
        trace = self._trace(values)
        with pyro.validation_enabled(False):
            trace.compute_log_prob()
        for node in trace.nodes.values():
            if node["type"] == "sample" and "log_prob" in node:
                total = total + self._each(node["log_prob"])
        return -total

    def _each(self, log_prob: Tensor) -> Tensor:
        """A site's part, for each point; what does not depend on them is the same for all."""
        if log_prob.dim() <= self.nesting:
            return log_prob.sum()
        return log_prob.reshape(log_prob.shape[0], -1).sum(-1)

    def _energy_alone(self, point: Tensor) -> Tensor:
        """Without a dimension of points."""
        sizes = [site.shape.numel() for site in self.sites]
        values, total = {}, point.new_zeros(())
        for site, part in zip(self.sites, point.split(sizes), strict=True):
            u = part.reshape(site.shape)
            values[site.name] = value = site.transform(u)
            total = total + site.transform.log_abs_det_jacobian(u, value).sum()
        trace = self._trace(values)
        with pyro.validation_enabled(False):
            return -total - trace.log_prob_sum()

    def _trace(self, values: dict[str, Tensor]) -> Any:
        with pyro.validation_enabled(False):
            return poutine.trace(poutine.condition(self.model, values)).get_trace(
                *self.args, **self.kwargs
            )


def _dim(prototype: Any) -> int:
    return sum(
        biject_to(site["fn"].support).inv(site["value"]).numel()
        for _, site in prototype.iter_stochastic_nodes()
    )
