# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
r"""Isokinetic dynamics: chains that move at constant speed, and are turned by the gradient.

With positions in units of the mass, directions u (unit vectors of d components) and time in units
in which the speed is :math:`\sqrt d`, as that of HMC is on average,

.. math:: \dot x = \sqrt d\, u, \qquad
    \dot u = -\sqrt d\, (1 - u u^T)\, \nabla E(x) / (d - 1).

This, and random turns of u, keep :math:`e^{-E(x)}` times the uniform density of u. A step of an
integrator keeps it up to its *energy error*: the change of E, and ln of the volume of its turns.
Times of the papers on microcanonical sampling, whose speed is 1, are :math:`\sqrt d` times ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import ChainState, Mass, normals_like
from pyro_neuralrg.mcmc.target import Target

INTEGRATORS = {
    "leapfrog": ((0.5, 0.5), (1.0,)),
    "minimal_norm": ((0.1931833275037836, 0.6136333449924328, 0.1931833275037836), (0.5, 0.5)),
}
"""Parts of a step for which the gradient turns, and the chain moves, in turns (McLachlan 1995)."""

LONGEST_TURN = 25.0
"""Decoherence times after which nothing is left of a direction."""


def isokinetic_step(
    target: Target, mass: Mass, state: ChainState, u: Tensor, step_size: float, integrator: str
) -> tuple[ChainState, Tensor, Tensor]:
    """Move every chain; return its end, its direction there and its energy error in nats."""
    turns, moves = INTEGRATORS[integrator]
    time = step_size * math.sqrt(u.shape[-1])
    position, energy, gradient = state.position, state.energy, state.gradient
    assert gradient is not None
    u, volume = turned(u, mass.scaled(gradient), turns[0] * time)
    for move, turn in zip(moves, turns[1:], strict=True):
        position = position.add(mass.displacement(u), alpha=move * time)
        energy, gradient = target.energy_and_grad(position)
        u, more = turned(u, mass.scaled(gradient), turn * time)
        volume = volume + more
    end = state._replace(position=position, energy=energy, gradient=gradient)
    return end, u, energy - state.energy + volume


def turned(u: Tensor, gradient: Tensor, time: float) -> tuple[Tensor, Tensor]:
    r"""Directions ``(chains, dim)`` after turning downhill, for a time in which they move by it.

    With :math:`e = -\nabla E / |\nabla E|`, :math:`\delta = t |\nabla E| / (d - 1)` and
    :math:`\zeta = e^{-\delta}`, which does not overflow, they are along
    :math:`2\zeta u + (1 - \zeta)(1 + \zeta + (1 - \zeta)\, e\cdot u)\, e`. Also returns -ln of the
    volume, :math:`(d - 1) \ln(\cosh\delta + e\cdot u \sinh\delta)`, float64, shape ``(chains,)``.
    """
    norm = gradient.norm(dim=-1, keepdim=True)
    downhill = -gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    cosine = (u * downhill).sum(-1, keepdim=True).double().clamp(-1.0, 1.0)
    delta = time * norm.double() / (u.shape[-1] - 1)
    decay = torch.exp(-delta)
    along = (1 - decay) * (1 + decay + (1 - decay) * cosine)
    end = (2 * decay).to(u) * u + along.to(u) * downhill
    log_growth = delta + torch.log1p(0.5 * (1 - cosine) * torch.expm1(-2 * delta))
    return end / end.norm(dim=-1, keepdim=True), (u.shape[-1] - 1) * log_growth.squeeze(-1)


def turned_at_random(u: Tensor, time: float, generator: torch.Generator | None) -> Tensor:
    r"""Directions whose cosine with those given is about :math:`e^{-t}`."""
    if time == 0:
        return u
    width = math.sqrt(math.expm1(2 * min(time, LONGEST_TURN)) / u.shape[-1])
    end = u.add(normals_like(u, generator), alpha=width)
    return end / end.norm(dim=-1, keepdim=True)


def random_direction(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform directions of this shape ``(chains, dim)``."""
    normals = normals_like(like, generator)
    return normals / normals.norm(dim=-1, keepdim=True)
