# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A seed for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch inside and put its random state back afterwards; nothing for None.

    Raises:
        TypeError, ValueError: if it is no seed.

    Example:
        >>> with seeded(0):
        ...     one = torch.rand(())
        >>> with seeded(0):
        ...     bool(one == torch.rand(()))
        True
    """
    if seed is None:
        yield
        return
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
