# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a flow has learned at its scales, carried over to a larger lattice (paper, note [53])."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pyro_neuralrg.lattice import Circuit, Layer

__all__ = ["copy_scales", "grown_shape"]


def grown_shape(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """Every side ``block`` times as long; sides of one stay, unless there are no others.

    Example:
        >>> grown_shape((8, 8), 2), grown_shape((1, 8), 2), grown_shape((1,), 2)
        ((16, 16), (1, 16), (2,))
    """
    longer = tuple(side * block if side > 1 else 1 for side in shape)
    return longer if max(shape) > 1 else tuple(block for _ in shape)


def copy_scales(large: Any, small: Any) -> None:
    """Give each layer of a large HierarchicalFlow the weights of the small one's counterpart.

    Scale k of the one is scale k of the other: near the field both do the same. The coarsest scale
    is the coarsest again, and the one below it, which is new, begins as the next finer one. Layers
    of a brickwork correspond in their order. Blocks for which there is no counterpart keep the
    weights they start with.

    Raises:
        ValueError: if corresponding layers have weights of different shapes.
    """
    for index, layer in enumerate(large.circuit.layers):
        sources = list(_sources(index, layer, large.circuit, small.circuit))
        for region, module in zip(layer.regions, large.layers[index], strict=True):
            for source in sources:
                blocks = [other.block for other in small.circuit.layers[source].regions]
                if region.block in blocks:
                    _copy(module, small.layers[source][blocks.index(region.block)])
                    break
        if sources:
            _copy(large.coarse_maps[index], small.coarse_maps[sources[0]])


def _sources(index: int, layer: Layer, large: Circuit, small: Circuit) -> Iterator[int]:
    """Indices of the small circuit's layers that may serve, the best first."""
    if large.name == "brickwork":
        if index < len(small.layers):
            yield index
        return
    kin = [i for i, other in enumerate(small.layers) if other.kind == layer.kind]
    wanted = layer.scale
    if large.depth > small.depth:  # then there is a scale more, below the coarsest one
        coarsest = layer.scale == large.depth - 1
        wanted = small.depth - 1 if coarsest else min(layer.scale, max(0, small.depth - 2))
    yield from sorted(kin, key=lambda i: abs(small.layers[i].scale - wanted))


def _copy(module: nn.Module, source: nn.Module) -> None:
    try:
        module.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "the weights of the flow's layers depend on the number of blocks, so that they cannot "
            f"grow; accepted: layers whose weights do not ({str(error).splitlines()[-1].strip()})"
        ) from None
