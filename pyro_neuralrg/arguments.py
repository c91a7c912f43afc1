# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Integers and numbers that users hand in, checked by one rule: a TypeError, or a ValueError.

The first for what is no integer or number, the second for one out of bounds. Numbers of NumPy and
tensors of one entry count as numbers; True, False and strings do not.
"""

from __future__ import annotations

import math
import operator
from typing import Any

LARGEST_SEED = 2**63 - 1
"""Of torch's generators, as a signed integer."""


def as_integer(value: Any) -> int | None:
    """An argument as an int, of any integer type, NumPy's for one; None if it is no integer.

    Example:
        >>> as_integer(2), as_integer(2.5), as_integer(True)
        (2, None, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_integer(
    name: str, value: Any, least: int, most: int | None = None, accepted: str | None = None
) -> int:
    """Return ``value`` as an int if it is an integer from ``least`` to ``most``.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest integer accepted.
        most: the largest, or None.
        accepted: what the message says is accepted, if not the bounds.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is out of bounds.

    Example:
        >>> import numpy as np
        >>> check_integer("steps", np.int64(3), 1)
        3
    """
    if accepted is None:
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        accepted = f"an integer {bounds}"
    number = as_integer(value)
    if number is None:
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {number}; accepted: {accepted}")
    return number


def check_number(
    name: str,
    value: Any,
    accepted: str = "a finite number",
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    given: Any = None,
) -> float:
    """Return ``value`` as a finite float if it lies within the bounds.

    Args:
        name: of the argument.
        value: what was given.
        accepted: what the message says is accepted.
        above: lower bound, itself not accepted.
        least: lower bound, itself accepted.
        below: upper bound, itself not accepted.
        most: upper bound, itself accepted.
        given: the whole argument, to be shown where ``value`` is a part of it.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of bounds, infinite or NaN.

    Example:
        >>> check_number("temperature", 2, "a finite number > 0", above=0)
        2.0
    """
    message = f"{name} is {(value if given is None else given)!r}; accepted: {accepted}"
    if isinstance(value, str | bytes | bool):
        raise TypeError(message)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):  # the last two from arrays and tensors
        raise TypeError(message) from None
    if not (above < number < below and least <= number <= most):
        raise ValueError(message)
    return number


def check_type(name: str, value: Any, kind: Any, accepted: str) -> None:
    """Raise a TypeError unless ``value`` is an instance of ``kind``.

    Example:
        >>> check_type("x", 1.0, str, "a word")
        Traceback (most recent call last):
        TypeError: x is a float; accepted: a word
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted: {accepted}")


def refuse_without(missing: str, accepted: str, **given: Any) -> None:
    """See that nothing was given that means something only beside another argument.

    Args:
        missing: the other argument, which was not given.
        accepted: what the message says is accepted.
        **given: by name; None and False were not given.

    Raises:
        ValueError: naming the first that was.

    Example:
        >>> refuse_without("checkpoint", "with a folder", every=None, resume=True)
        Traceback (most recent call last):
        ValueError: resume is True without checkpoint; accepted: with a folder
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} is {value!r} without {missing}; accepted: {accepted}")
