# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The one base of all our transforms: value and log-determinant in one pass, any batch shape, a cache that cannot lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.transforms.partition import pack, unpack

__all__ = ["LatticeTransform"]


class _Pass(NamedTuple):
    """One evaluated pair x = g(z), with what it depended on."""

    z: Tensor
    x: Tensor
    ladj: Tensor
    key: tuple[int, ...]


class LatticeTransform(TransformModule):
    """A bijection of real tensors of event shape ``event_shape`` that yields value and log-determinant together.

    To write another one, define on *batch-last* tensors ``event_shape + (batch,)``

    * ``generate(h) -> (h, ladj)``: z to x, with ``ladj = ln |det dx/dz|`` of shape ``(batch,)``;
    * ``renormalize(h) -> (h, ladj)``: x to z, with the *same* ``ladj = ln |det dx/dz|`` (not its negative);

    create parameters in ``__init__``, and add a line to ``tests/transforms/registry.py``.

    The last evaluated pair is remembered, so that ``log_prob`` of a fresh sample costs nothing. It is used again only for the very
    same tensors, unchanged parameters and the same grad mode, and it is dropped by ``copy.deepcopy``, pickling,
    ``.to(...)`` and ``clear_cache()``.
    """

    bijective = True
    sign = +1

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(cache_size=0)
        self.event_shape = tuple(event_shape)
        self._pass: _Pass | None = None

    def generate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Batch-last z to (x, ladj); see the class docstring."""
        raise NotImplementedError(f"{type(self).__name__} does not define generate(h)")

    def renormalize(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Batch-last x to (z, ladj); see the class docstring."""
        raise NotImplementedError(f"{type(self).__name__} does not define renormalize(h)")

    # The public interface, Pyro's and ours ---------------------------------------------------------------------

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        """Real tensors of the event's dimension."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        """Real tensors of the event's dimension."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x = g(z)`` of shape ``batch_shape + event_shape`` and ``ladj = ln |det dx/dz|`` of ``batch_shape``.

        Raises:
            TypeError, ValueError: if ``z`` is not a floating tensor of that shape.
        """
        batch_shape = self._check("z", z)
        x, ladj = self.generate(pack(z, len(self.event_shape)))
        return unpack(x, batch_shape), ladj.reshape(batch_shape)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z = g^-1(x)`` and the same ``ladj = ln |det dx/dz|`` at that point.

        Raises:
            TypeError, ValueError: if ``x`` is not a floating tensor of shape ``batch_shape + event_shape``.
        """
        batch_shape = self._check("x", x)
        z, ladj = self.renormalize(pack(x, len(self.event_shape)))
        return unpack(z, batch_shape), ladj.reshape(batch_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """ln |det dy/dx| for ``y = self(x)``, of batch shape (torch's argument names: x in, y out)."""
        known = self._recall()
        if known is not None and known.z is x and known.x is y:
            return known.ladj
        return self.forward_and_ladj(x)[1]

    def clear_cache(self) -> None:
        """Forget the last evaluated pair."""
        self._pass = None

    def _call(self, x: Tensor) -> Tensor:
        known = self._recall()
        if known is not None and known.z is x:
            return known.x
        y, ladj = self.forward_and_ladj(x)
        self._remember(x, y, ladj)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        known = self._recall()
        if known is not None and known.x is y:
            return known.z
        x, ladj = self.inverse_and_ladj(y)
        self._remember(x, y, ladj)
        return x

    # What keeps the cache honest -----------------------------------------------------------------------------------

    def _key(self, z: Tensor, x: Tensor) -> tuple[int, ...]:
        version = sum(tensor._version for tensor in self.parameters())
        return version, z._version, x._version, torch.is_grad_enabled()

    def _remember(self, z: Tensor, x: Tensor, ladj: Tensor) -> None:
        tracked = not (z.is_inference() or x.is_inference())  # inference tensors count no versions
        self._pass = _Pass(z, x, ladj, self._key(z, x)) if tracked else None

    def _recall(self) -> _Pass | None:
        known = self._pass
        return known if known is not None and known.key == self._key(known.z, known.x) else None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_pass"] = None
        return state

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.clear_cache()
        return super()._apply(fn, recurse)

    def with_cache(self, cache_size: int = 1) -> LatticeTransform:
        """Return self: the cache above serves any size."""
        return self

    def _check(self, name: str, value: Tensor) -> torch.Size:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            seen = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating tensor, not {seen}")
        split = value.dim() - len(self.event_shape)
        if split < 0 or tuple(value.shape[split:]) != self.event_shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; accepted: any batch shape followed by {self.event_shape}"
            )
        for parameter in self.parameters():
            if parameter.device != value.device:
                raise ValueError(
                    f"{name} is on device {value.device}, the transform on {parameter.device}; "
                    "move one with .to(device)"
                )
            break
        return value.shape[:split]
