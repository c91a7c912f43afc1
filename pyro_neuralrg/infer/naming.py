# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Parameter statements for the few hundred tensors of a flow, all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.distributions import constraints

__all__ = ["name_parameters"]

EVEN = (pyro.plate, PlateMessenger, ScaleMessenger, MaskMessenger)
"""Messengers that do the same to every parameter without plates of its own."""

HOOKS = ("_pyro_param", "_pyro_post_param")

OPTIONS: Any = {"constraint": constraints.real, "event_dim": None}


def name_parameters(
    named: Sequence[tuple[str, Tensor]], value_of: Callable[..., Tensor]
) -> list[Tensor]:
    """What ``pyro.param(name, tensor)`` of each of them does, in half of the time.

    The first is a statement like any other. Where all messengers on Pyro's stack treat parameters
    alike (traces, plates, scales, masks, and those that have nothing to do with parameters), the
    others enter the traces as the first one did; else each is a statement of its own.

    Args:
        named: names and unconstrained tensors.
        value_of: called with a name, a tensor and keywords to find a parameter's value: the
            parameter store's ``get_param``, for instance.

    Returns:
        the value of each parameter.

    Example:
        >>> import torch
        >>> weights = [(name, torch.zeros(2, requires_grad=True)) for name in ("a", "b")]
        >>> with pyro.poutine.trace() as tracer:
        ...     values = name_parameters(weights, pyro.get_param_store().get_param)
        >>> tracer.trace.param_nodes, values[1] is weights[1][1]
        (['a', 'b'], True)
    """
    statement = effectful(value_of, type="param")
    stated = named[:1] if _all_are_even() else named
    values = [statement(name, value, **OPTIONS, name=name) for name, value in stated]
    traces = [frame.trace for frame in _PYRO_STACK if isinstance(frame, TraceMessenger)]
    for name, parameter in named[len(stated) :]:
        value = value_of(name, parameter, **OPTIONS)
        for trace in traces:
            like = trace.nodes[named[0][0]]
            trace.add_node(name, **{**like, "name": name, "args": (name, value), "value": value})
        values.append(value)
    return values


def _all_are_even() -> bool:
    """Whether what happens to one parameter is what happens to all."""
    return all(type(frame) in (TraceMessenger, *EVEN) or _is_blind(frame) for frame in _PYRO_STACK)


def _is_blind(frame: Messenger) -> bool:
    """Whether a messenger has nothing to do with parameters."""
    kind = type(frame)
    return (
        kind._process_message is Messenger._process_message
        and kind._postprocess_message is Messenger._postprocess_message
        and not any(hasattr(frame, hook) for hook in HOOKS)
    )
