# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Energies that tell the sites of the lattice apart, and what they tell of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MOVED = 1e-4
"""Change of an energy as a field is moved that is no rounding, relative to that of the field."""

LEAST_OPEN_SIDE = 6
"""Sides of an open lattice on which a field may be moved without touching its edges."""

MOST_PROBED = 1024
"""Sites of an energy whose curvature about x = 0 is looked at: twice as many gradients."""

FEATURE_STEP = 0.5
"""A field of order one, so that the differences of gradients know of quartic terms as well."""


def is_uniform(potential: Any, x: Tensor, nats: Tensor) -> bool:
    """True if the energies of fields stay the same as these are moved by a site along each axis.

    On an open lattice fields that vanish at its edges are moved, on sides of at least
    ``LEAST_OPEN_SIDE`` sites.
    """
    if x.is_meta:
        return True
    dims = len(potential.shape)
    inside = torch.ones_like(x)
    if potential.boundary == "open":
        for axis, side in enumerate(potential.shape):
            if side >= LEAST_OPEN_SIDE:
                inside.movedim(axis - dims, -1)[..., [0, 1, side - 3, side - 2, side - 1]] = 0.0
        x = x * inside
        nats = potential.energy(x).detach()
    size = nats.nan_to_num(0.0, 0.0, 0.0).abs().clamp(min=1.0)
    for axis, side in enumerate(potential.shape):
        if side == 1 or (potential.boundary == "open" and side < LEAST_OPEN_SIDE):
            continue
        moved = potential.energy(x.roll(1, axis - dims)).detach()
        if not torch.allclose(moved / size, nats / size, rtol=0.0, atol=MOVED, equal_nan=True):
            return False
    return True


def site_features_of(potential: Any, odd: bool) -> Tensor | None:
    r"""What an energy E tells of its sites about x = 0, ``(channels,) + shape``; None if nothing.

    The gradient (not for an odd flow: it is odd itself), the curvature :math:`E_{ii}`, and
    :math:`E_{i,i+a}` of each site and the next one along each axis, as far as they differ between
    sites, each less its mean in units of its deviation. By differences of the gradient at 2 N
    fields, ``FEATURE_STEP`` away; only the gradient for more than ``MOST_PROBED`` sites.
    """
    shape = potential.shape
    sites, zero = math.prod(shape), torch.zeros(1, *shape, device=potential.device)
    channels = [] if odd else [potential.energy_and_gradient(zero)[1][0]]
    if sites <= MOST_PROBED:
        moves = FEATURE_STEP * torch.eye(sites, device=zero.device).reshape(sites, *shape)
        up, down = (potential.energy_and_gradient(sign * moves)[1] for sign in (1, -1))
        hessian = ((up - down) / (2 * FEATURE_STEP)).reshape(sites, sites)
        index = torch.arange(sites, device=zero.device).reshape(shape)
        axes = [axis for axis, side in enumerate(shape) if side > 1]
        nexts = [index, *(index.roll(-1, axis) for axis in axes)]
        channels += [hessian[index, other] for other in nexts]
    known = []
    for channel in channels:
        deviation = float(channel.std(correction=0))
        if math.isfinite(deviation) and deviation > MOVED * float(channel.abs().max()):
            known.append((channel - channel.mean()) / deviation)
    return torch.stack(known) if known else None
