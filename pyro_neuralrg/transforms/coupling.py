# SPDX-License-Identifier: Apache-2.0
"""Couplings: one half of a block's sites decides what is done to each site of the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_choice, check_integer, check_integers, check_number
from pyro_neuralrg.transforms.base import LatticeTransform, Pushed
from pyro_neuralrg.transforms.coupling_sequence import CouplingSequence
from pyro_neuralrg.transforms.networks import ACTIVATIONS, NetworkOptions, Packing

Half = tuple[list[int], list[int]]


class Couplings(LatticeTransform):
    r"""Couplings on all blocks of a layer in turn, event shape ``(size, *count)``.

    With u the sites held fixed, in a block and its neighbours, and v the others, :math:`v' =
    f_u(v)` entry by entry with an increasing f, and :math:`\ln|\det| = \sum \ln f_u'(v)`. Affine
    ones have :math:`f_u(v) = e^{s(u)} v + t(u)` (Dinh, Sohl-Dickstein & Bengio, "Density estimation
    using Real NVP", 2017, Eq. 7-8), others tanh terms besides
    (:class:`~pyro_neuralrg.transforms.elementwise.AffineTanh`).

    Args:
        size: sites of a block, of a vector field times the components.
        count: blocks along each axis.
        halves: for each coupling the sites held fixed and the sites moved.
        options: of the networks.
        boundary: "periodic", "open" (zeros outside), or None: networks see their own block only.
        context_dim, features: as of :class:`~pyro_neuralrg.transforms.BlockLayout`.
    """

    near_all: Tensor
    shifted_units: Tensor
    features: Tensor | None

    def __init__(
        self,
        size: int,
        count: Sequence[int],
        halves: Sequence[Half],
        options: NetworkOptions,
        *,
        boundary: str | None,
        context_dim: int = 0,
        features: Tensor | None = None,
    ) -> None:
        super().__init__((size, *count))
        self.halves = list(halves)
        self.options = options
        self.cells = math.prod(count)
        near, offsets = neighbours(count, boundary)
        self.near = near
        """Cells that the network of each cell sees, ``(cells, seen)``; -1 outside."""
        self.packing = Packing(options, [(len(u), len(v)) for u, v in self.halves], offsets)
        self.packed = nn.Parameter(self.packing.start)
        units = [options.units(len(v)) for _, v in self.halves]
        of_form = [options.heads(len(v)) for _, v in self.halves]
        shifted = of_form if options.is_odd_by_form else units  # the rest of an odd map stays odd
        self.context_gain = self.context_shift = self.site_weight = None
        rows: Tensor | None = None
        if context_dim:
            self.context_gain = nn.Parameter(torch.zeros(sum(units), context_dim))
            self.context_shift = nn.Parameter(torch.zeros(sum(shifted), context_dim))
            pairs = zip(itertools.accumulate(units), shifted, strict=True)
            rows = torch.cat([torch.arange(end - number, end) for end, number in pairs])
        self.register_buffer("shifted_units", rows, persistent=False)
        self.register_buffer("features", None, persistent=False)
        if features is not None:
            columns = torch.tensor(offsets)
            near_all = torch.where(columns < 0, -1, near[:, columns.clamp(min=0)])
            self.register_buffer("near_all", near_all, persistent=False)  # (cells, 3^d), -1 outside
            number = len(features) * len(offsets)
            self.site_weight = nn.Parameter(torch.zeros(sum(units), number))
            self.see_features(features)
        self._alone: list[CouplingSequence] = []

    def see_features(self, features: Tensor) -> None:
        """Take these, ``(number, *count)``, for the features of the blocks."""
        flat = features.detach().reshape(len(features), self.cells)
        padded = torch.nn.functional.pad(flat, (0, 1))  # nothing is known of what is outside
        seen = padded[:, self.near_all.to(flat.device)]  # (number, cells, neighbours)
        self.features = seen.movedim(-1, 0).flatten(0, 1).to(self.packed)

    def site_biases(self) -> Tensor | None:
        """Biases of the units for each cell, ``(units, cells)``, linear in features; or None.

        Gains of those units of an odd map that have no biases.
        """
        if self.site_weight is None or self.features is None:
            return None
        return self.site_weight @ self.features

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self._sequence().run(h, context, inverse)

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        """z to x with the score, without any inverse."""
        return self._sequence().push_score(h, score, context, want_context)

    def _sequence(self) -> CouplingSequence:
        """These couplings on a field of their own."""
        if not self._alone:  # made when first needed: a flow has one for all of its layers
            size = self.event_shape[0]
            with torch.inference_mode(False):  # its tables outlive this call
                rows = torch.arange(size * self.cells).view(size, self.cells)
                self._alone.append(CouplingSequence([(self, rows)], size * self.cells))
        return self._alone[0].to(self.packed.device)


def neighbours(count: Sequence[int], boundary: str | None) -> tuple[Tensor, list[int]]:
    """The neighbouring cells of each cell, itself among them; of no boundary the cell alone.

    Returns:
        Distinct neighbours ``(cells, seen)``, -1 for those outside; and for each of the 3^d
        positions, the last axis slowest, which of them it is, or -1 if it is always outside.
    """
    cells = torch.arange(math.prod(count)).view(tuple(count))
    if boundary is None:
        return cells.view(-1, 1), [0]
    columns = []
    for step in itertools.product((-1, 0, 1), repeat=len(count)):
        moved = cells
        for axis, move in enumerate(reversed(step)):
            moved = moved.roll(-move, axis)
            if boundary == "open" and move:
                moved.select(axis, -1 if move > 0 else 0).fill_(-1)
        columns.append(tuple(moved.flatten().tolist()))
    distinct = [*dict.fromkeys(reversed(columns))][::-1]
    inside = [column for column in distinct if max(column) >= 0]
    offsets = [inside.index(column) if column in inside else -1 for column in columns]
    return torch.tensor(inside).T, offsets


def realnvp_block(
    size: int,
    *,
    layers: int = 10,
    hidden: Sequence[int] = (10, 10, 10),
    activation: str = "elu",
    odd: bool = False,
    context_dim: int = 0,
    count: Sequence[int] = (),
) -> Couplings:
    """The paper's block: Real NVP on the sites of one block, event shape ``(size,)``.

    The two halves of the checkerboard are moved in turn (paper, supplement).

    Args:
        size: sites of the block, at least two, row by row for a block of 2^d.
        layers: number of couplings (paper: 10).
        hidden: widths of the hidden layers of the s- and t-networks (paper: 10, 10, 10).
        activation: one of ``networks.ACTIVATIONS`` (paper: "elu").
        odd: make the block commute with x -> -x.
        context_dim: features of a context that the networks take besides; 0 for none.
        count: of many blocks, the number along each axis; event shape ``(size, *count)``.

    Example:
        >>> realnvp_block(4)(torch.zeros(7, 4)).shape
        torch.Size([7, 4])
    """
    check_integer("size", size, 2, accepted="a block of at least two sites")
    layers, hidden = _check_network(layers, hidden)
    check_choice("activation", activation, ACTIVATIONS)
    # the parity of the bits is the checkerboard of a block of 2^d sites
    halves = _in_turn([[site.bit_count() % 2 == 0 for site in range(size)]], layers)
    options = NetworkOptions(hidden, activation, odd=odd, separate=True)
    return Couplings(size, count, halves, options, boundary=None, context_dim=context_dim)


def neighbour_coupling(
    block: Sequence[int],
    count: Sequence[int],
    *,
    layers: int = 8,
    hidden: Sequence[int] = (24,),
    num_tanh: int = 2,
    response: float = 1.0,
    max_log_scale: float = 2.0,
    odd: bool = False,
    boundary: str = "periodic",
    context_dim: int = 0,
    features: Tensor | None = None,
    components: int = 0,
) -> Couplings:
    """Couplings on all blocks of a layer, event shape ``(size, *count)``, that see neighbours.

    The maps have tanh terms: a site of a magnet, given its neighbours, is up or down. The halves
    are the checkerboard, of a vector field then the halves of its components, then the rows and
    columns of the block, each moved in turn.

    Args:
        block: sites of a block along each axis.
        count: blocks along each axis.
        layers: number of couplings.
        hidden: widths of the hidden layers, at least one.
        num_tanh: tanh terms of each coupling beside its line; 0 for affine couplings.
        response: how much the couplings follow a step of their parameters; below 1 they begin as
            the identity, but for their terms.
        max_log_scale: bound of the log-scale of each coupling.
        odd: make the map commute with x -> -x.
        boundary: "periodic" or "open".
        context_dim: features of a context that the networks take besides; 0 for none.
        features: known of the blocks, shape ``(number, *count)``, which the networks also see.
        components: of a vector field at each site, the size of a block that many times its sites;
            0 for a scalar field.

    Example:
        >>> neighbour_coupling((2, 2), (4, 4))(torch.zeros(7, 4, 4, 4)).shape
        torch.Size([7, 4, 4, 4])
    """
    layers, hidden = _check_network(layers, hidden, least=1)
    options = NetworkOptions(
        hidden,
        terms=check_integer("num_tanh", num_tanh, 0),
        odd=odd,
        response=check_number("response", response, "a positive number", above=0),
        max_log_scale=check_number("max_log_scale", max_log_scale, "at least 0.1", least=0.1),
    )
    own = max(1, components)
    halves = _in_turn(_block_masks(block, own), layers)
    given: Any = {"boundary": boundary, "context_dim": context_dim, "features": features}
    return Couplings(math.prod(block) * own, count, halves, options, **given)


def _check_network(layers: Any, hidden: Any, least: int = 0) -> tuple[int, tuple[int, ...]]:
    """Both as plain integers, with at least so many widths."""
    accepted = "a tuple of integers >= 1, one a layer" + (", at least one" if least else "")
    widths = check_integers("hidden", hidden, accepted)
    if len(widths) < least or any(width < 1 for width in widths):
        raise ValueError(f"hidden is {widths}; accepted: {accepted}")
    return check_integer("layers", layers, 1), widths


def _block_masks(block: Sequence[int], components: int) -> list[tuple[bool, ...]]:
    """The ways to halve a block: checkerboard, the bits of the components, along each axis."""
    rows = list(itertools.product(*(range(side) for side in (*block, components))))
    masks = [tuple(sum(site) % 2 == 0 for *site, _ in rows)]
    for bit in range((components - 1).bit_length()):
        masks.append(tuple(component >> bit & 1 == 0 for *_, component in rows))
    for axis in range(len(block)):
        masks.append(tuple(row[axis] % 2 == 0 for row in rows))
    return list(dict.fromkeys(mask for mask in masks if any(mask) and not all(mask)))


def _in_turn(masks: Sequence[Sequence[bool]], layers: int) -> list[Half]:
    """Use each mask twice, the second time with the halves exchanged, until all layers have one."""
    halves = []
    for layer in range(layers):
        mask = masks[(layer // 2) % len(masks)]
        parts = [[site for site, held in enumerate(mask) if held == side] for side in (True, False)]
        halves.append((parts[layer % 2], parts[1 - layer % 2]))
    return halves
