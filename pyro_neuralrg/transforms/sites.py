# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Features of the sites of an inhomogeneous lattice, brought to the blocks of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pyro_neuralrg.arguments import check_tensor
from pyro_neuralrg.lattice import Circuit
from pyro_neuralrg.transforms.coupling import Couplings
from pyro_neuralrg.transforms.partition import block_sites


def features_of_blocks(features: Tensor, circuit: Circuit) -> Iterator[Tensor]:
    """For each layer of a circuit the features of its blocks.

    A coarse site has the sum over its block divided by the root of the number of sites: features
    that are independent from site to site keep their size from scale to scale.

    Args:
        features: shape ``(channels,) + shape``.
        circuit: the layers.

    Yields:
        Tensors ``(channels * size, *count)``, the site changing fastest; zeros for sites that a
        thinner block lacks.

    Example:
        >>> import torch
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> layers = list(features_of_blocks(torch.ones(1, 4), make_circuit("tree", (4,))))
        >>> layers[0].shape, layers[1].flatten()
        (torch.Size([2, 2]), tensor([1.4142, 1.4142]))
    """
    flat = features.flatten(1)
    for layer in circuit.layers:
        sites = block_sites(layer)
        here = (sites >= 0).to(flat)
        blocks = flat[:, sites.clamp(min=0)] * here
        yield blocks.flatten(0, 1)
        if layer.kind == "decimator":
            flat = (blocks.sum(1) / here.sum(0).sqrt()).flatten(1)


def check_site_features(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The features, cut off from any graph; of shape ``(channels,) + shape``, finite."""
    accepted = f"finite floating numbers of shape (channels, {', '.join(map(str, shape))})"
    check_tensor("site_features", features, accepted)
    if features.dim() != 1 + len(shape) or features.shape[1:] != shape or not len(features):
        raise ValueError(f"site_features has shape {tuple(features.shape)}; accepted: {accepted}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"site_features has an entry inf or nan; accepted: {accepted}")
    return features.detach()


def show_site_features(flow: Any) -> None:
    """Let all layers of a HierarchicalFlow see its ``site_features`` as they are now."""
    if flow.site_features is None:
        return
    known = features_of_blocks(flow.site_features, flow.circuit)
    for transforms, features in zip(flow.layers, known, strict=True):
        for transform in transforms:
            if isinstance(transform, Couplings):
                transform.see_features(features)
