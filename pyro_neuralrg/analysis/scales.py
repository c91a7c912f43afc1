# SPDX-License-Identifier: Apache-2.0
"""Scales of a flow's latents, blocks of sites, and the light cones of a circuit (paper Fig. 2a)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type, check_values
from pyro_neuralrg.lattice import Circuit, Layer
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.base import pack
from pyro_neuralrg.transforms.scales import (
    block_sites,
    blocks_of_scale,
    number_of_scales,
    sites_of_scale,
)


def latents_of_scale(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The latents that the decimator of one scale leaves behind: flat indices, increasing.

    Every latent belongs to one scale, from 0, the finest, to the number of decimators, to which
    belongs what the last of them keeps.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> latents_of_scale(flow, 1), latents_of_scale(flow, 2)
        (tensor([ 2,  8, 10]), tensor([0]))
    """
    there = variables_of_scale(flow, scale)
    return there[scale_of_latents(flow).flatten()[there] == scale]


def variables_of_scale(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The latents of a scale k = 0 ... n and of all coarser ones: flat indices, increasing.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> variables_of_scale(hierarchical_flow((4, 4)), 1)
        tensor([ 0,  2,  8, 10])
    """
    check_hierarchical(flow)
    return sites_of_scale(flow.circuit, scale).flatten().sort().values


def scale_of_latents(flow: HierarchicalFlow) -> Tensor:
    """The scale of every latent, of the lattice's shape; see :func:`latents_of_scale`.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> scale_of_latents(hierarchical_flow((4,)))
        tensor([2, 0, 1, 0])
    """
    check_hierarchical(flow)
    scales = torch.zeros(flow.shape, dtype=torch.long)
    for scale in range(1, number_of_scales(flow.circuit) + 1):
        scales.view(-1)[sites_of_scale(flow.circuit, scale)] = scale
    return scales


def block_wavelets(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The indicators of the blocks of one scale, normalised: the responses of block spins.

    Orthonormal, shape ``(variables of the scale,) + shape``, in torch's default dtype.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> block_wavelets(hierarchical_flow((4,)), 1)
        tensor([[0.7071, 0.7071, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.7071, 0.7071]])
    """
    check_scalar(flow)
    blocks = blocks_of_scale(flow.circuit, scale).flatten()
    order = sites_of_scale(flow.circuit, scale).flatten().argsort()
    inside = (blocks == order[:, None]).to(torch.get_default_dtype())
    return (inside / inside.sum(1, keepdim=True).sqrt()).reshape(-1, *flow.shape)


def light_cone(circuit: Circuit) -> list[Tensor]:
    """Variables of each scale in the light cone of every site of a flow's ``circuit``.

    Blocks are taken to mix their sites and to see no others: going up, a site meets all sites of
    the blocks that it enters. For each scale, and the variables that the circuit leaves, a bool
    tensor ``(sites,) + shape of the scale``, True where the variable is in the cone of the site.

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

    For each depth, from the first scale alone to the whole circuit; at most half of a periodic
    side. Sites whose light cones do not meet are independent, whatever the weights.

    Example:
        >>> from pyro_neuralrg.lattice import make_circuit
        >>> reach(make_circuit("tree", (8,))), reach(make_circuit("mera", (8,)))
        ([0, 0, 4], [2, 4, 4])
    """
    cones = light_cone(circuit)
    meet = torch.zeros(2 * (math.prod(circuit.shape),), dtype=torch.bool)
    found = []
    for cone in cones[: max(1, len(cones) - 1)]:
        flat = cone.flatten(1).float()
        meet |= (flat @ flat.T) > 0
        found.append(_largest_distance(meet, circuit))
    return found


def block_sums(flow: HierarchicalFlow, x: Tensor, scale: int) -> Tensor:
    """Sums of fields ``(n,) + shape`` over the blocks of a scale, ``(n,) +`` its shape."""
    check_scalar(flow)
    blocks = blocks_of_scale(flow.circuit, scale).flatten().to(x.device)
    shape = sites_of_scale(flow.circuit, scale).shape
    sums = x.new_zeros(len(x), shape.numel()).index_add(1, blocks, x.flatten(1))
    return sums.reshape(len(x), *shape)


def check_hierarchical(flow: Any, name: str = "flow") -> None:
    """Raise a TypeError unless ``flow`` is a HierarchicalFlow."""
    check_type(name, flow, HierarchicalFlow, "a HierarchicalFlow")


def check_scalar(flow: Any, name: str = "flow") -> None:
    """Raise unless ``flow`` is a HierarchicalFlow of a scalar field."""
    check_hierarchical(flow, name)
    if flow.circuit.components:
        raise ValueError(
            f"{name} is of a vector field, {flow.circuit.components} components a site; accepted: "
            "of a scalar field"
        )


def check_indices(name: str, value: Any, variables: int) -> list[int]:
    """Return flat indices of at least one of so many variables, or raise."""
    accepted = f"flat indices of variables, integers from 0 to {variables - 1}, at least one"
    given = value.flatten().tolist() if isinstance(value, Tensor) else value
    check_type(name, given, Sequence, accepted)
    if not given:
        raise ValueError(f"{name} is empty; accepted: {accepted}")
    return [check_integer(name, index, 0, variables - 1, accepted) for index in given]


def check_fields(flow: HierarchicalFlow, name: str, value: Any, *, least: int = 0) -> None:
    """Raise unless ``value`` is a batch of finite fields of the flow's shape.

    With ``least`` above 0, accept just one batch dimension, of at least so many fields.
    """
    check_hierarchical(flow)
    check_values(name, value, flow.shape)
    fits = not least or (value.dim() == 1 + len(flow.shape) and len(value) >= least)
    bad = int((~value.isfinite()).sum())
    if bad or not fits:
        seen = f"{bad} entries that are not finite" if fits else f"shape {tuple(value.shape)}"
        accepted = f"finite numbers, (n,) + {flow.shape} with n >= {least}"
        raise ValueError(f"{name} has {seen}; accepted: {accepted}")


def _enter(h: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """The cone inside a layer's blocks, and of a decimator what goes on."""
    sites = block_sites(layer)  # -1 where a thinner block has none: the last row
    rows = torch.cat([h.flatten(0, -2), h.new_zeros(1, h.shape[-1])])
    mixed = rows[sites].amax(0)
    rows[sites] = mixed.expand_as(rows[sites])
    return rows[:-1].view(h.shape), None if layer.kind == "disentangler" else mixed


def _largest_distance(meet: Tensor, circuit: Circuit) -> int:
    """The largest distance along the first axis up to which all pairs meet."""
    side, periodic = circuit.shape[0], circuit.boundary == "periodic"
    index = torch.arange(len(meet)).reshape(circuit.shape)
    most = side // 2 if periodic else side - 1
    for distance in range(1, most + 1):
        stop = side if periodic else side - distance
        if not bool(meet[index[:stop], index.roll(-distance, 0)[:stop]].all()):
            return distance - 1
    return most
