# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Free energies where the flow is poor: particles carried from the flow to the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from tqdm.auto import tqdm

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, check_number
from pyro_neuralrg.free_energy.importance import from_log_weights, warn_of_few_samples
from pyro_neuralrg.free_energy.model_evidence import is_guide
from pyro_neuralrg.free_energy.particles import (
    effective_fraction,
    effective_fractions,
    log_mean_exp,
    next_betas,
    systematic,
)
from pyro_neuralrg.free_energy.tempered import TemperedTarget
from pyro_neuralrg.infer.pyro_internals import check_model_args
from pyro_neuralrg.mcmc import (
    HMC,
    ChainState,
    Cycle,
    IndependenceMetropolis,
    Kernel,
    ModelTarget,
    StepInfo,
    Target,
    as_target,
)
from pyro_neuralrg.mcmc.target import frozen
from pyro_neuralrg.potentials.base import LatticePotential

__all__ = ["Annealing", "anneal"]

GROUPS = 16
"""Independent groups of particles, by whose spread the error is known to about 1 in 6."""

JITTER = 0.5
"""Of the number of leapfrog steps."""

STEP_SIZE_GAIN = 2.0
"""Change of the logarithm of the step size per excess of the acceptance."""

MOST_TEMPERATURES = 10_000
"""More tell that the weights are without bounds."""


@dataclass(frozen=True)
class Annealing:
    """What a run of :func:`anneal` found; energies in nats.

    Attributes:
        free_energy: -ln of the estimate of Z. With given ``betas`` the latter is unbiased but for
            what the adapted step size brings; adaptive ones lower it by order 1 / num_particles
            (1 to 2 %, a fifth of the standard error, of 256 particles with an untrained flow on
            2 x 2). The logarithm adds about half the squared standard error.
        standard_error: of it, from the spread of the groups (delta method).
        betas: from 0 to 1.
        ess: Kish effective sample size of all particles at each beta but the first, before
            resampling, as a fraction of their number.
        resampled: fraction of the groups that were resampled there.
        acceptance: mean acceptance probability of the HMC moves at each beta but the first; NaN
            without moves.
        jump_acceptance: the same of the independence jumps; NaN without a flow.
        step_sizes: of the moves there.
        gradient_evaluations: of the target, all particles together; a jump counts as one.
        sites: particles at beta = 1, by the name of the site (of a Pyro model its own sites,
            constrained), shape ``(num_particles,) + shape``.
        log_weights: of them, float64, shape ``(num_particles,)``; their mean weight is the estimate
            of Z.
        groups: consecutive equal groups of particles that do not depend on each other, for
            :func:`~pyro_neuralrg.free_energy.reweight`.
    """

    free_energy: float
    standard_error: float
    betas: tuple[float, ...]
    ess: tuple[float, ...]
    resampled: tuple[float, ...]
    acceptance: tuple[float, ...]
    jump_acceptance: tuple[float, ...]
    step_sizes: tuple[float, ...]
    gradient_evaluations: int
    sites: Mapping[str, Tensor] = field(repr=False)
    log_weights: Tensor = field(repr=False)
    groups: int

    @property
    def fields(self) -> Tensor:
        """The particles of the only site, shape ``(num_particles,) + shape``.

        Raises:
            ValueError: if there are several.
        """
        if len(self.sites) != 1:
            raise ValueError(f"fields of the sites {sorted(self.sites)}; accepted: sites[name]")
        (fields,) = self.sites.values()
        return fields


