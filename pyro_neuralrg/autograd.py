# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Autograd functions of our own: when they can be used, and what makes them cheap to call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad


def takes_own_functions() -> bool:
    """Whether functions with a backward pass and a rule for ``vmap``, and no more, can be used.

    Not under forward-mode derivatives, ``torch.compile`` or other transforms of ``torch.func``.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return all(one.key() == torch._C._functorch.TransformType.Vmap for one in stack)


def remember_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``inspect.signature`` find the signature at once.

    ``torch.autograd.Function.apply`` asks for that of ``forward`` in each call: three hundredths of
    a training step at 8 x 8.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
