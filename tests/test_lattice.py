# SPDX-License-Identifier: Apache-2.0
"""Lattices and circuits as data: every site in one block, and the light cones of the circuits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.lattice import (
    BOUNDARIES,
    CIRCUITS,
    Circuit,
    Layer,
    check_shape,
    make_circuit,
)
from pyro_neuralrg.transforms.scales import block_sites, cut_regions

Site = tuple[int, ...]

SHAPES = [(1,), (2,), (5,), (8,), (13,), (1, 6), (4, 4), (3, 7), (6, 9), (2, 3, 4), (5, 1, 2)]
BLOCKS = [2, 3, 4]


def every_circuit(test: Callable[[Circuit], None]) -> Callable[..., None]:
    """Run a test on all names, shapes, block sides and boundaries."""

    @pytest.mark.parametrize("name", CIRCUITS)
    @pytest.mark.parametrize("shape", SHAPES)
    def run(name: str, shape: Site) -> None:
        for block, boundary in itertools.product(BLOCKS, BOUNDARIES):
            test(make_circuit(name, shape, block=block, boundary=boundary))

    return run


def blocks_of(layer: Layer) -> list[list[Site]]:
    """The sites of each block of a layer, first site first, on the lattice as it is."""
    along = []
    for segments in layer.axes:
        sides = [segment.block for segment in segments for _ in range(segment.count)]
        ends = itertools.accumulate(sides)
        along.append([range(end - side, end) for side, end in zip(sides, ends, strict=True)])
    return [
        [
            tuple(
                (place + shift) % side
                for place, shift, side in zip(site, layer.shift, layer.shape, strict=True)
            )
            for site in itertools.product(*runs)
        ]
        for runs in itertools.product(*along)
    ]


def numbered_blocks(layer: Layer) -> list[list[int]]:
    """The same, of sites that are numbered row by row."""
    numbers = np.arange(math.prod(layer.shape)).reshape(layer.shape)
    return [[int(numbers[site]) for site in block] for block in blocks_of(layer)]


def cone(circuit: Circuit, site: Site) -> list[set[Site]]:
    """The sites of each layer that a field site depends on."""
    here = {site}
    sets = []
    for layer in circuit.layers:
        touched = [block for block in blocks_of(layer) if here & set(block)]
        here = set().union(*touched)
        sets.append(here)
        if layer.kind == "decimator":
            first = {block[0]: index for index, block in enumerate(blocks_of(layer))}
            places = list(itertools.product(*map(range, layer.coarse_shape)))
            here = {places[first[block[0]]] for block in touched}
    return sets


# regions


@every_circuit
def test_each_site_lies_in_exactly_one_block(circuit: Circuit) -> None:
    for layer in circuit.layers:
        sites = [site for block in blocks_of(layer) for site in block]
        assert sorted(sites) == list(itertools.product(*map(range, layer.shape)))
        assert all(max(block) <= circuit.block for block, _ in layer.regions)
        assert max(math.prod(block) for block, _ in layer.regions) > 1, "nothing to do"


@every_circuit
def test_tables_of_sites_hold_these_blocks(circuit: Circuit) -> None:
    """Sites row by row, -1 for those that a thinner block lacks, and cut into regions none."""
    for layer in circuit.layers:
        expected, sites = numbered_blocks(layer), block_sites(layer)
        assert sites.shape == (math.prod(layer.block), *layer.coarse_shape)
        blocks = sites.flatten(1).T.tolist()
        assert [[site for site in block if site >= 0] for block in blocks] == expected
        pieces = cut_regions(sites, layer)
        for piece, (block, count) in zip(pieces, layer.regions, strict=True):
            assert piece.shape == (math.prod(block), *count)
        cut = [block for piece in pieces for block in piece.flatten(1).T.tolist()]
        assert sorted(cut) == sorted(expected)


@every_circuit
def test_scales_follow_one_another(circuit: Circuit) -> None:
    """Each decimator hands its kept sites to the next scale, down to a single site."""
    shape, scale = circuit.shape, 0
    for layer in circuit.layers:
        assert (layer.scale, layer.shape) == (scale, shape)
        if layer.kind == "decimator":
            shape, scale = layer.coarse_shape, scale + 1
    if circuit.name != "brickwork":
        assert math.prod(shape) == 1
        assert circuit.depth == scale


# small circuits, by hand


SQUARES = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
ROWS = [[[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 1]]]
SHIFTED = [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
WIDE = [[[0, 1, 2, 3], [4]], [[0, 1], [2, 3, 4]]]
FIRST = [[[0], [1, 2], [3, 4]], [[0, 1], [2, 3], [4]]]
THIRDS = [[[1, 2, 3], [4, 5, 6], [7, 0]], [[0, 1, 2], [3, 4, 5], [6, 7]]]


@pytest.mark.parametrize(
    ("name", "shape", "options", "blocks"),
    [
        ("mera", (4,), {}, [[[1, 2], [3, 0]], [[0, 1], [2, 3]], [[0, 1]]]),
        ("mera", (5,), {"boundary": "open"}, [*FIRST, [[0], [1, 2]], [[0, 1], [2]], [[0, 1]]]),
        ("mera", (8,), {"block": 3}, [*THIRDS, [[0, 1, 2]]]),
        ("mera", (2, 4), {}, [[[1, 2, 5, 6], [3, 0, 7, 4]], *ROWS]),
        ("mera", (2, 4), {"boundary": "open"}, [[[0, 4], [1, 2, 5, 6], [3, 7]], *ROWS]),
        ("mera", (4, 4), {}, [SHIFTED, SQUARES, [[0, 1, 2, 3]]]),
        ("mera", (1, 1), {}, []),
        ("tree", (2, 3), {}, [[[0, 1, 3, 4], [2, 5]], [[0, 1]]]),
        ("brickwork", (4, 4), {}, [SQUARES, SHIFTED]),
        ("brickwork", (5,), {"boundary": "open", "block": 4}, WIDE),
        ("brickwork", (1, 1), {}, []),
    ],
)
def test_blocks_by_hand(name: str, shape: Site, options: dict[str, Any], blocks: Any) -> None:
    """The sites of the blocks of each layer, numbered row by row.

    The top of a 2^n lattice is one block: shifted, it would be the decimator's own block again.
    """
    circuit = make_circuit(name, shape, **options)
    assert [numbered_blocks(layer) for layer in circuit.layers] == blocks


def kinds(circuit: Circuit) -> list[tuple[str, Site]]:
    return [(layer.kind, layer.shape) for layer in circuit.layers]


def test_truncated_depth() -> None:
    assert kinds(make_circuit("mera", (8, 8), depth=1)) == [
        ("disentangler", (8, 8)),
        ("decimator", (8, 8)),
    ]
    assert make_circuit("tree", (8,), depth=0).layers == ()
    for name, shape, most in (("tree", (8,), 3), ("mera", (2, 5), 3), ("brickwork", (1,), 0)):
        with pytest.raises(
            ValueError, match=f"depth is 9; accepted: an integer from 0 to {most}, "
        ):
            make_circuit(name, shape, depth=9)
    assert [make_circuit("brickwork", (8,), depth=d).depth for d in (0, 1, 5)] == [0, 1, 5]


# light cones


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_mera_cones_have_bounded_width(boundary: str) -> None:
    """Six sites at most in one dimension, at any scale: the reason why a mera is cheap."""
    circuit = make_circuit("mera", (64,), boundary=boundary)
    for site in range(64):
        assert max(map(len, cone(circuit, (site,)))) <= 6


def test_neighbours_across_a_tree_boundary_meet_only_at_the_top() -> None:
    """In the mera, sites 3 and 4 of eight share a block at once: what disentanglers are for."""
    tree, mera = (make_circuit(name, (8,)) for name in ("tree", "mera"))
    assert any({(3,), (4,)} <= set(block) for block in blocks_of(mera.layers[0]))
    pairs = zip(cone(tree, (3,)), cone(tree, (4,)), strict=True)
    assert [len(left & right) for left, right in pairs] == [0, 0, 2]


@pytest.mark.parametrize(
    ("shape", "block"),
    [((4,), 2), ((8,), 2), ((9,), 3), ((12,), 4), ((4, 4), 2), ((8, 8), 2), ((4, 4, 4), 2)],
)
def test_default_brickwork_just_spans_a_periodic_lattice(shape: Site, block: int) -> None:
    circuit = make_circuit("brickwork", shape, block=block)
    for site in itertools.product(*map(range, shape)):
        assert len(cone(circuit, site)[-1]) == math.prod(shape)
    shorter = make_circuit("brickwork", shape, block=block, depth=circuit.depth - 1)
    assert len(cone(shorter, (0,) * len(shape))[-1]) < math.prod(shape)


# bad input


@pytest.mark.parametrize(
    "shape", [(3, 4), [3, 4], np.array([3, 4]), torch.Size((3, 4)), range(3, 5)]
)
def test_shapes_of_any_sequence_of_integers(shape: Any) -> None:
    checked = check_shape(shape)
    assert checked == (3, 4)
    assert all(type(side) is int for side in checked)


NO_INTEGERS = [8, None, "88", b"88", (4, 8.0), (True, 4), ((4, 4),)]


@pytest.mark.parametrize("shape", [(), (4, 0), (-1,), (2, 2, 2, 2), *NO_INTEGERS])
def test_bad_shapes(shape: Any) -> None:
    error = TypeError if shape in NO_INTEGERS else ValueError
    with pytest.raises(error, match=r"^shape .*accepted: one to 3 integers >= 1"):
        make_circuit("mera", shape)
