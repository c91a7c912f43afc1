# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Grey levels as fields and back, and the change of variables in bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_neuralrg.infer import Pixels


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_round_trip(levels: int, margin: float) -> None:
    pixels = Pixels(levels, margin)
    images = torch.randint(levels, (50, 4, 4))
    x = pixels.encode(images)
    assert torch.equal(pixels.decode(x), images)
    assert not torch.equal(pixels.encode(images), x)  # new noise
    ends = pixels.decode(torch.tensor([-50.0, 50.0]))
    assert ends.tolist() == [0, levels - 1]


@pytest.mark.parametrize("levels", [2, 17])
def test_bits_add_up_to_one(levels: int) -> None:
    """Of one pixel: 2^-bits, averaged over the noise, are probabilities of the levels."""
    pixels, n = Pixels(levels), 20_000
    scale = 1.7
    q = torch.distributions.Normal(0.3, scale)
    total = 0.0
    for level in range(levels):
        x = pixels.encode(torch.full((n, 1), level))
        bits = pixels.bits_per_pixel(x, q.log_prob(x).sum(-1))
        total += float((2**-bits).mean())
    inside = torch.logit(torch.tensor([pixels.margin, 1 - pixels.margin]))
    expected = float(q.cdf(inside).diff())
    assert total == pytest.approx(expected, rel=0.01)


def test_bits_are_per_pixel() -> None:
    pixels = Pixels(4)
    x = pixels.encode(torch.randint(4, (3, 2, 5)))
    s = torch.sigmoid(x)
    uniform = (s * (1 - s) / (1 - 2 * pixels.margin)).log().flatten(1).sum(1)
    torch.testing.assert_close(pixels.bits_per_pixel(x, uniform), torch.full((3,), 2.0))
    more = pixels.bits_per_pixel(x, uniform - 10 * math.log(2))
    torch.testing.assert_close(more, torch.full((3,), 3.0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((1,), "levels is 1; accepted"), ((3, 0.0), r"margin is 0\.0"), ((3, 0.5), r"margin is 0\.5")],
)
def test_bad_arguments(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Pixels(*arguments)


@pytest.mark.parametrize("bad", [-1.0, 3.0, 0.5])
def test_bad_images(bad: float) -> None:
    with pytest.raises(ValueError, match=r"images has entries .*; accepted: integers from 0 to 2"):
        Pixels(3).encode(torch.tensor([[1.0, bad]]))