def anneal(
    target: Any,
    flow: TransformModule | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1024,
    groups: int | None = None,
    moves: int = 1,
    num_steps: int = 10,
    step_size: float | None = None,
    target_acceptance: float = 0.8,
    conditional_ess: float = 0.97,
    resample_below: float = 0.5,
    betas: Sequence[float] | None = None,
    batch_size: int = 256,
    seed: int | None = None,
    progress: bool = True,
) -> Annealing:
    r"""Estimate -ln Z by annealed importance sampling or sequential Monte Carlo in latent space.

    Particles y start from p, the density of the flow's latents, and go through :math:`p(y)\,
    w(y)^\beta` with :math:`w = \pi(g(y)) / q(g(y))` while beta rises from 0 to 1. Their weights
    take in :math:`w^{\Delta\beta}`; groups with few effective particles are resampled
    (systematically); then every particle is moved at the present beta by HMC and, with a flow, by
    jumps to fresh draws of it, accepted with probability :math:`\min(1, (w'/w)^\beta)`. With
    ``resample_below=0`` there is no resampling: annealed importance sampling. Works for flows whose
    own weights are useless.

    Prefer resampling for poor flows: weights of single particles may have heavy tails, of which the
    standard error of annealed importance sampling sees too little. That of resampling, from 16
    groups, is known to 18 %; its coverage is that of Student's t (one error: 0.67 for 0.68).

    Step sizes and betas come from the particles as they were before, so that the kernel of a move
    does not depend on it. Without a flow the start is a standard normal.

    Of a Pyro model with data y, Z is the evidence p(y), as for :func:`estimate`. The start is a
    standard normal of all unconstrained values; that of ``NeuTraReparam(guide).reparam(model)`` is
    the guide, and jumps are to fresh draws of it. The better the guide, the fewer temperatures; of
    one that is narrower than the posterior the weights have heavy tails here, too, and the free
    energy comes out too high: compare several conditional_ess and num_particles.

    Args:
        target: a LatticePotential, a batched energy with ``shape``, a Pyro model, or a Target.
        flow: the start; frozen meanwhile. Not for a model: reparameterise it by ``NeuTraReparam``,
            or a site by :class:`~pyro_neuralrg.FlowReparam`.
        shape: lattice shape of a plain energy.
        model_args: of the model.
        model_kwargs: likewise by keyword.
        num_particles: a multiple of ``groups``.
        groups: of particles, which do not meet, for the standard error: at least 2. Default: 16
            with resampling, and without one for each particle.
        moves: sweeps of HMC and a jump at each beta; 0 for none.
        num_steps: mean number of leapfrog steps of an HMC move.
        step_size: of the first moves; default: by the number of sites.
        target_acceptance: of HMC, which the step size follows.
        conditional_ess: in (0, 1), effective fraction that one increase of beta leaves of equally
            good particles; decides the next beta.
        resample_below: in [0, 1], effective fraction of a group below which it is resampled.
        betas: a schedule from 0 to 1, increasing, instead of the adaptive one.
        batch_size: particles evaluated at a time, which bounds the memory.
        seed: of all random numbers; None takes one from torch's global state.
        progress: show a progress bar.

    Warns:
        UserWarning: if fewer than ten effective particles are left, or, where none was resampled,
            the Pareto k-hat of their weights is above 0.7.

    Raises:
        TypeError, ValueError: naming the argument; also if the energy of a start is NaN or minus
            infinity, or all are infinite.
        RuntimeError: if beta = 1 is too far away.

    References:
        Neal, "Annealed importance sampling", Statistics and Computing 11, 125 (2001); Del Moral,
        Doucet, Jasra, "Sequential Monte Carlo samplers", JRSS B 68, 411 (2006); Zhou, Johansen,
        Aston, "Toward automatic model comparison", JCGS 25, 701 (2016), for the conditional ESS;
        Arbel, Matthews, Doucet, "Annealed flow transport Monte Carlo", ICML (2021).

    Example:
        >>> energy = lambda x: 2.0 * (x - 1.0).square().sum(-1)
        >>> run = anneal(energy, shape=(4,), num_particles=400, groups=20, seed=0, progress=False)
        >>> exact = -2.0 * math.log(math.pi / 2.0)
        >>> bool(abs(run.free_energy - exact) < 4 * run.standard_error)
        True
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("data", dist.Normal(x, 1.0), obs=data)
        >>> data = torch.tensor(1.0)
        >>> run = anneal(model, model_args=(data,), num_particles=160, seed=0, progress=False)
        >>> exact = -dist.Normal(0.0, 2**0.5).log_prob(data)
        >>> bool(abs(run.free_energy - exact) < 4 * run.standard_error), run.sites["x"].shape
        (True, torch.Size([160]))
    """
    whole = _whole(target, shape, flow, model_args, model_kwargs)
    tempered = TemperedTarget(whole, 0.0, batch_size)
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    resample_below = check_number(
        "resample_below", resample_below, "a number in [0, 1]", least=0, most=1
    )
    num_particles, groups = _check_groups(num_particles, groups, resample_below > 0)
    run = _Run(
        tempered,
        groups=groups,
        moves=check_integer("moves", moves, 0),
        num_steps=num_steps,
        step_size=whole.dim**-0.25 if step_size is None else step_size,
        target_acceptance=check_number(
            "target_acceptance", target_acceptance, "a number in (0, 1)", above=0, below=1
        ),
        resample_below=resample_below,
        next_beta=next_betas(betas, conditional_ess),
        generator=torch.Generator(whole.device).manual_seed(seed),
    )
    with frozen(whole.modules()), tqdm(disable=not progress, desc="anneal") as bar:
        run.start(num_particles)
        while run.beta < 1.0:
            run.advance()
            bar.set_postfix(beta=f"{run.beta:.4f}", ess=f"{run.ess[-1]:.2f}", refresh=False)
            bar.update()
        found = run.result()
    weights = from_log_weights(found.log_weights)
    if any(found.resampled):  # equal weights of copies are no tail
        weights = weights._replace(pareto_k=math.nan)
    warn_of_few_samples(weights, "annealed")
    return found


