# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cutting and joining move every value to its place and back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyro_neuralrg.lattice import BOUNDARIES, CIRCUITS, Segment, make_circuit
from pyro_neuralrg.transforms.partition import block_sites, cut, pack, unpack

SHAPES = [(2,), (7,), (4, 4), (3, 5), (1, 4), (2, 3, 4)]


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_cover_a_layer(name: str, shape: tuple[int, ...]) -> None:
    """Every site stands in one block; a region's blocks are those of its place, filled up."""
    for block, boundary in itertools.product((2, 3), BOUNDARIES):
        for layer in make_circuit(name, shape, block=block, boundary=boundary).layers:
            sites = block_sites(layer)
            assert sites.shape == (math.prod(layer.block), *layer.coarse_shape)
            numbers = torch.arange(math.prod(layer.shape))
            assert torch.equal(sites[sites >= 0].sort().values, numbers)
            pieces = cut(numbers.reshape(*layer.shape, 1), layer)
            corners = itertools.product(*(starts(axis) for axis in layer.axes))
            for piece, region, corner in zip(pieces, layer.regions, corners, strict=True):
                assert piece.shape == (math.prod(region.block), *region.count, 1)
                there = sites[(slice(None), *map(slice, corner, end(corner, region.count)))]
                for cell in itertools.product(*map(range, region.count)):
                    filled = there[(slice(None), *cell)]
                    assert torch.equal(filled[filled >= 0], piece[(slice(None), *cell, 0)])


def starts(segments: tuple[Segment, ...]) -> list[int]:
    """Number of the first block of each segment of an axis."""
    return [sum(one.count for one in segments[:index]) for index in range(len(segments))]


def end(corner: tuple[int, ...], count: tuple[int, ...]) -> list[int]:
    return [begin + number for begin, number in zip(corner, count, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_holds_neighbouring_sites(shape: tuple[int, ...]) -> None:
    """Site i, j of block a, b of a shifted periodic layer is where the data say it is."""
    layer = make_circuit("brickwork", shape, depth=2).layers[1]
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    for region, block in zip(layer.regions, cut(numbers.unsqueeze(-1), layer), strict=True):
        inner = list(itertools.product(*map(range, region.block)))
        for place in itertools.product(*map(range, region.count)):
            for index, offset in enumerate(inner):
                site = tuple(
                    (segment.start + at * segment.block + step + shift) % side
                    for segment, at, step, shift, side in zip(
                        region.segments, place, offset, layer.shift, shape, strict=True
                    )
                )
                assert block[(index, *place, 0)] == numbers[site]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)])
def test_unpack_undoes_pack(batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 4, 5)
    h = pack(x, 2)
    assert h.shape == (4, 5, math.prod(batch))
    assert h.is_contiguous()
    assert torch.equal(unpack(h, batch), x)
