# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of the scales of a flow, carried over to a larger lattice (paper, note [53])."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_neuralrg.lattice import Circuit, Layer, make_circuit
from pyro_neuralrg.transforms.building import blocks_of_layer


def grow(flow: Any, spectrum: Tensor | None) -> Any:
    """The larger flow; see :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.grow`."""
    circuit, gaussian = flow.circuit, flow.gaussian
    shape = grown_shape(circuit.shape, circuit.block)
    unknown = {
        "weights of each block": flow.weights == "block",
        "site_features": flow.site_features is not None,
        "a spectrum for each context": gaussian is not None and gaussian.slopes is not None,
    }
    if any(unknown.values()):
        raise ValueError(
            f"the flow has {next(name for name in unknown if unknown[name])}, and those of the "
            f"larger lattice are not known; accepted for grow: flows without {', '.join(unknown)}"
        )
    if (gaussian is None) != (spectrum is None):
        accepted = f"eigenvalues for the shape {shape}, such as IsingDual({shape}).spectrum"
        raise ValueError(
            f"spectrum is {'None' if spectrum is None else 'given'}; accepted: "
            f"{'None, as the flow has no Gaussian layer' if gaussian is None else accepted}"
        )
    grown = type(flow)(
        make_circuit(
            circuit.name,
            shape,
            block=circuit.block,
            depth=_grown_depth(circuit),
            boundary=circuit.boundary,
        ),
        flow.bijector,
        weights=flow.weights,
        odd=flow.odd,
        spectrum=spectrum,
        base=flow.base,
        context_dim=flow.context_dim,
    )
    like = next(flow.parameters(), torch.empty(0))
    grown = grown.to(dtype=like.dtype, device=like.device)
    copy_scales(grown, flow)
    return grown


def _grown_depth(circuit: Circuit) -> int | None:
    """Twice the layers of a brickwork; all scales where there are all, else as many as here."""
    if circuit.name == "brickwork":
        return circuit.block * circuit.depth
    return None if circuit.is_complete else circuit.depth


def grown_shape(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """Every side ``block`` times as long; sides of one stay, unless there are no others."""
    longer = tuple(side * block if side > 1 else 1 for side in shape)
    return longer if max(shape) > 1 else tuple(block for _ in shape)


def copy_scales(large: Any, small: Any) -> None:
    """Give each layer of a large HierarchicalFlow the weights of the small one's counterpart.

    Scale k of the one is scale k of the other. The coarsest is the coarsest again, and the one
    below it, which is new, begins as the next finer one. Layers of a brickwork correspond in their
    order. Blocks without a counterpart keep the weights they start with.

    Raises:
        ValueError: if corresponding layers have weights of different shapes.
    """
    for index, layer in enumerate(large.circuit.layers):
        sources = list(_sources(index, layer, large.circuit, small.circuit))
        for (block, _), module in zip(
            blocks_of_layer(large, layer), large.layers[index], strict=True
        ):
            for source in sources:
                others = blocks_of_layer(small, small.circuit.layers[source])
                blocks = [other for other, _ in others]
                if block in blocks:
                    _copy(module, small.layers[source][blocks.index(block)])
                    break


def _sources(index: int, layer: Layer, large: Circuit, small: Circuit) -> Iterator[int]:
    """Indices of the small circuit's layers that may serve, the best first."""
    if large.name == "brickwork":
        if index < len(small.layers):
            yield index
        return
    kin = [i for i, other in enumerate(small.layers) if other.kind == layer.kind]
    wanted = layer.scale
    if large.depth > small.depth:  # one scale more, below the coarsest one
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
