# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of each site of an inhomogeneous lattice, brought to the blocks of every layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor

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
    """The features, cut off from any graph.

    Raises:
        TypeError: if they are no floating tensor.
        ValueError: if their shape is not ``(channels,) + shape``, or one is not finite.
    """
    accepted = f"accepted: a floating tensor of shape (channels, {', '.join(map(str, shape))})"
    if not isinstance(features, Tensor) or not features.is_floating_point():
        seen = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"site_features is {seen}; {accepted}")
    if features.dim() != 1 + len(shape) or features.shape[1:] != shape or not len(features):
        raise ValueError(f"site_features has shape {tuple(features.shape)}; {accepted}")
    if not bool(features.isfinite().all()):
        raise ValueError("site_features has entries that are not finite; accepted: finite ones")
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


def with_site_features(flow: Any, site_features: Tensor) -> Any:
    """See :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.with_site_features`."""
    mine = flow.site_features
    if mine is None:
        raise ValueError("the flow has no site_features; accepted: a flow made with some")
    features = check_site_features(site_features, flow.shape)
    if features.shape != mine.shape:
        raise ValueError(
            f"site_features has shape {tuple(features.shape)}; accepted: {tuple(mine.shape)}"
        )
    other = copy.deepcopy(flow)
    other.site_features = features.to(mine)
    show_site_features(other)
    return other
