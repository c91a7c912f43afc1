# SPDX-License-Identifier: Apache-2.0
"""Blocks and scales of a flow: their sites and features, the flow cut off at one, larger flows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.lattice import Circuit, Layer
from pyro_neuralrg.transforms.base import LatticeTransform


def block_sites(layer: Layer) -> Tensor:
    """The sites of all blocks of a layer, thinner blocks filled up.

    Returns:
        Flat indices of the lattice of the layer's scale, shape ``(size, *count)``; -1 for the sites
        that a thinner block lacks.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> block_sites(make_circuit("tree", (3,)).layers[0])
        tensor([[ 0,  2],
                [ 1, -1]])
    """
    sites = torch.arange(math.prod(layer.shape)).reshape(layer.shape)
    here = torch.zeros((), dtype=torch.bool)
    for axis, (side, block, shift, segments) in enumerate(
        zip(layer.shape, layer.block, layer.shift, layer.axes, strict=True)
    ):
        # the block at an open end lacks its first sites, that behind the last ones
        begin = segments[0].block - block
        count = -(-(side - begin) // block)
        place = begin + torch.arange(count * block).reshape(count, block)
        outside = (place < 0) | (place >= side)
        sites = sites.index_select(2 * axis, ((place + shift) % side).flatten())
        sites = sites.unflatten(2 * axis, (count, block))
        here = here[..., None, None] | outside
    dim = len(layer.shape)
    sites = torch.where(here, -1, sites)
    order = [*range(1, 2 * dim, 2), *range(0, 2 * dim, 2)]
    return sites.permute(order).flatten(0, dim - 1)


def blocks_of_layer(layer: Layer, filled_up: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sites and number of blocks along each axis: one pair for all if filled up, or by region."""
    return [(layer.block, layer.coarse_shape)] if filled_up else layer.regions


def rows_of_sites(sites: Tensor, components: int) -> Tensor:
    """The rows of a flat field at sites ``(size, ...)``: ``(size * components, ...)``.

    Components change fastest; -1 stays, and of a scalar field all.
    """
    if not components:
        return sites
    row = torch.arange(components).view(-1, *(1,) * (sites.dim() - 1))
    rows = torch.where(sites[:, None] < 0, -1, components * sites[:, None] + row)
    return rows.flatten(0, 1)


def sites_of_layers(circuit: Circuit, filled_up: bool) -> list[list[Tensor]]:
    """The blocks of each pair of each layer, as :func:`block_sites` of the whole lattice.

    Of a vector field the :func:`rows_of_sites`.
    """
    found = []
    sites = torch.arange(math.prod(circuit.shape))  # of the present scale
    for layer in circuit.layers:
        everywhere = torch.cat([sites, sites.new_full((1,), -1)])[block_sites(layer)]
        parts = [everywhere] if filled_up else cut_regions(everywhere, layer)
        found.append([rows_of_sites(part, circuit.components) for part in parts])
        if layer.kind == "decimator":
            sites = everywhere[0].flatten()
    return found


def cut_regions(sites: Tensor, layer: Layer) -> list[Tensor]:
    """Cut sites of all blocks ``(size, *count)`` into regions of equal blocks, none filled up."""
    pieces = [sites]
    for axis, segments in enumerate(layer.axes, start=1):
        counts = [segment.count for segment in segments]
        pieces = [part for piece in pieces for part in piece.split(counts, axis)]
    return [piece[piece.flatten(1)[:, 0] >= 0] for piece in pieces]


def features_of_blocks(features: Tensor, circuit: Circuit) -> Iterator[Tensor]:
    """For each layer of a circuit the features of its blocks.

    A coarse site has the sum over its block divided by the root of the number of sites: features
    that are independent from site to site keep their size from scale to scale.

    Yields:
        Tensors ``(channels * size, *count)``, the site changing fastest; zeros for sites that a
        thinner block lacks.
    """
    flat = features.flatten(1)
    for layer in circuit.layers:
        sites = block_sites(layer)
        here = (sites >= 0).to(flat)
        blocks = flat[:, sites.clamp(min=0)] * here
        yield blocks.flatten(0, 1)
        if layer.kind == "decimator":
            flat = (blocks.sum(1) / here.sum(0).sqrt()).flatten(1)


def number_of_scales(circuit: Circuit) -> int:
    """The number of decimators; the last of them keeps the field of this very scale."""
    return sum(layer.kind == "decimator" for layer in circuit.layers)


def sites_of_scale(circuit: Circuit, scale: int) -> Tensor:
    """The sites that the field of one scale lives on: in latents, the variables of its sublattice.

    Scales run from 0 (all sites) to the number of decimators (the coarsest variables).

    Returns:
        Flat indices into the field of the whole lattice, of the shape that it has at scale k.
    """
    sites = torch.arange(math.prod(circuit.shape)).reshape(circuit.shape)
    for blocks in _blocks_up_to(circuit, scale):
        sites = sites.flatten()[blocks[0]]
    number = circuit.components
    return number * sites.unsqueeze(-1) + torch.arange(number) if number else sites


