# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The scales of a circuit: which sites live on which, and a flow cut off at one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.lattice import Circuit
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.partition import cut, tile

__all__ = ["UpToScale", "blocks_of_scale", "number_of_scales", "sites_of_scale"]


def number_of_scales(circuit: Circuit) -> int:
    """The number of decimators; what the last of them keeps is the field of this very scale.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> number_of_scales(make_circuit("mera", (8, 8)))
        3
    """
    return sum(layer.kind == "decimator" for layer in circuit.layers)


def sites_of_scale(circuit: Circuit, scale: int) -> Tensor:
    """The sites that the field of one scale lives on: in latents, the variables of its sublattice.

    Args:
        circuit: of a flow.
        scale: k, from 0 (all sites) to the number of decimators (what is left at the end).

    Returns:
        Flat indices of sites of the whole lattice, of the shape that the lattice has at scale k.

    Raises:
        TypeError, ValueError: if ``scale`` is no such integer.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> sites_of_scale(make_circuit("mera", (4, 4)), 1)
        tensor([[ 0,  2],
                [ 8, 10]])
    """
    scale = _check_scale(circuit, scale)
    sites = torch.arange(math.prod(circuit.shape)).reshape(*circuit.shape, 1)
    for layer in circuit.layers[: _first_layer(circuit, scale)]:
        if layer.kind == "decimator":
            sites = tile([block[0] for block in cut(sites, layer)], layer)
    return sites[..., 0]


def blocks_of_scale(circuit: Circuit, scale: int) -> Tensor:
    """To which site of one scale the decimators take each site of the lattice.

    Args:
        circuit: of a flow.
        scale: k, as in :func:`sites_of_scale`.

    Returns:
        For each site the position, 0, 1, ..., of its block among the sites of scale k; of the
        lattice's shape.

    Raises:
        TypeError, ValueError: if ``scale`` is no such integer.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> blocks_of_scale(make_circuit("tree", (2, 4)), 1)
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1]])
    """
    scale = _check_scale(circuit, scale)
    sites = math.prod(circuit.shape)
    owner = torch.arange(sites)  # of each site, the site that stands for its block
    positions = owner.reshape(*circuit.shape, 1)
    for layer in circuit.layers[: _first_layer(circuit, scale)]:
        if layer.kind != "decimator":
            continue
        blocks = cut(positions, layer)
        step = torch.arange(sites)
        for block in blocks:
            step[block.flatten()] = block[:1].expand_as(block).flatten()
        owner = step[owner]
        positions = tile([block[0] for block in blocks], layer)
    number = torch.empty(sites, dtype=torch.long)
    number[positions.flatten()] = torch.arange(positions.numel())
    return number[owner].reshape(circuit.shape)


class UpToScale(LatticeTransform):
    """A HierarchicalFlow cut off at scale k: x from u, nothing done to what is coarser.

    u holds the field of scale k, as the layers of that scale meet it, on its sublattice, and the
    latents of the finer scales elsewhere.

    Args:
        flow: a HierarchicalFlow, whose parameters these are.
        scale: k, from 0 to the number of decimators.

    Raises:
        TypeError, ValueError: if ``scale`` is no such integer.
    """

    def __init__(self, flow: Any, scale: int) -> None:
        super().__init__(flow.event_shape)
        self.scale = _check_scale(flow.circuit, scale)
        self.stop = _first_layer(flow.circuit, self.scale)
        self.flow = flow

    @property
    def shape(self) -> tuple[int, ...]:
        """The lattice shape."""
        return self.event_shape

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to x."""
        return self.flow.generate(h, context, self.stop)

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to u."""
        return self.flow.renormalize(h, context, self.stop)


def _check_scale(circuit: Circuit, scale: int) -> int:
    return check_integer("scale", scale, 0, number_of_scales(circuit))


def _first_layer(circuit: Circuit, scale: int) -> int:
    """The layer that the field of a scale enters: behind the decimator of the finer one."""
    decimators = [i for i, layer in enumerate(circuit.layers) if layer.kind == "decimator"]
    return 0 if scale == 0 else decimators[scale - 1] + 1
