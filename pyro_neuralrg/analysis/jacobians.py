# SPDX-License-Identifier: Apache-2.0
"""Jacobians of a flow: patterns of the field that its latents respond to and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.analysis.scales import (
    check_fields,
    check_hierarchical,
    check_indices,
    latents_of_scale,
)
from pyro_neuralrg.arguments import check_integer, check_tensor
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales


@dataclass(frozen=True, repr=False)
class Response:
    r"""Mean and variation of :math:`\partial z_i / \partial x` (paper Fig. 4a), or the reverse.

    Attributes:
        variables: flat indices i of the latents, length n.
        mean: shape ``(n,) + shape``, float64.
        standard_error: of the mean, same shape; NaN of a single field.
        spread: standard deviation from field to field, likewise; zero of a linear flow.
        num_samples: fields.
        boundary: of the lattice, "periodic" or "open".
    """

    variables: tuple[int, ...]
    mean: Tensor
    standard_error: Tensor
    spread: Tensor
    num_samples: int
    boundary: str = "periodic"

    def __repr__(self) -> str:
        return f"Response({len(self.variables)} latents, {self.num_samples} fields)"

    @property
    def nonlinearity(self) -> Tensor:
        """The share of each variable's squared response that varies, 0 if linear; shape (n,)."""
        varying = self.spread.square().flatten(1).sum(1)
        return varying / (varying + self.mean.square().flatten(1).sum(1))


def responses(
    flow: HierarchicalFlow, x: Tensor, variables: Sequence[int] | Tensor, *, batch_size: int = 256
) -> Response:
    r"""Responses of latents to the field, :math:`E_x[\partial z_i / \partial x]` (paper Fig. 4a).

    Of a linear flow these are its wavelets, whatever x. One reverse pass per variable and batch.

    Args:
        flow: the renormalization group.
        x: fields, shape ``(samples,) + shape``, in the flow's dtype.
        variables: flat indices of latents, for example ``latents_of_scale(flow, k)``.
        batch_size: fields in memory at a time.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> found = responses(flow, torch.randn(10, 4, 4), latents_of_scale(flow, 1))
        >>> found.mean.shape
        torch.Size([3, 4, 4])
    """
    check_fields(flow, "x", x, least=1)
    return _averaged(
        lambda flow, x: (flow.inverse_and_ladj(x)[0], x), flow, x, variables, batch_size
    )


def written_patterns(
    flow: HierarchicalFlow, z: Tensor, variables: Sequence[int] | Tensor, *, batch_size: int = 256
) -> Response:
    r"""Patterns that latents write into the field, :math:`E_z[\partial x / \partial z_i]`.

    Of latents z instead of fields, else as :func:`responses`: the same for an orthogonal flow, the
    dual basis of any other linear one.
    """
    check_fields(flow, "z", z, least=1)
    return _averaged(_patterns, flow, z, variables, batch_size)


def responses_by_scale(
    flow: HierarchicalFlow, x: Tensor, *, most: int | None = None, batch_size: int = 256
) -> dict[int, Response]:
    """The :func:`responses` of the first ``most`` latents of every scale, or of all; finest first.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> found = responses_by_scale(hierarchical_flow((4, 4)), torch.randn(10, 4, 4), most=2)
        >>> [len(response.variables) for response in found.values()]
        [2, 2, 1]
    """
    check_hierarchical(flow)
    count = None if most is None else check_integer("most", most, 1)
    return {
        k: responses(flow, x, latents[:count], batch_size=batch_size)
        for k in range(number_of_scales(flow.circuit) + 1)
        if len(latents := latents_of_scale(flow, k))
    }


@dataclass(frozen=True)
class Overlap:
    """Cosines of the angles between n responses and n orthonormal patterns.

    Attributes:
        cosines: of every response (row) with every pattern (column), shape ``(n, n)``.
        rotation: the orthogonal Q that takes the responses R closest to the patterns, as Q R.
        rotated: the same cosines after the rotation.
        subspace: cosines of the principal angles between the spaces that both span, descending,
            shape ``(n,)``: all 1 if other latents play no part.
    """

    cosines: Tensor
    rotation: Tensor
    rotated: Tensor
    subspace: Tensor

    @property
    def before(self) -> float:
        """Mean of each response's largest cosine, whatever the sign, as the flow has it."""
        return float(self.cosines.abs().max(1).values.mean())

    @property
    def after(self) -> float:
        """Mean cosine of each rotated response with its pattern."""
        return float(self.rotated.diagonal().mean())


