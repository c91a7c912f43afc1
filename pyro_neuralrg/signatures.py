# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Signatures that need not be found out again: three hundredths of a training step at 8 x 8."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def remember_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``inspect.signature`` find the signature at once.

    ``torch.autograd.Function.apply`` asks for that of ``forward`` in each call.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
