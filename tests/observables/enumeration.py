# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Means over spins given the dual field, by enumeration of all spins."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = [(5,), (6,), (1,), (2, 3), (3, 3), (1, 4), (2, 1, 2), (3, 2, 2)]
"""Rings and planes, odd sides, sides of two and of one."""


def all_spins(sites: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sites)))


def given_x(x: Tensor, bias: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``function(spins)`` over spins drawn given one field."""
    spins = all_spins(x.numel()).reshape(-1, *x.shape)
    log_p = torch.nn.functional.logsigmoid(2 * spins * (x + bias)).flatten(1).sum(1)
    return torch.tensordot(log_p.exp(), function(spins), 1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
