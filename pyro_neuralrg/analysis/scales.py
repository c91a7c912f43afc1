# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The scales of a flow's latent variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_tensor, check_type
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import blocks_of_scale, number_of_scales, sites_of_scale


def latents_of_scale(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The latents that the decimator of one scale leaves behind.

    Every latent belongs to one scale: k = 0, the finest, to the number n of decimators, to which
    belongs what the last of them keeps (a single variable of a complete circuit; all, of a
    brickwork, whose only scale is 0).

    Args:
        flow: a HierarchicalFlow.
        scale: k, from 0 to n.

    Returns:
        Flat indices of sites, increasing.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> latents_of_scale(flow, 1), latents_of_scale(flow, 2)
        (tensor([ 2,  8, 10]), tensor([0]))
    """
    check_hierarchical(flow)
    there = sites_of_scale(flow.circuit, scale).flatten()
    if scale == number_of_scales(flow.circuit):
        return there.sort().values
    coarser = sites_of_scale(flow.circuit, scale + 1).flatten()
    return there[~torch.isin(there, coarser)].sort().values


def variables_of_scale(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The latents of a scale and of all coarser ones: those its field is made of.

    Of the last scale but one of a complete flow with blocks of 2 x 2, the four top variables.

    Args:
        flow: a HierarchicalFlow.
        scale: k, from 0 to the number of decimators.

    Returns:
        Flat indices of sites, increasing.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> variables_of_scale(hierarchical_flow((4, 4)), 1)
        tensor([ 0,  2,  8, 10])
    """
    check_hierarchical(flow)
    return sites_of_scale(flow.circuit, scale).flatten().sort().values


def scale_of_latents(flow: HierarchicalFlow) -> Tensor:
    """The scale of every latent, of the lattice's shape; see :func:`latents_of_scale`.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> scale_of_latents(hierarchical_flow((4,)))
        tensor([2, 0, 1, 0])
    """
    check_hierarchical(flow)
    scales = torch.zeros(flow.shape, dtype=torch.long)
    for scale in range(1, number_of_scales(flow.circuit) + 1):
        scales.view(-1)[sites_of_scale(flow.circuit, scale).flatten()] = scale
    return scales


def block_wavelets(flow: HierarchicalFlow, scale: int) -> Tensor:
    """The indicators of the blocks of one scale, normalised: the responses of block spins.

    Orthonormal, one for each variable of :func:`variables_of_scale`. Of the last scale but one of
    a square lattice with sides 2^n they are its four quarters.

    Args:
        flow: a HierarchicalFlow.
        scale: k, from 0 to the number of decimators.

    Returns:
        Shape ``(variables of the scale,) + shape``, in torch's default dtype.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> block_wavelets(hierarchical_flow((4,)), 1)
        tensor([[0.7071, 0.7071, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.7071, 0.7071]])
    """
    check_hierarchical(flow)
    blocks = blocks_of_scale(flow.circuit, scale).flatten()
    order = sites_of_scale(flow.circuit, scale).flatten().argsort()
    inside = (blocks == order[:, None]).to(torch.get_default_dtype())
    return (inside / inside.sum(1, keepdim=True).sqrt()).reshape(-1, *flow.shape)


def check_hierarchical(flow: Any) -> None:
    """Raise a TypeError unless ``flow`` is a HierarchicalFlow."""
    check_type("flow", flow, HierarchicalFlow, "a HierarchicalFlow")


def check_indices(name: str, value: Any, variables: int) -> list[int]:
    """Return flat indices of at least one of so many variables, or raise."""
    accepted = f"flat indices of variables, integers from 0 to {variables - 1}, at least one"
    given = value.flatten().tolist() if isinstance(value, Tensor) else value
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    if not given:
        raise ValueError(f"{name} is empty; accepted: {accepted}")
    return [check_integer(name, index, 0, variables - 1, accepted) for index in given]


def check_fields(flow: HierarchicalFlow, name: str, value: Any, *, least: int = 0) -> None:
    """Raise unless ``value`` is a batch of finite fields of the flow's shape.

    Args:
        flow: a HierarchicalFlow.
        name: of the argument.
        value: of the argument.
        least: if above 0, accept just one batch dimension, of at least so many fields.
    """
    check_hierarchical(flow)
    check_tensor(name, value)
    batch = value.dim() - len(flow.shape)
    fits = batch >= 0 and tuple(value.shape[batch:]) == flow.shape
    if not fits or (least and (batch != 1 or len(value) < least)):
        accepted = f"(n,) + {flow.shape}, n >= {least}" if least else f"any batch + {flow.shape}"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; accepted: {accepted}")
    bad = int((~value.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; accepted: finite numbers")
