# SPDX-License-Identifier: Apache-2.0
"""Free energies where the flow is poor: particles carried from the flow to the target."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number, check_numbers
from pyro_neuralrg.free_energy.tempered import (
    Particles,
    TemperedTarget,
    log_mean_exp,
    next_beta,
    resample_groups,
)
from pyro_neuralrg.infer.pyro_internals import check_model_args
from pyro_neuralrg.mcmc import HMC, Cycle, IndependenceMetropolis, Kernel, as_target
from pyro_neuralrg.mcmc.target import frozen
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.runtime.console import Progress
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.statistics import LogWeights, kish_fractions, with_error

NUM_GROUPS = 16  # independent groups of particles: their spread tells the error to about 1 in 6
JITTER = 0.5  # relative spread of the number of leapfrog steps
TARGET_ACCEPTANCE = 0.8  # of the HMC moves, which the step size follows
STEP_SIZE_GAIN = 2.0  # change of the logarithm of the step size per excess of the acceptance
MAX_TEMPERATURES = 10_000  # more say that the weights are without bounds


@dataclass(frozen=True, repr=False)
class Annealing:
    """Result of :func:`anneal`; energies in nats.

    Attributes:
        free_energy: -ln of the estimate of Z, which is unbiased with given ``betas``; adaptive ones
            lower it by order 1 / num_particles. The logarithm adds half the squared error.
        standard_error: from the spread of the groups (delta method).
        betas: from 0 to 1.
        ess: Kish effective sample size of all particles at each beta but the first, before
            resampling, as a fraction of their number.
        resampled: fraction of the groups that were resampled there.
        acceptance: mean acceptance probability of the HMC moves there.
        jump_acceptance: the same of the independence jumps; NaN without a flow.
        step_sizes: of the HMC moves there.
        gradient_evaluations: of the target, all particles together; a jump counts as one.
        sites: particles at beta = 1, by the name of the site (of a Pyro model its own sites,
            constrained), shape ``(num_particles,) + shape``.
        log_weights: of them, float64, shape ``(num_particles,)``; their mean weight is the estimate
            of Z.
        groups: consecutive equal groups of independent particles, for :func:`reweight`.
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
    sites: Mapping[str, Tensor]
    log_weights: Tensor
    groups: int

    def __repr__(self) -> str:
        return (
            f"Annealing(-ln Z = {with_error(self.free_energy, self.standard_error)} from "
            f"{len(self.log_weights)} particles, {len(self.betas)} betas)"
        )

    def _repr_html_(self) -> str:
        rows = {
            "-ln Z": with_error(self.free_energy, self.standard_error),
            "particles": len(self.log_weights),
            "betas": len(self.betas),
            "lowest ESS": f"{min(self.ess, default=1.0):.1%}",
            "gradient evaluations": self.gradient_evaluations,
        }
        return html_table("Annealing", rows)

    @property
    def fields(self) -> Tensor:
        """The particles of the only site, shape ``(num_particles,) + shape``."""
        if len(self.sites) != 1:
            raise ValueError(f"fields of the sites {sorted(self.sites)}; accepted: sites[name]")
        (fields,) = self.sites.values()
        return fields