def blocks_of_scale(circuit: Circuit, scale: int) -> Tensor:
    """The site of scale k to which the decimators take each site of the lattice.

    Returns:
        The position, 0, 1, ..., of its block among :func:`sites_of_scale`; of the lattice's shape.
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
    """A flow cut off at scale k; see ``HierarchicalFlow.up_to_scale``. It shares its parameters."""

    def __init__(self, flow: Any, scale: int) -> None:
        super().__init__(flow.event_shape)
        self.stop = len(_layers_up_to(flow.circuit, scale))
        self.shape = flow.shape
        self.flow = flow

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return (self.flow.renormalize if inverse else self.flow.generate)(h, context, self.stop)


def _layers_up_to(circuit: Circuit, scale: int) -> tuple[Layer, ...]:
    """The layers before the field of a scale: up to the decimator of the next finer one."""
    scale = check_integer("scale", scale, 0, number_of_scales(circuit))
    decimators = [i for i, layer in enumerate(circuit.layers) if layer.kind == "decimator"]
    return circuit.layers[: decimators[scale - 1] + 1 if scale else 0]


def _blocks_up_to(circuit: Circuit, scale: int) -> list[Tensor]:
    """The sites of the blocks of each decimator before the field of a scale."""
    layers = _layers_up_to(circuit, scale)
    return [block_sites(layer) for layer in layers if layer.kind == "decimator"]


def grow(flow: Any, spectrum: Tensor | None) -> Any:
    """The larger flow; see :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.grow`."""
    circuit, gaussian = flow.circuit, flow.gaussian
    # sides of one stay, unless there are no others
    only_one = max(circuit.shape) == 1
    shape = tuple(side * circuit.block if side > 1 or only_one else 1 for side in circuit.shape)
    unknown = {
        "weights of each block": flow.weights == "block",
        "site_features": flow.site_features is not None,
        "a covariance": getattr(gaussian, "given_as", "") == "covariance",
        "a spectrum for each context": getattr(gaussian, "slopes", None) is not None,
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
    depth = None if circuit.is_complete else circuit.depth
    if circuit.name == "brickwork":
        depth = circuit.block * circuit.depth
    own = {"base": flow.base, "context_dim": flow.context_dim}
    grown = _built_alike(flow, shape, depth, spectrum=spectrum, **own)
    copy_scales(grown, flow)
    return grown


def _built_alike(flow: Any, shape: tuple[int, ...], depth: int | None, **options: Any) -> Any:
    """A new flow of the same layers on another lattice."""
    circuit, like = flow.circuit, next(flow.parameters(), torch.empty(0))
    options |= {name: getattr(flow, name) for name in ("bijector", "weights", "odd", "wavelet")}
    options |= {name: getattr(circuit, name) for name in ("block", "boundary", "components")}
    options |= {"dtype": like.dtype}
    return type(flow).build(shape, circuit.name, depth=depth, **options).to(like.device)


def copy_scales(large: Any, small: Any) -> None:
    """Give each layer of a large HierarchicalFlow the weights of the small one's counterpart.

    Blocks without a counterpart keep the weights they start with.
    """
    for index, layer in enumerate(large.circuit.layers):
        sources = _sources(index, layer, large.circuit, small.circuit)
        candidates = [pair for source in sources for pair in _modules(small, source)]
        for block, module in _modules(large, index):
            same = [other for its_block, other in candidates if its_block == block]
            if same:
                _copy(module, same[0])


def _modules(flow: Any, index: int) -> list[tuple[tuple[int, ...], nn.Module]]:
    """The modules of a layer, each with the sides of its blocks."""
    blocks = blocks_of_layer(flow.circuit.layers[index], flow.filled_up)
    return [(block, m) for (block, _), m in zip(blocks, flow.layers[index], strict=True)]


def _sources(index: int, layer: Layer, large: Circuit, small: Circuit) -> list[int]:
    """Indices of the small circuit's layers that may serve, the best first.

    Layers of a brickwork correspond in their order, others as ``HierarchicalFlow.grow`` says.
    """
    if large.name == "brickwork":
        return [index] if index < len(small.layers) else []
    kin = [i for i, other in enumerate(small.layers) if other.kind == layer.kind]
    wanted = layer.scale
    if large.depth > small.depth:  # one scale more, below the coarsest one
        coarsest = layer.scale == large.depth - 1
        wanted = small.depth - 1 if coarsest else min(layer.scale, max(0, small.depth - 2))
    return sorted(kin, key=lambda i: abs(small.layers[i].scale - wanted))


def _copy(module: nn.Module, source: nn.Module) -> None:
    try:
        module.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "the weights of the flow's layers depend on the number of blocks, so that they cannot "
            f"grow; accepted: layers whose weights do not ({str(error).splitlines()[-1].strip()})"
        ) from None


def step_of_scale(flow: Any, scale: int, shape: tuple[int, ...]) -> Any:
    """The layers of one scale as a flow of depth one on a lattice of another shape.

    A ValueError if there are other layers on that lattice, or the weights depend on the lattice.
    """
    circuit, step = flow.circuit, _built_alike(flow, shape, depth=1)
    sources = [index for index, layer in enumerate(circuit.layers) if layer.scale == scale]
    kinds = [circuit.layers[index].kind for index in sources]
    if flow.weights == "block" or [layer.kind for layer in step.circuit.layers] != kinds:
        raise ValueError(
            f"the layers of scale {scale}, {kinds}, do not act on the lattice {shape}; accepted: "
            "those of a scale that has as many layers, without weights of each block"
        )
    for index, source in enumerate(sources):
        known = dict(reversed(_modules(flow, source)))
        for block, module in _modules(step, index):
            if block not in known:
                raise ValueError(
                    f"blocks of {block} on the lattice {shape} have no counterpart at scale "
                    f"{scale}; accepted: lattices that are cut into the same blocks"
                )
            _copy(module, known[block])
    return step
