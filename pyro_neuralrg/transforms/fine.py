# SPDX-License-Identifier: Apache-2.0
"""Fine fields of a flow given a coarse one, with their exact conditional density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_finite, check_type, check_values
from pyro_neuralrg.bases import NORMAL, FieldDistribution
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.scales import sites_of_scale


class FineGivenCoarse(FieldDistribution):
    r"""The fields x of a flow whose field of scale k is given: every draw keeps it.

    Up to scale k the flow is an exact change of variables between x and :math:`u = (u_c, u_f)`, the
    field of that scale and the latents of the finer ones (``flow.up_to_scale(k)``); under q the
    latter are independent standard normals, whatever :math:`u_c` is. With

    .. math::
        \ln q(x | u_c) = \ln N(u_f; 0, 1) - \ln\left|\det\frac{\partial x}{\partial u}\right|

    the density of the flow is :math:`q(x) = q(u_c)\, q(x | u_c)`, with :math:`q(u_c)` that of the
    coarse field by itself. ``log_prob``, a density in field space, is minus infinity where x has
    another coarse field, up to rounding.

    The mean of the weights :math:`\pi(x) / q(x | u_c)` of a target is its marginal of the coarse
    field, :math:`\pi(u_c) = \int \pi(x(u_c, u_f))\, |\det \partial x / \partial u|\, du_f`,
    for every flow: ``estimate(target, flow.conditional(coarse, k))`` gives
    :math:`-\ln\pi(u_c)`, the renormalised energy of one coarse field, with its error, and
    ``expectations`` likewise the target's means at that coarse field.

    Args:
        flow: a HierarchicalFlow.
        coarse: fields of scale k as of :func:`~pyro_neuralrg.analysis.pyramid`, any batch shape +
            the lattice's shape at that scale, in the flow's dtype.
        scale: k, from 0 (the field under the Gaussian layer, of which x is a function) to the
            number of decimators.

    Example:
        >>> from pyro_neuralrg import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> fine = flow.conditional(torch.randn(10, 2, 2), scale=1)
        >>> x = fine.sample((3,))
        >>> x.shape, fine.log_prob(x).shape
        (torch.Size([3, 10, 4, 4]), torch.Size([3, 10]))
    """

    def __init__(self, flow: Any, coarse: Tensor, scale: int) -> None:
        check_type("flow", flow, LatticeTransform, "a HierarchicalFlow")
        sites = sites_of_scale(flow.circuit, scale)
        check_values("coarse", coarse, tuple(sites.shape))
        like = next(flow.parameters(), coarse)
        if (coarse.dtype, coarse.device) != (like.dtype, like.device):
            raise TypeError(
                f"coarse is {coarse.dtype} on {coarse.device}; accepted: {like.dtype} on "
                f"{like.device}, as the flow"
            )
        check_finite("coarse", coarse, True, "finite numbers")
        self.flow, self.coarse, self.scale = flow, coarse, scale
        self._up = flow.up_to_scale(scale)
        self._sites = sites.flatten().to(coarse.device)
        is_fine = torch.ones(math.prod(flow.shape), dtype=torch.bool, device=coarse.device)
        is_fine[self._sites] = False
        self._fine = is_fine.nonzero().flatten()
        batch_shape = coarse.shape[: coarse.dim() - sites.dim()]
        super().__init__(batch_shape, torch.Size(flow.shape), validate_args=False)

    def __repr__(self) -> str:
        given = f"<{tuple(self.coarse.shape)}>, {self.scale}"
        return f"{type(self).__name__}({self.flow!r}, {given})"

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FineGivenCoarse:
        new: FineGivenCoarse = super().expand(batch_shape)
        new.coarse = self.coarse.expand(*batch_shape, *self.coarse.shape[len(self.batch_shape) :])
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw fields, ``sample_shape + batch_shape + shape``, differentiable in coarse and flow.

        Of the global random state.
        """
        batch = (*sample_shape, *self.batch_shape)
        u = self.coarse.new_empty(*batch, math.prod(self.event_shape)).normal_()
        coarse = self.coarse.flatten(len(self.batch_shape)).expand(*batch, -1)
        u = u.index_copy(-1, self._sites, coarse)
        return self._up(u.reshape(*batch, *self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(x | coarse) in nats, of the batch shape of ``value`` with that of the coarse fields.

        Of a fresh draw without an inverse pass.
        """
        u, ladj = self._up.inverse_and_ladj(value)
        u = u.flatten(value.dim() - self.event_dim)
        found = NORMAL.log_prob(u[..., self._fine], 1) - ladj
        kept, coarse = u[..., self._sites], self.coarse.flatten(len(self.batch_shape))
        tolerance = math.sqrt(torch.finfo(kept.dtype).eps)
        same = (kept - coarse).abs() <= tolerance * (1 + coarse.abs())
        return torch.where(same.all(-1), found, -math.inf)
