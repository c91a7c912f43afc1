# SPDX-License-Identifier: Apache-2.0
"""A Gaussian sampled by a wider one, whose distances are known, and the coverage of error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

SITES = 4
WIDTH = 1.25  # of q over that of the target: weights of finite variance, ESS well below 1
EXACT = -0.5 * SITES * math.log(2.0 * math.pi)  # -ln Z
KL_OF_Q = SITES * (0.5 * (WIDTH**2 - 1.0) - math.log(WIDTH))
KL_OF_TARGET = SITES * (0.5 * (WIDTH**-2 - 1.0) + math.log(WIDTH))
ESS = (math.sqrt(2.0 * WIDTH**2 - 1.0) / WIDTH**2) ** SITES  # E[w]^2 / E[w^2]


def energy(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def proposal(width: float = WIDTH) -> Any:
    return Independent(Normal(torch.zeros(SITES), width), 1)


def check_coverage(pulls: Sequence[Any]) -> None:
    """Errors in units of their standard error lie within 1 and 2 as often as they should."""
    values = torch.as_tensor(pulls)
    number = len(values)
    for width, rate in ((1.0, 0.6827), (2.0, 0.9545)):  # binomial, within four standard errors
        covered = float((values.abs() < width).double().mean())
        assert abs(covered - rate) < 4 * (rate * (1 - rate) / number) ** 0.5, covered
    assert abs(float(values.mean())) < 4 / number**0.5
