# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Neural transport of a whole Pyro model, its flow evaluated for all chains in one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.distributions.flow import forward_and_ladj
from pyro_neuralrg.mcmc.target import Target


class Transport(NamedTuple):
    r"""The energy :math:`U(z) = E(g(z)) - \ln|\det \partial g / \partial z|` of a model behind g.

    Attributes:
        flow: g, from latents z to unconstrained values u, vectors both.
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
