# SPDX-License-Identifier: Apache-2.0
"""Distance of a flow from a fixed point: do consecutive scales see and do the same?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.analysis.renormalization import field_of_scale
from pyro_neuralrg.analysis.scales import block_sums, check_fields, check_scalar
from pyro_neuralrg.observables import axis_correlations
from pyro_neuralrg.runtime.processes import seeded
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import (
    blocks_of_layer,
    number_of_scales,
    sites_of_scale,
    step_of_scale,
)

KNOTS = 200
"""Quantiles between which a marginal is interpolated; the outermost are one in 400."""


@dataclass(frozen=True, repr=False)
class FixedPoint:
    """Distances between consecutive scales, and correlations at each.

    Attributes:
        scales: the finer scale k of each pair (k, k + 1).
        kept: half the mean square difference of the kept variables, ``(pairs,)``: 0 for equal
            transformations, 1 for variables that have nothing in common.
        detail: the same of the latents that are left behind.
        correlations: of each scale from 0 (under the Gaussian layer, if there is one), G(r) of its
            field along the first axis, r = 0 ... half the side, of unit variance.
        block_correlations: the same of the means of x over the blocks of the scale.
    """

    scales: tuple[int, ...]
    kept: Estimate[Tensor]
    detail: Estimate[Tensor]
    correlations: tuple[Estimate[Tensor], ...]
    block_correlations: tuple[Estimate[Tensor], ...]

    def __repr__(self) -> str:
        values = zip(self.scales, self.kept.value, self.kept.standard_error, strict=True)
        pairs = [f"{k}-{k + 1}: {Estimate(float(v), float(e))}" for k, v, e in values]
        return f"FixedPoint({', '.join(pairs)})"


def fixed_point(flow: HierarchicalFlow, x: Tensor) -> FixedPoint:
    r"""Compare the transformations of consecutive scales, each on the fields that both see.

    With :math:`R_k` the layers of scale k, which map its field to that of the next scale and the
    latents left behind, and :math:`M_k` the monotone map that makes the marginal of the field of
    scale k standard normal, the transformations :math:`M_{k+1} R_k M_k^{-1}` of two scales are
    applied to the same fields, those of either scale. At a fixed point of the flow they are equal:

    .. math:: D_k = \tfrac14 \sum_{j = k, k + 1} E\left[(M_{k+1} R_k M_k^{-1} \phi_j - M_{k+2}
        R_{k+1} M_{k+1}^{-1} \phi_j)^2\right], \quad \phi_j = M_j(u_j)

    a mean over the kept variables, or the latents, which are taken as they are. Only scales of as
    many layers are compared. Coordinates matter: two layers that do the same but for the sign or
    the order of their latents differ, so that flows are best compared that were grown. Errors are
    those of independent fields; the maps, of 200 quantiles, are taken as known, which adds to D
    one to three times the inverse of the number of values of the coarsest scale where that is 400
    or more, and ten times where it is 100: a D as small as that is no distance.

    Args:
        flow: a HierarchicalFlow of a periodic lattice, with at least two such scales.
        x: independent fields, ``(n,) + shape`` with n >= 2, in the flow's dtype.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> found = fixed_point(hierarchical_flow((16, 16)), torch.randn(50, 16, 16))
        >>> found.scales, found.kept.value.shape, len(found.correlations)
        ((0, 1), torch.Size([2]), 5)
    """
    check_scalar(flow)
    check_fields(flow, "x", x, least=2)
    scales = _comparable(flow)
    if not scales or flow.circuit.boundary != "periodic" or flow.site_features is not None:
        raise ValueError(
            f"flow is {flow!r}; accepted: one of a periodic lattice with two consecutive scales of "
            "as many layers, without weights of each block or features of sites"
        )
    with torch.no_grad(), seeded(0):  # of parameters that are overwritten
        fields = [field_of_scale(flow, x, k) for k in range(number_of_scales(flow.circuit) + 1)]
        maps = [NormalScores.of(field) for field in fields]
        normals = [m.to_normal(field) for m, field in zip(maps, fields, strict=True)]
        found = torch.stack([_differences(flow, k, maps, normals) for k in scales], 1)
        ones, numbers = torch.ones_like(x[:1]), range(len(fields))
        blocks = [block_sums(flow, x, k) / block_sums(flow, ones, k) for k in numbers]
        blocks = [NormalScores.of(field).to_normal(field) for field in blocks]
        kept, detail = map(_mean, found)
        functions = [tuple(map(_correlations, some)) for some in (normals, blocks)]
        return FixedPoint(scales, kept, detail, *functions)


class NormalScores(NamedTuple):
    """The monotone map from the marginal of fields, all sites alike, to a standard normal.

    Linear between quantiles and beyond the last ones.
    """

    values: Tensor
    scores: Tensor

    @staticmethod
    def of(fields: Tensor) -> NormalScores:
        """The map of fields of one scale."""
        ordered = fields.flatten().double().sort().values
        count = min(KNOTS, len(ordered))
        shares = (torch.arange(count, device=fields.device) + 0.5) / count
        values = ordered[(shares * len(ordered)).long()]
        if not bool((values.diff() > 0).all()):
            raise ValueError("x gives fields of which many are equal; accepted: fields that differ")
        return NormalScores(values, torch.special.ndtri(shares.double()))

    def to_normal(self, fields: Tensor) -> Tensor:
        """Map fields to normal ones."""
        return _interpolated(fields, self.values, self.scores)

    def from_normal(self, fields: Tensor) -> Tensor:
        """Undo :meth:`to_normal`."""
        return _interpolated(fields, self.scores, self.values)


def _interpolated(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The piecewise linear function with these values ``end`` at ``start``."""
    after = torch.searchsorted(start, x.double().contiguous()).clamp(1, len(start) - 1)
    slope = (end.diff() / start.diff())[after - 1]
    return (end[after - 1] + slope * (x.double() - start[after - 1])).to(x.dtype)


