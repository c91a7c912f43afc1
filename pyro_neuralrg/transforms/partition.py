# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The blocks of a circuit: their sites, and features of the sites brought to every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_neuralrg.lattice import Circuit, Layer


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


def blocks_of_layer(layer: Layer, filled_up: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sites and number of blocks along each axis: one pair for all if filled up, or by region."""
    return [(layer.block, layer.coarse_shape)] if filled_up else layer.regions


def sites_of_layers(circuit: Circuit, filled_up: bool) -> list[list[Tensor]]:
    """The blocks of each pair of each layer, as :func:`block_sites` of the whole lattice."""
    found = []
    sites = torch.arange(math.prod(circuit.shape))  # of the present scale
    for layer in circuit.layers:
        everywhere = torch.cat([sites, sites.new_full((1,), -1)])[block_sites(layer)]
        found.append([everywhere] if filled_up else cut_regions(everywhere, layer))
        if layer.kind == "decimator":
            sites = everywhere[0].flatten()
    return found


def cut_regions(sites: Tensor, layer: Layer) -> list[Tensor]:
    """Cut sites of all blocks ``(size, *count)`` into regions of equal blocks, none filled up."""
    pieces = [sites]
    for axis, segments in enumerate(layer.axes, start=1):
        counts = [segment.count for segment in segments]
        pieces = [part for piece in pieces for part in piece.split(counts, axis)]
    return [piece[piece.flatten(1)[:, 0] >= 0] for piece in pieces]


def features_of_blocks(features: Tensor, circuit: Circuit) -> Iterator[Tensor]:
    """For each layer of a circuit the features of its blocks.

    A coarse site has the sum over its block divided by the root of the number of sites: features
    that are independent from site to site keep their size from scale to scale.

    Yields:
        Tensors ``(channels * size, *count)``, the site changing fastest; zeros for sites that a
        thinner block lacks.
    """
    flat = features.flatten(1)
    for layer in circuit.layers:
        sites = block_sites(layer)
        here = (sites >= 0).to(flat)
        blocks = flat[:, sites.clamp(min=0)] * here
        yield blocks.flatten(0, 1)
        if layer.kind == "decimator":
            flat = (blocks.sum(1) / here.sum(0).sqrt()).flatten(1)
