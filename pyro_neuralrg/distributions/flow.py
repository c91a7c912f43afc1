# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The density of a flow: ln q(x) = ln N(z; 0, 1) - ladj with z = flow.inv(x)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = [
    "FlowDistribution",
    "StandardNormal",
    "flow_distribution",
    "forward_and_ladj",
    "inverse_and_ladj",
    "local_flow",
    "local_to_normal",
    "log_prob_of_nothing",
    "normal_to_local",
    "standard_normal",
]


def flow_distribution(flow: Any, shape: Sequence[int] | None = None) -> Any:
    r"""The distribution q of ``x = flow(z)`` with independent standard normals z.

    .. math:: \ln q(x) = \ln N(z; 0, 1) - \ln|\det \partial x / \partial z|, \quad z = g^{-1}(x)

    (paper Eq. 2). Parameters of the flow receive gradients through both ``rsample`` and
    ``log_prob``. Of a fresh sample the latter goes through its z, at no cost: for the gradient with
    respect to a drawn x take ``log_prob`` at ``x.clone()``, or at ``x.detach().requires_grad_()``.

    Args:
        flow: a TransformModule, for example a HierarchicalFlow.
        shape: event shape; only needed for a flow that has no ``shape`` attribute.

    Returns:
        A Pyro ``TransformedDistribution`` with batch shape ``()`` and event shape ``shape``, in the
        dtype and on the device of the flow's parameters.

    Raises:
        TypeError: if ``flow`` is not a TransformModule (``flow.inv`` has no parameters to train).

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> q = flow_distribution(hierarchical_flow((4, 4)))
        >>> q.rsample((3,)).shape, q.log_prob(torch.zeros(3, 4, 4)).shape
        (torch.Size([3, 4, 4]), torch.Size([3]))
    """
    check_flow(flow)
    return FlowDistribution(standard_normal(flow, event_shape(flow, shape)), [flow])


class FlowDistribution(dist.TransformedDistribution):
    """Pyro's, for batches of any size: torch's own fails where there is no field at all."""

    @property
    def has_score(self) -> bool:
        """Whether the two methods below work: for one flow of this package, of normals."""
        return (
            isinstance(self.base_dist, StandardNormal)
            and len(self.transforms) == 1
            and isinstance(self.transforms[0], LatticeTransform)
        )

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw differentiable fields with ln q, as ``rsample`` and then ``log_prob`` do.

        Without the flow's cache, whose care for parameters that change takes its time.
        """
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj = self.transforms[0].forward_and_ladj(z)
        return x, self.base_dist.log_prob(z) - ladj

    def rsample_with_score(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """Draw differentiable fields with ln q and its gradient there, at fixed parameters.

        The last two have no graph; see
        :meth:`~pyro_neuralrg.transforms.LatticeTransform.forward_with_score`.
        """
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj, score = self.transforms[0].forward_with_score(z)
        return x, self.base_dist.log_prob(z) - ladj, score

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(value) in nats."""
        if value.numel() == 0:
            return log_prob_of_nothing(self, value)
        return super().log_prob(value)


class StandardNormal(dist.Independent):
    """Pyro's Independent, for batches of any size."""

    def log_prob(self, value: Tensor) -> Tensor:
        """ln N(value; 0, 1) in nats."""
        if value.numel() == 0:
            return log_prob_of_nothing(self, value)
        return super().log_prob(value)


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


def local_flow(flow: Any) -> Any:
    """x from the latents y in which local moves are smooth: the flow itself, unless it has humps.

    Independent of each other as well, and standard normals but for the coarsest one. See
    :attr:`~pyro_neuralrg.transforms.HierarchicalFlow.local`.
    """
    return getattr(flow, "local", flow)


def normal_to_local(flow: Any, z: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """The latents y of standard normals z, and ln |det dy/dz| as :func:`forward_and_ladj`."""
    humps = getattr(flow, "humps", None)
    if humps is None:
        return z, z.new_zeros(z.shape[: z.dim() - event_dim])
    return forward_and_ladj(humps, z, event_dim)


def local_to_normal(flow: Any, y: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """The standard normals z of latents y, and the same ln |det dy/dz|."""
    humps = getattr(flow, "humps", None)
    if humps is None:
        return y, y.new_zeros(y.shape[: y.dim() - event_dim])
    return inverse_and_ladj(humps, y, event_dim)


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


def standard_normal(flow: Any, shape: tuple[int, ...]) -> Any:
    """N(0, 1) per site, as one event of ``shape``, in the flow's dtype and on its device."""
    dtype, device = flow_dtype_and_device(flow)
    zero = torch.zeros((), dtype=dtype, device=device)
    return StandardNormal(dist.Normal(zero, torch.ones_like(zero)).expand(shape), len(shape))


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
