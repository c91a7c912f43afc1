# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The modules of a hierarchical flow, layer by layer, with the weights that they share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_neuralrg.lattice import Layer
from pyro_neuralrg.transforms.bijectors import BlockLayout
from pyro_neuralrg.transforms.partition import block_sites, cut


def build_layer(
    flow: Any, layer: Layer, features: Tensor | None, shared: dict[Any, nn.Module]
) -> nn.ModuleList:
    """One transform for all blocks of a layer, or one per region of equal blocks.

    Single sites pass through an identity.

    Args:
        flow: a HierarchicalFlow whose options are set.
        layer: of its circuit.
        features: what is known of the sites of its blocks, or None.
        shared: modules whose weights other layers take over, where all scales share one set.
    """
    modules: list[nn.Module] = []
    for block, count in blocks_of_layer(flow, layer):
        if math.prod(block) == 1:
            modules.append(nn.Identity())
            continue
        layout = BlockLayout(
            block,
            count,
            flow.odd,
            flow.circuit.boundary,
            flow.weights == "block",
            flow.context_dim,
            features,
        )
        transform: nn.Module = flow.bijector.build(layout)
        if flow.weights == "shared":
            _share_parameters(transform, shared.setdefault((layer.kind, block), transform))
        modules.append(transform)
    return nn.ModuleList(modules)


def blocks_of_layer(flow: Any, layer: Layer) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sites and number of the blocks that each transform of a layer acts on, along each axis."""
    if fills_up_blocks(flow):
        return [(layer.block, layer.coarse_shape)]
    return [(region.block, region.count) for region in layer.regions]


def fills_up_blocks(flow: Any) -> bool:
    """Whether one transform acts on all blocks of a layer, thinner ones filled up with zeros."""
    return getattr(flow.bijector, "fills_up_blocks", False) and flow.weights != "block"


def sites_of_layers(flow: Any) -> list[list[Tensor]]:
    """For each transform of each layer its sites, flat indices of the whole lattice.

    Shape ``(size, *count)``; -1 for sites that a thinner block lacks.
    """
    found = []
    sites = torch.arange(math.prod(flow.circuit.shape))  # of the present scale
    for layer in flow.circuit.layers:
        of_scale = block_sites(layer)
        everywhere = torch.cat([sites, sites.new_full((1,), -1)])[of_scale]
        if fills_up_blocks(flow):
            found.append([everywhere])
        else:
            grid = sites.reshape(*layer.shape, 1)
            found.append([piece.squeeze(-1) for piece in cut(grid, layer)])
        if layer.kind == "decimator":
            sites = everywhere[0].flatten()
    return found


def _share_parameters(transform: nn.Module, source: nn.Module) -> None:
    """Let ``transform`` hold the very parameters of ``source``, a module of the same structure."""
    for mine, theirs in zip(transform.modules(), source.modules(), strict=True):
        for name in mine._parameters:
            mine._parameters[name] = theirs._parameters[name]
