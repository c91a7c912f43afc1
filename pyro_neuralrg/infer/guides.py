# SPDX-License-Identifier: Apache-2.0
"""A guide that draws one lattice field from a flow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_neuralrg.distributions.flow import FlowDistribution, check_flow, event_shape
from pyro_neuralrg.distributions.symmetrized import SymmetrizedFlow
from pyro_neuralrg.infer.pyro_internals import register_parameters, take_loaded


class FlowGuide(PyroModule):
    """Guide with one sample site, whose distribution is a flow (or its symmetrisation).

    The flow is a submodule: ``SVI`` trains its parameters, and so do plain torch optimisers over
    ``guide.parameters()``. Where Pyro's parameter store holds others under their names, of a guide
    of the same site or of a copy, they are trained without being in the store, with a warning if
    the values differ. Values that ``pyro.get_param_store().load(...)`` has read become the
    guide's, loaded before or after it is made; buffers are in the store as well.

    Args:
        flow: a TransformModule on lattice fields, a SymmetrizedFlow, a TransformedDistribution of
            TransformModules, or a ConditionalTransformModule such as a ConditionalHierarchicalFlow:
            the guide then takes the context first, as the model does, or by its name.
        name: the sample site.
        shape: event shape, only for a flow that has no ``shape`` attribute.

    Raises:
        TypeError: if ``flow`` is something else; in particular ``flow.inv``, which holds no
            parameters.

    Example:
        >>> import torch
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> guide = FlowGuide(hierarchical_flow((4, 4)))
        >>> guide().shape
        torch.Size([4, 4])
    """

    takes_batches = True  # for PDD

    def __init__(self, flow: Any, name: str = "x", shape: Sequence[int] | None = None) -> None:
        super().__init__(f"{name}_guide")
        self.site = name
        self._density: Any = None  # where it is given
        if isinstance(flow, SymmetrizedFlow):
            self._density, self.flow = flow, flow.flow
        elif isinstance(flow, TransformedDistribution):
            for transform in flow.transforms:
                check_flow(transform)
            self._density, self.flow = flow, nn.ModuleList(flow.transforms)
        else:
            if not isinstance(flow, ConditionalTransformModule):
                check_flow(flow)
            self.flow = flow
            self.shape = event_shape(flow, shape)

    def __repr__(self) -> str:
        of = self._modules["flow"] if self._density is None else self._density
        return f"{type(self).__name__}({of!r}, {self.site!r})"

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> FlowGuide:
        """``.to``, ``.double`` and the like, also of a distribution's base."""
        super()._apply(fn, *args, **kwargs)
        if isinstance(self._density, TransformedDistribution):
            self._density.base_dist = with_tensors(self._density.base_dist, fn)
        return self

    def distribution(self, context: Tensor | None = None) -> Any:
        """The distribution q of the sample site; registers nothing with Pyro.

        A conditional flow needs a context ``batch_shape + (context_dim,)``, else a ValueError.
        """
        take_loaded(self, "flow")
        if self._density is not None:
            return self._density
        flow: Any = self._modules["flow"]
        if not isinstance(flow, ConditionalTransformModule):
            return FlowDistribution(flow, self.shape)
        if context is None:
            raise ValueError("context is None; accepted for a conditional flow: a tensor")
        batch = torch.Size(context.shape[:-1])
        return FlowDistribution(flow.condition(context), self.shape).expand(batch)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Register the flow's parameters with Pyro and sample the site, called as the model is."""
        register_parameters(self, "flow")
        context = args[0] if args else kwargs.get("context")
        return pyro.sample(self.site, self.distribution(context))


def with_tensors(density: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """A copy of the distribution with ``fn`` of all its tensors."""
    moved = copy.copy(density)
    for name, value in vars(density).items():
        if isinstance(value, Tensor):
            setattr(moved, name, fn(value))
        elif isinstance(value, Distribution):
            setattr(moved, name, with_tensors(value, fn))
    return moved
