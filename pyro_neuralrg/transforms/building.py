# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The modules of a hierarchical flow, layer by layer, with the weights that they share."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_neuralrg.lattice import Layer
from pyro_neuralrg.transforms.bijectors import Place
from pyro_neuralrg.transforms.monotone import MonotoneMap

__all__ = ["build_coarse_map", "build_layer"]


def build_layer(
    flow: Any, layer: Layer, features: list[Any], shared: dict[Any, nn.Module]
) -> nn.ModuleList:
    """One transform per region; single sites pass through an identity.

    Args:
        flow: a HierarchicalFlow whose options are set.
        layer: of its circuit.
        features: what is known of the sites of each region, or None for each.
        shared: modules whose weights other layers take over, where all scales share one set.
    """
    modules: list[nn.Module] = []
    for region, known in zip(layer.regions, features, strict=True):
        if region.size == 1:
            modules.append(nn.Identity())
            continue
        place = Place(
            region.block,
            region.count,
            flow.odd,
            flow.circuit.boundary,
            flow.weights == "block",
            flow.context_dim,
            known,
        )
        transform: nn.Module = flow.bijector.build(place)
        if flow.weights == "shared":
            _share_parameters(transform, shared.setdefault((layer.kind, region.block), transform))
        modules.append(transform)
    return nn.ModuleList(modules)


def build_coarse_map(flow: Any, layer: Layer, shared: dict[Any, nn.Module]) -> nn.Module:
    """The monotone map on the variables that a layer keeps, or an identity."""
    if layer.kind != "decimator" or not flow.monotone_steps:
        return nn.Identity()
    transform: nn.Module = MonotoneMap(layer.coarse_shape, flow.monotone_steps, flow.odd)
    if flow.weights == "shared":
        _share_parameters(transform, shared.setdefault("coarse", transform))
    return transform


def _share_parameters(transform: nn.Module, source: nn.Module) -> None:
    """Let ``transform`` hold the very parameters of ``source``, a module of the same structure."""
    for mine, theirs in zip(transform.modules(), source.modules(), strict=True):
        for name in mine._parameters:
            mine._parameters[name] = theirs._parameters[name]
