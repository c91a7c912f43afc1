# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers that users hand to trainings and samplers, checked by one rule and one message."""

from __future__ import annotations

import math
import operator
from typing import Any

__all__ = ["LARGEST_SEED", "check_integer", "check_number"]

LARGEST_SEED = 2**63 - 1
"""Of torch's generators, as a signed integer."""


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value``, an integer of Python, numpy or a tensor, if it lies within the bounds.

    Raises:
        ValueError: naming the argument, the value and what is accepted.

    Example:
        >>> import numpy as np
        >>> check_integer("steps", np.int64(3), 1)
        3
    """
    accepted = f">= {least}" if most is None else f"from {least} to {most}"
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}; accepted: an integer {accepted}")
    return number


def check_number(name: str, value: Any, low: float, high: float, accepted: str) -> float:
    """Return ``value`` as a float if it lies strictly between the bounds.

    Raises:
        ValueError: naming the argument, the value and what is accepted.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not low < number < high:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")
    return number
