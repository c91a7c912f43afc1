# SPDX-License-Identifier: Apache-2.0
"""One change of variables for all latents of a model: globals first, then fields given these."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import (
    ConditionalHierarchicalFlow,
    HierarchicalFlow,
    LearnedSpectrum,
    Neighbour,
    conditional_hierarchical_flow,
)
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.bijectors import BlockLayout, as_bijector
from pyro_neuralrg.transforms.elementwise import SinhArcsinh

MAX_DENSE_GLOBALS = 100
"""Globals up to which each depends on all before it, and every site and mode of the fields on each:
matrices of N x N and of sites x N entries."""

MAX_MULTIPLIED_GLOBALS = 8
"""Globals up to which their products move the fields as well."""

FAN_IN = 5.0
"""Inputs of a linear map from which on its entries act in proportion to 1 / inputs."""

PLACE_RESPONSE, WIDTH_RESPONSE, SHIFT_RESPONSE = 0.25, 0.1, 0.1
"""Factors between parameters and places, logarithms of widths and what places owe to the globals.
A step of Adam at 1e-2 goes at random where a gradient is noise: by responses of 1, 1/2 and 1, and
couplings four times as strong, 800 steps ended 0.1 to 0.4 nats lower on six models of seven, on
four of them below where they had begun."""

NARROW_PACE = 4.0
"""Factor of places and widths of sites where a guide begins in a narrow Gaussian, far away."""

MAX_RESPONSE = 0.05
"""Response of two couplings of eight units. By 0.2 a step of Adam at 1e-2 moved draws of twenty
models by at most 0.05 standard deviations and ln|det| by 1.6 nats; now by 0.04, of globals, and by
0.3 nats."""

SUMMED_RESPONSE = 1.0
"""Response times the weights behind one output, added up over all couplings that move a site."""


def flow_options(lattice: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a guide's :class:`FieldFlow`: those given, else defaults with small steps."""
    options = {
        "circuit": "tree",
        "depth": 1,
        "bijector": Neighbour(layers=2, hidden=(8,), num_tanh=0),
        "boundary": "open",
        "features": 8,
        **given,
    }
    bijector = as_bijector(options["bijector"])
    if isinstance(bijector, Neighbour) and bijector.response == 1:
        kept = {name: options[name] for name in ("block", "depth") if name in options}
        circuit = make_circuit(options["circuit"], lattice, **kept)
        passes = 0.5 * bijector.layers * len(circuit.layers)
        weights = 1 + bijector.hidden[-1]
        response = min(MAX_RESPONSE, SUMMED_RESPONSE / (passes * weights))
        options["bijector"] = replace(bijector, response=response)
    return options


def check_flow_options(options: Mapping[str, Any]) -> None:
    """Refuse options that no :class:`FieldFlow` takes, before the model is known."""
    makers = HierarchicalFlow, HierarchicalFlow.build, conditional_hierarchical_flow
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    known -= {"shape", "dtype", "base", "components", "context_dim", "options"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"unknown options {unknown}; accepted: {', '.join(sorted(known))}")


class GaussianFrame(LatticeTransform):
    r"""The fixed affine map :math:`u = m + C v`, where a guide begins; a vector C is diagonal."""

    mean: Tensor
    factor: Tensor
    log_det: Tensor

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__((len(mean),))
        if factor.dim() == 1:
            log_det = factor.double().log().sum()
        else:
            log_det = torch.linalg.slogdet(factor.double()).logabsdet
        self.register_buffer("mean", mean.clone())
        self.register_buffer("factor", factor.clone())
        self.register_buffer("log_det", log_det.to(mean))
        self._inverse_of: Any = None  # C, its version and its inverse

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """A guide may have begun with a matrix, and another of the same model with widths."""
        state, prefix = args[:2]
        factor = state.get(f"{prefix}factor")
        of_any_kind = isinstance(factor, Tensor) and set(factor.shape) == set(self.event_shape)
        if of_any_kind and factor.dim() != self.factor.dim():
            self.factor = self.factor.new_empty(factor.shape)
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to u, batch-last."""
        moved = self.factor @ h if self.factor.dim() == 2 else self.factor[:, None] * h
        return self.mean[:, None] + moved, self.log_det.expand(h.shape[-1])

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to v, batch-last."""
        moved = h - self.mean[:, None]
        v = self._inverse() @ moved if self.factor.dim() == 2 else moved / self.factor[:, None]
        return v, self.log_det.expand(h.shape[-1])

    def _inverse(self) -> Tensor:  # type: ignore[override]
        """C^-1, computed in float64 and remembered."""
        known, version = self._inverse_of, self.factor._version
        if known is None or known[0] is not self.factor or known[1] != version:
            with torch.no_grad(), torch.inference_mode(False):
                inverse = torch.linalg.inv(self.factor.double()).to(self.factor)
            known = self._inverse_of = self.factor, version, inverse
        return known[2]


