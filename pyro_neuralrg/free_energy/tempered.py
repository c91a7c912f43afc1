# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The densities between a flow and its target, as targets of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.mcmc.target import Target


class _Identity(TransformModule):
    """The flow of latents that are a position as they are."""

    bijective = True
    domain = codomain = constraints.real_vector

    def _call(self, z: Tensor) -> Tensor:
        return z

    def _inverse(self, x: Tensor) -> Tensor:
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(x.shape[:-1])


class TemperedTarget(Target):
    r"""The density :math:`p(y)\,w(y)^\beta` with :math:`w = e^{-U(y)} / p(y)`.

    U is the energy of ``target`` and p a normalised density of its positions: in the latent space
    of a flow its base, else a standard normal, which in the latent space of a guide is the guide,
    and for a plain Pyro model a standard normal of the unconstrained values. At beta = 0 that is p,
    at beta = 1 the target.

    Args:
        target: a Target with sites; of a Pyro model, one that is set up.
        beta: in [0, 1].
        batch_size: chains that are evaluated at a time; None for all.

    Example:
        >>> from pyro_neuralrg.mcmc import EnergyTarget
        >>> whole = EnergyTarget(lambda x: 2.0 * x.square().sum(-1), (3,))
        >>> half = TemperedTarget(whole, 0.5)
        >>> shift = half.energy(torch.zeros(1, 3))
        >>> half.energy(torch.ones(1, 3)) - shift  # 3 (4 + 1) / 4
        tensor([3.7500], dtype=torch.float64)
    """

    def __init__(self, target: Target, beta: float, batch_size: int | None = None) -> None:
        self.whole = target
        self.beta = beta
        self.chain_batch_size = batch_size
        self.sites, self.lattices = target.sites, target.lattices
        self.flow_sites, self.flow, self.base = target.flow_sites, target.flow, target.base
        self.lattice_potential = target.lattice_potential
        self.dtype, self.device = target.dtype, target.device

    @property
    def start_flow(self) -> TransformModule | None:
        """The flow whose draws are those of p, for independence jumps; None if p is no flow."""
        if self.flow is not None or not getattr(self.whole, "is_transported", False):
            return self.flow
        return _Identity()  # positions are standard normal latents, of several flows perhaps

    def at(self, beta: float) -> TemperedTarget:
        """The same family at another beta."""
        return TemperedTarget(self.whole, beta, self.chain_batch_size)

    def _energy_of(self, positions: Tensor) -> Tensor:
        """See :class:`Target`."""
        return self.mixed(self.whole.energy(positions), self._base(positions))

    def _energy_and_grad_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Target`."""
        energy, gradient, base, base_gradient = self._both_of(positions)
        return self.mixed(energy, base), self.mixed(gradient, base_gradient)

    def both(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energy and gradient of the target, then of -ln p; ln w is the difference of energies."""
        return self.by_batches(self._both_of, positions)

    def _both_of(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_()
            base = self._base(leaf)
            (base_gradient,) = torch.autograd.grad(base.sum(), leaf)
        return *self.whole.energy_and_grad(positions), base.detach(), base_gradient

    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        """See :class:`Target`."""
        size = self.chain_batch_size or max(1, len(positions))
        parts = [self.whole.physical(part) for part in positions.split(size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def initial(self, chains: int, generator: torch.Generator, start: str | None = None) -> Tensor:
        """Draws of p."""
        return self.from_base(chains, generator)

    def modules(self) -> list[torch.nn.Module]:
        """See :class:`Target`."""
        return self.whole.modules()

    def mixed(self, whole: Any, base: Any) -> Any:
        """(1 - beta) of the base and beta of the whole, whose infinity counts nothing at beta 0."""
        return base if self.beta == 0.0 else self.beta * whole + (1.0 - self.beta) * base

    def _base(self, positions: Tensor) -> Tensor:
        """-ln p(y), float64."""
        y = positions.reshape(-1, *self.event_shape)
        return -self.base.log_prob(y.double(), len(self.event_shape))
