# SPDX-License-Identifier: Apache-2.0
"""Kernels and targets with exact samplers: every law of the kernels runs over their product.

A new kernel adds one line to KERNELS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro.distributions.transforms as transforms
import torch
from torch import Tensor, nn

from pyro_neuralrg import VectorizedMCMC
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.mcmc import (
    HMC,
    MALA,
    MAMS,
    MCLMC,
    ChEESHMC,
    ConditionalMetropolis,
    Cycle,
    IndependenceMetropolis,
    Kernel,
    LatentTarget,
    Mixture,
    RandomWalkMetropolis,
)
from pyro_neuralrg.mcmc.target import EnergyTarget
from pyro_neuralrg.potentials import FreeField, IsingDual
from pyro_neuralrg.transforms import HierarchicalFlow, Neighbour, hierarchical_flow


class ToyFlow(transforms.AffineCoupling):
    """Half of the sites scaled and shifted by the other half, then all stretched: not linear."""

    def __init__(self, shape: tuple[int, ...], stretch: float | Tensor = 1.3) -> None:
        self.size = math.prod(shape)
        self.kept = self.size // 2
        network = nn.Linear(self.kept, 2 * (self.size - self.kept))
        nn.init.normal_(network.weight, std=0.7 / math.sqrt(self.kept))
        nn.init.normal_(network.bias, std=0.2)
        super().__init__(self.kept, network)
        self.shape = shape
        self.register_buffer("stretch", torch.as_tensor(stretch).expand(shape).flatten().clone())

    @property
    def domain(self) -> torch.distributions.constraints.Constraint:
        return torch.distributions.constraints.independent(
            torch.distributions.constraints.real, len(self.shape)
        )

    codomain = domain

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.nn(kept).chunk(2, -1)
        return 0.7 * torch.tanh(log_scale), shift

    def _call(self, z: Tensor) -> Tensor:
        flat = z.flatten(-len(self.shape))
        kept, moved = flat[..., : self.kept], flat[..., self.kept :]
        log_scale, shift = self._scale_and_shift(kept)
        x = torch.cat([kept, moved * log_scale.exp() + shift], -1) * self.stretch
        return x.unflatten(-1, self.shape)

    def _inverse(self, x: Tensor) -> Tensor:
        flat = x.flatten(-len(self.shape)) / self.stretch
        kept, moved = flat[..., : self.kept], flat[..., self.kept :]
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, (moved - shift) * (-log_scale).exp()], -1).unflatten(-1, self.shape)

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        kept = z.flatten(-len(self.shape))[..., : self.kept]
        return self._scale_and_shift(kept)[0].sum(-1) + self.stretch.log().sum()


class ExactTarget(NamedTuple):
    """An energy with an exact sampler, and a step size that HMC accepts two times out of three.

    Of some targets also ``moments``, functions ``(..., dim) -> (...)`` with their expectations.
    """

    energy: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    sample: Callable[[int], Tensor]
    step_size: float
    moments: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {}


def correlated_gaussian() -> ExactTarget:
    covariance = 0.8 ** (torch.arange(5.0)[:, None] - torch.arange(5.0)).abs()
    covariance = covariance * torch.outer(scale := torch.linspace(0.5, 2.0, 5), scale)
    precision, factor = torch.linalg.inv(covariance), torch.linalg.cholesky(covariance)
    return ExactTarget(
        lambda x: 0.5 * ((x @ precision) * x).sum(-1),
        (5,),
        lambda n: torch.randn(n, 5) @ factor.mT,
        0.45,
    )


def bimodal() -> ExactTarget:
    """Two normals of weights 0.3 and 0.7, four standard deviations apart."""
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.5]])
    weights = torch.tensor([0.3, 0.7])

    def energy(x: Tensor) -> Tensor:
        squares = (x.unsqueeze(-2) - centres).square().sum(-1)
        return -torch.logsumexp(weights.log() - 0.5 * squares, -1)

    def sample(n: int) -> Tensor:
        return centres[torch.multinomial(weights, n, replacement=True)] + torch.randn(n, 2)

    return ExactTarget(energy, (2,), sample, 1.1)


def free_field() -> ExactTarget:
    potential = FreeField((2, 3), 0.8)
    return ExactTarget(potential.energy, potential.shape, potential.sample_reference, 0.55)


def ising_dual() -> ExactTarget:
    """Above Tc, sampled exactly by enumerating the spins."""
    potential = IsingDual((2, 2), 3.0)
    spins = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    bonds = spins.reshape(-1, 2, 2)
    exponent = sum(
        (bonds * bonds.roll(1, dim)).sum((-1, -2)) / potential.temperature for dim in (-1, -2)
    )
    weights = exponent.exp()
    covariance = torch.zeros(4, 4)
    for site in range(4):
        for dim in (0, 1):
            one = torch.zeros(2, 2)
            one.view(-1)[site] = 1
            for shift in (1, -1):
                covariance[site] += one.roll(shift, dim).flatten() / potential.temperature
    covariance += potential.alpha * torch.eye(4)
    factor = torch.linalg.cholesky(covariance)

    def sample(n: int) -> Tensor:
        chosen = spins[torch.multinomial(weights, n, replacement=True)]
        return (chosen @ covariance + torch.randn(n, 4) @ factor.mT).reshape(n, 2, 2)

    return ExactTarget(potential.energy, (2, 2), sample, 0.6)


def ill_conditioned() -> ExactTarget:
    """Twenty normals of variances from 1e-5 to 1, rotated: white noise is as wide as the widest."""
    count, widths = 20, torch.logspace(-2.5, 0, 20)
    rotation = torch.linalg.qr(torch.randn(count, count)).Q
    return ExactTarget(
        lambda x: 0.5 * (x @ rotation / widths).square().sum(-1),
        (count,),
        lambda n: torch.randn(n, count) * widths @ rotation.T,
        0.004,
        {
            "widest": (lambda x: (x @ rotation)[..., -1], 0.0),
            "widest squared": (lambda x: (x @ rotation)[..., -1].square(), 1.0),
            "narrowest squared": (lambda x: (x @ rotation)[..., 0].square(), 1e-5),
            "squares": (lambda x: x.square().sum(-1), float(widths.square().sum())),
        },
    )


def banana() -> ExactTarget:
    """A normal of width 10, and one of width 1 about a parabola of it (Haario et al. 1999)."""

    def bent(x: Tensor) -> Tensor:
        return 0.03 * (x[..., 0].square() - 100)

    def sample(n: int) -> Tensor:
        x = torch.randn(n, 2) * torch.tensor([10.0, 1.0])
        return torch.stack([x[:, 0], x[:, 1] + bent(x)], -1)

    return ExactTarget(
        lambda x: 0.5 * ((x[..., 0] / 10).square() + (x[..., 1] - bent(x)).square()),
        (2,),
        sample,
        0.8,
        {
            "x": (lambda x: x[..., 0], 0.0),
            "x squared": (lambda x: x[..., 0].square(), 100.0),
            "y": (lambda x: x[..., 1], 0.0),
            "y squared": (lambda x: x[..., 1].square(), 1 + 2 * 0.03**2 * 1e4),
        },
    )


def quartic_ridge() -> ExactTarget:
    """exp(-x^4 / 4) along a ridge, the diagonal of five dimensions, from step to step 0.01 wide."""
    square = 2 * math.gamma(0.75) / math.gamma(0.25)

    def energy(x: Tensor) -> Tensor:
        return 0.25 * x[..., 0] ** 4 + 0.5 * (x.diff(dim=-1) / 0.01).square().sum(-1)

    def sample(n: int) -> Tensor:
        gamma = torch.distributions.Gamma(0.25, 1.0).sample((n,))
        first = (4 * gamma) ** 0.25 * torch.randn(n).sign()
        return torch.cat([first[:, None], 0.01 * torch.randn(n, 4)], -1).cumsum(-1)

    return ExactTarget(
        energy,
        (5,),
        sample,
        0.006,
        {
            "first": (lambda x: x[..., 0], 0.0),
            "first squared": (lambda x: x[..., 0].square(), square),
            "first to the fourth": (lambda x: x[..., 0] ** 4, 1.0),
            "last squared": (lambda x: x[..., -1].square(), square + 4e-4),
            "difference squared": (lambda x: (x[..., 1] - x[..., 0]).square(), 1e-4),
        },
    )


def funnel(width: float = 1.0) -> ExactTarget:
    """v of this width, and nine normals of variance e^v (Neal 2003)."""

    def energy(x: Tensor) -> Tensor:
        v, others = x[..., 0], x[..., 1:]
        return 0.5 * ((v / width).square() + others.square().sum(-1) * (-v).exp() + 9 * v)

    def sample(n: int) -> Tensor:
        v = width * torch.randn(n, 1)
        return torch.cat([v, (v / 2).exp() * torch.randn(n, 9)], -1)

    return ExactTarget(
        energy,
        (10,),
        sample,
        0.3,
        {
            "v": (lambda x: x[..., 0], 0.0),
            "v squared": (lambda x: x[..., 0].square(), width**2),
            "x": (lambda x: x[..., 1], 0.0),
            "x squared": (lambda x: x[..., 1:].square().mean(-1), math.exp(width**2 / 2)),
        },
    )


def normal(x: Tensor) -> Tensor:
    """Energy of standard normals of one dimension of sites."""
    return 0.5 * x.square().sum(-1)


def kinked(x: Tensor) -> Tensor:
    """Normal, but of infinite slope (and finite energy) wherever the first coordinate is > 0."""
    first = x[..., 0]
    root = torch.where(first > 0, first - first.detach(), 1.0).sqrt()  # 0 there, of infinite slope
    return 0.5 * x.square().sum(-1) + root


TARGETS: dict[str, Callable[[], ExactTarget]] = {
    "correlated Gaussian": correlated_gaussian,
    "bimodal": bimodal,
    "free field": free_field,
    "dual Ising": ising_dual,
}


HARD_TARGETS: dict[str, Callable[[], ExactTarget]] = {
    "ill-conditioned": ill_conditioned,
    "banana": banana,
    "quartic ridge": quartic_ridge,
    "funnel": funnel,
}
"""Targets that take trajectories of the right length, with exact moments."""


def flow_for(target: ExactTarget) -> ToyFlow:
    """A flow of about the target's widths."""
    return ToyFlow(target.shape, 1.1 * target.sample(1000).std(0))


