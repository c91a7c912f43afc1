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
from pyro_neuralrg.transforms.partition import block_sites


def number_of_scales(circuit: Circuit) -> int:
    """The number of decimators; the last of them keeps the field of this very scale.

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
        scale: k, from 0 (all sites) to the number of decimators (the coarsest variables).

    Returns:
        Flat indices of sites of the whole lattice, of the shape that the lattice has at scale k.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> sites_of_scale(make_circuit("mera", (4, 4)), 1)
        tensor([[ 0,  2],
                [ 8, 10]])
    """
    sites = torch.arange(math.prod(circuit.shape)).reshape(circuit.shape)
    for blocks in _blocks_up_to(circuit, scale):
        sites = sites.flatten()[blocks[0]]
    return sites


def blocks_of_scale(circuit: Circuit, scale: int) -> Tensor:
    """To which site of one scale the decimators take each site of the lattice.

    Args:
        circuit: of a flow.
        scale: k, as in :func:`sites_of_scale`.

    Returns:
        For each site the position, 0, 1, ..., of its block among the sites of scale k; of the
        lattice's shape.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> blocks_of_scale(make_circuit("tree", (2, 4)), 1)
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1]])
    """
    position = torch.arange(math.prod(circuit.shape))
    for blocks in _blocks_up_to(circuit, scale):
        sites = blocks.flatten(1)
        numbers = torch.arange(sites.shape[1]).expand_as(sites)
        block_of = torch.empty(int(sites.max()) + 1, dtype=torch.long)
        block_of[sites[sites >= 0]] = numbers[sites >= 0]
        position = block_of[position]
    return position.reshape(circuit.shape)


class UpToScale(LatticeTransform):
    """A HierarchicalFlow cut off at scale k: x from u, nothing done to what is coarser.

    u holds the field of scale k, as the layers of that scale meet it, on its sublattice, and the
    latents of the finer scales elsewhere.

    Args:
        flow: a HierarchicalFlow, whose parameters these are.
        scale: k, from 0 to the number of decimators.
    """

    def __init__(self, flow: Any, scale: int) -> None:
        super().__init__(flow.event_shape)
        layers = _layers_up_to(flow.circuit, scale)
        self.scale = scale
        self.stop = len(layers)
        self.shape = flow.shape
        self.flow = flow

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to x."""
        return self.flow.generate(h, context, self.stop)

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to u."""
        return self.flow.renormalize(h, context, self.stop)


def _layers_up_to(circuit: Circuit, scale: int) -> tuple[Any, ...]:
    """The layers before the field of a scale: up to the decimator of the next finer one."""
    scale = check_integer("scale", scale, 0, number_of_scales(circuit))
    decimators = [i for i, layer in enumerate(circuit.layers) if layer.kind == "decimator"]
    return circuit.layers[: decimators[scale - 1] + 1 if scale else 0]


def _blocks_up_to(circuit: Circuit, scale: int) -> list[Tensor]:
    """The sites of the blocks of each decimator before the field of a scale."""
    layers = _layers_up_to(circuit, scale)
    return [block_sites(layer) for layer in layers if layer.kind == "decimator"]
