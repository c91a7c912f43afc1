# SPDX-License-Identifier: Apache-2.0
"""Networks of the couplings: from the sites held fixed to an increasing map for each of the others.

The network of a coupling has hidden layers and two linear heads: ``place`` gives shift and centres,
``form`` log-scales and heights of the map (:mod:`~pyro_neuralrg.transforms.elementwise`). The
parameters of a stack of couplings are one vector, ``packed``, since the handling of hundreds of
small matrices would cost more than the networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_neuralrg.compiled import HEIGHT_GAIN
from pyro_neuralrg.transforms.elementwise import Affine, AffineTanh, Elementwise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": nn.functional.elu,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}
SMALL = 1e-2  # weights of the heads at the start: couplings begin close to the identity
TERM_HEIGHT, TERM_STEEPNESS = 0.03, 0.7  # at the start; the heights of one map added up


@dataclass(frozen=True)
class NetworkOptions:
    """Options that all networks of a flow share.

    Attributes:
        hidden: widths of the hidden layers.
        activation: one of ``ACTIVATIONS``.
        terms: tanh terms of each map, 0 for an affine one.
        odd: the maps commute with x -> -x. Tanh networks then have no biases in hidden layers and
            ``place``, whose units site features scale instead, and ``form`` is linear in the
            squares of hidden units; separate ones give the odd part of the shift and the even part
            of the log-scale, evaluated twice.
        separate: log-scale and shift come from two networks of the given widths, and the bounds of
            the log-scales are learned (the paper's s and t).
        response: factor between a parameter and what a network that is not separate makes of it.
            Below 1 the maps are the identity at the start but for their terms.
        max_log_scale: bound of each log-scale, of networks that are not separate.
    """

    hidden: tuple[int, ...]
    activation: str = "tanh"
    terms: int = 0
    odd: bool = False
    separate: bool = False
    response: float = 1.0
    max_log_scale: float = 2.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of the hidden layers, those of two networks together."""
        return tuple((2 if self.separate else 1) * width for width in self.hidden)

    @property
    def is_odd_by_form(self) -> bool:
        """True if there are no biases but those of ``form``, which sees squares."""
        return self.odd and not self.separate

    def heads(self, moved: int) -> int:
        """Outputs of each head."""
        return (1 + self.terms) * moved

    def units(self, moved: int) -> int:
        """Units of one network, heads included: what site features and a context act on."""
        return sum(self.widths) + 2 * self.heads(moved)

    def size(self, inputs: int, moved: int) -> int:
        """Length of the arrays of one network."""
        return sum(math.prod(shape) for shape in self.shapes(inputs, moved))

    def shapes(self, inputs: int, moved: int) -> list[tuple[int, ...]]:
        """Shapes of the arrays of one network, as compiled.program.Weights lists them."""
        heads = self.heads(moved)
        widths = [inputs, *self.widths]
        layers = [*itertools.pairwise(widths), (widths[-1], heads), (widths[-1], heads)]
        pairs = [((after, before), (after,)) for before, after in layers]
        return [*itertools.chain.from_iterable(pairs), (self.terms, moved), (moved,)]


class Packing:
    """The places of the packed parameters of a stack of couplings, and their values at the start.

    Args:
        options: of the networks.
        sizes: sites held fixed and sites moved, of each coupling.
        offsets: of neighbours, as :func:`~pyro_neuralrg.transforms.coupling.neighbours` has them.

    Attributes:
        start: the parameters at the start.
        index: for each parameter the entry of the arrays to which it is added; neighbours that are
            one and the same share an entry, those outside have one behind the end, ``total``.
        constants: what the arrays hold besides.
    """

    def __init__(
        self, options: NetworkOptions, sizes: Sequence[tuple[int, int]], offsets: Sequence[int]
    ) -> None:
        self.options = options
        self.offsets = torch.tensor(offsets)
        self.seen = 1 + max(offsets)
        self.total = sum(options.size(self.seen * fixed, moved) for fixed, moved in sizes)
        self.constants = torch.zeros(self.total + 1)
        starts: list[Tensor] = []
        indices: list[Tensor] = []
        begin = 0
        for fixed, moved in sizes:
            add = self._separate if options.separate else self._joint
            for values, index in add(begin, fixed, moved):
                starts.append(values.flatten())
                indices.append(index.flatten())
            begin += options.size(self.seen * fixed, moved)
        self.start, self.index = torch.cat(starts) / options.response, torch.cat(indices)

    def _arrays(self, begin: int, fixed: int, moved: int) -> list[Tensor]:
        """Indices of the entries of each array of one network."""
        shapes = self.options.shapes(self.seen * fixed, moved)
        sizes = [math.prod(shape) for shape in shapes]
        parts = torch.arange(begin, begin + sum(sizes)).split(sizes)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _first_layer(self, matrix: Tensor, fixed: int) -> Tensor:
        """The entries of a layer that sees neighbours, one column for each of them."""
        columns = matrix.unflatten(1, (self.seen, fixed))[:, self.offsets.clamp(min=0)]
        outside = (self.offsets < 0)[:, None]
        return torch.where(outside, self.total, columns).flatten(1)

    def _joint(self, begin: int, fixed: int, moved: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One network for all: what is packed, and where it belongs."""
        options = self.options
        *layers, steepness, bound = self._arrays(begin, fixed, moved)
        self.constants[bound] = options.max_log_scale
        *hidden, place, place_bias, form, form_bias = layers
        for index, (matrix, bias) in enumerate(_matrices_and_biases(hidden)):
            seen = self._first_layer(matrix, fixed) if index == 0 else matrix
            yield torch.randn(seen.shape) / math.sqrt(seen.shape[1]), seen
            if not options.odd:
                yield torch.zeros(bias.shape), bias
        small = SMALL / math.sqrt(place.shape[1]) if options.response >= 1 else 0.0
        yield small * torch.randn(place.shape), place
        if not options.odd:
            yield torch.zeros(place_bias.shape), place_bias
        yield small * torch.randn(form.shape), form
        # at the start the slopes of the line and of its terms add up to 1
        terms = options.terms
        log_scale = math.log(1 - TERM_HEIGHT * TERM_STEEPNESS) if terms else 0.0
        start = torch.full(form_bias.shape, math.atanh(log_scale / options.max_log_scale))
        start[moved:] = _inverse_softplus(TERM_HEIGHT / max(1, terms)) / HEIGHT_GAIN
        yield start, form_bias
        yield torch.full(steepness.shape, _inverse_softplus(TERM_STEEPNESS)), steepness

    def _separate(self, begin: int, fixed: int, moved: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The networks s and t, which do not see each other."""
        *layers, _, bound = self._arrays(begin, fixed, moved)
        *hidden, place, place_bias, form, form_bias = layers
        for index, (matrix, bias) in enumerate(_matrices_and_biases(hidden)):
            for half, rows in enumerate(matrix.chunk(2)):
                own = rows.chunk(2, 1)[half] if index else self._first_layer(rows, fixed)
                yield _uniform(own.shape), own
            yield torch.zeros(bias.shape), bias
        for half, (matrix, bias) in enumerate(((form, form_bias), (place, place_bias))):
            own = matrix.chunk(2, 1)[half] if hidden else self._first_layer(matrix, fixed)
            yield SMALL * _uniform(own.shape), own
            yield torch.zeros(bias.shape), bias
        yield torch.ones(bound.shape), bound


def _matrices_and_biases(layers: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(layers[::2], layers[1::2], strict=True)


def _uniform(shape: Sequence[int]) -> Tensor:
    return (2 * torch.rand(*shape) - 1) / math.sqrt(shape[1])


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


class Network(NamedTuple):
    """The network of one coupling, and what acts on its units besides its biases, if anything."""

    options: NetworkOptions
    arrays: Sequence[Tensor]  # as ``NetworkOptions.shapes`` lists them
    sites: Tensor | None = None  # biases ``(units, cells)``; gains of units that have none
    gains: Tensor | None = None  # of a context, ``(units, n)``
    shifts: Tensor | None = None


def evaluate(network: Network, x: Tensor, shape: Sequence[int]) -> Elementwise:
    """The maps of ``shape`` (moved, cells, n) from what is seen, x ``(inputs, cells * n)``."""
    options = network.options
    *_, raw_steepness, bound = network.arrays
    if options.odd and options.separate:
        up, down = (_heads(network, sign * x, shape[-1]) for sign in (1, -1))
        (place, form), (minus_place, minus_form) = up, down
        bound = bound[:, None]
        log_scale = 0.5 * bound * (torch.tanh(form) + torch.tanh(minus_form))
        return Affine(*(part.reshape(shape) for part in (0.5 * (place - minus_place), log_scale)))
    place, form = _heads(network, x, shape[-1])
    shift, *centres = place.reshape(-1, *shape).unbind(0)
    log_scale, *raw_heights = form.reshape(-1, *shape).unbind(0)
    log_scale = bound[:, None, None] * torch.tanh(log_scale)
    if not options.terms:
        return Affine(shift, log_scale)
    # from torch's threshold of 20 on a line would be 2e-9 off
    height = F.softplus(HEIGHT_GAIN * torch.stack(raw_heights), threshold=40)
    steepness = F.softplus(raw_steepness)[:, :, None, None]
    return AffineTanh(shift, log_scale, height, torch.stack(centres), steepness)


def _heads(network: Network, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Place and form, ``(heads, cells * n)`` each."""
    options, unit = network.options, 0

    def layer(matrix: Tensor, bias: Tensor, h: Tensor, biased: bool = True) -> Tensor:
        nonlocal unit
        units, unit = slice(unit, unit + len(bias)), unit + len(bias)
        return _bend(network, units, torch.addmm(bias[:, None], matrix, h), n, biased)

    *hidden, place, form = _matrices_and_biases(network.arrays[:-2])
    h, biased = x, not options.is_odd_by_form
    for matrix, bias in hidden:
        h = ACTIVATIONS[options.activation](layer(matrix, bias, h, biased))
    return layer(*place, h, biased), layer(*form, h if biased else h * h)


def _bend(network: Network, units: slice, h: Tensor, n: int, biased: bool) -> Tensor:
    """Some units h ``(number, cells * n)``: (h + sites) (1 + gain) + shift.

    Or h (1 + sites) (1 + gain) + shift of units that have no biases.

    References:
        Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, AAAI (2018).
    """
    sites, gains, shifts = network[2:]
    if sites is None and gains is None:
        return h
    rows = h.reshape(len(h), -1, n)
    if sites is not None:
        of_cells = sites[units, :, None]
        rows = rows + of_cells if biased else rows * (1 + of_cells)
    if gains is not None and shifts is not None:
        rows = rows * (1 + gains[units, None]) + shifts[units, None]
    return rows.reshape(h.shape)


# One coupling in plain torch


def couple(network: Network, x: Tensor, v: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The moved sites ``(moved, cells, n)``, and the logarithm of the slope for each."""
    maps = evaluate(network, x, v.shape)
    return maps.inverse(v) if inverse else maps.forward(v)


def couple_with_score(
    network: Network, x: Tensor, v: Tensor, score: Tensor, live: Tensor | None, want_context: bool
) -> tuple[Tensor, ...]:
    r"""The same, and how the score goes on.

    With :math:`s_v' = (s_v - \partial_v \ln f') / f'` the score of what is seen falls by
    :math:`\partial_x \ln f' + s_v' \cdot \partial_x f` (Vaitl, Winkler, Richter, Kessel, "Fast and
    unified path gradient estimators for normalizing flows", ICLR 2024).

    Returns:
        Values; ln slope, what is subtracted from the score of x, the new score of v and, if asked
        for, the same gradient with respect to gains and shifts, all to be taken as constants.
    """
    values, log_slope = couple(network, x, v, False)
    ones = torch.ones_like(log_slope)
    (curvature,) = torch.autograd.grad(
        log_slope, v, ones, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    moved, ones = _live((score - curvature) * (-log_slope.detach()).exp(), ones, live)
    wanted = [x]
    if want_context:
        wanted += [part for part in (network.gains, network.shifts) if part is not None]
    pulled = torch.autograd.grad([log_slope, values], wanted, [ones, moved], retain_graph=True)
    return values, log_slope.detach(), pulled[0], moved, *pulled[1:]


def couple_with_score_in_one_graph(
    network: Network, x: Tensor, v: Tensor, score: Tensor, live: Tensor | None, want_context: bool
) -> tuple[Tensor, ...]:
    """The same in terms that can be compiled, a quarter slower if they are not."""

    def of(x: Tensor, v: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        here = Network(*network[:3], *context) if context else network
        return couple(here, x, v, False)

    wanted = (network.gains, network.shifts) if want_context else ()
    vjp: Any = torch.func.vjp  # its annotation knows functions of one result only
    (values, log_slope), pull = vjp(of, x, v, *wanted)
    ones = torch.ones_like(log_slope)
    curvature = pull((torch.zeros_like(values), ones))[1]
    moved, ones = _live((score - curvature) * (-log_slope).exp(), ones, live)
    pulled, _, *more = (part.detach() for part in pull((moved, ones)))
    return values, log_slope.detach(), pulled, moved.detach(), *more


def _live(moved: Tensor, ones: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """Without the sites that are not there."""
    return (moved, ones) if live is None else (moved * live, ones * live)
