# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of what users hand to potentials, and the seeds they give."""

from __future__ import annotations

import math

import torch

__all__ = ["check_count", "check_finite", "check_positive", "generator_of"]


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a finite float > 0, else raise a TypeError or ValueError that names it.

    Example:
        >>> check_positive("temperature", 2)
        2.0
    """
    number = check_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} is {number}; accepted: a finite number > 0")
    return number


def check_finite(name: str, value: float) -> float:
    """Return ``value`` as a finite float, else raise a TypeError or ValueError that names it."""
    if isinstance(value, str | bool):
        raise TypeError(f"{name} is {value!r}; accepted: a finite number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; accepted: a finite number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; accepted: a finite number")
    return number


def check_count(name: str, value: int, least: int = 1) -> int:
    """Return ``value`` if it is an integer >= ``least``, else raise an error that names it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; accepted: an integer >= {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; accepted: an integer >= {least}")
    return value


def generator_of(seed: int | None) -> torch.Generator:
    """A generator of random numbers on the CPU: of a seed, or continuing torch's own for None."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(check_count("seed", seed, least=0))
