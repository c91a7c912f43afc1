# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Couplings: one half of a block's sites decides what is done to each site of the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import as_integer, check_integer
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.compiled import Stack, couple, is_worthwhile
from pyro_neuralrg.transforms.networks import (
    ACTIVATIONS,
    BlockNetwork,
    NeighbourNetwork,
    SiteBias,
    with_weights,
)
from pyro_neuralrg.transforms.steps import Network, present_steps

__all__ = ["Couplings", "neighbour_coupling", "realnvp_block"]

Half = tuple[list[int], list[int]]


class Couplings(LatticeTransform):
    r"""A stack of couplings on the leading dimension (the sites of a block).

    With u the sites held fixed and v the others, :math:`v' = f_u(v)` entry by entry with an
    increasing f, and :math:`\ln|\det| = \sum \ln f_u'(v)`. Affine ones have :math:`f_u(v) =
    e^{s(u)} v + t(u)` (Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", 2017,
    Eq. 7-8), others steps besides (:class:`~pyro_neuralrg.transforms.elementwise.AffineSteps`). A
    network sees and moves only the sites it should: no work is spent on masked entries.

    Args:
        event_shape: ``(size,)`` for one block, or ``(size, *count)`` for all blocks of a layer.
        halves: for each coupling the sites held fixed and the sites moved.
        networks: for each coupling a module of :mod:`pyro_neuralrg.transforms.networks`.
        stack: what :mod:`~pyro_neuralrg.transforms.compiled` wants to know, if it can serve them.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        halves: Sequence[Half],
        networks: Sequence[nn.Module],
        stack: Stack | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.halves = list(halves)
        self.networks = nn.ModuleList(networks)
        self.stack = stack

    def see_features(self, features: Tensor) -> None:
        """Take others of the same shape in the place of the features of the blocks."""
        for network in self.networks:
            sites = network.sites
            assert isinstance(sites, SiteBias)
            sites.features = features.to(sites.features)

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to x."""
        if self.stack is not None and context is None and is_worthwhile(h):
            return self._couple_compiled(h, self.stack, True)
        return self._generate(h, self.networks, context)

    def generate_with_score(
        self,
        h: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        want_context: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to x with the score, without any inverse."""
        if self.stack is not None and context is None and is_worthwhile(h):
            return super().generate_with_score(h, score, context, want_context)
        steps = present_steps()
        asked, of_context = want_context and context is not None, None
        with torch.enable_grad():
            if not h.requires_grad:
                h = h.detach().requires_grad_()
            rows, scores, log_slopes = list(h.unbind(0)), list(score.unbind(0)), []
            for (fixed, moved), network in zip(self.halves, self.networks, strict=True):
                u, v = _stack(rows, fixed), _stack(rows, moved)
                values, log_slope, pulled, score, *more = steps.couple_with_score(
                    network, u, v, context, _stack(scores, moved), asked
                )
                if more:
                    of_context = more[0] if of_context is None else of_context + more[0]
                _put(scores, fixed, _stack(scores, fixed) + pulled)
                _put(scores, moved, score)
                _put(rows, moved, values)
                log_slopes.append(log_slope)
            ladj = torch.cat(log_slopes).flatten(0, -2).sum(0)
            return torch.stack(rows), ladj, torch.stack(scores), of_context

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to z."""
        if self.stack is not None and context is None and is_worthwhile(h):
            return self._couple_compiled(h, self.stack, False)
        return self._renormalize(h, self.networks, context)

    def _generate(
        self, h: Tensor, networks: Iterable[Network], context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, log_slopes = list(h.unbind(0)), []
        couple_one = present_steps().couple
        for (fixed, moved), network in zip(self.halves, networks, strict=True):
            u, v = _stack(rows, fixed), _stack(rows, moved)
            values, log_slope = couple_one(network, u, v, context)
            _put(rows, moved, values)
            log_slopes.append(log_slope)
        return torch.stack(rows), torch.cat(log_slopes).flatten(0, -2).sum(0)

    def _renormalize(
        self, h: Tensor, networks: Iterable[Network], context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, log_slopes = list(h.unbind(0)), []
        pairs = zip(self.halves, networks, strict=True)
        for (fixed, moved), network in reversed(list(pairs)):
            mapped = network(_stack(rows, fixed), context)
            values, log_slope = mapped.renormalize(_stack(rows, moved))
            _put(rows, moved, values)
            log_slopes.append(log_slope)
        return torch.stack(rows), torch.cat(log_slopes).flatten(0, -2).sum(0)

    def _couple_compiled(self, h: Tensor, stack: Stack, generate: bool) -> tuple[Tensor, Tensor]:
        block_networks = [cast("BlockNetwork", network) for network in self.networks]

        def plain(h: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            networks = map(with_weights, block_networks, weights)
            return (self._generate if generate else self._renormalize)(h, networks, None)

        weights = torch.stack([network.packed for network in block_networks])
        return couple(h, weights, stack, generate, plain)


def _stack(rows: list[Tensor], sites: list[int]) -> Tensor:
    return torch.stack([rows[site] for site in sites])


def _put(rows: list[Tensor], sites: list[int], values: Tensor) -> None:
    for site, value in zip(sites, values.unbind(0), strict=True):
        rows[site] = value


def realnvp_block(
    size: int,
    *,
    layers: int = 10,
    hidden: Sequence[int] = (10, 10, 10),
    activation: str = "elu",
    odd: bool = False,
    context_dim: int = 0,
) -> Couplings:
    """The paper's block: Real NVP on the sites of one block, event shape ``(size,)``.

    The two halves of the checkerboard are moved in turn (paper, supplement): the parities of the
    sites' binary digits, which is the checkerboard of a block of 2^d sites.

    Args:
        size: number of sites of the block, at least two.
        layers: number of couplings (paper: 10).
        hidden: widths of the hidden layers of the s- and t-networks (paper: 10, 10, 10).
        activation: one of ``networks.ACTIVATIONS`` (paper: "elu").
        odd: make the block commute with x -> -x.
        context_dim: features of a context that the networks take besides; 0 for none.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is out of range or the activation is unknown.

    Example:
        >>> realnvp_block(4)(torch.zeros(7, 4)).shape
        torch.Size([7, 4])
    """
    if size < 2:
        raise ValueError(f"size is {size}; accepted: a block of at least two sites")
    layers, hidden = _check_network(layers, hidden)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; accepted: {', '.join(ACTIVATIONS)}")
    # in a block of 2^d sites, row-major, the parity of the set bits is the checkerboard
    halves = _in_turn([[site.bit_count() % 2 == 0 for site in range(size)]], layers)
    networks = [
        BlockNetwork(len(u), len(v), hidden, activation, odd, context_dim) for u, v in halves
    ]
    even = size % 4 == 0 and bool(hidden) and len(set(hidden)) == 1 and hidden[0] % 2 == 0
    stack = None
    if activation == "elu" and not odd and even:  # what the compiled loops are written for
        stack = Stack(halves[0], hidden[0], len(hidden))
    return Couplings((size,), halves, networks, stack)


def neighbour_coupling(
    block: Sequence[int],
    count: Sequence[int],
    *,
    layers: int = 8,
    hidden: Sequence[int] = (24,),
    steps: int = 2,
    odd: bool = False,
    boundary: str = "periodic",
    context_dim: int = 0,
    features: Tensor | None = None,
) -> Couplings:
    """Couplings on all blocks of a layer, event shape ``(size, *count)``, that see neighbours.

    Their networks take in the neighbouring blocks, and what they do to a site has steps: a site of
    a magnet, given its neighbours, is up or down. The halves are the checkerboard, then the rows
    and columns of the block, each moved in turn.

    Args:
        block: sites of a block along each axis.
        count: blocks along each axis.
        layers: number of couplings.
        hidden: widths of the hidden layers, at least one.
        steps: tanh steps of each coupling beside its line; 0 for affine couplings.
        odd: the map commutes with x -> -x.
        boundary: "periodic" or "open".
        context_dim: features of a context that the networks take besides; 0 for none.
        features: known of the blocks, shape ``(number, *count)``, which the networks also see.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is out of range.

    Example:
        >>> neighbour_coupling((2, 2), (4, 4))(torch.zeros(7, 4, 4, 4)).shape
        torch.Size([7, 4, 4, 4])
    """
    layers, hidden = _check_network(layers, hidden)
    if not hidden:
        raise ValueError("hidden is empty; accepted: at least one layer width")
    steps = check_integer("steps", steps, 0)
    halves = _in_turn(_block_masks(block), layers)
    networks = [
        NeighbourNetwork(len(u), len(v), count, hidden, steps, odd, boundary, context_dim, features)
        for u, v in halves
    ]
    return Couplings((math.prod(block), *count), halves, networks)


def _check_network(layers: Any, hidden: Any) -> tuple[int, tuple[int, ...]]:
    """Both as plain integers."""
    number = check_integer("layers", layers, 1, accepted="at least one coupling, an integer")
    given = tuple(hidden) if isinstance(hidden, Iterable) else (None,)
    widths = tuple(width for width in map(as_integer, given) if width is not None)
    if len(widths) < len(given):
        raise TypeError(f"hidden is {hidden!r}; accepted: a tuple of integers >= 1, one a layer")
    if any(width < 1 for width in widths):
        raise ValueError(f"hidden is {widths}; accepted: widths of at least one")
    return number, widths


def _block_masks(block: Sequence[int]) -> list[list[bool]]:
    """The ways to halve a block: checkerboard first, then along each axis."""
    sites = list(itertools.product(*(range(side) for side in block)))
    masks = [[sum(site) % 2 == 0 for site in sites]]
    for axis in range(len(block)):
        masks.append([site[axis] % 2 == 0 for site in sites])
    halving = [mask for mask in masks if any(mask) and not all(mask)]
    return [mask for index, mask in enumerate(halving) if mask not in halving[:index]]


def _in_turn(masks: list[list[bool]], layers: int) -> list[Half]:
    """Use each mask twice, the second time with the halves exchanged, until all layers have one."""
    halves = []
    for layer in range(layers):
        mask = masks[(layer // 2) % len(masks)]
        first = [site for site, held in enumerate(mask) if held]
        second = [site for site, held in enumerate(mask) if not held]
        halves.append((first, second) if layer % 2 == 0 else (second, first))
    return halves
