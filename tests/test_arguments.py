# SPDX-License-Identifier: Apache-2.0
"""The one rule for integers and numbers: TypeError for another type, ValueError out of bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg.arguments import (
    check_array,
    check_integer,
    check_number,
    check_numbers,
    check_values,
)


@pytest.mark.parametrize("value", [2, 5, np.int8(3), torch.tensor(4)])
def test_integers_within_bounds(value: Any) -> None:
    number = check_integer("n", value, 2, 5)
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize(
    ("value", "error"),
    [(value, TypeError) for value in (2.0, "2", None, True, [2], torch.tensor(2.0))]
    + [(value, ValueError) for value in (1, 6, -(2**70), 2**70)],
)
def test_other_integers_and_no_integers(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^n is .*; accepted: an integer from 2 to 5$"):
        check_integer("n", value, 2, 5)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (
            {},
            (-1e308, 0, np.float32(2.5), torch.tensor(1)),
            (math.nan, math.inf, -math.inf, 10**400),
        ),
        ({"above": 0}, (5e-324, 1e308), (0, -0.0, -1, math.nan, math.inf)),
        ({"least": 0, "most": 1}, (0, -0.0, 1), (-5e-324, math.nextafter(1, 2), math.nan)),
        ({"least": 0, "below": 1}, (0, math.nextafter(1, 0)), (-5e-324, 1, math.nan)),
    ],
)
def test_bounds_of_numbers(
    bounds: dict[str, float], inside: tuple[Any, ...], outside: tuple[Any, ...]
) -> None:
    for value in inside:
        assert check_number("x", value, **bounds) == value
    for value in outside:
        with pytest.raises(ValueError, match=r"^x is .*; accepted: a finite number$"):
            check_number("x", value, **bounds)


@pytest.mark.parametrize("value", ["1", b"1", None, True, 1j, [1.0], torch.ones(2)])
def test_no_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^x is .*; accepted: a finite number$"):
        check_number("x", value)


def test_the_whole_argument_is_shown() -> None:
    with pytest.raises(ValueError, match=r"^pair is \(1, 0\); accepted: two numbers > 0$"):
        check_number("pair", 0, "two numbers > 0", above=0, given=(1, 0))


def test_sequences_of_numbers() -> None:
    accepted = "two numbers > 0"
    for value in ((1, 2.5), np.array([1, 2.5]), torch.tensor([1.0, 2.5])):
        assert check_numbers("pair", value, accepted, 2, above=0) == (1.0, 2.5)
    for value, error in ((1, TypeError), (("1", 2), TypeError), ((1,), ValueError)):
        with pytest.raises(error, match=r"^pair is .*; accepted: two numbers > 0$"):
            check_numbers("pair", value, accepted, 2, above=0)
    with pytest.raises(ValueError, match=r"^pair is \(1, 0\); accepted: two numbers > 0$"):
        check_numbers("pair", (1, 0), accepted, 2, above=0)


def test_arrays_of_real_numbers() -> None:
    given = np.ones(3)[::-1]
    found = check_array("x", given)
    found[0] = 2.0
    assert given.tolist() == [1.0, 1.0, 1.0]
    for value in ([1, None], torch.tensor([1.0, math.nan]).bfloat16().requires_grad_()):
        np.testing.assert_array_equal(check_array("x", value), [1.0, math.nan])
    for value in ("1", ["a"], [1j], torch.tensor(1j), [[1], [1, 2]], [{}]):
        with pytest.raises(TypeError, match=r"^x is .*; accepted: real numbers$"):
            check_array("x", value)


def test_any_batch_of_fields() -> None:
    for value in (torch.ones(2, 3), torch.ones(0, 5, 2, 3)):
        assert check_values("x", value, (2, 3)) is value
    for value in (torch.ones(3), torch.ones(3, 2), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match=r"^x has shape .*batch shape followed by \(2, 3\) \("):
            check_values("x", value, (2, 3))
    with pytest.raises(TypeError, match=r"^x is torch.int64; accepted: a floating tensor$"):
        check_values("x", torch.ones(2, 3, dtype=torch.long), (2, 3))
