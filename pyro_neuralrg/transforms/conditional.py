# SPDX-License-Identifier: Apache-2.0
"""A hierarchical flow for every value of a context, such as a temperature or a coupling."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_integer, check_values
from pyro_neuralrg.transforms.base import LatticeTransform, Pushed, pack
from pyro_neuralrg.transforms.hierarchical import HierarchicalFlow


class ConditionalHierarchicalFlow(ConditionalTransformModule):
    """x = g(z; c): a :class:`HierarchicalFlow` whose networks also see a context vector c.

    Every field of a batch may have a context of its own; values of order one are learned best. A
    small network turns c into features, and every unit of the couplings' networks has a gain and
    (unless the flow is odd) a bias that are linear in c and in these features, zero at the start.
    A Pyro conditional transform, for ``ConditionalTransformedDistribution``; build one with
    :func:`conditional_hierarchical_flow`.

    Args:
        flow: a HierarchicalFlow of ``context_dim`` + ``features`` context features.
        context_dim: length of the context vector.
        features: width of the network that makes features of a context.
    """

    domain = property(lambda self: self.flow.domain)
    codomain = property(lambda self: self.flow.codomain)
    bijective = True
    shape = property(lambda self: self.flow.shape)
    base = property(lambda self: self.flow.base)
    event_dim = property(lambda self: len(self.shape))

    def __init__(self, flow: HierarchicalFlow, context_dim: int, features: int) -> None:
        super().__init__()
        self.flow = flow
        self.context_dim = context_dim
        self.feature_count = features
        self.encoder = nn.Sequential(nn.Linear(context_dim, features), nn.Tanh())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.flow!r}, {self.context_dim}, {self.feature_count})"

    def condition(self, context: Tensor) -> LatticeTransform:
        """The flow at a context, an ordinary transform for one context or a batch of them.

        Args:
            context: shape ``batch_shape + (context_dim,)``, in the flow's dtype; the batch shape
                broadcasts with that of the fields.
        """
        like = self.encoder[0].weight
        accepted = f"a tensor of shape (..., {self.context_dim}), {like.dtype} as the flow"
        check_values("context", context, (self.context_dim,), accepted)
        if context.dtype != like.dtype:
            raise TypeError(f"context is {context.dtype}; accepted: {accepted}")
        return _Conditioned(self, context)

    def features(self, context: Tensor) -> Tensor:
        """Context as the layers see it, ``batch_shape + (context_dim + features,)``."""
        return torch.cat([context, self.encoder(context)], dim=-1)

    def grow(self, spectrum: Tensor | None = None) -> ConditionalHierarchicalFlow:
        """As :meth:`HierarchicalFlow.grow`, for every context."""
        flow = self.flow.grow(spectrum)
        grown = ConditionalHierarchicalFlow(flow, self.context_dim, self.feature_count)
        grown.encoder = copy.deepcopy(self.encoder)
        return grown

    @property
    def config(self) -> dict[str, Any]:
        """Options for :meth:`from_config` as JSON data; tensors are in ``state_dict()``."""
        config = self.flow.config
        return {**config, "context_dim": self.context_dim, "features": self.feature_count}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConditionalHierarchicalFlow:
        """Build the flow that ``config`` names; load its weights with ``load_state_dict``."""
        options = dict(config)
        context_dim, features = options.pop("context_dim"), options.pop("features")
        flow = HierarchicalFlow.from_config({**options, "context_dim": context_dim + features})
        return cls(flow, context_dim, features)


class _Conditioned(LatticeTransform):
    """A conditional flow at contexts ``batch_shape + (context_dim,)``."""

    context: Tensor

    def __init__(self, conditional: ConditionalHierarchicalFlow, context: Tensor) -> None:
        super().__init__(conditional.shape)
        self.conditional = conditional
        self.base = conditional.base
        self.shape = conditional.shape
        self.register_buffer("context", context, persistent=False)

    def __repr__(self) -> str:
        return f"{self.conditional!r}.condition(<{tuple(self.context.shape)}>)"

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self.conditional.flow._pass(h, context, inverse)

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        return self.conditional.flow.push_score(h, score, context, want_context)

    def _packed(self, name: str, value: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
        """Fields and the features of their contexts, brought to one batch and batch-last."""
        given = self._check(name, value)
        batch_shape = torch.Size(broadcast_shape(given, self.context.shape[:-1]))
        fields = value.expand(batch_shape + value.shape[len(given) :])
        features = self.conditional.features(self.context)
        features = features.expand(*batch_shape, features.shape[-1])
        return batch_shape, pack(fields, len(self.event_shape)), pack(features, 1)


def conditional_hierarchical_flow(
    shape: Iterable[int],
    context_dim: int,
    circuit: str = "mera",
    *,
    features: int = 16,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> ConditionalHierarchicalFlow:
    """Build a :class:`ConditionalHierarchicalFlow`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        context_dim: length of the context vector.
        circuit: "mera", "tree" or "brickwork".
        features: width of the network that makes features of a context.
        dtype: of the parameters; torch's default dtype if None.
        **options: of :meth:`HierarchicalFlow.build`, such as ``spectrum_slopes``. As ``bijector`` a
            callable ``size -> ConditionalTransformModule``, such as Pyro's
            ``conditional_affine_coupling`` with its ``context_dim`` set to the two numbers' sum.

    Example:
        >>> flow = conditional_hierarchical_flow((8, 8), context_dim=2)
        >>> flow.condition(torch.zeros(2))(torch.randn(3, 8, 8)).shape
        torch.Size([3, 8, 8])
    """
    context_dim = check_integer("context_dim", context_dim, 1)
    features = check_integer("features", features, 1)
    options |= {"context_dim": context_dim + features, "dtype": dtype}
    flow = HierarchicalFlow.build(shape, circuit, **options)
    conditional = ConditionalHierarchicalFlow(flow, context_dim, features)
    return conditional.to(dtype if dtype is not None else torch.get_default_dtype())