def anneal(
    target: Any,
    flow: TransformModule | None = None,
    *,
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1024,
    num_steps: int = 10,
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
    systematically; then each is moved by HMC and, with a flow, by a jump to a fresh draw of it.
    With ``resample_below=0`` it is annealed importance sampling, whose weights may have heavy tails
    that its standard error does not see; that of 16 groups covers as Student's t.

    Of a Pyro model Z is the evidence. Without a flow the start is a standard normal of all
    unconstrained values; that of ``NeuTraReparam(guide).reparam(model)`` is the guide, where one
    narrower than the posterior makes the free energy too high.

    Args:
        target: a LatticePotential, a Pyro model, or a Target, such as ``EnergyTarget(energy,
            shape)`` of a batched energy.
        flow: the start, frozen meanwhile; not for a model, which is reparameterised instead, by
            FlowReparam or NeuTraReparam.
        model_args: arguments of the model.
        model_kwargs: likewise by keyword.
        num_particles: with resampling fewer than 16 or a multiple.
        num_steps: mean number of leapfrog steps of an HMC move.
        conditional_ess: in (0, 1), effective fraction that each next beta leaves.
        resample_below: in [0, 1], effective fraction of a group below which it is resampled.
        betas: an increasing schedule from 0 to 1, instead of the adaptive one.
        batch_size: particles evaluated at a time.
        seed: of all random numbers; None takes one from torch's global state.
        progress: show a progress bar.

    Warns:
        UserWarning: if the final weights cannot be trusted.

    Raises:
        ValueError: also if starts have no finite energy.
        RuntimeError: if beta = 1 is too far away.

    References:
        Neal, Statistics and Computing 11, 125 (2001), annealed importance sampling; Del Moral,
        Doucet, Jasra, JRSS B 68, 411 (2006), sequential Monte Carlo; Zhou, Johansen, Aston, JCGS
        25, 701 (2016), the conditional ESS; Arbel, Matthews, Doucet, ICML (2021), with flows.

    Example:
        >>> from pyro_neuralrg.mcmc import EnergyTarget
        >>> target = EnergyTarget(lambda x: 2.0 * (x - 1.0).square().sum(-1), (4,))
        >>> run = anneal(target, num_particles=400, seed=0, progress=False)
        >>> exact = -2.0 * math.log(math.pi / 2.0)
        >>> bool(abs(run.free_energy - exact) < 4 * run.standard_error)
        True
    """
    check_model_args(model_args)
    whole = as_target(target, flow=flow)
    if not whole.sites or model_args is not None or model_kwargs is not None:
        whole = whole.setup(*(model_args or ()), **(model_kwargs or {}))
    batch_size = check_integer("batch_size", batch_size, 1)
    given = None if betas is None else _check_betas(betas)
    settings = AnnealingSettings.checked(num_particles, num_steps, conditional_ess, resample_below)
    generator = generator_of(seed, whole.device)
    tempered = TemperedTarget(whole, 0.0, batch_size)
    with frozen(whole.modules()), Progress(100, "anneal", progress) as bar:
        run = AnnealingRun(tempered, settings, generator)
        run.go(given, lambda: bar.step(run.figures, done=int(100 * run.beta)))
        found = run.result()
    LogWeights(found.log_weights, copies=any(found.resampled)).warn_if_poor(
        "annealed", "train longer, or give more num_particles or num_steps"
    )
    return found


def _check_betas(betas: Any) -> tuple[float, ...]:
    accepted = "increasing numbers from 0 to 1, both among them"
    given = check_numbers("betas", betas, accepted, least=0, most=1)
    rising = all(a < b for a, b in itertools.pairwise(given))
    if given[:1] != (0.0,) or given[-1] != 1.0 or not rising:
        raise ValueError(f"betas is {betas!r}; accepted: {accepted}")
    return given


class AnnealingSettings(NamedTuple):
    """Arguments of :func:`anneal`, checked, and the number of groups."""

    num_particles: int
    num_steps: int
    conditional_ess: float
    resample_below: float
    groups: int

    @staticmethod
    def checked(
        num_particles: Any, num_steps: Any, fraction: Any, resample_below: Any
    ) -> AnnealingSettings:
        """The settings, or an error that names the wrong one; HMC checks its own."""
        accepted = "a number from 0 to 1"
        resample_below = check_number("resample_below", resample_below, accepted, least=0, most=1)
        accepted = "a number between 0 and 1"
        fraction = check_number("conditional_ess", fraction, accepted, above=0, below=1)
        number = check_integer("num_particles", num_particles, 2)
        groups = min(NUM_GROUPS, number) if resample_below > 0 else number
        if number % groups:
            raise ValueError(f"num_particles is {number}; accepted: a multiple of {groups}")
        return AnnealingSettings(number, num_steps, fraction, resample_below, groups)


class AnnealingRun:
    """The particles, their weights and the kernel at the present beta.

    Without ``positions`` the particles are draws of the start, of weight one.
    """

    def __init__(
        self,
        tempered: TemperedTarget,
        settings: AnnealingSettings,
        generator: torch.Generator,
        positions: Tensor | None = None,
        log_weights: Tensor | None = None,
    ) -> None:
        self.tempered = tempered
        self.settings = settings
        self.groups = settings.groups
        self.generator = generator
        self.step_size = tempered.dim**-0.25
        self.kernel: Kernel = HMC(
            tempered, step_size=self.step_size, num_steps=settings.num_steps, jitter=JITTER
        )
        if tempered.start_flow is not None:
            self.kernel = Cycle(self.kernel, IndependenceMetropolis(tempered.start_flow))
        self.stages: list[dict[str, float]] = []
        """Figures of each beta, as in :class:`Annealing`."""
        if positions is None:
            positions = tempered.initial(settings.num_particles, generator)
        self.particles = tempered.evaluated(positions)
        self.gradient_evaluations = num_particles = len(positions)
        energy = self.particles.energy
        self.log_weights = torch.zeros_like(energy) if log_weights is None else log_weights
        bad, none = (energy.isnan() | (energy == -math.inf)).sum(), (energy == math.inf).sum()
        if bad or none == num_particles:
            failure = tempered.whole.failure
            reason = "" if failure is None else f" (the model says {failure!r})"
            raise ValueError(
                f"the energy of {int(bad)} of {num_particles} starts is NaN or minus infinity"
                f"{reason}, of {int(none)} infinite; accepted: numbers, or +inf for some of the "
                "starts"
            )

    @property
    def beta(self) -> float:
        """The present one."""
        return self.tempered.beta

    def figures(self) -> str:
        """Of the last stage, for the bar."""
        return f"beta {self.beta:.4f}, ESS {self.stages[-1]['ess']:.0%}"

    def go(self, betas: Sequence[float] | None, after_each: Callable[[], object]) -> None:
        """Go on to beta = 1, by adaptive steps or given ones."""
        fraction = self.settings.conditional_ess
        while self.beta < 1.0:
            if betas is not None:
                beta = betas[len(self.stages) + 1]
            elif len(self.stages) < MAX_TEMPERATURES:
                beta = next_beta(self.particles.log_ratio, self.log_weights, self.beta, fraction)
            else:
                raise RuntimeError(
                    f"beta is {self.beta} after {MAX_TEMPERATURES} temperatures: the energy of "
                    "some particles is without bounds; use a better flow or a smaller "
                    "conditional_ess"
                )
            self.advance(beta)
            after_each()

    def advance(self, beta: float) -> None:
        """Go on to the next beta: weigh, resample, move."""
        self.log_weights = self.log_weights + (beta - self.beta) * self.particles.log_ratio
        self.tempered = self.tempered.at(beta)
        ess, step_size = float(kish_fractions(self.log_weights)), self.step_size
        grouped = self.log_weights.view(self.groups, -1)
        chosen, weights, poor = resample_groups(
            grouped, self.settings.resample_below, self.generator
        )
        self.log_weights = weights.reshape(-1)
        if bool(poor.any()):
            self.particles = Particles(*(part[chosen.view(-1)] for part in self.particles))
        rates = self._move()
        self.step_size *= math.exp(STEP_SIZE_GAIN * (rates["hmc"] - TARGET_ACCEPTANCE))
        figures = {"betas": beta, "ess": ess, "step_sizes": step_size}
        figures |= {"acceptance": rates["hmc"], "jump_acceptance": rates.get("jump", math.nan)}
        self.stages.append({**figures, "resampled": float(poor.double().mean())})

    def _move(self) -> dict[str, float]:
        """Move all particles at the present beta; mean acceptances by the name of the move."""
        tuning = {"hmc": {"step_size": self.step_size}}
        self.kernel = self.kernel.with_tuning(tuning).on(self.tempered)
        state, info = self.kernel.step(self.tempered.state(self.particles), self.generator)
        self.particles = self.tempered.evaluated(state.position)
        self.gradient_evaluations += (info.gradient_evaluations + 1) * len(state.position)
        parts = info.parts or {"hmc": info}
        return {name: float(part.acceptance_rate.mean()) for name, part in parts.items()}

    def result(self) -> Annealing:
        """The estimates, from the particles at beta = 1."""
        of_groups = log_mean_exp(self.log_weights.view(self.groups, -1))
        log_partition = LogWeights(of_groups).log_mean
        names = self.stages[0]
        figures: Any = {name: tuple(stage[name] for stage in self.stages) for name in names}
        figures["betas"] = (0.0, *figures["betas"])
        return Annealing(
            free_energy=-log_partition.value,
            standard_error=log_partition.standard_error,
            gradient_evaluations=self.gradient_evaluations,
            sites=self.tempered.physical(self.particles.positions),
            log_weights=self.log_weights.cpu(),
            groups=self.groups,
            **figures,
        )
