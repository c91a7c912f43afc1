# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over all configurations of a few spins, whatever their couplings."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ENUMERATED = 20
"""Spins whose 2^N configurations are summed: a second."""

CONFIGURATIONS_AT_ONCE = 2**14
"""Configurations in memory at a time."""


def enumerated_log_partition(matrix: Tensor, fields: Tensor) -> Tensor:
    """ln of the sum over spins of exp(s.K.s / 2 + h.s), differentiable in K and h (float64)."""
    sites = torch.arange(len(fields))
    parts = []
    for numbers in torch.arange(2 ** len(fields)).split(CONFIGURATIONS_AT_ONCE):
        spins = 1.0 - 2.0 * (numbers[:, None] >> sites & 1).to(torch.float64)
        parts.append(torch.logsumexp((spins @ matrix * spins).sum(1) / 2 + spins @ fields, 0))
    return torch.stack(parts).logsumexp(0)
