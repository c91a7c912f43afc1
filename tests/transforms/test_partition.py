# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cutting and joining move every value to its place and back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyro_neuralrg.lattice import BOUNDARIES, CIRCUITS, make_circuit
from pyro_neuralrg.transforms.partition import cut, join, pack, split_coarse, tile, unpack

SHAPES = [(2,), (7,), (4, 4), (3, 5), (1, 4), (2, 3, 4)]


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_join_undoes_cut(name: str, shape: tuple[int, ...]) -> None:
    for block, boundary in itertools.product((2, 3), BOUNDARIES):
        for layer in make_circuit(name, shape, block=block, boundary=boundary).layers:
            field = torch.randn(*layer.shape, 3)
            blocks = cut(field, layer)
            assert [tuple(b.shape) for b in blocks] == [
                (region.size, *region.count, 3) for region in layer.regions
            ]
            assert torch.equal(join(blocks, layer), field)
            coarse = torch.randn(*layer.coarse_shape, 3)
            pieces = split_coarse(coarse, layer)
            assert [tuple(p.shape) for p in pieces] == [(*r.count, 3) for r in layer.regions]
            assert torch.equal(tile(pieces, layer), coarse)


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
