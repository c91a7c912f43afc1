# SPDX-License-Identifier: Apache-2.0
"""The base of all our transforms: value and log-determinant in one pass, and an honest cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_neuralrg.arguments import check_values, see
from pyro_neuralrg.bases import NORMAL, StandardNormal

Pushed = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""x, ladj, the score of x and that of the context, if wanted."""


def pack(x: Tensor, event_dim: int) -> Tensor:
    """Move all batch dimensions into one on the right: ``batch + event -> event + (n,)``."""
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    return x.reshape(math.prod(batch), *event).movedim(0, -1).contiguous()


def unpack(h: Tensor, batch_shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack`: ``event + (n,) -> batch_shape + event``."""
    return h.movedim(-1, 0).reshape(*batch_shape, *h.shape[:-1])


class _Pair(NamedTuple):
    """A pair x = g(z), which of the two came out, and whether that has come back already."""

    z: Tensor
    x: Tensor
    ladj: Tensor
    out: Tensor
    state: tuple[Any, ...]
    came_back: bool = False


class LatticeTransform(TransformModule):
    """A bijection of real tensors of ``event_shape``, value and log-determinant in one pass.

    To write another one, define on *batch-last* tensors ``event_shape + (batch,)``

    * ``forward(h, context) -> (h, ladj)``: z to x, with ``ladj = ln |det dx/dz|`` of shape
      ``(batch,)``;
    * ``inverse(h, context) -> (h, ladj)``: x to z, with the *same* ladj (not its negative);

    or ``_pass(h, context, inverse)`` for both; the context is None or a tensor ``(features,
    batch)``, which need not be used. Create parameters in ``__init__``.

    The last pair of ``transform(z)`` or ``transform.inv(x)`` is remembered by identity, as by
    Pyro's couplings, so that ``log_prob`` of a fresh sample costs no pass. It serves once, for the
    very tensor that came out, with unchanged parameters and buffers (see :func:`state_of`) in the
    same grad mode. Copies, pickles, ``.to(...)`` and ``clear_cache()`` drop it; compiled code and
    the transforms of ``torch.func`` do without it.

    Attributes:
        base: the density of z, which :class:`~pyro_neuralrg.distributions.FlowDistribution` takes.
    """

    bijective = True
    sign = +1
    base: StandardNormal = NORMAL

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(cache_size=0)
        self.event_shape = tuple(event_shape)
        self._pair: _Pair | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event_shape})"

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batch-last z to (x, ladj)."""
        return self._pass(h, context, inverse=False)

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batch-last x to (z, ladj)."""
        return self._pass(h, context, inverse=True)

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Either of the two."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward and inverse")

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        r"""Batch-last z to (x, ladj), and the score of the density along with it.

        With :math:`s = \partial_z \ln p(z)` given, :math:`\partial_x \ln q(x) = J^{-T} (s -
        \partial_z \ln|\det J|)` is returned, detached: what a path gradient needs. Here by one
        inverse pass; couplings do without (Vaitl, Winkler, Richter, Kessel, "Fast and unified path
        gradient estimators for normalizing flows", ICLR 2024). The fourth is :math:`\partial_c \ln
        q(x; c)` at fixed x, if it is wanted and there is a context, else None.
        """
        out, ladj = self.forward(h, context)
        with torch.enable_grad():
            x = out.detach().requires_grad_()
            c = None if context is None else context.detach().requires_grad_(want_context)
            both = zip(self.inverse(x, c), (score, -torch.ones_like(ladj)), strict=True)
            pairs = [pair for pair in both if pair[0].requires_grad]  # not a constant ladj
            wanted = [x] if c is None or not want_context else [x, c]
            results, cotangents = zip(*pairs, strict=True)
            score, *more = torch.autograd.grad(
                results, wanted, cotangents, allow_unused=True, materialize_grads=True
            )
        return out, ladj, score, more[0] if more else None

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        """Real tensors of the event's dimension."""
        return constraints.independent(constraints.real, len(self.event_shape))

    codomain = domain

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x = g(z)`` and ``ladj = ln |det dx/dz|``.

        Args:
            z: shape ``batch_shape + event_shape``, any batch shape, in the transform's dtype.

        Returns:
            x of the shape of z, and ladj of shape ``batch_shape``.
        """
        batch_shape, h, context = self._packed("z", z)
        x, ladj = self.forward(h, context)
        return unpack(x, batch_shape), ladj.reshape(batch_shape)

    def forward_with_score(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return x, ladj and the score :math:`\partial_x \ln q(x)` of the flow's density.

        Of draws z of the base, at fixed parameters; ladj and the score have no graph.
        """
        event_dim = len(self.event_shape)
        batch_shape, h, context = self._packed("z", z)
        score = pack(self.base.score(unpack(h.detach(), batch_shape), event_dim), event_dim)
        x, ladj, score, _ = self.push_score(h, score, context)
        ladj = ladj.detach().reshape(batch_shape)
        return unpack(x, batch_shape), ladj, unpack(score, batch_shape)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z = g^-1(x)`` and the same ladj, of shapes as :meth:`forward_and_ladj`."""
        known = self._recall("x", x)
        if known is not None:
            return known.z, known.ladj
        batch_shape, h, context = self._packed("x", x)
        z, ladj = self.inverse(h, context)
        return unpack(z, batch_shape), ladj.reshape(batch_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``ln |det dy/dx|`` for ``y = self(x)``, of batch shape (torch's names: x in, y out)."""
        known = self._pair
        if known and known.z is x and known.x is y and known.state == state_of(self, x, y):
            return known.ladj
        return self.forward_and_ladj(x)[1]

    def clear_cache(self) -> None:
        """Forget the last pair."""
        self._pair = None

    def _call(self, x: Tensor) -> Tensor:
        known = self._recall("z", x)
        if known is not None:
            return known.x
        y, ladj = self.forward_and_ladj(x)
        return self._remember(x, y, ladj, out=y)

    def _inverse(self, y: Tensor) -> Tensor:
        known = self._recall("x", y)
        if known is not None:
            return known.z
        x, ladj = self.inverse_and_ladj(y)
        return self._remember(x, y, ladj, out=x)

    def _remember(self, z: Tensor, x: Tensor, ladj: Tensor, out: Tensor) -> Tensor:
        state = state_of(self, z, x)
        self._pair = None if state is None else _Pair(z, x, ladj, out, state)
        return out

    def _recall(self, place: str, value: Tensor) -> _Pair | None:
        """The last pair if this very tensor came out as its z or x, unchanged since, once."""
        known = self._pair
        if known is None or known.out is not value or known.came_back:
            return None
        once_more = getattr(known, place) is not value  # in the same direction
        if once_more or known.state != state_of(self, known.z, known.x):
            return None
        self._pair = known._replace(came_back=True)
        return known

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pair": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.clear_cache()
        return super()._apply(fn, recurse)

    def with_cache(self, cache_size: int = 1) -> LatticeTransform:
        """Return self: the cache above serves any size."""
        return self

    def _packed(self, name: str, value: Tensor) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch shape of an argument, the argument batch-last, and the context, if any."""
        batch_shape = self._check(name, value)
        return batch_shape, pack(value, len(self.event_shape)), None

    def _check(self, name: str, value: Tensor) -> torch.Size:
        """The batch shape of an argument that fits the transform; see the public methods."""
        check_values(name, value, self.event_shape)
        split = value.dim() - len(self.event_shape)
        if torch.compiler.is_compiling():  # which cannot go through the parameters
            return value.shape[:split]
        parameter = next(self.parameters(), value)
        if (parameter.device, parameter.dtype) != (value.device, value.dtype):
            kind = TypeError if parameter.device == value.device else ValueError
            raise kind(
                f"{name} is {value.dtype} on {value.device}; accepted: {parameter.dtype} on "
                f"{parameter.device}, as the transform (convert or move one with .to)"
                f"{see('error-field-shape')}"
            )
        return value.shape[:split]


def forward_and_ladj(flow: Any, z: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """``x = flow(z)`` and ln |det dx/dz| over ``event_dim`` dimensions, of any TransformModule."""
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
    elif x.numel() == 0:  # which some of Pyro's transforms refuse
        z, ladj = x, x.new_zeros(x.shape[: x.dim() - flow.domain.event_dim])
    else:
        z = flow.inv(x)
        ladj = flow.log_abs_det_jacobian(z, x)
    return z, _to_batch(ladj, flow, x, event_dim)


def _to_batch(ladj: Tensor, flow: Any, value: Tensor, event_dim: int) -> Tensor:
    """One log-determinant for each event, of one that is constant or of fewer dimensions."""
    flow_event_dim = flow.domain.event_dim
    shape = value.shape[: value.dim() - flow_event_dim]
    return sum_rightmost(ladj.expand(shape), event_dim - flow_event_dim)


def state_of(module: nn.Module, *tensors: Tensor) -> tuple[Any, ...] | None:
    """Identities, versions and contents that a result of a module and tensors depends on.

    Contents are hashed, since Pyro's optimisers write to ``parameter.data``, which counts no
    version: 0.6 ms for a default flow on 8 x 8.

    Returns:
        None where no result may be remembered: in compiled code, inside the transforms of
        ``torch.func``, of tensors that count no versions, of a module on several devices.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    held = (values for m in module.modules() for values in (m._parameters, m._buffers))
    parts = [tensor for values in held for tensor in values.values() if tensor is not None]
    everything, devices = (*tensors, *parts), {part.device for part in parts}
    if len(devices) > 1 or any(t.is_inference() or t.is_meta for t in everything):
        return None
    marks = tuple((id(t), t._version, t.requires_grad) for t in everything)
    contents = [part.detach().flatten().contiguous().view(torch.uint8) for part in parts]
    values = hash(torch.cat(contents).cpu().numpy().tobytes()) if parts else 0
    return torch.is_grad_enabled(), marks, values
