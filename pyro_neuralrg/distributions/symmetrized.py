# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A flow's density averaged over a finite symmetry group, exactly."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.distributions.flow import FlowDistribution, check_flow, event_shape
from pyro_neuralrg.distributions.symmetry import (
    LatticeSymmetry,
    check_group,
    distinct,
    source_table,
    symmetry_group,
)
from pyro_neuralrg.transforms.base import state_of


class _Draw(NamedTuple):
    """The last sample, and what its density needs: x = g x0 for some g."""

    x: Tensor
    x0: Tensor
    log_q0: Tensor
    state: tuple[Any, ...]


class SymmetrizedFlow(TorchDistribution):
    r"""The mixture of a flow's density q0 over a finite group G that acts on the field.

    .. math:: q(x) = \frac{1}{|G|} \sum_{g \in G} q_0(g^{-1} x), \qquad q(gx) = q(x)

    A sample is ``x = g flow(z)`` with g uniform in G: reparameterised gradients are unbiased. With
    its density it costs one forward and |G| - 1 inverse passes, as ``log_prob`` of a fresh sample
    goes through its z.

    Args:
        flow: a TransformModule on lattice fields.
        elements: of a group on this lattice, such as a
            :func:`~pyro_neuralrg.distributions.symmetry_group`; default: the spin flip Z2.
        shape: event shape, only for a flow that has no ``shape`` attribute.
        orbit_chunk: group elements evaluated in one inverse pass, which bounds the memory.

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> q = SymmetrizedFlow(hierarchical_flow((4, 4)))
        >>> x, log_q = q.rsample_and_log_prob((5,))
        >>> torch.allclose(q.log_prob(-x), log_q, atol=1e-4)
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        flow: Any,
        elements: Sequence[LatticeSymmetry] | None = None,
        *,
        shape: Sequence[int] | None = None,
        orbit_chunk: int = 8,
        validate_args: bool | None = None,
    ) -> None:
        check_flow(flow)
        lattice = event_shape(flow, shape)
        if elements is None:
            elements = symmetry_group(lattice)
        else:
            check_group(elements, lattice)
        self.flow = flow
        self.elements = tuple(elements)
        self.orbit_chunk = check_integer("orbit_chunk", orbit_chunk, 1)
        if getattr(flow, "odd", False):  # q0(-x) = q0(x): g and -g count the same
            elements = tuple(dataclasses.replace(g, sign=1) for g in elements)
        self._orbit = distinct((LatticeSymmetry.identity(len(lattice)), *elements), lattice)
        self._signs = torch.tensor([element.sign for element in self.elements])
        moves = any(element.moves_sites for element in self.elements)
        self._sources = source_table(self.elements, lattice) if moves else None
        self._draw: _Draw | None = None
        super().__init__(torch.Size(), torch.Size(lattice), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.flow!r}, <{len(self.elements)} elements>)"

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real fields."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SymmetrizedFlow:
        """The same distribution with another batch shape."""
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw differentiable fields of shape ``sample_shape + batch_shape + shape``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        x0, log_q0 = self._flow_density().rsample_and_log_prob(shape)
        x = self._act(x0)
        state = state_of(self.flow, x, x0)
        self._draw = None if state is None else _Draw(x, x0, log_q0, state)
        return x

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw fields and return them with ln q, at the cost of |G| passes in all."""
        x = self.rsample(sample_shape)
        return x, self.log_prob(x)

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(value) in nats, of the batch shape of ``value`` with that of the distribution."""
        if self._validate_args and value.numel():
            self._validate_sample(value)
        draw = self._recall(value)
        if draw is None:
            terms = self._log_orbit(value, self._orbit)
        else:
            terms = [draw.log_q0.unsqueeze(0), *self._log_orbit(draw.x0, self._orbit[1:])]
        log_q = terms[0] if len(terms) == 1 else torch.cat(terms)
        log_q = log_q.logsumexp(0) - math.log(len(self._orbit))
        return log_q.expand(broadcast_shape(log_q.shape, self.batch_shape))

    def clear_cache(self) -> None:
        """Forget the last sample."""
        self._draw = None

    def _log_orbit(self, x: Tensor, elements: Sequence[LatticeSymmetry]) -> list[Tensor]:
        """ln q0(g x) for all g, in pieces of shape ``(elements of the piece,) + batch_shape``."""
        q0 = self._flow_density()
        chunks = range(0, len(elements), self.orbit_chunk)
        pieces = (elements[start : start + self.orbit_chunk] for start in chunks)
        return [q0.log_prob(torch.stack([g(x) for g in piece])) for piece in pieces]

    def _flow_density(self) -> FlowDistribution:
        """q0, in the flow's present dtype and on its device."""
        return FlowDistribution(self.flow, self.event_shape, validate_args=False)

    def _act(self, x: Tensor) -> Tensor:
        """Apply an independent, uniformly drawn group element to every field of the batch."""
        if len(self.elements) == 1:
            return x
        dims = len(self.event_shape)
        batch = x.shape[: x.dim() - dims]
        chosen = torch.randint(len(self.elements), batch, device=x.device)
        signs = self._signs.to(x.device, x.dtype)[chosen]
        if self._sources is not None:
            x = x.flatten(-dims).gather(-1, self._sources.to(x.device)[chosen]).reshape(x.shape)
        return x * signs.reshape(batch + (1,) * dims)

    def _recall(self, value: Tensor) -> _Draw | None:
        """The last draw, if ``value`` is it and nothing has changed since, once."""
        if self._draw is None or self._draw.x is not value:
            return None
        draw, self._draw = self._draw, None
        return draw if draw.state == state_of(self.flow, draw.x, draw.x0) else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_draw": None}
