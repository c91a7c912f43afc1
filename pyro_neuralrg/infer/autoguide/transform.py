# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One change of variables for all latents of a model: globals first, then fields given these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_neuralrg.transforms import (
    ConditionalHierarchicalFlow,
    HierarchicalFlow,
    LearnedSpectrum,
    conditional_hierarchical_flow,
    hierarchical_flow,
)
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.bijectors import BlockLayout, as_bijector
from pyro_neuralrg.transforms.elementwise import AffineTanh

__all__ = ["FieldFlow", "FieldFrame", "GlobalsFlow", "LatentFlow"]

MOST_TIED = 100
"""Globals up to which each depends on all before it, and every site and mode of the fields on each:
matrices of N x N and of sites x N entries."""

MOST_MULTIPLIED = 8
"""Globals up to which their products move the fields as well."""

STEPS = 4
"""Of the monotone map of each global variable."""


class GlobalsFlow(LatticeTransform):
    r"""A few variables: each bent by a monotone map, then tied by a triangular matrix.

    .. math:: u = m + e^s \odot L\, f(z)

    with a line plus tanh steps f_i for each variable and a unit lower triangular L (the identity
    for more than a hundred variables). At the start L is the identity and f almost so.

    Args:
        loc: m at the start, shape ``(dim,)``; also the dtype and device of all parameters.
        scale: e^s at the start.
        inner: a callable ``dim -> TransformModule`` of event shape ``(dim,)`` instead of L f, such
            as Pyro's ``spline_autoregressive``.
    """

    def __init__(
        self, loc: Tensor, scale: float, inner: Callable[[int], TransformModule] | None = None
    ) -> None:
        dim = len(loc)
        super().__init__((dim,))
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(scale)))
        self.inner: nn.Module | None = None
        if inner is not None:
            layout = BlockLayout((dim,), (1,), odd=False, boundary="periodic", per_block=False)
            self.inner = as_bijector(inner).build(layout).to(loc)
            return
        centres = torch.linspace(-1.5, 1.5, STEPS).to(loc)
        self.centre = nn.Parameter(centres.unsqueeze(-1).repeat(1, dim))
        self.raw_height = nn.Parameter(loc.new_full((STEPS, dim), -5.0))
        self.raw_steepness = nn.Parameter(loc.new_zeros(STEPS, dim))
        tied = 1 < dim <= MOST_TIED
        self.below = nn.Parameter(loc.new_zeros(dim * (dim - 1) // 2)) if tied else None

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to u, batch-last."""
        if isinstance(self.inner, LatticeTransform):
            v, ladj = self.inner.generate(h.unsqueeze(1), None)
            v = v.squeeze(1)
        else:
            v, log_slope = self._bend().forward(h)
            ladj = log_slope.sum(0)
            if self.below is not None:
                v = self._triangle() @ v
        u = self.loc.unsqueeze(-1) + self.log_scale.exp().unsqueeze(-1) * v
        return u, ladj + self.log_scale.sum()

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to z, batch-last."""
        v = (h - self.loc.unsqueeze(-1)) * (-self.log_scale).exp().unsqueeze(-1)
        if isinstance(self.inner, LatticeTransform):
            z, ladj = self.inner.renormalize(v.unsqueeze(1), None)
            return z.squeeze(1), ladj + self.log_scale.sum()
        if self.below is not None:
            v = torch.linalg.solve_triangular(self._triangle(), v, upper=False, unitriangular=True)
        z, log_slope = self._bend().inverse(v)
        return z, log_slope.sum(0) + self.log_scale.sum()

    def _bend(self) -> AffineTanh:
        """The monotone maps, steps first, variables next, the batch last."""
        height, steepness = F.softplus(self.raw_height), F.softplus(self.raw_steepness)
        zero = torch.zeros_like(self.loc).unsqueeze(-1)
        parts = (part.unsqueeze(-1) for part in (height, self.centre, steepness))
        return AffineTanh(zero, zero, *parts)

    def _triangle(self) -> Tensor:
        """L."""
        assert self.below is not None
        dim = len(self.loc)
        row, column = torch.tril_indices(dim, dim, -1, device=self.loc.device)
        identity = torch.eye(dim, dtype=self.loc.dtype, device=self.loc.device)
        return identity.index_put((row, column), self.below)


def with_products(context: Tensor) -> Tensor:
    """A context ``(dim, batch)`` and its products, if short: ``c_i c_j`` and ``c_i^2 - 1``."""
    dim = len(context)
    if not _products(dim):
        return context
    first, second = torch.triu_indices(dim, dim, device=context.device)
    same = (first == second).to(context).unsqueeze(-1)
    return torch.cat([context, context[first] * context[second] - same])


def _products(dim: int) -> int:
    return dim * (dim + 1) // 2 if dim <= MOST_MULTIPLIED else 0


class FieldFrame(LatticeTransform):
    r"""A place and a width for every site, a width for every mode of the lattice.

    .. math:: u = m + e^s \odot (A c + F^{-1} e^{b(c)} F\, v)

    for a context c. A has a row for each site; the modes of each field are scaled by factors of
    their own, whose logarithms b are linear in c
    (:class:`~pyro_neuralrg.transforms.LearnedSpectrum`): the posterior of a smooth field differs
    from its prior in some of its scales only. A and b are zero at the start.

    Args:
        loc: m at the start, of the flow's shape; also the dtype and device of all parameters.
        scale: e^s at the start.
        channels: number of fields, which divides the last side.
        context_dim: length of c; 0 for none.
        odd: m stays as it is and there is no A: u - m and its negative have the same density.
        boundary: "periodic" or "open", of the lattice.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: float,
        channels: int,
        context_dim: int,
        *,
        odd: bool,
        boundary: str,
    ) -> None:
        shape = tuple(loc.shape)
        super().__init__(shape)
        self.loc: Tensor
        if odd:
            self.register_buffer("loc", loc.clone())
        else:
            self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(scale)))
        if context_dim > MOST_TIED:  # a number for each site and global would be too many
            context_dim = 0
        moves = loc.new_zeros(*shape, context_dim + _products(context_dim))
        self.shift = nn.Parameter(moves) if context_dim and not odd else None
        self.lattice = (*shape[:-1], shape[-1] // channels)
        if self.lattice[-1] == 1 and channels > 1:  # the fields are an axis of their own
            self.lattice = self.lattice[:-1]
        self.spectra = nn.ModuleList(
            LearnedSpectrum(self.lattice, boundary, context_dim).to(loc) for _ in range(channels)
        )

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to u, batch-last."""
        w, ladj = self._by_field("generate", h, context)
        if self.shift is not None and context is not None:
            w = w + self.shift @ with_products(context)
        u = self.loc.unsqueeze(-1) + self.log_scale.exp().unsqueeze(-1) * w
        return u, ladj + self.log_scale.sum()

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to v, batch-last."""
        w = (h - self.loc.unsqueeze(-1)) * (-self.log_scale).exp().unsqueeze(-1)
        if self.shift is not None and context is not None:
            w = w - self.shift @ with_products(context)
        v, ladj = self._by_field("renormalize", w, context)
        return v, ladj + self.log_scale.sum()

    def _by_field(
        self, direction: Literal["generate", "renormalize"], h: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale the modes of each field; fields are the fastest index of the sites."""
        if len(self.spectra) == 1:
            return getattr(self.spectra[0], direction)(h, context)
        fields = h.reshape(*self.lattice, len(self.spectra), h.shape[-1]).unbind(-2)
        results = [
            getattr(spectrum, direction)(field, context)
            for spectrum, field in zip(self.spectra, fields, strict=True)
        ]
        scaled, ladjs = zip(*results, strict=True)
        return torch.stack(scaled, -2).reshape(h.shape), sum(ladjs[1:], ladjs[0])


class FieldFlow(LatticeTransform):
    r"""Fields from a hierarchical flow g(z; c) in a :class:`FieldFrame`.

    The context c is that of the globals' latents, which are standard normal. Several fields are the
    fastest index of the flow's sites: a last axis of its lattice, or part of the last one.

    Args:
        loc: of the frame.
        scale: of the frame.
        channels: number of fields, which divides the last side.
        context_dim: length of c; 0 for none.
        options: of :func:`~pyro_neuralrg.transforms.hierarchical_flow`.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: float,
        channels: int,
        context_dim: int,
        options: dict[str, Any],
    ) -> None:
        shape = tuple(loc.shape)
        super().__init__(shape)
        self.flow: HierarchicalFlow | ConditionalHierarchicalFlow
        if context_dim:
            self.flow = conditional_hierarchical_flow(shape, context_dim, **options)
        else:
            own = {name: value for name, value in options.items() if name != "features"}
            self.flow = hierarchical_flow(shape, **own)
        self.flow.to(loc)
        odd, boundary = options.get("odd", False), options.get("boundary", "periodic")
        self.frame = FieldFrame(loc, scale, channels, context_dim, odd=odd, boundary=boundary)

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to u, batch-last."""
        flow, features = self._flow_at(context)
        v, ladj = flow.generate(h, features)
        u, more = self.frame.generate(v, context)
        return u, ladj + more

    def generate_with_score(
        self,
        h: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        want_context: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to u with the score, batch-last, in one pass of the flow where it needs no other."""
        c = None if context is None else context.detach().requires_grad_()
        with torch.enable_grad():
            flow, features = self._flow_at(c)
        v, ladj, score, of_features = flow.generate_with_score(h, score, features, want_context)
        u, more, score, of_context = self.frame.generate_with_score(v, score, c, want_context)
        if c is not None and features is not None and of_features is not None:
            (pulled,) = torch.autograd.grad(features, c, of_features, retain_graph=True)
            of_context = pulled if of_context is None else of_context + pulled
        return u, (ladj + more).detach(), score, of_context

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to z, batch-last."""
        flow, features = self._flow_at(context)
        v, ladj = self.frame.renormalize(h, context)
        z, more = flow.renormalize(v, features)
        return z, ladj + more

    def _flow_at(self, context: Tensor | None) -> tuple[HierarchicalFlow, Tensor | None]:
        """The flow on the lattice and what it sees of the context, batch-last."""
        if isinstance(self.flow, HierarchicalFlow):
            return self.flow, None
        assert context is not None
        return self.flow.flow, self.flow.features(context.T).T


class LatentFlow(LatticeTransform):
    r"""All latents of a model as one vector, in the model's order.

    The Jacobian is block triangular: the globals depend on their own latents, the fields on theirs
    and on those of the globals. Hence the sum of both log-determinants.

    Args:
        sizes: length of each site's part of the vector.
        is_field: for each site.
        globals_flow: of the parts that are not fields, or None if there are none.
        field_flow: of the fields, or None.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        is_field: Sequence[bool],
        globals_flow: GlobalsFlow | None,
        field_flow: FieldFlow | None,
    ) -> None:
        super().__init__((sum(sizes),))
        self.sizes = list(sizes)
        self.is_field = list(is_field)
        self.globals_flow = globals_flow
        self.field_flow = field_flow

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to u, batch-last."""
        others, fields = self._take_apart(h)
        z = others
        ladj = h.new_zeros(h.shape[-1])
        if self.globals_flow is not None:
            others, ladj = self.globals_flow.generate(z)
        if self.field_flow is not None:
            fields, more = self.field_flow.generate(fields, z)
            ladj = ladj + more
        return self._put_together(others, fields), ladj

    def generate_with_score(
        self,
        h: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        want_context: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to u with the score, batch-last: that of the globals has what the fields tell of them.

        With u = (G(z), F(z'; z)): ln q(u) = ln q_G(G(z)) + ln q_F(u'; z), so that the gradient of
        the second in z joins that of ln N(z) before it goes through G.
        """
        others, fields = self._take_apart(h)
        score, of_fields = self._take_apart(score)
        z, ladj = others, h.new_zeros(h.shape[-1])
        if self.field_flow is not None:
            fields, ladj, of_fields, of_globals = self.field_flow.generate_with_score(
                fields, of_fields, z, want_context=True
            )
            if of_globals is not None:
                score = score + of_globals
        if self.globals_flow is not None:
            others, more, score, _ = self.globals_flow.generate_with_score(z, score)
            ladj = ladj + more
        joined = self._put_together(score, of_fields)
        return self._put_together(others, fields), ladj.detach(), joined, None

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to z, batch-last."""
        others, fields = self._take_apart(h)
        ladj = h.new_zeros(h.shape[-1])
        if self.globals_flow is not None:
            others, ladj = self.globals_flow.renormalize(others)
        if self.field_flow is not None:
            fields, more = self.field_flow.renormalize(fields, others)
            ladj = ladj + more
        return self._put_together(others, fields), ladj

    def _take_apart(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The globals ``(dim, batch)`` and the fields ``(*flow shape, batch)``."""
        parts = list(zip(h.split(self.sizes), self.is_field, strict=True))
        others = [part for part, is_field in parts if not is_field]
        fields = [part for part, is_field in parts if is_field]
        batch = h.shape[-1]
        stacked = torch.stack(fields, 1) if fields else h.new_zeros(0, batch)
        if self.field_flow is not None:
            stacked = stacked.reshape(*self.field_flow.event_shape, batch)
        return torch.cat(others) if others else h.new_zeros(0, batch), stacked

    def _put_together(self, others: Tensor, fields: Tensor) -> Tensor:
        """Undo :meth:`_take_apart`."""
        batch, channels = others.shape[-1], sum(self.is_field)
        columns = iter(fields.reshape(-1, channels, batch).unbind(1) if channels else ())
        sizes = [s for s, field in zip(self.sizes, self.is_field, strict=True) if not field]
        rest = iter(others.split(sizes) if sizes else ())
        return torch.cat([next(columns if field else rest) for field in self.is_field])
