# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cutting a lattice field into blocks, by rolls, slices and reshapes.

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
    axes = [axis for axis, step in enumerate(layer.shift) if step]
    if axes:
        h = h.roll([-layer.shift[axis] for axis in axes], axes)
    return [_to_blocks(h, region) for region in layer.regions]


def _to_blocks(h: Tensor, region: Region) -> Tensor:
    dim = len(region.segments)
    for axis, segment in enumerate(region.segments):
        h = h.narrow(axis, segment.start, segment.stop - segment.start)
    batch = h.shape[-1]
    pairs = [side for pair in zip(region.count, region.block, strict=True) for side in pair]
    inside, outside = range(1, 2 * dim, 2), range(0, 2 * dim, 2)
    h = h.reshape(*pairs, batch).permute(*inside, *outside, 2 * dim)
    return h.reshape(math.prod(region.block), *region.count, batch)