def hmc(target: ExactTarget, **options: float) -> HMC:
    return HMC(EnergyTarget(target.energy, target.shape), step_size=target.step_size, **options)


def latent_hmc(target: ExactTarget, **options: float) -> HMC:
    latent = LatentTarget(target.energy, flow_for(target), target.shape)
    return HMC(latent, step_size=0.5 * target.step_size, **options)


def jump(target: ExactTarget, num_jumps: int = 1) -> Kernel:
    options = {"shape": target.shape, "num_jumps": num_jumps}
    return IndependenceMetropolis(flow_for(target), target.energy, **options)


def latent_cycle(target: ExactTarget, num_jumps: int = 1) -> Kernel:
    local = latent_hmc(target, num_steps=2)
    assert local.target.flow is not None
    return Cycle(local, IndependenceMetropolis(local.target.flow, num_jumps=num_jumps))


def mixture(target: ExactTarget) -> Kernel:
    flow = flow_for(target)
    jumps = IndependenceMetropolis(flow)
    return Mixture(hmc(target, num_steps=3), jumps, probabilities=[0.7, 0.3])


def dense_inverse_mass(dim: int) -> Tensor:
    """A covariance with correlations, unlike that of any target."""
    index, scale = torch.arange(float(dim)), torch.linspace(0.8, 1.3, dim)
    return 0.5 ** (index[:, None] - index).abs() * torch.outer(scale, scale)


