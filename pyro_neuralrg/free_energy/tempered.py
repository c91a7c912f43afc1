# SPDX-License-Identifier: Apache-2.0
"""The densities between a flow and its target, and the weights of particles on their way."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_transform import TransformModule
from scipy.optimize import brentq
from torch import Tensor
from typing_extensions import Self

from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.mcmc import ChainState
from pyro_neuralrg.mcmc.kernel import uniforms_like
from pyro_neuralrg.mcmc.target import Target, energy_and_gradient
from pyro_neuralrg.statistics import kish_fractions

SMALLEST_STEP = 1e-15  # of beta


class Particles(NamedTuple):
    """Positions, with energies and gradients of the target and of the start."""

    positions: Tensor
    energy: Tensor
    gradient: Tensor
    base_energy: Tensor
    base_gradient: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """ln w, target over start, of shape ``(num_particles,)``."""
        return self.base_energy - self.energy


class TemperedTarget(Target):
    r"""The density :math:`p(y)\,w(y)^\beta` with :math:`w = e^{-U(y)} / p(y)`.

    U is the energy of ``target``, which is set up, and p a normalised density of its positions: in
    the latent space of a flow its base, else a standard normal (that of a guide is the guide).
    ``batch_size`` chains are evaluated at a time.
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
        return self.whole.start_flow

    def at(self, beta: float) -> Self:
        """The same family at another beta."""
        other = copy.copy(self)
        other.beta = beta
        return other

    def evaluated(self, positions: Tensor) -> Particles:
        """Particles at these positions, with all that does not depend on beta."""
        return Particles(positions, *self.by_batches(self._both_of, positions))

    def state(self, particles: Particles) -> ChainState:
        """The particles as kernels see them, at this beta."""
        positions, energy, gradient, base_energy, base_gradient = particles
        energy = self._mixed(energy, base_energy)
        return ChainState(positions, energy, self._mixed(gradient, base_gradient))

    def _energy_of(self, positions: Tensor) -> Tensor:
        return self._mixed(self.whole.energy(positions), self._base_energy(positions))

    def _energy_and_grad_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient, base_energy, base_gradient = self._both_of(positions)
        return self._mixed(energy, base_energy), self._mixed(gradient, base_gradient)

    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        return self.by_batches(self.whole.physical, positions)

    def initial(self, chains: int, generator: torch.Generator, start: str | None = None) -> Tensor:
        """Draws of p."""
        return self.from_base(chains, generator)

    def modules(self) -> list[torch.nn.Module]:
        return self.whole.modules()

    def _both_of(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energies and gradients of the target and of the start."""
        return *self.whole.energy_and_grad(positions), *self._base_energy_and_grad(positions)

    def _base_energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_gradient(self._base_energy, positions)

    def _base_energy(self, positions: Tensor) -> Tensor:
        """-ln p(y), float64."""
        y = positions.reshape(-1, *self.event_shape)
        return -self.base.log_prob(y.double(), len(self.event_shape))

    def _mixed(self, whole: Tensor, base: Tensor) -> Tensor:
        return self.beta * whole + (1.0 - self.beta) * base


class RefinedTarget(TemperedTarget):
    r"""The same from another start: the latents of a coarse target, and fresh fine ones.

    .. math:: p(y) = e^{-U_c(y_c)}\, N(y_f; 0, 1)

    ``coarse`` is the target of energy :math:`U_c`, ``kept`` are the coordinates :math:`y_c` of a
    position, in the order of its own.
    """

    def __init__(
        self, target: Target, beta: float, batch_size: int | None, coarse: Target, kept: Tensor
    ) -> None:
        super().__init__(target, beta, batch_size)
        self.coarse, self.kept = coarse, kept
        self._is_fine = torch.ones(target.dim, dtype=torch.bool, device=kept.device)
        self._is_fine[kept] = False

    def refined(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of the coarse target with fine coordinates drawn beside."""
        options: Any = {"generator": generator, "dtype": self.dtype, "device": self.device}
        fresh = torch.randn(len(positions), self.dim, **options)
        return fresh.index_copy(-1, self.kept, positions.to(fresh))

    def modules(self) -> list[torch.nn.Module]:
        return self.whole.modules() + self.coarse.modules()

    def _base_energy(self, positions: Tensor) -> Tensor:
        return self.coarse.energy(self._of_coarse(positions)) + self._fine_energy(positions)

    def _base_energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self.coarse.energy_and_grad(self._of_coarse(positions))
        gradient = positions.index_copy(-1, self.kept, slope.to(positions))
        return energy + self._fine_energy(positions), gradient

    def _of_coarse(self, positions: Tensor) -> Tensor:
        return positions[:, self.kept].to(self.coarse.dtype)

    def _fine_energy(self, positions: Tensor) -> Tensor:
        return -NORMAL.log_prob(positions[:, self._is_fine].double(), 1)


def next_beta(log_ratio: Tensor, log_weights: Tensor, beta: float, fraction: float) -> float:
    """The beta at which the conditional ESS falls to ``fraction``, or 1 if it does not."""
    alive = torch.isfinite(log_ratio) & torch.isfinite(log_weights)
    log_ratio, log_weights = log_ratio[alive], log_weights[alive]
    if conditional_ess(log_ratio * (1.0 - beta), log_weights) >= fraction:
        return 1.0

    def excess(change: float) -> float:
        return conditional_ess(log_ratio * change, log_weights) - fraction

    step = brentq(excess, 0.0, 1.0 - beta, xtol=SMALLEST_STEP)
    return min(1.0, beta + max(step, SMALLEST_STEP))


def conditional_ess(increments: Tensor, log_weights: Tensor) -> float:
    """(sum W u)^2 / (sum W sum W u^2) of increments u of the weights W, all as logarithms."""
    first = torch.logsumexp(log_weights + increments, 0)
    second = torch.logsumexp(log_weights + 2.0 * increments, 0)
    return math.exp(float(2.0 * first - torch.logsumexp(log_weights, 0) - second))


def resample_groups(
    log_weights: Tensor, threshold: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Resample the groups, rows of the weights, whose Kish fraction is below the threshold.

    Groups without any weight stay as they are. Returns indices into all particles, shape ``(groups,
    n)``; their log-weights, in a resampled group all ln of its mean weight; and True for each group
    that was resampled.
    """
    groups, size = log_weights.shape
    alive = torch.isfinite(log_weights).any(-1)
    poor = alive & (kish_fractions(log_weights) < threshold)
    chosen = torch.arange(groups * size, device=log_weights.device).view(groups, size)
    if bool(poor.any()):
        chosen[poor] = chosen[poor].gather(-1, systematic(log_weights[poor], generator))
        means = log_mean_exp(log_weights).unsqueeze(-1).expand_as(log_weights)
        log_weights = torch.where(poor.unsqueeze(-1), means, log_weights)
    return chosen, log_weights, poor


def systematic(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Increasing indices in proportion to weights ``(groups, n)``, from one uniform number a row.

    Entry i is chosen n W_i times in expectation, and never more than one time off that.
    """
    size = log_weights.shape[1]
    start = uniforms_like(log_weights[:, :1], generator)
    points = (start + torch.arange(size, device=log_weights.device)) / size
    cumulative = torch.softmax(log_weights, -1).cumsum(-1)
    # the last weight above zero takes what rounding leaves
    indices = torch.searchsorted(cumulative / cumulative[:, -1:], points, right=True)
    return indices.clamp(max=size - 1)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, over the last dimension."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])