def _whole(
    target: Any,
    shape: tuple[int, ...] | None,
    flow: TransformModule | None,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> Target:
    """The target, of a model for its arguments."""
    if is_guide(flow):
        raise TypeError(
            f"flow is a {type(flow).__name__}, a guide; accepted: a flow (a guide stands in the "
            "model: NeuTraReparam(guide).reparam(model))"
        )
    whole = as_target(target, shape=shape, flow=flow)
    if args is None and kwargs is None and whole.sites:
        return whole
    check_model_args(args)
    if not isinstance(whole, ModelTarget):
        if args or kwargs or not isinstance(target, LatticePotential):
            raise TypeError(
                f"model_args or model_kwargs are given, and target is a {type(target).__name__}; "
                "accepted: a Pyro model"
            )
        return whole
    return whole.setup(*(args or ()), **(kwargs or {}))


class _Run:
    """The particles, and what is known of them so far."""

    def __init__(
        self,
        tempered: TemperedTarget,
        *,
        groups: int,
        moves: int,
        num_steps: int,
        step_size: float,
        target_acceptance: float,
        resample_below: float,
        next_beta: Callable[[Tensor, Tensor, float], float],
        generator: torch.Generator,
    ) -> None:
        self.tempered = tempered
        self.groups = groups
        self.moves = moves
        self.target_acceptance = target_acceptance
        self.resample_below = resample_below
        self.next_beta = next_beta
        self.generator = generator
        self.kernel: Kernel = HMC(tempered, step_size=step_size, num_steps=num_steps, jitter=JITTER)
        flow = tempered.jumps_by
        if flow is not None:
            self.kernel = Cycle(self.kernel, IndependenceMetropolis(flow, tempered))
        self.betas = [0.0]
        self.ess: list[float] = []
        self.resampled: list[float] = []
        self.acceptance: list[float] = []
        self.jump_acceptance: list[float] = []
        self.step_sizes: list[float] = []
        self.gradient_evaluations = 0

    @property
    def beta(self) -> float:
        return self.betas[-1]

    def start(self, num_particles: int) -> None:
        """Draw the particles and check their energies."""
        self.positions = self.tempered.initial(num_particles, self.generator)
        self.log_weights = torch.zeros(
            num_particles, dtype=torch.float64, device=self.positions.device
        )
        self._evaluate()
        energy = self.energy
        for name, bad in (("NaN", energy.isnan()), ("minus infinity", energy == -math.inf)):
            if bool(bad.any()):
                raise ValueError(
                    f"the energy of {int(bad.sum())} of {num_particles} starts is {name}; "
                    "accepted: a target whose energy is a number for every field (or +inf)"
                )
        if bool((energy == math.inf).all()):
            raise ValueError(
                f"the energy of all {num_particles} starts is infinite; accepted: a target with "
                "some weight where the flow has some"
            )

    def advance(self) -> None:
        """Go on to the next beta: weigh, resample, move."""
        log_ratio = self.base - self.energy
        beta = self.next_beta(log_ratio, self.log_weights, self.beta)
        if len(self.betas) > MOST_TEMPERATURES:
            raise RuntimeError(
                f"beta is {self.beta} after {MOST_TEMPERATURES} temperatures: the energy of some "
                "particles is without bounds; use a better flow or a smaller conditional_ess"
            )
        self.log_weights = self.log_weights + (beta - self.beta) * log_ratio
        self.betas.append(beta)
        self.ess.append(effective_fraction(self.log_weights))
        self._resample()
        self._move()

    def result(self) -> Annealing:
        """The estimates, from what is there at beta = 1."""
        of_groups = log_mean_exp(self.log_weights.view(self.groups, -1))
        found = from_log_weights(of_groups)
        return Annealing(
            free_energy=found.importance,
            standard_error=found.importance_se,
            betas=tuple(self.betas),
            ess=tuple(self.ess),
            resampled=tuple(self.resampled),
            acceptance=tuple(self.acceptance),
            jump_acceptance=tuple(self.jump_acceptance),
            step_sizes=tuple(self.step_sizes),
            gradient_evaluations=self.gradient_evaluations,
            sites=self.tempered.physical(self.positions),
            log_weights=self.log_weights.cpu(),
            groups=self.groups,
        )

    def _evaluate(self) -> None:
        """Energies of target and start, with gradients, of the particles where they are."""
        self.energy, self.gradient, self.base, self.base_gradient = self.tempered.both(
            self.positions
        )
        self.gradient_evaluations += len(self.positions)

    def _resample(self) -> None:
        """Replace the particles of poor groups by copies in proportion to their weights."""
        grouped = self.log_weights.view(self.groups, -1)
        alive = torch.isfinite(grouped).any(-1)
        poor = alive & (effective_fractions(grouped) < self.resample_below)
        self.resampled.append(float(poor.double().mean()))
        if not bool(poor.any()):
            return
        size = grouped.shape[-1]
        own = torch.arange(size, device=grouped.device).expand_as(grouped)
        chosen = own.clone()
        chosen[poor] = systematic(grouped[poor], self.generator)
        rows = (chosen + size * torch.arange(self.groups, device=own.device).unsqueeze(-1)).view(-1)
        self.positions = self.positions[rows]
        self.energy, self.gradient = self.energy[rows], self.gradient[rows]
        self.base, self.base_gradient = self.base[rows], self.base_gradient[rows]
        means = log_mean_exp(grouped).unsqueeze(-1).expand_as(grouped)
        self.log_weights = torch.where(poor.unsqueeze(-1), means, grouped).view(-1)

    def _move(self) -> None:
        """Move all particles at the present beta; adapt the step size to the next one."""
        at_beta = self.tempered.at(self.beta)
        state = ChainState(
            self.positions,
            at_beta.mixed(self.energy, self.base),
            at_beta.mixed(self.gradient, self.base_gradient),
        )
        kernel = self.kernel.on(at_beta)
        infos: list[StepInfo] = []
        for _ in range(self.moves):
            state, info = kernel.step(state, self.generator)
            infos.append(info)
        self.positions = state.position
        evaluations = sum(info.gradient_evaluations for info in infos)
        self.gradient_evaluations += evaluations * len(self.positions)
        self.step_sizes.append(self._hmc.step_size or math.nan)
        self.acceptance.append(_mean_acceptance(infos, "hmc"))
        jumps = "jump" in self.kernel.members
        self.jump_acceptance.append(_mean_acceptance(infos, "jump") if jumps else math.nan)
        if infos:
            self._adapt(self.acceptance[-1])
            self._evaluate()

    @property
    def _hmc(self) -> Kernel:
        return self.kernel.members["hmc"]

    def _adapt(self, acceptance: float) -> None:
        change = math.exp(STEP_SIZE_GAIN * (acceptance - self.target_acceptance))
        members = self.kernel.members
        size = self._hmc.step_size
        assert size is not None
        members["hmc"] = members["hmc"].tuned(step_size=size * change)
        self.kernel = self.kernel.with_members(members)


def _mean_acceptance(infos: list[StepInfo], name: str) -> float:
    parts = [part for info in infos if (part := info.part(name)) is not None]
    rates = [float(part.acceptance_rate.mean()) for part in parts]
    return sum(rates) / len(rates) if rates else math.nan


def _check_groups(num_particles: int, groups: int | None, resampling: bool) -> tuple[int, int]:
    num_particles = check_integer("num_particles", num_particles, 2)
    if groups is None:
        groups = min(GROUPS, num_particles) if resampling else num_particles
    groups = check_integer("groups", groups, 2, num_particles)
    if num_particles % groups:
        raise ValueError(
            f"num_particles is {num_particles}; accepted: a multiple of groups, {groups}"
        )
    return num_particles, groups
