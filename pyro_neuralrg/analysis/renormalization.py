# SPDX-License-Identifier: Apache-2.0
"""The renormalization group at work: fields of every scale, effective energies, resampling."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.analysis.scales import check_fields, check_scalar, variables_of_scale
from pyro_neuralrg.arguments import check_choice, check_integer, check_tensor, check_type
from pyro_neuralrg.free_energy.importance import energy_function
from pyro_neuralrg.potentials.base import check_energy, generator_of
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.weights import MAX_PARETO_K
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale


def pyramid(flow: HierarchicalFlow, x: Tensor) -> tuple[Tensor, ...]:
    """The flow of fields through the scales: x, then what is kept at scale 1, 2, ..., the top.

    Of fields x, any batch shape + ``shape``, in the flow's dtype; the field of scale k has the
    lattice's shape at that scale.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> [tuple(h.shape) for h in pyramid(hierarchical_flow((4, 4)), torch.randn(10, 4, 4))]
        [(10, 4, 4), (10, 2, 2), (10, 1, 1)]
    """
    check_fields(flow, "x", x)
    return (x, *(field_of_scale(flow, x, k) for k in range(1, number_of_scales(flow.circuit) + 1)))


def top_variable(flow: HierarchicalFlow, x: Tensor) -> Tensor:
    """The coarsest variable of each field, an order parameter that the flow has found.

    The top of :func:`pyramid`, of a flow that leaves one coarsest variable; shape ``batch_shape``.
    It is a coordinate of the temperature of the training, also for fields of another.
    """
    check_fields(flow, "x", x)
    _check_single_top(flow)
    return field_of_scale(flow, x, number_of_scales(flow.circuit)).flatten(
        x.dim() - len(flow.shape)
    )[..., 0]


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

    With ``fix="coarse"`` each result is an independent fine field of the blocks of scale k.

    Args:
        flow: a HierarchicalFlow.
        x: fields, any batch shape + ``shape``, in the flow's dtype.
        fix: "coarse", the latents of scale k and coarser; or "fine", those of the scales before.
        scale: k, from 0 to the number of decimators.
        number: of draws for each field.
        generator: of random numbers, on the device of x.

    Returns:
        Fields, shape ``(number,) + batch_shape + shape``.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> x = torch.randn(10, 4, 4)
        >>> new = resample(flow, x, scale=1, number=3)
        >>> new.shape, bool(torch.allclose(pyramid(flow, new)[1], pyramid(flow, x)[1], atol=1e-4))
        (torch.Size([3, 10, 4, 4]), True)
    """
    check_fields(flow, "x", x)
    check_choice("fix", fix, ("coarse", "fine"))
    number = check_integer("number", number, 1)
    check_type("generator", generator, torch.Generator | None, "a torch.Generator or None")
    coarse = torch.isin(torch.arange(math.prod(flow.shape)), variables_of_scale(flow, scale))
    kept = (coarse if fix == "coarse" else ~coarse).reshape(flow.shape).to(x.device)
    with torch.no_grad():
        z = flow.inverse_and_ladj(x)[0]
        options: Any = {"dtype": x.dtype, "device": x.device, "generator": generator}
        fresh = flow.base.sample((number, *x.shape), len(flow.shape), **options)
        return flow.forward_and_ladj(torch.where(kept, z, fresh))[0]


def effective_energy(
    target: Any, flow: HierarchicalFlow, z: Tensor, scale: int | None = None
) -> Tensor:
    r"""The renormalised energy of the latents, all of them or up to one scale (paper Eq. 6).

    .. math:: -\ln \pi(g(z)) - \ln\left|\det \frac{\partial g(z)}{\partial z}\right|

    For a perfect flow it is :math:`-\ln p(z)` of the base and a constant. With a scale k it is that
    of u(z), the field of that scale together with the latents of the finer ones. If these are
    independent normals, what is left without their :math:`z^2 / 2` is the block variables' energy.

    Args:
        target: a potential, or a batched energy function in nats.
        flow: a HierarchicalFlow.
        z: latents, any batch shape + ``shape``, in the flow's dtype.
        scale: from 0 (under the Gaussian layer) to the number of decimators; None: all latents.

    Returns:
        Nats, shape ``batch_shape``; differentiable with respect to z.
    """
    check_fields(flow, "z", z)
    x, ladj = flow.forward_and_ladj(z)
    if scale is not None:
        ladj = flow.up_to_scale(scale).inverse_and_ladj(x)[1]
    return target_energy(target, flow, x) - ladj


