# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The density of a flow: ln q(x) = ln p(z) - ladj with z = flow.inv(x)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_neuralrg.bases import BaseDistribution, base_of
from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = [
    "FlowDistribution",
    "base_distribution",
    "check_flow",
    "event_shape",
    "flow_dtype_and_device",
    "forward_and_ladj",
    "inverse_and_ladj",
    "log_prob_of_nothing",
]


class FlowDistribution(dist.TransformedDistribution):
    r"""The distribution q of ``x = flow(z)`` with draws z of the flow's base p.

    .. math:: \ln q(x) = \ln p(z) - \ln|\det \partial x / \partial z|, \quad z = g^{-1}(x)

    (paper Eq. 1, 2). Parameters of the flow receive gradients through both ``rsample`` and
    ``log_prob``. Of a fresh sample the latter goes through its z, at no cost: for the gradient with
    respect to a drawn x take ``log_prob`` at ``x.clone()``, or at ``x.detach().requires_grad_()``.
    A flow of two phases has a base of two modes, so that ``flow(torch.randn(...))`` is no draw of q
    there; ``rsample()`` is.

    Args:
        flow: a TransformModule, for example a HierarchicalFlow; one that carries no base has
            standard normals.
        shape: event shape; only needed for a flow that has no ``shape`` attribute.

    Raises:
        TypeError: if ``flow`` is not a TransformModule (``flow.inv`` has no parameters to train).
        ValueError: if the shape is not known, or not the flow's.

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

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution in a batch."""
        return super().expand(batch_shape, self._get_checked_instance(FlowDistribution, _instance))

    @property
    def flow(self) -> Any:
        """The transform from z to x."""
        return self.transforms[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(value) in nats, of the batch shape of ``value`` with that of the distribution."""
        if value.numel() == 0:
            return log_prob_of_nothing(self, value)
        if self._validate_args:
            self._validate_sample(value)
        z, ladj = inverse_and_ladj(self.flow, value, len(self.event_shape))
        log_p = self.base_dist.log_prob(z)
        return log_p - ladj

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw differentiable fields with ln q, as ``rsample`` and then ``log_prob`` do."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj = forward_and_ladj(self.flow, z, len(self.event_shape))
        return x, self.base_dist.log_prob(z) - ladj

    @property
    def has_score(self) -> bool:
        """Whether :meth:`rsample_with_score` works: for flows of this package."""
        return isinstance(self.flow, LatticeTransform)

    def rsample_with_score(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """Draw differentiable fields with ln q and its gradient there, at fixed parameters.

        The last two have no graph; see
        :meth:`~pyro_neuralrg.transforms.LatticeTransform.forward_with_score`.
        """
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj, score = self.flow.forward_with_score(z)
        return x, self.base_dist.log_prob(z) - ladj, score


def base_distribution(
    flow: Any, shape: tuple[int, ...], from_normal: bool = False
) -> BaseDistribution:
    """The flow's base, as one event of ``shape``, in the flow's dtype and on its device."""
    dtype, device = flow_dtype_and_device(flow)
    like = torch.empty(0, dtype=dtype, device=device)
    return BaseDistribution(base_of(flow), shape, like, from_normal)


def log_prob_of_nothing(distribution: Any, value: Tensor) -> Tensor:
    """The empty tensor that ``distribution.log_prob`` owes to an empty batch.

    Raises:
        ValueError: if ``value`` is not such a batch.
    """
    split = value.dim() - len(distribution.event_shape)
    if split < 0 or value.shape[split:] != distribution.event_shape:
        raise ValueError(
            f"value has shape {tuple(value.shape)}; "
            f"accepted: any batch shape followed by {tuple(distribution.event_shape)}"
        )
    return value.new_zeros(torch.broadcast_shapes(value.shape[:split], distribution.batch_shape))


def check_flow(flow: Any) -> None:
    """Raise TypeError unless ``flow`` is a transform that is also a module."""
    if not isinstance(flow, TransformModule):
        hint = ""
        if isinstance(flow, torch.distributions.Transform):
            hint = " (a transform's .inv holds no parameters: pass the transform itself)"
        raise TypeError(f"flow is a {type(flow).__name__}; accepted: a Pyro TransformModule{hint}")


def event_shape(flow: Any, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """The lattice shape of a flow: its own, or ``shape`` where it has none.

    Raises:
        ValueError: if neither is known, or if they differ.
    """
    own = getattr(flow, "shape", None)
    if own is None and shape is None:
        raise ValueError(
            f"shape is None, and {type(flow).__name__} has no attribute shape; accepted: the event "
            "shape"
        )
    if own is not None and shape is not None and tuple(own) != tuple(shape):
        raise ValueError(f"shape is {tuple(shape)}; accepted: the flow's own shape {tuple(own)}")
    return tuple(own) if own is not None else tuple(shape or ())


def flow_dtype_and_device(flow: Any) -> tuple[torch.dtype, torch.device]:
    """Those of the flow's first floating parameter or buffer, else torch's defaults."""
    for tensor in itertools.chain(flow.parameters(), flow.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    empty = torch.empty(0)
    return empty.dtype, empty.device


def forward_and_ladj(flow: Any, z: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """``x = flow(z)`` and ln |det dx/dz| over the ``event_dim`` rightmost dimensions.

    In one pass where the flow offers it. Works for any TransformModule: a log-determinant that is
    constant or of fewer event dimensions gets the batch shape.
    """
    if hasattr(flow, "forward_and_ladj"):
        x, ladj = flow.forward_and_ladj(z)
    else:
        x = flow(z)
        ladj = flow.log_abs_det_jacobian(z, x)
    return x, _to_batch(ladj, flow, z, event_dim)


def inverse_and_ladj(flow: Any, x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """``z = flow.inv(x)`` and the same ln |det dx/dz| as :func:`forward_and_ladj`."""
    if hasattr(flow, "inverse_and_ladj"):
        z, ladj = flow.inverse_and_ladj(x)
    else:
        z = flow.inv(x)
        ladj = flow.log_abs_det_jacobian(z, x)
    return z, _to_batch(ladj, flow, x, event_dim)


def _to_batch(ladj: Tensor, flow: Any, value: Tensor, event_dim: int) -> Tensor:
    flow_event_dim = flow.domain.event_dim
    shape = value.shape[: value.dim() - flow_event_dim]
    return sum_rightmost(ladj.expand(shape), event_dim - flow_event_dim)
