# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Light cones of a circuit: the variables of each scale that a site depends on (paper Fig. 2a)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_type
from pyro_neuralrg.lattice import Circuit, Layer
from pyro_neuralrg.transforms.base import pack
from pyro_neuralrg.transforms.partition import block_sites


def light_cone(circuit: Circuit) -> list[Tensor]:
    """Variables of each scale in the light cone of every site.

    Of blocks that act alone: each mixes its sites and sees no others. Going up, a site meets all
    sites of the blocks that it enters, and those that are kept go on to the next scale; generation
    and renormalization have the same cone.

    Args:
        circuit: the arrangement of the layers, a flow's ``circuit``.

    Raises:
        TypeError, ValueError: naming the argument.

    Returns:
        For each scale a bool tensor of shape ``(sites,) + shape of the scale``, True where the
        variable is in the cone of the site. The last are those that the circuit leaves.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> cone = light_cone(make_circuit("tree", (4,)))
        >>> cone[0].int().sum(1), cone[1].int().sum(1)  # a block of two, then both kept ones
        (tensor([2, 2, 2, 2]), tensor([2, 2, 2, 2]))
    """
    check_type("circuit", circuit, Circuit, "a Circuit, as flow.circuit")
    sites = math.prod(circuit.shape)
    h = pack(torch.eye(sites).reshape(sites, *circuit.shape), len(circuit.shape))
    scales = []
    for layer in circuit.layers:
        h, kept = _enter(h, layer)
        if kept is not None:
            scales.append(h)
            h = kept
    scales.append(h)
    return [scale.movedim(-1, 0).bool() for scale in scales]


def reach(circuit: Circuit) -> list[int]:
    """The distance along the first axis up to which all pairs of sites share a variable.

    Sites whose light cones do not meet are independent, whatever the weights.

    Args:
        circuit: the arrangement of the layers.

    Returns:
        For each depth, from the first scale alone to the whole circuit, the largest distance (at
        most half of a periodic side).

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> reach(make_circuit("tree", (8,))), reach(make_circuit("mera", (8,)))
        ([0, 0, 4], [2, 4, 4])
    """
    cones = light_cone(circuit)
    sides = circuit.shape
    meet = torch.zeros(math.prod(sides), math.prod(sides), dtype=torch.bool)
    found = []
    for cone in cones[: max(1, len(cones) - 1)]:
        flat = cone.flatten(1).float()
        meet |= (flat @ flat.T) > 0
        found.append(_largest_distance(meet, sides, circuit.boundary))
    return found


def _enter(h: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """The cone inside a layer's blocks, and of a decimator what goes on."""
    sites = block_sites(layer)  # -1 where a thinner block has none: the last row
    rows = torch.cat([h.flatten(0, -2), h.new_zeros(1, h.shape[-1])])
    mixed = rows[sites].amax(0)
    rows[sites] = mixed.expand_as(rows[sites])
    return rows[:-1].view(h.shape), None if layer.kind == "disentangler" else mixed


def _largest_distance(meet: Tensor, sides: tuple[int, ...], boundary: str) -> int:
    index = torch.arange(len(meet)).reshape(sides)
    side = sides[0]
    most = side // 2 if boundary == "periodic" else side - 1
    for distance in range(1, most + 1):
        partner = index.roll(-distance, 0)
        stop = side if boundary == "periodic" else side - distance
        if not bool(meet[index[:stop].flatten(), partner[:stop].flatten()].all()):
            return distance - 1
    return most