def _comparable(flow: HierarchicalFlow) -> tuple[int, ...]:
    """The scales whose layers and those of the next are of the same kinds and blocks."""
    layers, scales = flow.circuit.layers, number_of_scales(flow.circuit)
    looks = [
        [
            (one.kind, {block for block, _ in blocks_of_layer(one, flow.filled_up)})
            for one in layers
            if one.scale == k
        ]
        for k in range(scales)
    ]
    alike = tuple(k for k in range(scales - 1) if looks[k] == looks[k + 1])
    return () if flow.weights == "block" else alike


def _differences(
    flow: HierarchicalFlow, scale: int, maps: list[NormalScores], normals: list[Tensor]
) -> Tensor:
    """Half the mean square differences of kept and other latents, ``(2, n)``, of one pair."""
    total = []
    for inputs in normals[scale : scale + 2]:
        shape = tuple(inputs.shape[1:])
        outputs = []
        for k in (scale, scale + 1):
            step = step_of_scale(flow, k, shape)
            z = step.inverse_and_ladj(maps[k].from_normal(inputs))[0].flatten(1)
            kept = sites_of_scale(step.circuit, 1).flatten().to(z.device)
            left = torch.ones(z.shape[1], dtype=torch.bool, device=z.device)
            left[kept] = False
            outputs.append((maps[k + 1].to_normal(z[:, kept]), z[:, left]))
        pairs = zip(*outputs, strict=True)
        total.append(torch.stack([(a - b).double().square().mean(1) / 2 for a, b in pairs]))
    return torch.stack(total).mean(0)


def _correlations(normal: Tensor) -> Estimate[Tensor]:
    """G(r) along the first axis up to half the side, of fields of unit variance."""
    shape = tuple(normal.shape[1:])
    half = shape[0] // 2 + 1
    return _mean(axis_correlations(normal.double(), None, shape)[:, :half].T)


def _mean(values: Tensor) -> Estimate[Tensor]:
    """Means over the last dimension, that of independent fields."""
    error = values.std(-1) / math.sqrt(values.shape[-1])
    return Estimate(values.mean(-1).cpu(), error.cpu())
