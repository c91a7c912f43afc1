# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Neural transport of a whole Pyro model, by the guide of Pyro's ``NeuTraReparam``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.infer.reparam import NeuTraReparam
from pyro.poutine.reparam_messenger import ReparamHandler
from torch import Tensor

from pyro_neuralrg.distributions.flow import forward_and_ladj
from pyro_neuralrg.mcmc.target import Target

__all__ = ["Transport", "neutra_of"]


class Transport(NamedTuple):
    r"""Neural transport of a whole model, its flow evaluated for all chains in one batch.

    :math:`U(z) = E(g(z)) - \ln|\det \partial g / \partial z|` with E of the model behind, whose
    sites stand in another order perhaps.

    Attributes:
        flow: from latents z to unconstrained values u, vectors both.
        behind: the model itself.
        order: of the entries of u among the positions of the model.
    """

    flow: Any
    behind: Target
    order: Tensor

    def energy(self, positions: Tensor) -> Tensor:
        """See :class:`Target`."""
        with torch.no_grad():
            u, ladj = forward_and_ladj(self.flow, positions, 1)
        return self.behind.energy(u[..., self.order]) - ladj.double()

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Target`."""
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_()
            u, ladj = forward_and_ladj(self.flow, leaf, 1)
            u = u[..., self.order]
        energy, force = self.behind.energy_and_grad(u.detach())
        outputs, cotangents = [u], [force]
        if ladj.requires_grad:  # constant, it has no graph
            outputs, cotangents = [u, ladj], [force, -torch.ones_like(ladj)]
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangents)
        return energy - ladj.detach().double(), gradient


def neutra_of(model: Any, site: Any) -> NeuTraReparam | None:
    """What ``poutine.reparam`` would make of a site, if that is neural transport."""
    while isinstance(model, ReparamHandler):
        config: Any = model.msngr.config
        found = config.get(site["name"]) if isinstance(config, dict) else config(site)
        if isinstance(found, NeuTraReparam):
            return found
        model = model.fn
    return None
