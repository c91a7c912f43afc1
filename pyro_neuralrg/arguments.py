# SPDX-License-Identifier: Apache-2.0
"""Arguments of public functions, checked by one rule: TypeError for a wrong type, else ValueError.

Numbers of NumPy and tensors of one entry count as numbers; True, False and strings do not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LARGEST_SEED = 2**63 - 1
"""Largest seed of torch's generators, as a signed integer."""


def see(section: str) -> str:
    """The end of a message: the section of the page of messages that says what to do.

    Example:
        >>> see("error-field-shape")
        ' (tutorials/errors.md#error-field-shape)'
    """
    return f" (tutorials/errors.md#{section})"


def as_integer(value: Any) -> int | None:
    """An argument of any integer type as an int; None if it is no integer."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_integer(
    name: str, value: Any, least: int, most: int | None = None, accepted: str | None = None
) -> int:
    """Return ``value`` as an int if it is an integer from ``least`` to ``most``."""
    if accepted is None:
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        accepted = f"an integer {bounds}"
    number = as_integer(value)
    if number is None:
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {number}; accepted: {accepted}")
    return number


def check_integers(name: str, value: Any, accepted: str) -> tuple[int, ...]:
    """Return a sequence of integers as a tuple of ints, else raise a TypeError."""
    try:
        given = (None,) if isinstance(value, bytes) else tuple(value)
    except TypeError:  # no sequence, or a tensor of no dimension
        given = (None,)
    numbers = tuple(number for number in map(as_integer, given) if number is not None)
    if len(numbers) < len(given):
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    return numbers


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

    ``least`` and ``most`` are accepted themselves, ``above`` and ``below`` are not. ``given`` is
    the whole argument, to be shown where ``value`` is a part of it.
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


def check_numbers(
    name: str, value: Any, accepted: str, count: int | None = None, **bounds: float
) -> tuple[float, ...]:
    """Return a sequence of numbers, so many if that is said, as floats within the bounds."""
    check_type(name, value, Iterable, accepted)
    given = tuple(value)
    if count not in (None, len(given)):
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")
    return tuple(check_number(name, one, accepted, given=value, **bounds) for one in given)


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of the choices, else raise a ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; accepted: {', '.join(choices)}")
    return value


def check_tensor(name: str, value: Any, accepted: str = "a floating tensor") -> Tensor:
    """Return ``value`` if it is a tensor of a floating dtype, else raise a TypeError."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        seen = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is {seen}; accepted: {accepted}")
    return value


def check_values(
    name: str, value: Any, shape: tuple[int, ...], accepted: str | None = None
) -> Tensor:
    """Return ``value`` if it is a tensor of a floating dtype and of shape ``batch + shape``."""
    check_tensor(name, value, accepted or "a floating tensor")
    split = value.dim() - len(shape)
    if split < 0 or tuple(value.shape[split:]) != shape:
        accepted = accepted or f"any batch shape followed by {shape}{see('error-field-shape')}"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; accepted: {accepted}")
    return value


def check_finite(name: str, values: Tensor, fits: bool, accepted: str) -> None:
    """Raise a ValueError unless a tensor fits by its shape, and all of its entries are finite."""
    if not fits or not bool(values.isfinite().all()):
        seen = "entries that are not finite" if fits else f"shape {tuple(values.shape)}"
        raise ValueError(f"{name} has {seen}; accepted: {accepted}")


def check_array(name: str, value: Any, accepted: str = "real numbers") -> NDArray[np.float64]:
    """Return a copy of an array, a tensor or a list in double precision, None as NaN."""
    try:
        if isinstance(value, Tensor):  # of bfloat16 NumPy knows nothing
            value = value.detach().cpu() if value.is_complex() else value.detach().cpu().double()
        array = np.asarray(value)
        array = array.astype(np.float64) if array.dtype == object else array
        return array.astype(np.float64, order="C", casting="same_kind")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {a_kind(value)}; accepted: {accepted}") from None


def check_type(name: str, value: Any, kind: Any, accepted: str) -> None:
    """Raise a TypeError unless ``value`` is an instance of ``kind``.

    Example:
        >>> check_type("x", 1, str, "a word")
        Traceback (most recent call last):
        TypeError: x is an int; accepted: a word
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {a_kind(value)}; accepted: {accepted}")


def a_kind(value: Any) -> str:
    """The kind of a value with its article, such as "an int"."""
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def copied(value: Any, name: str = "argument") -> Any:
    """What a function of a user may change without harm: copies of tensors and arrays, in lists.

    A TypeError names an iterator among them, which one run would use up.

    Example:
        >>> import torch
        >>> given = {"x": torch.ones(1)}
        >>> _ = copied(given)["x"].zero_()
        >>> given
        {'x': tensor([1.])}
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list):
        return type(value)(copied(part, f"{name} {index}") for index, part in enumerate(value))
    if type(value) is dict:
        return {key: copied(part, f"{name} {key!r}") for key, part in value.items()}
    if isinstance(value, Iterator):
        raise TypeError(
            f"{name} of the model is {a_kind(value)}, which one run uses up, and a model is run "
            "several times; accepted: what can be read again, such as list(...) of it"
        )
    return value


def on_copies(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program of a user, which gets its arguments :func:`copied`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return program(*copied(args), **copied(kwargs))

    return run
