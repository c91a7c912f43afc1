# SPDX-License-Identifier: Apache-2.0
"""The density of a flow: ln q(x) = ln p(z) - ladj with z = flow.inv(x)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_type
from pyro_neuralrg.bases import BaseDistribution, base_of
from pyro_neuralrg.transforms.base import LatticeTransform, forward_and_ladj, inverse_and_ladj


class FlowDistribution(dist.TransformedDistribution):
    r"""The distribution q of ``x = flow(z)`` with draws z of the flow's base p.

    .. math:: \ln q(x) = \ln p(z) - \ln|\det \partial x / \partial z|, \quad z = g^{-1}(x)

    (paper Eq. 1). Both ``rsample`` and ``log_prob`` are differentiable in the flow's parameters.
    ``log_prob`` of a fresh sample goes through its z, at no cost; for the gradient with respect to
    a drawn x take it at ``x.clone()``. Where the base has two modes, ``flow(torch.randn(...))`` is
    no draw of q; ``rsample()`` is.

    Args:
        flow: a TransformModule (not ``flow.inv``, which has no parameters to train); one that
            carries no base has standard normals.
        shape: event shape, only for a flow that has no ``shape`` attribute.

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> q = FlowDistribution(hierarchical_flow((4, 4)))
        >>> q.rsample((3,)).shape, q.log_prob(torch.zeros(3, 4, 4)).shape
        (torch.Size([3, 4, 4]), torch.Size([3]))
    """

    def __init__(
        self, flow: Any, shape: Sequence[int] | None = None, validate_args: bool | None = None
    ) -> None:
        check_flow(flow)
        base = base_distribution(flow, event_shape(flow, shape))
        super().__init__(base, [flow], validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.flow!r})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution in a batch."""
        return super().expand(batch_shape, self._get_checked_instance(FlowDistribution, _instance))

    @property
    def flow(self) -> Any:
        """The transform from z to x."""
        return self.transforms[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(value) in nats, of the batch shape of ``value`` with that of the distribution."""
        if self._validate_args and value.numel():  # torch cannot check an empty tensor
            self._validate_sample(value)
        z, ladj = inverse_and_ladj(self.flow, value, self.event_dim)
        return self.base_dist.log_prob(z) - ladj

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw differentiable fields with ln q, as ``rsample`` and then ``log_prob`` do."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj = forward_and_ladj(self.flow, z, self.event_dim)
        return x, self.base_dist.log_prob(z) - ladj

    @property
    def has_score(self) -> bool:
        """True if :meth:`rsample_with_score` works, as for every flow of this package."""
        return isinstance(self.flow, LatticeTransform)

    def rsample_with_score(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """Draw differentiable fields with ln q and its gradient there, these without a graph."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj, score = self.flow.forward_with_score(z)
        return x, self.base_dist.log_prob(z) - ladj, score


def base_distribution(
    flow: Any, shape: tuple[int, ...], from_normal: bool = False
) -> BaseDistribution:
    """The flow's base, as one event of ``shape``, in the flow's dtype and on its device."""
    dtype, device = flow_dtype_and_device(flow)
    return BaseDistribution(base_of(flow), shape, from_normal, dtype=dtype, device=device)


def check_flow(flow: Any) -> None:
    """Raise a TypeError unless ``flow`` is a transform that is also a module."""
    accepted = "a Pyro TransformModule"
    if isinstance(flow, torch.distributions.Transform):
        accepted += " (a transform's .inv holds no parameters: pass the transform itself)"
    check_type("flow", flow, TransformModule, accepted)


def event_shape(flow: Any, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """The lattice shape of a flow: its own, or ``shape`` where it has none."""
    own = getattr(flow, "shape", shape)
    if own is None or (shape is not None and tuple(own) != tuple(shape)):
        accepted = "the event shape, as the flow has none" if own is None else f"the flow's, {own}"
        raise ValueError(f"shape is {shape}; accepted: {accepted}")
    return tuple(own)


def flow_dtype_and_device(flow: Any) -> tuple[torch.dtype, torch.device]:
    """Return those of the flow's first floating parameter or buffer, else torch's defaults."""
    for tensor in itertools.chain(flow.parameters(), flow.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    empty = torch.empty(0)
    return empty.dtype, empty.device