def low_rank_inverse_mass(dim: int) -> Tensor:
    """Variances, beside one wide direction and, in four dimensions or more, a stiff one.

    Variances alone in two dimensions, whose matrices are (2, 2).
    """
    scale = torch.linspace(0.8, 1.3, dim).unsqueeze(-1)
    turned = torch.linalg.qr(torch.arange(2.0 * dim).sin().reshape(dim, 2)).Q
    return torch.cat([scale, turned * torch.tensor([1.6, 0.5])], -1)[:, : max(1, dim - 1)]


def flow_of_two_modes(target: ExactTarget, separation: float = 0.7) -> HierarchicalFlow:
    """A flow with two modes, near the target's widths or not."""
    flow = hierarchical_flow(
        target.shape, bijector=Neighbour(layers=2, hidden=(4,)), base=TwoModes(separation)
    )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


def cycle_of_two_modes(target: ExactTarget, from_normal: bool) -> Kernel:
    flow = flow_of_two_modes(target)
    latent = LatentTarget(target.energy, flow, target.shape, from_normal=from_normal)
    local = HMC(latent, step_size=0.5 * target.step_size, num_steps=3)
    return Cycle(local, IndependenceMetropolis(flow))


class CrossedFlow(ToyFlow):
    """The first half of the sites scaled and shifted by the second: the kept one by fine ones."""

    def __init__(self, shape: tuple[int, ...], stretch: float = 0.6) -> None:
        super().__init__(shape, stretch)
        nn.init.constant_(self.nn.weight, 0.8)

    def _call(self, z: Tensor) -> Tensor:
        return super()._call(z.flip(-1)).flip(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return super()._inverse(x.flip(-1)).flip(-1)

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return super().log_abs_det_jacobian(z.flip(-1), x.flip(-1))


def detail(target: ExactTarget, latent: bool = False, **options: Any) -> Kernel:
    """Jumps at a fixed field of scale 1; of latents beside whole ones, as of normals."""
    flow = hierarchical_flow(
        target.shape, "tree", bijector=lambda size: CrossedFlow((size,)), base=TwoModes(0.7)
    )
    if not latent:
        return ConditionalMetropolis(flow, target.energy, shape=target.shape, scale=1, **options)
    latents = LatentTarget(target.energy, flow, target.shape, from_normal=True)
    local = HMC(latents, step_size=0.5 * target.step_size, num_steps=2)
    jumps = IndependenceMetropolis(flow), ConditionalMetropolis(flow, scale=1, **options)
    return Cycle(local, *jumps)


def cycle_of_rows(target: ExactTarget) -> Kernel:
    """A flow of one event dimension, which acts on the rows of a lattice."""
    flow = transforms.affine_coupling(target.shape[-1], hidden_dims=[4])
    latent = LatentTarget(target.energy, flow, target.shape)
    local = HMC(latent, step_size=0.5 * target.step_size, num_steps=3)
    return Cycle(local, IndependenceMetropolis(flow))


KERNELS: dict[str, Callable[[ExactTarget], Kernel]] = {
    "hmc": lambda target: hmc(target, num_steps=3, jitter=0.0),
    "hmc jittered": lambda target: hmc(target, num_steps=4, jitter=0.5),
    "hmc with small steps": lambda target: hmc(target, num_steps=3, small_steps=0.3),
    "hmc with a mass": lambda target: hmc(target, num_steps=3).tuned(
        inverse_mass=torch.linspace(0.7, 1.4, math.prod(target.shape))
    ),
    "hmc with a dense mass": lambda target: hmc(target, num_steps=3).tuned(
        inverse_mass=dense_inverse_mass(math.prod(target.shape))
    ),
    "hmc with a mass of low rank": lambda target: hmc(target, num_steps=3).tuned(
        inverse_mass=low_rank_inverse_mass(math.prod(target.shape))
    ),
    "random walk": lambda target: RandomWalkMetropolis(
        EnergyTarget(target.energy, target.shape), step_size=target.step_size
    ),
    "random walk with a dense mass": lambda target: RandomWalkMetropolis(
        EnergyTarget(target.energy, target.shape),
        step_size=target.step_size,
        inverse_mass=dense_inverse_mass(math.prod(target.shape)),
    ),
    "mala": lambda target: MALA(
        EnergyTarget(target.energy, target.shape), step_size=1.2 * target.step_size
    ),
    "chees": lambda target: ChEESHMC(
        EnergyTarget(target.energy, target.shape),
        step_size=target.step_size,
        trajectory_length=4.5 * target.step_size,
    ),
    "mams": lambda target: MAMS(
        EnergyTarget(target.energy, target.shape),
        step_size=target.step_size,
        trajectory_length=2 * target.step_size,
        integrator="leapfrog",
    ),
    "mams of minimal norm with a mass": lambda target: MAMS(
        EnergyTarget(target.energy, target.shape),
        step_size=2 * target.step_size,
        trajectory_length=4 * target.step_size,
        inverse_mass=torch.linspace(0.7, 1.4, math.prod(target.shape)),
    ),
    "mams with a mass of low rank": lambda target: MAMS(
        EnergyTarget(target.energy, target.shape),
        step_size=target.step_size,
        trajectory_length=4 * target.step_size,
        inverse_mass=low_rank_inverse_mass(math.prod(target.shape)),
    ),
    "latent mams with a dense mass": lambda target: MAMS(
        LatentTarget(target.energy, flow_for(target), target.shape),
        step_size=0.8,
        inverse_mass=dense_inverse_mass(math.prod(target.shape)),
    ),
    "mixture": mixture,
    "latent hmc": lambda target: latent_hmc(target, num_steps=3),
    "jump": jump,
    "three jumps": lambda target: jump(target, 3),
    "cycle": lambda target: Cycle(
        hmc(target, num_steps=2), IndependenceMetropolis(flow_for(target))
    ),
    "latent cycle": latent_cycle,
    "latent cycle of three jumps": lambda target: latent_cycle(target, 3),
    "latent cycle of two modes": lambda target: cycle_of_two_modes(target, False),
    "latent cycle of two modes from normals": lambda target: cycle_of_two_modes(target, True),
    "latent cycle of rows": cycle_of_rows,
    "detail": detail,
    "three details": lambda target: detail(target, num_jumps=3),
    "latent cycle of two details": lambda target: detail(target, True, num_jumps=2),
    "jump of two modes": lambda target: IndependenceMetropolis(
        flow_of_two_modes(target), target.energy, shape=target.shape
    ),
}

BIASED: dict[str, Callable[[ExactTarget], Kernel]] = {
    "mclmc": lambda target: MCLMC(
        EnergyTarget(target.energy, target.shape), step_size=target.step_size
    ),
    "latent mclmc": lambda target: MCLMC(
        LatentTarget(target.energy, flow_for(target), target.shape),
        step_size=0.5,
        integrator="leapfrog",
        inverse_mass=dense_inverse_mass(math.prod(target.shape)),
    ),
}
"""Under every law but that of exact samples."""


def run(kernel: Any, num_samples: int = 20, **options: Any) -> VectorizedMCMC:
    """A run of six chains after five steps of warm-up, unless told otherwise."""
    settings = {"warmup_steps": 5, "num_chains": 6, "seed": 0, "progress": False}
    mcmc = VectorizedMCMC(kernel, num_samples, **(settings | options))
    mcmc.run()
    return mcmc


def standard_errors(values: Tensor, expected: float) -> float:
    """Distance of the mean over independent chains, of values of shape (chains, draws)."""
    means = values.mean(1)
    return abs(float((means.mean() - expected) / (means.std() / math.sqrt(len(means)))))
