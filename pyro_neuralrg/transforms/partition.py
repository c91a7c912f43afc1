# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cutting a lattice field into blocks and putting it together, by rolls, slices and reshapes.

Tensors are *batch-last* here: a field is ``(*shape, batch)``, the blocks of a region are
``(size, *count, batch)``. Shifts and slices of a lattice then move whole contiguous runs, and a
network that acts on the leading dimension is one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_neuralrg.lattice import Layer, Region


def pack(x: Tensor, event_dim: int) -> Tensor:
    """Move all batch dimensions into one on the right: ``batch + event -> event + (n,)``."""
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    return x.reshape(math.prod(batch), *event).movedim(0, -1).contiguous()


def unpack(h: Tensor, batch_shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack`: ``event + (n,) -> batch_shape + event``."""
    return h.movedim(-1, 0).reshape(*batch_shape, *h.shape[:-1])


def block_sites(layer: Layer) -> Tensor:
    """The sites of all blocks of a layer, thinner blocks filled up.

    Returns:
        Flat indices of the lattice of the layer's scale, shape ``(size, *count)``; -1 for the sites
        that a thinner block lacks.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> block_sites(make_circuit("tree", (3,)).layers[0])
        tensor([[ 0,  2],
                [ 1, -1]])
    """
    sites = torch.arange(math.prod(layer.shape)).reshape(layer.shape)
    here = torch.zeros((), dtype=torch.bool)
    for axis, (side, block, shift, segments) in enumerate(
        zip(layer.shape, layer.block, layer.shift, layer.axes, strict=True)
    ):
        # the block at an open end lacks its first sites, that behind the last ones
        begin = segments[0].block - block
        count = -(-(side - begin) // block)
        place = begin + torch.arange(count * block).reshape(count, block)
        outside = (place < 0) | (place >= side)
        sites = sites.index_select(2 * axis, ((place + shift) % side).flatten())
        sites = sites.unflatten(2 * axis, (count, block))
        here = here[..., None, None] | outside
    dim = len(layer.shape)
    sites = torch.where(here, -1, sites)
    order = [*range(1, 2 * dim, 2), *range(0, 2 * dim, 2)]
    return sites.permute(order).flatten(0, dim - 1)


def cut(h: Tensor, layer: Layer) -> list[Tensor]:
    """Cut a field ``(*shape, batch)`` into one tensor ``(size, *count, batch)`` per region."""
    h = _roll(h, layer.shift, -1)
    return [_to_blocks(h, region) for region in layer.regions]


def join(blocks: Sequence[Tensor], layer: Layer) -> Tensor:
    """Undo :func:`cut`."""
    fields = [
        _from_blocks(block, region) for block, region in zip(blocks, layer.regions, strict=True)
    ]
    return _roll(tile(fields, layer), layer.shift, 1)


def tile(fields: Sequence[Tensor], layer: Layer) -> Tensor:
    """Lay the fields of all regions side by side, along the last axis first."""
    fields = list(fields)
    for axis in reversed(range(len(layer.axes))):
        width = len(layer.axes[axis])
        if width > 1:
            rows = [fields[i : i + width] for i in range(0, len(fields), width)]
            fields = [torch.cat(row, dim=axis) for row in rows]
    return fields[0]


def _roll(h: Tensor, shift: Sequence[int], direction: int) -> Tensor:
    axes = [axis for axis, step in enumerate(shift) if step]
    return h.roll([direction * shift[axis] for axis in axes], axes) if axes else h


def _to_blocks(h: Tensor, region: Region) -> Tensor:
    dim = len(region.segments)
    for axis, segment in enumerate(region.segments):
        if segment.stop - segment.start != h.shape[axis]:
            h = h.narrow(axis, segment.start, segment.stop - segment.start)
    batch = h.shape[-1]
    pairs = [side for pair in zip(region.count, region.block, strict=True) for side in pair]
    inside, outside = range(1, 2 * dim, 2), range(0, 2 * dim, 2)
    h = h.reshape(*pairs, batch).permute(*inside, *outside, 2 * dim)
    return h.reshape(region.size, *region.count, batch)


def _from_blocks(h: Tensor, region: Region) -> Tensor:
    dim = len(region.segments)
    batch = h.shape[-1]
    order = [axis for pair in zip(range(dim, 2 * dim), range(dim), strict=True) for axis in pair]
    h = h.reshape(*region.block, *region.count, batch).permute(*order, 2 * dim)
    sides = [count * block for count, block in zip(region.count, region.block, strict=True)]
    return h.reshape(*sides, batch)
