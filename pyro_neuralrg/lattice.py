# SPDX-License-Identifier: Apache-2.0
"""Lattice shapes, block partitions and circuits, as data.

A *circuit* is a list of layers, finest first. A *layer* covers the lattice of one scale with blocks
of neighbouring sites; what is left over along an axis forms thinner blocks, and single sites pass
on untouched. Nothing here touches a tensor:
:mod:`pyro_neuralrg.transforms.scales` turns these data into tables of sites.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pyro_neuralrg.arguments import check_choice, check_integer, check_integers

CIRCUITS = ("mera", "tree", "brickwork")
BOUNDARIES = ("periodic", "open")
MAX_DIM = 3


def check_shape(shape: Iterable[int], name: str = "shape", most: int = MAX_DIM) -> tuple[int, ...]:
    """Return ``shape`` as a tuple of one to three (or ``most``) positive integers."""
    accepted = f"one to {most} integers >= 1, such as (16, 16)"
    sides = check_integers(name, shape, accepted)
    if not 1 <= len(sides) <= most or min(sides) < 1:
        raise ValueError(f"{name} is {sides}; accepted: {accepted}")
    return sides


def check_boundary(boundary: str) -> str:
    """Return ``boundary`` if it is "periodic" or "open", else raise a ValueError."""
    return check_choice("boundary", boundary, BOUNDARIES)


@dataclass(frozen=True)
class Segment:
    """A stretch of one axis: ``count`` blocks of ``block`` sites."""

    count: int
    block: int


@dataclass(frozen=True)
class Layer:
    """One layer of blocks on the lattice of one scale.

    Attributes:
        kind: "decimator" (the first site of each block goes on to the next scale) or "disentangler"
            (all stay).
        scale: k, 0 is the finest.
        shape: lattice shape at this scale.
        block: sites of a block along each axis.
        shift: sites by which a periodic lattice is rolled back before it is cut into blocks.
        axes: the segments of each axis, in order, covering it without gaps.
    """

    kind: str
    scale: int
    shape: tuple[int, ...]
    block: tuple[int, ...]
    shift: tuple[int, ...]
    axes: tuple[tuple[Segment, ...], ...]

    @property
    def regions(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Sites of a block and blocks along each axis, of each rectangle, last axis fastest."""
        return [
            (tuple(s.block for s in segments), tuple(s.count for s in segments))
            for segments in itertools.product(*self.axes)
        ]

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Number of blocks along each axis: behind a decimator, the shape of the next scale."""
        return tuple(sum(segment.count for segment in axis) for axis in self.axes)


@dataclass(frozen=True)
class Circuit:
    """The arrangement of layers of a hierarchical flow, finest first.

    Renormalization runs through them in this order; the rest is as :func:`make_circuit` takes it.
    Layers, blocks and scales are of sites; a vector field has ``components`` at each of them.
    """

    name: str
    shape: tuple[int, ...]
    block: int
    boundary: str
    layers: tuple[Layer, ...] = field(repr=False)
    components: int = 0

    @property
    def field_shape(self) -> tuple[int, ...]:
        """The lattice shape, of a vector field followed by the number of components."""
        return (*self.shape, self.components) if self.components else self.shape

    @property
    def is_complete(self) -> bool:
        """True if decimators leave a single coarsest variable, which is at index (0, ..., 0)."""
        if not self.layers:
            return max(self.shape) == 1
        return self.layers[-1].kind == "decimator" and max(self.layers[-1].coarse_shape) == 1

    @property
    def depth(self) -> int:
        """Number of scales at which the circuit acts (number of layers for "brickwork")."""
        if self.name == "brickwork":
            return len(self.layers)
        return 1 + max((layer.scale for layer in self.layers), default=-1)


def _cut_axis(side: int, block: int, offset: int) -> tuple[Segment, ...]:
    """Cut an axis into blocks from ``offset`` on; the rest at either end is a thinner block."""
    count = (side - offset) // block
    rest = side - offset - count * block
    pieces = (Segment(1, offset), Segment(count, block), Segment(1, rest))
    return tuple(piece for piece in pieces if piece.count and piece.block)


def _layer(
    kind: str, scale: int, shape: tuple[int, ...], block: int, shifted: bool, boundary: str
) -> Layer:
    """A layer of blocks, ``shifted`` by half a block along every axis with more than one block."""
    sides = tuple(min(block, length) for length in shape)
    nowhere = (0,) * len(shape)
    offsets = nowhere
    if shifted:  # a single block, shifted, would hold the same sites again
        offsets = tuple(block // 2 if length > block else 0 for length in shape)
    shift, cut_at = (offsets, nowhere) if boundary == "periodic" else (nowhere, offsets)
    axes = tuple(map(_cut_axis, shape, sides, cut_at))
    return Layer(kind, scale, shape, sides, shift, axes)


def make_circuit(
    name: str,
    shape: Iterable[int],
    *,
    block: int = 2,
    depth: int | None = None,
    boundary: str = "periodic",
    components: int = 0,
) -> Circuit:
    """Build a circuit as data (paper Fig. 1; supplement for the brickwork, there called TEBD).

    * ``mera``: at each scale a disentangler, shifted by half a block, and a decimator. The
      disentangler is left out where no axis has a second block.
    * ``tree``: decimators only.
    * ``brickwork``: disentanglers on the finest lattice, alternately unshifted and shifted.

    Args:
        name: one of ``CIRCUITS``.
        shape: lattice shape, one to three sides >= 1.
        block: block side b >= 2; an axis shorter than b forms blocks of its own length.
        depth: number of scales (``mera``, ``tree``; default and most: down to one site; sites
            behind fewer remain independent normals) or of layers (``brickwork``; default: largest
            side / b, at least two: light cones then just span a periodic lattice of whole blocks).
        boundary: "periodic" or "open" (an open shifted layer has thinner blocks at the edges).
        components: of a vector field at each site; 0 for a scalar field, one number a site.

    Example:
        >>> [(layer.kind, layer.shape) for layer in make_circuit("mera", (4, 4)).layers]
        [('disentangler', (4, 4)), ('decimator', (4, 4)), ('decimator', (2, 2))]
    """
    sides = check_shape(shape)
    check_choice("circuit", name, CIRCUITS)
    check_boundary(boundary)
    block = check_integer("block", block, 2)
    depth = None if depth is None else check_integer("depth", depth, 0)
    components = check_integer("components", components, 0)
    layers = tuple(_layers_of(name, sides, block, depth, boundary))
    circuit = Circuit(name, sides, block, boundary, layers, components)
    if depth is not None:
        accepted = f"an integer from 0 to {circuit.depth}, all scales of {sides}"
        check_integer("depth", depth, 0, circuit.depth, accepted)
    return circuit


def _layers_of(
    name: str, shape: tuple[int, ...], block: int, depth: int | None, boundary: str
) -> Iterator[Layer]:
    """The layers of a circuit, finest first."""
    if name == "brickwork":
        depth = max(2, math.ceil(max(shape) / block)) if depth is None else depth
        for index in range(depth if max(shape) > 1 else 0):
            yield _layer("disentangler", 0, shape, block, index % 2 == 1, boundary)
        return
    scale = 0
    while max(shape) > 1 and (depth is None or scale < depth):
        if name == "mera" and max(shape) > block:
            yield _layer("disentangler", scale, shape, block, True, boundary)
        decimator = _layer("decimator", scale, shape, block, False, boundary)
        yield decimator
        shape, scale = decimator.coarse_shape, scale + 1
