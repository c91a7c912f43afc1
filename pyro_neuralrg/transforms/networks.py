# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Networks of the couplings: from the sites held fixed to a map for each of the others.

A network maps a batch-last tensor ``(inputs, ..., n)`` to an increasing map
(:mod:`~pyro_neuralrg.transforms.elementwise`) of tensors ``(outputs, ..., n)``. An *odd* one has an
odd shift and an even log-scale, so that a coupling built on it commutes with x -> -x. One with
``context_dim`` also takes features of a context, ``(context_dim, n)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_neuralrg.transforms.elementwise import Affine, AffineSteps, Elementwise

__all__ = [
    "ACTIVATIONS",
    "BlockNetwork",
    "ContextLayer",
    "NeighbourNetwork",
    "SiteBias",
    "with_weights",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": nn.functional.elu,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}
LOG_SCALE_BOUND = 2.0
SMALL = 1e-2  # weights of the last layer at the start: couplings begin close to the identity
# Of steps at the start, the heights of one map added up.
STEP_HEIGHT, STEP_STEEPNESS = 0.03, 0.7
# Flat steps would learn slowly. Gap at L = 8, Tc after 1600 training steps, one seed each: 0.093
# nats without, 0.070 with a gain of 4, 0.057 of 10.
HEIGHT_GAIN = 10.0


class ContextLayer(nn.Module):
    """What a context does to the units of a layer: ``h (1 + gain) + bias``, both linear in it.

    The gain alone keeps odd functions odd. It begins as the identity.

    Args:
        context_dim: number of features.
        units: shape of the units.
        odd: no bias.

    References:
        Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, AAAI (2018).
    """

    def __init__(self, context_dim: int, units: tuple[int, ...], odd: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(*units, context_dim))
        self.bias = None if odd else nn.Parameter(torch.zeros(*units, context_dim))

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        """From units ``(*units, sites * n)`` and a context ``(context_dim, n)``, or None."""
        if context is None:
            return h
        n = context.shape[-1]
        rows = h.unflatten(-1, (h.shape[-1] // max(1, n), n))
        rows = rows * (1 + (self.gain @ context).unsqueeze(-2))
        if self.bias is not None:
            rows = rows + (self.bias @ context).unsqueeze(-2)
        return rows.flatten(-2)


class SiteBias(nn.Module):
    """Biases that differ from block to block, linear in fixed features of a block's neighbourhood.

    They begin as zero, and cost next to nothing: no batch passes through them.

    Args:
        features: of the blocks, shape ``(number, *count)``.
        units: for each layer that gets biases the number of its units.
        boundary: as for :class:`NeighbourNetwork`.
    """

    features: Tensor
    merge: Tensor | None

    def __init__(self, features: Tensor, units: Sequence[int], boundary: str) -> None:
        super().__init__()
        number, *count = features.shape
        self.boundary = boundary
        self.units = list(units)
        self.register_buffer("features", features.clone(), persistent=False)
        self.register_buffer("merge", _merging(number, count, boundary), persistent=False)
        self.weight = nn.Parameter(torch.zeros(sum(units), number * 3 ** len(count)))

    def forward(self) -> tuple[Tensor, ...]:
        """For each layer biases of shape ``(units, blocks, 1)``."""
        near = _neighbours(self.features.unsqueeze(-1), self.boundary).flatten(1)
        weight = self.weight if self.merge is None else self.weight @ self.merge
        return (weight @ near).unsqueeze(-1).split(self.units)


class BlockNetwork(nn.Module):
    """The paper's s- and t-networks on one block, evaluated together; s ends in a scaled tanh.

    Args:
        inputs: number of sites held fixed.
        outputs: number of sites to move.
        hidden: widths of the hidden layers.
        activation: one of ``ACTIVATIONS``.
        odd: evaluate at u and -u and keep the odd part of the shift, the even part of the
            log-scale.
        context_dim: features of a context; 0 for none.

    All parameters are one vector, ``packed``: a flow has so many small networks that the handling
    of separate matrices and biases would cost more than the networks.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        activation: str,
        odd: bool,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.odd = odd
        self.activation = ACTIVATIONS[activation]
        self._layers = list(itertools.pairwise([inputs, *hidden, outputs]))
        size = sum(shape.numel() for shape in self._shapes())
        self.packed = nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            for weight, (before, _) in zip(self.weights, self._layers, strict=True):
                weight.uniform_(-1, 1).div_(math.sqrt(before))
            self.weights[-1].mul_(SMALL)
            self.log_scale_bound.fill_(1.0)
        self.contexts = _context_layers(context_dim, [(2, n) for _, n in self._layers], False)

    @property
    def weights(self) -> list[Tensor]:
        """For each layer the matrices of s and t, ``(2, after, before)``, as views."""
        return self._views()[: len(self._layers)]

    @property
    def biases(self) -> list[Tensor]:
        """For each layer the biases of s and t, ``(2, after, 1)``, as views."""
        return self._views()[len(self._layers) : -1]

    @property
    def log_scale_bound(self) -> Tensor:
        """The factors of the scaled tanh, ``(outputs, 1)``, as a view."""
        return self._views()[-1]

    def _shapes(self) -> list[torch.Size]:
        """Of weights, biases and the factors of the tanh: the order in which they are packed."""
        weights = [(2, after, before) for before, after in self._layers]
        biases = [(2, after, 1) for _, after in self._layers]
        return [torch.Size(shape) for shape in (*weights, *biases, (self._layers[-1][1], 1))]

    def _views(self) -> list[Tensor]:
        shapes = self._shapes()
        pieces = self.packed.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def forward(self, u: Tensor, context: Tensor | None = None) -> Affine:
        """Map ``(inputs, n)`` to affine maps of tensors ``(outputs, n)``."""
        if not self.odd:
            return Affine(*self._evaluate(u, context))
        if context is not None:
            context = torch.cat([context, context], dim=-1)
        shift, log_scale = self._evaluate(torch.cat([u, -u], dim=-1), context)
        (up, down), (scale_up, scale_down) = shift.chunk(2, -1), log_scale.chunk(2, -1)
        return Affine(0.5 * (up - down), 0.5 * (scale_up + scale_down))

    def _evaluate(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        h = u.expand(2, *u.shape)
        *views, bound = self._views()
        depth = len(self._layers)
        *hidden, (weight, bias) = zip(views[:depth], views[depth:], strict=True)
        for index, (matrix, offset) in enumerate(hidden):
            h = torch.baddbmm(offset, matrix, h)
            h = self.activation(_with_context(self.contexts, index, h, context))
        out = _with_context(self.contexts, -1, torch.baddbmm(bias, weight, h), context)
        log_scale, shift = out.unbind(0)
        return shift, bound * torch.tanh(log_scale)


def with_weights(network: BlockNetwork, row: Tensor) -> Callable[..., Affine]:
    """The network as a function of u, with ``row`` in the place of its packed parameters."""
    return lambda *inputs: torch.func.functional_call(network, {"packed": row}, inputs)


class NeighbourNetwork(nn.Module):
    """A convolution over the 3^d neighbouring blocks, pointwise layers, parameters of a map.

    With ``odd`` there are no biases before the nonlinearities (tanh): the hidden units h are odd
    functions of the input. Shift and centres of steps are linear in h, log-scale and heights are
    functions of h^2; the steepness of each step is a learned constant.

    Args:
        inputs: number of sites of a block held fixed.
        outputs: number of sites to move.
        count: blocks along each axis.
        hidden: widths of the hidden layers.
        steps: tanh steps of the map, 0 for an affine one.
        odd: as above.
        boundary: "periodic" wraps around, "open" sees zeros outside.
        context_dim: features of a context; 0 for none.
        features: known of the blocks, shape ``(number, *count)``, or None; see :class:`SiteBias`.
    """

    merge: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        count: Sequence[int],
        hidden: Sequence[int],
        steps: int,
        odd: bool,
        boundary: str,
        context_dim: int = 0,
        features: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.odd = odd
        self.boundary = boundary
        self.register_buffer("merge", _merging(inputs, count, boundary), persistent=False)
        widths = [inputs * 3 ** len(count), *hidden]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(after, before) / math.sqrt(before))
            for before, after in itertools.pairwise(widths)
        )
        small, heads = SMALL / math.sqrt(widths[-1]), (1 + steps) * outputs
        self.place = nn.Parameter(small * torch.randn(heads, widths[-1]))  # shift, centres
        self.form = nn.Parameter(small * torch.randn(heads, widths[-1]))  # log-scale, heights
        # at the start the slopes of the line and of its steps add up to 1
        log_scale = math.log(1 - STEP_HEIGHT * STEP_STEEPNESS) if steps else 0.0
        bias = torch.full((heads, 1), math.atanh(log_scale / LOG_SCALE_BOUND))
        bias[outputs:] = _inverse_softplus(STEP_HEIGHT / max(1, steps)) / HEIGHT_GAIN
        self.form_bias = nn.Parameter(bias)
        steepness = torch.full((steps, outputs), _inverse_softplus(STEP_STEEPNESS))
        self.raw_steepness = nn.Parameter(steepness) if steps else None
        biases = [] if odd else [*hidden, heads]
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width, 1)) for width in biases)
        self.contexts = _context_layers(context_dim, [(n,) for n in (*hidden, heads)], odd)
        self.form_contexts = _context_layers(context_dim, [(heads,)], False)
        units = [hidden[0], heads, heads]
        self.sites = None if features is None else SiteBias(features, units, boundary)

    def forward(self, u: Tensor, context: Tensor | None = None) -> Elementwise:
        """Map ``(inputs, *count, n)`` to maps of tensors ``(outputs, *count, n)``."""
        biases = (None, None, None) if self.sites is None else self.sites()
        h = self._hidden(u, context, biases[0])
        place = self.place @ h if self.odd else torch.addmm(self.biases[-1], self.place, h)
        form = torch.addmm(self.form_bias, self.form, h * h if self.odd else h)
        place = _with_context(self.contexts, -1, _at_sites(place, biases[1]), context)
        form = _with_context(self.form_contexts, 0, _at_sites(form, biases[2]), context)
        steps = 0 if self.raw_steepness is None else len(self.raw_steepness)
        shift, *centres = place.unflatten(1, u.shape[1:]).chunk(1 + steps)
        log_scale, *heights = form.unflatten(1, u.shape[1:]).chunk(1 + steps)
        log_scale = LOG_SCALE_BOUND * torch.tanh(log_scale)
        if self.raw_steepness is None:
            return Affine(shift, log_scale)
        height = F.softplus(HEIGHT_GAIN * torch.stack(heights))
        ones = [1] * (u.dim() - 1)
        steepness = F.softplus(self.raw_steepness).reshape(*self.raw_steepness.shape, *ones)
        return AffineSteps(shift, log_scale, height, torch.stack(centres), steepness)

    def _hidden(
        self, u: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The last hidden layer, ``(width, sites * n)``."""
        h = _neighbours(u, self.boundary).flatten(1)
        for index, weight in enumerate(self.weights):
            if index == 0 and self.merge is not None:
                weight = weight @ self.merge
            h = weight @ h if self.odd else torch.addmm(self.biases[index], weight, h)
            h = _at_sites(h, bias if index == 0 else None)
            h = torch.tanh(_with_context(self.contexts, index, h, context))
        return h


def _neighbours(u: Tensor, boundary: str) -> Tensor:
    """The distinct values of neighbouring blocks, ``(inputs * number, *count, n)``."""
    for axis in range(1, u.dim() - 1):
        side = u.shape[axis]
        if side == 1:
            continue
        if boundary == "open":
            outside = torch.zeros_like(u.narrow(axis, 0, 1))
            before = torch.cat([outside, u.narrow(axis, 0, side - 1)], dim=axis)
            after = torch.cat([u.narrow(axis, 1, side - 1), outside], dim=axis)
            u = torch.cat([before, u, after])
        elif side == 2:
            u = torch.cat([u, u.roll(1, axis)])
        else:
            u = torch.cat([u.roll(1, axis), u, u.roll(-1, axis)])
    return u


def _at_sites(h: Tensor, bias: Tensor | None) -> Tensor:
    """Units ``(units, blocks * n)`` with a bias ``(units, blocks, 1)``, if there is one."""
    if bias is None:
        return h
    blocks = bias.shape[1]
    return (h.unflatten(-1, (blocks, h.shape[-1] // blocks)) + bias).flatten(1)


def _context_layers(
    context_dim: int, units: Sequence[tuple[int, ...]], odd: bool
) -> nn.ModuleList | None:
    """One for each layer, or None without a context."""
    if not context_dim:
        return None
    return nn.ModuleList(ContextLayer(context_dim, shape, odd) for shape in units)


def _with_context(
    layers: nn.ModuleList | None, index: int, h: Tensor, context: Tensor | None
) -> Tensor:
    return h if layers is None else layers[index](h, context)


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def _merging(inputs: int, count: Sequence[int], boundary: str) -> Tensor | None:
    """Adds up the columns of weights whose neighbours are one and the same, or outside; or None.

    The weights have one column for each of the 3^d neighbours on lattices of any size, so that
    layers of different scales can share them.
    """
    kept = torch.eye(inputs)
    for side in count:
        if side == 1:
            axis = torch.tensor([[0.0], [1.0], [0.0]]) if boundary == "open" else torch.ones(3, 1)
        elif side == 2 and boundary == "periodic":
            axis = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        else:
            axis = torch.eye(3)
        kept = torch.kron(axis, kept)
    return None if kept.shape[0] == kept.shape[1] else kept