class TopEnergy(NamedTuple):
    """The effective energy of the coarsest variable alone.

    Attributes:
        values: in nats, float64, of the shape of y.
        standard_error: of the values, with a heavy tail of the weights as fitted; infinite of a
            k-hat above 1.
        ess: Kish effective sample size behind each value, as a fraction: 1 if the finer latents are
            independent normals there.
        pareto_k: of the weights behind each value; above 0.7 neither the value nor its error can
            be trusted.
    """

    values: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor


def top_energy(
    target: Any, flow: HierarchicalFlow, y: Tensor, *, num_samples: int = 1000, seed: int = 0
) -> TopEnergy:
    r"""The effective energy of the top variable: all finer latents are integrated out.

    .. math:: V(y) = -\ln \int e^{-E(y, z)}\, dz

    with E(y, z) the :func:`effective_energy` of the last scale (paper Eq. 6), y the
    :func:`top_variable`. With -ln Z of the target subtracted it is -ln p(y): two wells where the
    flow tells two phases apart. The average is over the same independent normals z for every y.

    Args:
        target: a potential, or a batched energy function in nats.
        flow: a HierarchicalFlow that leaves one coarsest variable.
        y: values of the top variable, shape ``(n,)``.
        num_samples: for each of them.
        seed: of the normals.

    Warns:
        UserWarning: if the Pareto k-hat of the weights of a value is above 0.7.

    Example:
        >>> from pyro_neuralrg import FreeField
        >>> target = FreeField((4, 4), mass=0.5)
        >>> top_energy(target, target.flow(), torch.tensor([-1.0, 0.0, 1.0])).values.shape
        torch.Size([3])
    """
    _check_single_top(flow)
    check_tensor("y", y)
    if y.dim() != 1 or not len(y) or not bool(y.isfinite().all()):
        raise ValueError(f"y has shape {tuple(y.shape)}; accepted: (n,), n >= 1, of finite numbers")
    y = y.to(next(flow.parameters(), y).dtype)
    num_samples = check_integer("num_samples", num_samples, 2)
    shape = num_samples, math.prod(flow.shape)
    generator = generator_of(check_integer("seed", seed, 0))
    finer = torch.randn(shape, generator=generator).to(y)[:, 1:]
    normal = 0.5 * finer.square().sum(1)
    part = flow.up_to_scale(number_of_scales(flow.circuit))
    weights = []
    with torch.no_grad():
        for value in y:
            u = torch.cat([value.expand(num_samples, 1), finer], 1)
            x, ladj = part.forward_and_ladj(u.reshape(num_samples, *flow.shape))
            weights.append((normal - target_energy(target, flow, x) + ladj).double())
    found = [_mean_weight(part) for part in weights]
    table = torch.tensor(found, dtype=torch.float64, device=y.device)
    log_means, errors, fractions, shapes = table.T
    if poor := int((shapes > MAX_PARETO_K).sum()):
        largest = float(shapes[~shapes.isnan()].max())
        warn_user(
            f"the weights behind {poor} of {len(y)} values of the top energy have a heavy tail "
            f"(Pareto k-hat up to {largest:.2f}): neither these nor their errors can be trusted; "
            "train longer or give more num_samples"
        )
    constant = 0.5 * finer.shape[1] * math.log(2 * math.pi)
    return TopEnergy(-log_means - constant, errors, fractions, shapes)


def _mean_weight(log_weights: Tensor) -> tuple[float, float, float, float]:
    """ln of the mean weight, its error, the effective fraction and k-hat; NaN if a weight is."""
    if bool(log_weights.isnan().any()):
        return (math.nan,) * 4
    weights = LogWeights(log_weights)
    return (*weights.log_mean_with_tail, weights.ess, weights.pareto_k)


def field_of_scale(flow: HierarchicalFlow, x: Tensor, scale: int) -> Tensor:
    """The field of one scale, batch shape + the lattice's shape at that scale.

    At k = 0 that under the Gaussian layer.
    """
    with torch.no_grad():
        u = flow.up_to_scale(scale).inverse_and_ladj(x)[0].flatten(x.dim() - len(flow.shape))
    return u[..., sites_of_scale(flow.circuit, scale).to(x.device)]


def _check_single_top(flow: HierarchicalFlow) -> None:
    check_scalar(flow)
    if not flow.circuit.is_complete:
        raise ValueError(
            f"flow has the circuit {flow.circuit.name!r} of depth {flow.circuit.depth}, which "
            "leaves several coarsest variables; accepted: one that leaves a single one"
        )


def target_energy(target: Any, flow: HierarchicalFlow, x: Tensor) -> Tensor:
    """The target's energy of fields, checked."""
    shape = tuple(getattr(target, "shape", flow.shape))
    if shape != flow.shape:
        raise ValueError(f"target has shape {shape}; accepted: {flow.shape}, the flow's")
    return check_energy(energy_function(target)(x), x, flow.shape, "target's energy")