class Bend(nn.Module):
    """A :class:`SinhArcsinh` for each variable, the identity at the start."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.skew = nn.Parameter(torch.zeros_like(like))
        self.log_tail = nn.Parameter(torch.zeros_like(like))

    def forward(self) -> SinhArcsinh:
        """The maps, for batch-last variables."""
        return SinhArcsinh(self.skew.unsqueeze(-1), WIDTH_RESPONSE * self.log_tail.unsqueeze(-1))


def with_products(context: Tensor) -> Tensor:
    """A context ``(dim, batch)`` and its products, if short: ``c_i c_j`` and ``c_i^2 - 1``."""
    dim = len(context)
    if not _products(dim):
        return context
    first, second = torch.triu_indices(dim, dim, device=context.device)
    same = (first == second).to(context).unsqueeze(-1)
    return torch.cat([context, context[first] * context[second] - same])


def _squares(products: int) -> Tensor:
    """Which of the products are squares, by whose mean of one they stand lower."""
    dim = math.isqrt(2 * products)
    first, second = torch.triu_indices(dim, dim)
    return first == second


def _products(dim: int) -> int:
    return dim * (dim + 1) // 2 if dim <= MAX_MULTIPLIED_GLOBALS else 0


def _shift_response(terms: int) -> float:
    return SHIFT_RESPONSE * min(1.0, FAN_IN / terms)


class FieldFrame(LatticeTransform):
    r"""A place and a width for every site, a width for every mode of the lattice.

    .. math:: w = m + A c + e^s \odot F^{-1} e^{b(c)} F\, f(v)

    for a context c. Each site has a map f_i that skews it and weighs its tails
    (:class:`~pyro_neuralrg.transforms.elementwise.SinhArcsinh`), the modes of each field have
    widths whose logarithms b are linear in c (:class:`~pyro_neuralrg.transforms.LearnedSpectrum`).
    The identity at the start. Several fields (``channels``) are the fastest index of the sites.
    With ``odd`` w and its negative have the same density: there is no m, no A and no f. m, A, s and
    b are parameters times their responses, m and s also times ``pace``: more of a frame that begins
    ``narrow``, which has farther to go.
    """

    pace: Tensor

    def __init__(
        self,
        like: Tensor,
        channels: int,
        context_dim: int,
        *,
        odd: bool,
        boundary: str,
        narrow: bool = False,
    ) -> None:
        shape = tuple(like.shape)
        super().__init__(shape)
        self.register_buffer("pace", like.new_tensor(NARROW_PACE if narrow else 1.0))
        self.loc = None if odd else nn.Parameter(torch.zeros_like(like))
        self.log_scale = nn.Parameter(torch.zeros_like(like))
        self.bend = None if odd else Bend(like)
        if context_dim > MAX_DENSE_GLOBALS:  # a number for each site and global would be too many
            context_dim = 0
        moves = like.new_zeros(*shape, context_dim + _products(context_dim))
        self.shift = nn.Parameter(moves) if context_dim and not odd else None
        self.lattice = (*shape[:-1], shape[-1] // channels)
        if self.lattice[-1] == 1 and channels > 1:  # the fields are an axis of their own
            self.lattice = self.lattice[:-1]
        self.spectra = nn.ModuleList(
            LearnedSpectrum(self.lattice, boundary, context_dim, response=WIDTH_RESPONSE).to(like)
            for _ in range(channels)
        )

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to w, batch-last."""
        v, bent = (h, None) if self.bend is None else self.bend().forward(h)
        w, ladj = self._by_field("forward", v, context)
        if bent is not None:
            ladj = ladj + bent.flatten(0, -2).sum(0)
        log_scale = WIDTH_RESPONSE * self.pace * self.log_scale
        w = log_scale.exp().unsqueeze(-1) * w
        return w if self.loc is None else self._place(context) + w, ladj + log_scale.sum()

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """w to v, batch-last."""
        log_scale = WIDTH_RESPONSE * self.pace * self.log_scale
        w = h if self.loc is None else h - self._place(context)
        v, ladj = self._by_field("inverse", w * (-log_scale).exp().unsqueeze(-1), context)
        if self.bend is not None:
            v, bent = self.bend().inverse(v)
            ladj = ladj + bent.flatten(0, -2).sum(0)
        return v, ladj + log_scale.sum()

    def _place(self, context: Tensor | None) -> Tensor:
        """m + A c, batch-last."""
        assert self.loc is not None
        place = PLACE_RESPONSE * self.pace * self.loc.unsqueeze(-1)
        if self.shift is None or context is None:
            return place
        terms = with_products(context)
        return place + _shift_response(len(terms)) * (self.shift @ terms)

    @torch.no_grad()
    def begin(
        self, log_modes: Tensor | None, slopes: Tensor | None = None, curve: Tensor | None = None
    ) -> None:
        """Take the widths of the modes and how these and the place follow the context.

        ``log_modes``, ``slopes`` and ``curve`` are as of a ``CurvedGaussian``; None is none.
        """
        for channel, spectrum in enumerate(self.spectra):
            assert isinstance(spectrum, LearnedSpectrum)
            shape = spectrum.log_scale.shape
            if log_modes is not None:
                spectrum.log_scale.copy_(log_modes[channel].reshape(shape) / WIDTH_RESPONSE)
            if slopes is not None and spectrum.slopes is not None:
                values = slopes[:, channel].reshape(-1, *shape)
                spectrum.slopes.copy_(values / WIDTH_RESPONSE)
        if curve is not None and self.shift is not None and self.loc is not None:
            squares, terms = _squares(curve.shape[-1]), self.shift.shape[-1]
            place = curve[:, squares].sum(-1).reshape(self.loc.shape)
            self.loc.copy_(place / (PLACE_RESPONSE * self.pace))
            of_products = self.shift[..., terms - curve.shape[-1] :]
            of_products.copy_(curve.reshape(of_products.shape) / _shift_response(terms))

    def _by_field(
        self, direction: Literal["forward", "inverse"], h: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale the modes of each field."""
        fields = h.reshape(*self.lattice, len(self.spectra), h.shape[-1]).unbind(-2)
        results = [
            getattr(spectrum, direction)(field, context)
            for spectrum, field in zip(self.spectra, fields, strict=True)
        ]
        scaled, ladjs = zip(*results, strict=True)
        return torch.stack(scaled, -2).reshape(h.shape), sum(ladjs[1:], ladjs[0])


class GlobalsFlow(LatticeTransform):
    r"""A few variables: each bent by a monotone map, then tied by a triangular matrix.

    .. math:: v = m + e^s \odot L\, f(z)

    with a :class:`~pyro_neuralrg.transforms.elementwise.SinhArcsinh` f_i for each variable and a
    unit lower triangular L (the identity for more than a hundred variables), or with ``inner``, a
    callable ``dim -> TransformModule`` such as Pyro's ``spline_autoregressive``, in place of L f.
    The identity at the start.
    """

    def __init__(self, like: Tensor, inner: Callable[[int], TransformModule] | None = None) -> None:
        dim = len(like)
        super().__init__((dim,))
        self.loc = nn.Parameter(torch.zeros_like(like))
        self.log_scale = nn.Parameter(torch.zeros_like(like))
        self.inner: nn.Module | None = None
        if inner is not None:
            layout = BlockLayout((dim,), (1,), odd=False, boundary="periodic", per_block=False)
            self.inner = as_bijector(inner).build(layout).to(like)
            return
        self.bend = Bend(like)
        tied = 1 < dim <= MAX_DENSE_GLOBALS
        self.below = nn.Parameter(like.new_zeros(dim * (dim - 1) // 2)) if tied else None

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to v, batch-last."""
        if isinstance(self.inner, LatticeTransform):
            v, ladj = self.inner.forward(h.unsqueeze(1), None)
            v = v.squeeze(1)
        else:
            v, log_slope = self.bend().forward(h)
            ladj = log_slope.sum(0)
            if self.below is not None:
                v = self._triangle() @ v
        u = self.loc.unsqueeze(-1) + self.log_scale.exp().unsqueeze(-1) * v
        return u, ladj + self.log_scale.sum()

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to z, batch-last."""
        v = (h - self.loc.unsqueeze(-1)) * (-self.log_scale).exp().unsqueeze(-1)
        if isinstance(self.inner, LatticeTransform):
            z, ladj = self.inner.inverse(v.unsqueeze(1), None)
            return z.squeeze(1), ladj + self.log_scale.sum()
        if self.below is not None:
            v = torch.linalg.solve_triangular(self._triangle(), v, upper=False, unitriangular=True)
        z, log_slope = self.bend().inverse(v)
        return z, log_slope.sum(0) + self.log_scale.sum()

    def _triangle(self) -> Tensor:
        """L."""
        assert self.below is not None
        dim = len(self.loc)
        row, column = torch.tril_indices(dim, dim, -1, device=self.loc.device)
        identity = torch.eye(dim, dtype=self.loc.dtype, device=self.loc.device)
        return identity.index_put((row, column), self.below * min(1.0, FAN_IN / dim))


class FieldFlow(LatticeTransform):
    r"""Fields from a hierarchical flow g(z; c) in a :class:`FieldFrame`, c the globals' latents.

    Several fields (``channels``) are the fastest index of the flow's sites. ``narrow`` is as of
    that frame.
    """

    def __init__(
        self,
        like: Tensor,
        channels: int,
        context_dim: int,
        options: Mapping[str, Any],
        *,
        narrow: bool = False,
    ) -> None:
        shape = tuple(like.shape)
        super().__init__(shape)
        self.flow: HierarchicalFlow | ConditionalHierarchicalFlow
        if context_dim:
            self.flow = conditional_hierarchical_flow(shape, context_dim, **options)
        else:
            own = {name: value for name, value in options.items() if name != "features"}
            self.flow = HierarchicalFlow.build(shape, **own)
        self.flow.to(like)
        odd, boundary = options.get("odd", False), options.get("boundary", "periodic")
        self.frame = FieldFrame(
            like, channels, context_dim, odd=odd, boundary=boundary, narrow=narrow
        )

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to u, batch-last."""
        flow, features = self._flow_at(context)
        v, ladj = flow.forward(h, features)
        u, more = self.frame.forward(v, context)
        return u, ladj + more

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to u with the score, batch-last, in one pass of the flow where it needs no other."""
        c = None if context is None else context.detach().requires_grad_()
        with torch.enable_grad():
            flow, features = self._flow_at(c)
        v, ladj, score, of_features = flow.push_score(h, score, features, want_context)
        u, more, score, of_context = self.frame.push_score(v, score, c, want_context)
        if c is not None and features is not None and of_features is not None:
            (pulled,) = torch.autograd.grad(features, c, of_features, retain_graph=True)
            of_context = pulled if of_context is None else of_context + pulled
        return u, (ladj + more).detach(), score, of_context

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to z, batch-last."""
        flow, features = self._flow_at(context)
        v, ladj = self.frame.inverse(h, context)
        z, more = flow.inverse(v, features)
        return z, ladj + more

    def _flow_at(self, context: Tensor | None) -> tuple[HierarchicalFlow, Tensor | None]:
        """The flow on the lattice and what it sees of the context, batch-last."""
        if isinstance(self.flow, HierarchicalFlow):
            return self.flow, None
        assert context is not None
        return self.flow.flow, self.flow.features(context.T).T


class LatentFlow(LatticeTransform):
    r"""All latents of a model as one vector, in the model's order.

    .. math:: u = m + C\, (v, w), \qquad v = G(z), \quad w = F(z'; z)

    with globals v, fields w and the frame m, C, globals first. The Jacobian of G and F is
    block triangular, so that log-determinants add up. ``order`` is that of :class:`LatentOrder`.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        order: Tensor,
        frame: GaussianFrame,
        globals_flow: GlobalsFlow | None,
        field_flow: FieldFlow | None,
    ) -> None:
        super().__init__((len(order),))
        order = order.to(frame.mean.device)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.frame = frame
        self.globals_flow = globals_flow
        self.field_flow = field_flow
        self.globals_dim = 0 if globals_flow is None else globals_flow.event_shape[0]

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to u, batch-last."""
        others, fields = self._take_apart(h.index_select(0, self.order))
        z = others
        ladj = h.new_zeros(h.shape[-1])
        if self.globals_flow is not None:
            others, ladj = self.globals_flow.forward(z)
        if self.field_flow is not None:
            fields, more = self.field_flow.forward(fields, z)
            ladj = ladj + more
        u, more = self.frame.forward(torch.cat([others, fields.flatten(0, -2)]))
        return u.index_select(0, self.back), ladj + more

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to u with the score, batch-last.

        With (v, w) = (G(z), F(z'; z)): ln q = ln q_G(G(z)) + ln q_F(w; z), so that the gradient of
        the second in z joins that of ln N(z) before it goes through G.
        """
        others, fields = self._take_apart(h.index_select(0, self.order))
        score, of_fields = self._take_apart(score.index_select(0, self.order))
        z, ladj = others, h.new_zeros(h.shape[-1])
        if self.field_flow is not None:
            flow = self.field_flow
            fields, ladj, of_fields, of_globals = flow.push_score(fields, of_fields, z, True)
            score = score if of_globals is None else score + of_globals
        if self.globals_flow is not None:
            others, more, score, _ = self.globals_flow.push_score(z, score)
            ladj = ladj + more
        v = torch.cat([others, fields.flatten(0, -2)])
        score = torch.cat([score, of_fields.flatten(0, -2)])
        u, more, score, _ = self.frame.push_score(v, score)
        ladj = (ladj + more).detach()
        return u.index_select(0, self.back), ladj, score.index_select(0, self.back), None

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to z, batch-last."""
        v, ladj = self.frame.inverse(h.index_select(0, self.order))
        others, fields = self._take_apart(v)
        if self.globals_flow is not None:
            others, more = self.globals_flow.inverse(others)
            ladj = ladj + more
        if self.field_flow is not None:
            fields, more = self.field_flow.inverse(fields, others)
            ladj = ladj + more
        z = torch.cat([others, fields.flatten(0, -2)])
        return z.index_select(0, self.back), ladj

    def _take_apart(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The globals ``(dim, batch)`` and the fields ``(*flow shape, batch)``."""
        others, fields = h.split([self.globals_dim, len(h) - self.globals_dim])
        if self.field_flow is not None:
            fields = fields.reshape(*self.field_flow.event_shape, h.shape[-1])
        return others, fields


class SharedAmongDraws(Transform):
    """A flow with one draw's share of ln |det|, which ``NeuTraReparam`` adds for each draw."""

    bijective = True

    def __init__(self, flow: LatentFlow, draws: int) -> None:
        super().__init__()
        self.flow = flow
        self.draws = draws
        self.domain, self.codomain = flow.domain, flow.codomain

    def _call(self, x: Tensor) -> Tensor:
        return self.flow(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.flow.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The share of each draw."""
        return self.flow.log_abs_det_jacobian(x, y) / self.draws
