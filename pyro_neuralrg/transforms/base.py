# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The base of all our transforms: value and log-determinant in one pass, and an honest cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_neuralrg.transforms.partition import pack, unpack

__all__ = ["LatticeTransform"]


class Snapshot:
    """What a result of a module depended on, so as to tell later whether the result still holds.

    It does as long as the tensors named here and the module's parameters and buffers are the same,
    unchanged and in the same grad mode, no backward pass has gone through the result, and none has
    reached a parameter's ``grad``. The last two matter because many optimisers, Pyro's own among
    them, write to ``parameter.data``, which leaves no mark on the parameter itself.

    Args:
        module: what computed the result.
        tensors: what the result belongs to.
        results: whose graphs are watched.
    """

    def __init__(
        self, module: nn.Module, tensors: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        parts = _parts(module)
        # held, so that neither an id nor an address returns
        self._held = tensors, [(part, _gradient(part), part.detach()) for part in parts]
        self._state = _state(tensors, parts)
        self._spent = threading.Event()
        spend = self._spent.set  # not a method of this object: the graph must not hold its tensors
        for result in results:
            if result.grad_fn is not None:
                result.grad_fn.register_prehook(lambda _: spend())

    def holds(self, module: nn.Module, tensors: Sequence[Tensor]) -> bool:
        """Whether all is as it was, for the same module and tensors."""
        if self._state is None or self._spent.is_set():
            return False
        return self._state == _state(tensors, _parts(module))


class _Pass(NamedTuple):
    """One evaluated pair x = g(z), which of the two it began with, and what it depended on.

    Once the other of the two has been given out, it is only good for its log-determinant.
    """

    z: Tensor
    x: Tensor
    ladj: Tensor
    given: Tensor
    snapshot: Snapshot
    given_out: bool = False


class LatticeTransform(TransformModule):
    """A bijection of real tensors of ``event_shape``, value and log-determinant in one pass.

    To write another one, define on *batch-last* tensors ``event_shape + (batch,)``

    * ``generate(h, context) -> (h, ladj)``: z to x, with ``ladj = ln |det dx/dz|`` of shape
      ``(batch,)``;
    * ``renormalize(h, context) -> (h, ladj)``: x to z, with the *same* ``ladj = ln |det dx/dz|``
      (not its negative);

    where the context is None or a tensor ``(features, batch)`` that may decide what is done, but
    need not. Then create parameters in ``__init__``, and add a line to
    ``tests/transforms/registry.py``.

    The last evaluated pair is remembered, so that ``log_prob`` of a fresh sample costs nothing: the
    latent found there is the very tensor that the sample came from. The pair is used once, and only
    for the same tensors, unchanged themselves and with unchanged parameters and buffers, in the
    same grad mode, before any backward pass; an evaluation in the same direction is always made
    anew (its graph may have been spent). Copies, pickles and ``.to(...)`` drop it, as
    ``clear_cache()`` does; compiled code does without it.

    Two limits. Parameters written through ``parameter.data`` between a sample and its first
    ``log_prob``, with no backward pass in between, are not noticed: call ``clear_cache()``. And
    ``log_prob`` of the very tensor that was drawn goes through the latent, not through the tensor,
    so that autograd finds no way from it to the tensor: for the gradient with respect to a drawn
    ``x`` take ``log_prob`` at ``x.clone()``, or at ``x.detach().requires_grad_()``.
    """

    bijective = True
    sign = +1

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(cache_size=0)
        self.event_shape = tuple(event_shape)
        self._pass: _Pass | None = None

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batch-last z to (x, ladj); see the class docstring."""
        raise NotImplementedError(f"{type(self).__name__} does not define generate(h, context)")

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batch-last x to (z, ladj); see the class docstring."""
        raise NotImplementedError(f"{type(self).__name__} does not define renormalize(h, context)")

    def generate_with_score(
        self,
        h: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        pulls: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Batch-last z to (x, ladj), and the score of the density along with it.

        With :math:`s = \partial_z \ln p(z)` given, :math:`\partial_x \ln q(x) = J^{-T} (s -
        \partial_z \ln|\det J|)` is returned, detached: what a path gradient needs. Here by one
        inverse pass; couplings do without (Vaitl, Winkler, Richter, Kessel, "Fast and unified path
        gradient estimators for normalizing flows", ICLR 2024). To ``pulls``, if given,
        :math:`\partial_c \ln q(x; c)` at fixed x is appended, a tensor of the shape of a context
        that requires its gradient.
        """
        out, ladj = self.generate(h, context)
        with torch.enable_grad():
            x = out.detach().requires_grad_()
            c = None if context is None else context.detach()
            wanted = [x]
            if pulls is not None and c is not None:
                wanted.append(c.requires_grad_())
            z, inverse_ladj = self.renormalize(x, c)
            cotangents = [score, -torch.ones_like(inverse_ladj)]
            score, *more = torch.autograd.grad(  # a constant log-determinant has no graph
                [y for y in (z, inverse_ladj) if y.requires_grad],
                wanted,
                [c for y, c in zip((z, inverse_ladj), cotangents, strict=True) if y.requires_grad],
                allow_unused=True,
                materialize_grads=True,
            )
        if pulls is not None:
            pulls.extend(more)
        return out, ladj, score

    # The public interface, Pyro's and ours

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        """Real tensors of the event's dimension."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        """Real tensors of the event's dimension."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x = g(z)`` and ``ladj = ln |det dx/dz|``.

        Args:
            z: shape ``batch_shape + event_shape``, any batch shape, in the transform's dtype.

        Returns:
            x of the shape of z, and ladj of shape ``batch_shape``.

        Raises:
            TypeError, ValueError: if ``z`` is not such a tensor.
        """
        batch_shape = self._check("z", z)
        x, ladj = self.generate(pack(z, len(self.event_shape)))
        return unpack(x, batch_shape), ladj.reshape(batch_shape)

    def forward_with_score(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return x and ladj as :meth:`forward_and_ladj`, and the score of the flow's density.

        Of independent normals z, that is :math:`\partial_x \ln q(x)` at fixed parameters.

        Args:
            z: shape ``batch_shape + event_shape``, any batch shape, in the transform's dtype.

        Returns:
            x of the shape of z, ladj of shape ``batch_shape``, and the score of the shape of z; the
            last two without a graph.

        Raises:
            TypeError, ValueError: if ``z`` is not such a tensor.
        """
        batch_shape = self._check("z", z)
        h = pack(z, len(self.event_shape))
        x, ladj, score = self.generate_with_score(h, -h.detach())
        ladj = ladj.detach().reshape(batch_shape)
        return unpack(x, batch_shape), ladj, unpack(score, batch_shape)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z = g^-1(x)`` and the same ``ladj = ln |det dx/dz|`` at that point.

        Args:
            x: shape ``batch_shape + event_shape``, any batch shape, in the transform's dtype.

        Returns:
            z of the shape of x, and ladj of shape ``batch_shape``.

        Raises:
            TypeError, ValueError: if ``x`` is not such a tensor.
        """
        batch_shape = self._check("x", x)
        z, ladj = self.renormalize(pack(x, len(self.event_shape)))
        return unpack(z, batch_shape), ladj.reshape(batch_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """ln |det dy/dx| for ``y = self(x)``, of batch shape (torch's names: x in, y out)."""
        known = self._pass
        if known is not None and known.z is x and known.x is y and self._is_current(known):
            return known.ladj
        return self.forward_and_ladj(x)[1]

    def clear_cache(self) -> None:
        """Forget the last evaluated pair."""
        self._pass = None

    def _call(self, x: Tensor) -> Tensor:
        known = self._pass
        if known is not None and known.z is x and self._gives_out(known, x):
            return known.x
        y, ladj = self.forward_and_ladj(x)
        self._remember(x, y, ladj, given=x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        known = self._pass
        if known is not None and known.x is y and self._gives_out(known, y):
            return known.z
        x, ladj = self.inverse_and_ladj(y)
        self._remember(x, y, ladj, given=y)
        return x

    # What keeps the cache honest

    def _remember(self, z: Tensor, x: Tensor, ladj: Tensor, given: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        result = z if given is x else x
        self._pass = _Pass(z, x, ladj, given, Snapshot(self, (z, x), (result, ladj)))

    def _gives_out(self, known: _Pass, argument: Tensor) -> bool:
        """Whether the pair may serve an evaluation at ``argument``; it does so once."""
        if known.given_out or known.given is argument or not self._is_current(known):
            return False
        self._pass = known._replace(given_out=True)
        return True

    def _is_current(self, known: _Pass) -> bool:
        if torch.compiler.is_compiling():
            return False
        return known.snapshot.holds(self, (known.z, known.x))

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
        """The batch shape of an argument that fits the transform; see the public methods."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            seen = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {seen}; accepted: a floating tensor")
        split = value.dim() - len(self.event_shape)
        if split < 0 or tuple(value.shape[split:]) != self.event_shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; "
                f"accepted: any batch shape followed by {self.event_shape}"
            )
        if torch.compiler.is_compiling():  # which cannot go through the parameters
            return value.shape[:split]
        parameter = next(self.parameters(), None)
        if parameter is not None and parameter.device != value.device:
            raise ValueError(
                f"{name} is on device {value.device}; accepted: {parameter.device}, where the "
                "transform is (move one with .to(device))"
            )
        if parameter is not None and parameter.dtype != value.dtype:
            raise TypeError(
                f"{name} is {value.dtype}; accepted: {parameter.dtype}, as the transform "
                "(convert one with .to(dtype))"
            )
        return value.shape[:split]


def _parts(module: nn.Module) -> tuple[Tensor, ...]:
    """All parameters and buffers, in half the time that ``module.parameters()`` takes for names."""
    held = (values for m in module.modules() for values in (m._parameters, m._buffers))
    return tuple(tensor for values in held for tensor in values.values() if tensor is not None)


def _state(tensors: Sequence[Tensor], parts: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """Equal for equal tensors with equal contents, in the same grad mode; None if none can tell."""
    if any(tensor.is_inference() for tensor in (*tensors, *parts)):  # these count no versions
        return None
    gradients = [grad for grad in map(_gradient, parts) if grad is not None]
    marks = tuple(_mark(tensor) for tensor in (*tensors, *parts, *gradients))
    return torch.is_grad_enabled(), marks, tuple(_address(part) for part in parts)


def _mark(tensor: Tensor) -> tuple[int, int, bool]:
    return id(tensor), tensor._version, tensor.requires_grad


def _gradient(tensor: Tensor) -> Tensor | None:
    """What backward passes have left on a leaf."""
    return tensor.grad if tensor.is_leaf else None


def _address(tensor: Tensor) -> int | None:
    """Where the values lie: new after ``tensor.data = ...``, which counts as no new version."""
    try:
        return tensor.data_ptr()
    except RuntimeError:  # inside vmap, where no data can be replaced
        return None