def overlap(response: Response | Tensor, patterns: Tensor) -> Overlap:
    r"""Compare responses with ideal patterns, as they are and after the best rotation.

    Standard normals are invariant under rotations. That of the responses R towards the patterns W
    with the largest :math:`\mathrm{tr}\, Q R W^T` is :math:`Q = V U^T`, with the singular value
    decomposition :math:`R W^T = U S V^T` (P. H. Schoenemann, Psychometrika 31, 1 (1966)).

    Args:
        response: of n latents, or their mean responses, shape ``(n,) + shape``.
        patterns: orthonormal, shape ``(n,) + shape``, for example from ``block_wavelets``.

    Example:
        >>> quarters = torch.eye(4)
        >>> sums = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        >>> found = overlap(sums, quarters)
        >>> round(found.before, 4), round(found.after, 4)
        (0.5, 1.0)
    """
    mean = response.mean if isinstance(response, Response) else response
    check_tensor("response", mean)
    check_tensor("patterns", patterns)
    if mean.shape != patterns.shape or mean.dim() < 2:
        raise ValueError(
            f"response has shape {tuple(mean.shape)}, patterns has shape {tuple(patterns.shape)}; "
            "accepted: the same (n,) + shape"
        )
    rows, ideal = mean.double().flatten(1), patterns.double().flatten(1)
    norms = rows.norm(dim=1)
    if not bool(norms.isfinite().all()) or bool((norms == 0).any()):
        raise ValueError("response has a row of zeros or not finite; accepted: finite responses")
    unit = torch.eye(len(ideal), dtype=torch.float64, device=ideal.device)
    if not torch.allclose(ideal @ ideal.T, unit, atol=1e-5):
        raise ValueError("patterns are not orthonormal; accepted: orthonormal patterns")
    left, _, right = torch.linalg.svd(rows @ ideal.T)
    rotation = right.T @ left.T
    turned = rotation @ rows
    basis = torch.linalg.svd(rows, full_matrices=False).Vh
    return Overlap(
        cosines=rows @ ideal.T / norms[:, None],
        rotation=rotation,
        rotated=turned @ ideal.T / turned.norm(dim=1, keepdim=True),
        subspace=torch.linalg.svdvals(basis @ ideal.T).clamp(max=1.0),
    )


def _averaged(
    prepare: Callable[[HierarchicalFlow, Tensor], tuple[Tensor, Tensor]],
    flow: HierarchicalFlow,
    fields: Tensor,
    variables: Any,
    batch_size: int,
) -> Response:
    """Mean and variation of the derivative of each variable."""
    chosen = tuple(check_indices("variables", variables, math.prod(flow.shape)))
    batch_size = check_integer("batch_size", batch_size, 1)
    number = len(fields)
    total = square = origin = torch.zeros(())
    for index, batch in enumerate(fields.detach().split(batch_size)):
        with torch.enable_grad():
            values, at = prepare(flow, batch.requires_grad_())
            sums = values.flatten(1).sum(0).unbind()  # fields do not meet: its gradients are theirs
        slopes = [torch.autograd.grad(sums[i], at, retain_graph=True)[0] for i in chosen]
        slope = torch.stack(slopes).double()
        if index == 0:  # sums of deviations from one field lose no digits
            origin = slope[:, :1]
        deviation = slope - origin
        total = total + deviation.sum(1)
        square = square + deviation.square().sum(1)
    shift = total / number
    variance = (square / number - shift.square()).clamp(min=0.0)
    spread = (variance * (number / (number - 1) if number > 1 else torch.nan)).sqrt()
    mean, boundary = origin[:, 0] + shift, flow.circuit.boundary
    return Response(chosen, mean, spread / number**0.5, spread, number, boundary)


def _patterns(flow: HierarchicalFlow, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of fields with respect to latents, and the cotangents in which they are linear."""
    x = flow.forward_and_ladj(z)[0]
    cotangent = torch.zeros_like(x, requires_grad=True)
    (pulled,) = torch.autograd.grad(x, z, cotangent, create_graph=True)
    return pulled, cotangent
