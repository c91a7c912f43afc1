# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The renormalization group at work: fields of every scale, effective energies, resampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.analysis.scales import check_fields, variables_of_scale
from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale

__all__ = ["effective_energy", "pyramid", "resample", "top_variable"]

FIXED = ("coarse", "fine")


def pyramid(flow: HierarchicalFlow, x: Tensor) -> tuple[Tensor, ...]:
    """The flow of fields through the scales: x, then what is kept at scale 1, 2, ....

    Fields of scale k are those that its layers meet, behind the monotone map of the decimator. The
    last is the top: in a flow with humps, the variable y with two humps rather than the normal z.

    Args:
        flow: a HierarchicalFlow.
        x: fields, any batch shape + ``shape``, in the flow's dtype.

    Returns:
        A field for each scale k, shape ``batch_shape`` + the lattice's shape at scale k.

    Raises:
        TypeError: if ``flow`` is no HierarchicalFlow or x no floating tensor.
        ValueError: if x does not fit the flow or is not finite.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> [tuple(h.shape) for h in pyramid(hierarchical_flow((4, 4)), torch.randn(10, 4, 4))]
        [(10, 4, 4), (10, 2, 2), (10, 1, 1)]
    """
    check_fields(flow, "x", x)
    batch = x.shape[: x.dim() - len(flow.shape)]
    fields = [x]
    with torch.no_grad():
        for scale in range(1, number_of_scales(flow.circuit) + 1):
            kept = flow.up_to_scale(scale).inverse_and_ladj(x)[0]
            sites = sites_of_scale(flow.circuit, scale)
            fields.append(kept.reshape(*batch, -1)[..., sites.to(x.device)])
    return tuple(fields)


def top_variable(flow: HierarchicalFlow, x: Tensor) -> Tensor:
    """The coarsest variable of each field, an order parameter that the flow has found.

    The top of :func:`pyramid`. Of fields above, at and below a critical temperature it tells the
    phases apart.

    Args:
        flow: a HierarchicalFlow that leaves one coarsest variable.
        x: fields, any batch shape + ``shape``, in the flow's dtype.

    Returns:
        Shape ``batch_shape``.

    Raises:
        TypeError: if ``flow`` is no HierarchicalFlow or x no floating tensor.
        ValueError: if x does not fit the flow or is not finite, or the circuit is not complete.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> top_variable(hierarchical_flow((4, 4)), torch.randn(10, 4, 4)).shape
        torch.Size([10])
    """
    check_fields(flow, "x", x)
    if not flow.circuit.is_complete:
        raise ValueError(
            f"flow has the circuit {flow.circuit.name!r} of depth {flow.circuit.depth}, which "
            "leaves several coarsest variables; accepted: one that leaves a single one"
        )
    with torch.no_grad():
        y = flow.up_to_scale(number_of_scales(flow.circuit)).inverse_and_ladj(x)[0]
    return y.flatten(y.dim() - len(flow.shape))[..., 0]


def resample(
    flow: HierarchicalFlow,
    x: Tensor,
    fix: str = "coarse",
    *,
    scale: int,
    number: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the fine latents of fields anew at fixed coarse ones, or the other way round.

    With ``fix="coarse"`` the field of scale k is the same before and after, and each result is an
    independent fine field with these blocks, distributed as in q; with ``fix="fine"`` what is
    coarser is drawn anew instead.

    Args:
        flow: a HierarchicalFlow.
        x: fields, any batch shape + ``shape``, in the flow's dtype.
        fix: "coarse", the latents of scale k and coarser; or "fine", those of the scales before.
        scale: k, from 0 to the number of decimators.
        number: of draws for each field.
        generator: of random numbers, on the device of x.

    Returns:
        Fields, shape ``(number,) + batch_shape + shape``.

    Raises:
        TypeError: if ``flow`` is no HierarchicalFlow or an argument has the wrong type.
        ValueError: if x does not fit the flow or is not finite, or ``fix`` or a number is not
            accepted.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> x = torch.randn(10, 4, 4)
        >>> new = resample(flow, x, scale=1, number=3)
        >>> new.shape, bool(torch.allclose(pyramid(flow, new)[1], pyramid(flow, x)[1], atol=1e-4))
        (torch.Size([3, 10, 4, 4]), True)
    """
    check_fields(flow, "x", x)
    if fix not in FIXED:
        raise ValueError(f"fix is {fix!r}; accepted: {', '.join(FIXED)}")
    number = check_integer("number", number, 1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {generator!r}; accepted: a torch.Generator or None")
    coarse = torch.zeros(math.prod(flow.shape), dtype=torch.bool)
    coarse[variables_of_scale(flow, scale)] = True
    kept = (coarse if fix == "coarse" else ~coarse).reshape(flow.shape).to(x.device)
    with torch.no_grad():
        z = flow.inverse_and_ladj(x)[0]
        fresh = torch.randn((number, *x.shape), dtype=x.dtype, device=x.device, generator=generator)
        return flow.forward_and_ladj(torch.where(kept, z, fresh))[0]


def effective_energy(
    target: Any, flow: HierarchicalFlow, z: Tensor, scale: int | None = None
) -> Tensor:
    r"""The renormalised energy of the latents, all of them or up to one scale (paper Eq. 6).

    .. math:: -\ln \pi(g(z)) - \ln\left|\det \frac{\partial g(z)}{\partial z}\right|

    For a perfect flow it is :math:`z^2 / 2` and a constant: nothing is left to sample. With a scale
    k, z is replaced by u(z), the field of that scale together with the latents of the finer ones,
    whose energy in the physical field x = g_k(u) is

    .. math:: -\ln \pi(g_k(u)) - \ln\left|\det \frac{\partial g_k(u)}{\partial u}\right|

    If the finer latents are independent normals, what is left without their :math:`z^2 / 2` is the
    energy of the block variables. Scale 0 is the field under the Gaussian layer.

    Args:
        target: a potential, or a batched energy function in nats.
        flow: a HierarchicalFlow.
        z: latents, any batch shape + ``shape``, in the flow's dtype.
        scale: k, from 0 to the number of decimators; None for all latents.

    Returns:
        Nats, shape ``batch_shape``; differentiable with respect to z.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if z does not fit the flow or is not finite, there is no such scale, the target
            is of another lattice, or the energy has another shape than the batch.

    Example:
        >>> from pyro_neuralrg import IsingDual
        >>> target = IsingDual((4, 4))
        >>> effective_energy(target, target.flow(), torch.randn(10, 4, 4)).shape
        torch.Size([10])
    """
    check_fields(flow, "z", z)
    energy = getattr(target, "energy", target)
    if not callable(energy):
        raise TypeError(
            f"target is a {type(target).__name__}; accepted: a LatticePotential or an energy "
            "function"
        )
    shape = getattr(target, "shape", flow.shape)
    if tuple(shape) != flow.shape:
        raise ValueError(f"target has shape {tuple(shape)}; accepted: {flow.shape}, the flow's")
    part = None if scale is None else flow.up_to_scale(scale)
    x, ladj = flow.forward_and_ladj(z)
    if part is not None:
        ladj = part.inverse_and_ladj(x)[1]
    physical = energy(x)
    if not isinstance(physical, Tensor):
        raise TypeError(f"target's energy is {physical!r}; accepted: a tensor of nats")
    if physical.shape != ladj.shape:
        raise ValueError(
            f"target's energy has shape {tuple(physical.shape)}; accepted: {tuple(ladj.shape)}"
        )
    return physical - ladj
