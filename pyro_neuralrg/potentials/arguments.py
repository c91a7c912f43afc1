# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of what users hand to potentials, and the seeds they give."""

from __future__ import annotations

import math
import operator

import torch

__all__ = ["check_count", "check_finite", "check_positive", "generator_of"]

LARGEST_SEED = 2**64 - 1
"""Of torch's generators."""


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a finite float > 0, else raise a TypeError or ValueError that names it.

    Example:
        >>> check_positive("temperature", 2)
        2.0
    """
    accepted = "a finite number > 0"
    number = check_finite(name, value, accepted)
    if number <= 0:
        raise ValueError(f"{name} is {number}; accepted: {accepted}")
    return number


def check_finite(name: str, value: float, accepted: str = "a finite number") -> float:
    """Return ``value`` as a finite float, else raise a TypeError or ValueError that names it."""
    if isinstance(value, str | bool):
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; accepted: {accepted}")
    return number


def check_count(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``, else raise an error.

    Integers of NumPy are integers too.

    Example:
        >>> import numpy as np
        >>> check_count("n", np.int64(3))
        3
    """
    accepted = f"an integer >= {least}" + ("" if most is None else f" and <= {most}")
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}") from None
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {number}; accepted: {accepted}")
    return number


def generator_of(seed: int | None) -> torch.Generator:
    """A generator of random numbers on the CPU: of a seed, or continuing torch's own for None."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(check_count("seed", seed, least=0, most=LARGEST_SEED))
