# SPDX-License-Identifier: Apache-2.0
"""One call for draws of a target, :func:`sample`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.autoguide import AutoContinuous, AutoLaplaceApproximation
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, a_kind, check_integer, check_type
from pyro_neuralrg.diagnostics import to_arviz, weights_to_arviz
from pyro_neuralrg.files import Record
from pyro_neuralrg.free_energy import Annealing, anneal, reweight
from pyro_neuralrg.free_energy.annealing import NUM_GROUPS
from pyro_neuralrg.free_energy.tempered import systematic
from pyro_neuralrg.infer import FlowGuide
from pyro_neuralrg.infer.pyro_internals import check_guide_of, check_model_args
from pyro_neuralrg.mcmc import HMC, Cycle, IndependenceMetropolis, Kernel, VectorizedMCMC, as_target
from pyro_neuralrg.mcmc.model_target import ModelTarget
from pyro_neuralrg.mcmc.results import observed
from pyro_neuralrg.mcmc.target import Target, frozen
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.runtime.console import stage, warn_user
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.sampling.choice import LOCAL_TIME, Plan, chains_for, choose
from pyro_neuralrg.statistics import (
    Estimate,
    FieldSummary,
    LogWeights,
    summarise_field,
    summary_table,
)

PILOT = 4096  # draws of the flow whose weights are looked at
FIELDS_AT_ONCE = 512  # fields evaluated at once
LEAPFROGS = 5  # of the local move in a cycle
"""By a guide with a tail 10,000 draws held 4,800 effective ones (10 chains, R-hat 1.002), with two
leapfrog steps 750 (22 chains, R-hat 1.029) in a third of the time."""

SMALL_STEPS = 0.2  # share of its trajectories
"""Without them one of 22 chains of a Gaussian process stood still for 199 draws (R-hat 1.06)."""

TRIAL_STEPS, TRIAL_SITES = 100, 500  # of the chains that are looked at after warm-up
MOST_ASKED, SLACK = 6, 0.25  # cycles of a draw that a trial asks for
"""By a guide with 96 of 4096 draws effective, 10,000 draws of one cycle held 780 effective ones, 24
a second; with 20 leapfrog steps 19 a second, and with adapted lengths or smaller steps fewer."""

FAIR = 0.2  # effective fraction below which cycles are repeated, whatever a trial says
"""With 330 of 4096 effective one cycle, which the trial had asked for, left R-hat at 1.019 and a
tail of 171 effective draws; four cycles 1.002 and 2,609."""

HEAVY_K = 0.6  # k-hat above which, with fewer effective, cycles are doubled, six at least
"""By a guide with k-hat 0.70 that 14 cycles took to forget, five a draw left R-hat at 1.057 and a
mean off by 4.1 errors, ten 1.012 and 1.2; by one with 0.83 two a draw of three times as many chains
left it at 1.21. By guides with 26 and 77 % effective, k-hats 0.60 and 0.62, six took 490 and 418
CPU s (R-hat 1.0016, 1.0008), as many as the trial asked for 112 and 78 (1.0031, 1.0018)."""


@dataclass(frozen=True, repr=False)
class Samples:
    """Draws of a target, chains or weighted ones.

    Attributes:
        method: "independence", "cycle" or "annealing".
        reason: why this one, in a sentence.
        run: the run of the chains, or the annealing.
        weights: of the draws of the flow that decided.
        trial: of cycles their warm-up, a run with its own costs and statistics; None of others.
        target: the target in latent space.
    """

    method: str
    reason: str
    run: VectorizedMCMC | Annealing
    weights: LogWeights
    trial: VectorizedMCMC | None = None
    target: Target | None = None
    _observables: Mapping[str, Tensor] = field(default_factory=dict)  # of weighted draws

    def __repr__(self) -> str:
        return f"Samples({self.run!r} by {self.method}: {self.reason})"

    def _repr_html_(self) -> str:
        rows = {"draws": repr(self.run), "by": self.method, "because": self.reason}
        return html_table("Samples", {**rows, "weights of the flow": repr(self.weights)})

    @property
    def log_weights(self) -> Tensor | None:
        """Of weighted draws, float64, ``(num_draws,)``; None of chains.

        They are what means over the target want, as :meth:`mean` takes them.
        """
        return self.run.log_weights if isinstance(self.run, Annealing) else None

    @property
    def observables(self) -> Mapping[str, Tensor]:
        """The observables asked for, ``(chains, draws, ...)``, or ``(num_draws, ...)``."""
        return self._observables if isinstance(self.run, Annealing) else self.run.observables

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """The draws of the model's own sites by name, weighted ones as they are.

        Shape ``(num_draws,) + site shape``, or ``(chains, draws) + site shape``: weighted draws are
        one chain. Latents of the flow are among ``run.get_samples()``.
        """
        if isinstance(self.run, VectorizedMCMC):
            found = self.run.get_samples(group_by_chain=group_by_chain)
            latents = self._latents if found else ()
            return {name: x for name, x in found.items() if name not in latents}
        sites = dict(self.run.sites)
        return {name: x.unsqueeze(0) for name, x in sites.items()} if group_by_chain else sites

    @property
    def _latents(self) -> Mapping[str, Tensor]:
        assert isinstance(self.run, VectorizedMCMC)
        if not self.run.keep_draws:
            return {}
        return self.run.kernel.target.latent(self.run.positions[0, :1])

    def mean(self, values: Tensor) -> Estimate[Tensor]:
        """Mean over the target of ``values``, one of each draw, of the shape of one.

        ``values`` is ``(chains, draws, ...)``, or ``(num_draws, ...)`` of weighted draws, as
        :attr:`observables` are. Of weighted draws it is a
        :class:`~pyro_neuralrg.free_energy.Reweighted`, whose ``ess`` says how much they are worth;
        :func:`sample` warns if too few are effective.
        """
        if isinstance(self.run, Annealing):
            return reweight(values, self.run.log_weights, groups=self.run.groups)
        found = summarise_field(values, max_sites=values[0, 0].numel()).figures
        figures = (torch.from_numpy(found[name]) for name in ("mean", "mcse"))
        return Estimate(*(figure.view(values.shape[2:]) for figure in figures))

    def summary(self) -> Any:
        """A table of the sites and observables, in pandas.

        Of chains that of :meth:`VectorizedMCMC.summary` without the flow's latents; of weighted
        draws mean, sd, standard error and the effective number of draws that such an error stands
        for.
        """
        if isinstance(self.run, VectorizedMCMC):
            table = self.run.summary()
            latents = self._latents
            return table[[row.partition("[")[0] not in latents for row in table.index]]
        draws = self.get_samples() | dict(self.observables)
        return summary_table({name: _weighted(x, self.run) for name, x in draws.items()})

    def to_arviz(self, **options: Any) -> Any:
        """ArviZ's tree of :func:`to_arviz`, with its options.

        Of weighted draws that of :func:`weights_to_arviz`, with weights and draws as they are, if
        there are no options but its own, ``dims`` and ``coords``; with others they are resampled.
        """
        if isinstance(self.run, VectorizedMCMC) or options.keys() - {"dims", "coords"}:
            return to_arviz(self, **options)
        values = self.get_samples() | dict(self.observables)
        weights = LogWeights(self.run.log_weights, copies=any(self.run.resampled))
        return weights_to_arviz(weights, values, **options)


def sample(
    target: Any,
    q: Any,
    num_draws: int = 10_000,
    *,
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    num_chains: int | None = None,
    observables: Mapping[str, Observable] | None = None,
    chains_only: bool = False,
    keep_draws: bool = True,
    record: Record | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Samples:
    r"""Draw from a target by the flow or guide that was trained for it.

    The weights :math:`w = \pi(x) / q(x)` of 4096 draws of q decide how:

    * where chains that jump between draws of q forget within three jumps, such chains (independence
      Metropolis);
    * where they do not, or the weights have a tail (fewer than eight in ten effective and a k-hat
      above a third, or fewer than nine and above a half), cycles of jumps and of HMC in latent
      space, one to twelve to a draw, as chains of a trial need to forget: what a tail holds is
      rarely seen, and a chain that jumps there stays;
    * where fewer than ten of the draws are effective, the heaviest weights cut, particles annealed
      from q to the target, which come with weights.

    Chains have the target as their exact stationary law. They start from draws of q resampled by
    their weights; those of cycles first make a trial, and start from where it has been.

    Args:
        target: a LatticePotential, a batched energy or a Pyro model.
        q: a flow or FlowGuide of the potential or energy; of a model an ``AutoContinuous`` guide,
            such as :class:`~pyro_neuralrg.infer.AutoHierarchicalFlow`.
        num_draws: of all chains together, rounded up to a multiple of their number; of particles to
            a multiple of 16.
        model_args: of the model.
        model_kwargs: likewise by keyword.
        method: "independence", "cycle" or "annealing", where the choice is not to be made here.
        num_chains: None chooses, at most 256; of annealing there are none.
        observables: by name, functions of the field as of :class:`VectorizedMCMC`.
        chains_only: weighted draws are not wanted, however poor the flow is.
        keep_draws: as of :class:`VectorizedMCMC`; False implies chains.
        record: likewise; with a record ``seed`` and ``num_chains`` are to be given. The warm-up of
            cycles has one of its own, in the folder "warm-up" of this.
        seed: of all random numbers; None draws one from torch's generator.
        progress: show a progress bar, which names the stage and the sampler: "draws of cycle" cost
            many times those "of jump".

    Raises:
        TypeError, ValueError: naming the argument; also if a record is given for annealing.

    References:
        Albergo, Kanwar, Shanahan, PRD 100, 034515 (2019); Gabrie, Rotskoff, Vanden-Eijnden, PNAS
        119 (2022), jumps and local moves; Arbel, Matthews, Doucet, ICML (2021), annealing.

    Example:
        >>> from pyro_neuralrg import IsingDual
        >>> target = IsingDual((2, 2))
        >>> draws = sample(target, target.flow(), 400, seed=0, progress=False)
        >>> draws.get_samples()["x"].shape
        torch.Size([400, 2, 2])
    """
    if record is not None and None in (seed, num_chains):
        raise ValueError(
            f"record is given, seed is {seed} and num_chains is {num_chains}; accepted: numbers, "
            "which the run that goes on is to be given again"
        )
    world, latent = processes(), latent_target(target, q, model_args, model_kwargs)
    if seed is None:
        seed = int(world.broadcast_from_first(lambda: int(torch.randint(2**31, ()))))
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    num_draws = check_integer("num_draws", num_draws, 1)
    chains_only = chains_only or record is not None or not keep_draws
    generator = torch.Generator(latent.device).manual_seed(seed)
    with frozen(latent.modules()):
        positions, weights = weighted_positions(latent, PILOT, generator)
    plan = world.broadcast_from_first(
        lambda: choose(weights, num_draws, num_chains, method, chains_only, world.size)
    )
    seeds = torch.randint(2**31, (2,), generator=generator, device=latent.device)
    run_seed, trial_seed = seeds.tolist()
    if plan.method == "annealing":
        if chains_only:
            raise ValueError(
                "method is 'annealing', of weighted draws, all of them kept, without a record; "
                "accepted here: independence, cycle"
            )
        number = -(-num_draws // NUM_GROUPS) * NUM_GROUPS
        found = anneal(latent, num_particles=number, seed=run_seed, progress=progress)
        seen = observed(observables or {}, found.sites, latent.lattices)
        return Samples(plan.method, plan.reason, found, weights, None, latent, seen)
    chosen = systematic(weights.values.to(latent.device).view(1, -1), generator)[0]
    chosen = chosen[torch.randperm(PILOT, generator=generator, device=latent.device)]
    starts = positions[chosen[torch.arange(plan.num_chains, device=latent.device) % PILOT]]
    called = tuple(model_args or ()), dict(model_kwargs or {})
    kernel, warmup, trial = _kernel(latent, plan), plan.warmup_steps, None
    if plan.method == "cycle":
        trial = _trial(kernel, plan, latent.unpack(starts), trial_seed, progress, record, called)
        record = _record_after_trial(record)
        repeats, time = world.broadcast_from_first(lambda: _repeats(trial, weights))
        kernel, warmup = Cycle(*trial.kernel.members.values(), repeats=repeats), 0
        if num_chains is None:  # more where the time allows it: wide batches are the cheaper ones
            chains = max(plan.num_chains, chains_for(num_draws, time, world.size))
            plan = plan._replace(num_chains=chains, num_samples=-(-num_draws // chains))
        starts = _starts(trial.positions, plan.num_chains)
    run = VectorizedMCMC(
        kernel,
        plan.num_samples,
        warmup,
        plan.num_chains,
        latent.unpack(starts),
        seed=run_seed,
        progress=progress,
        observables=observables,
        keep_draws=keep_draws,
        record=record,
    )
    run.run(*called[0], **called[1])
    return Samples(plan.method, plan.reason, run, weights, trial, latent)


def _weighted(values: Tensor, run: Annealing) -> FieldSummary:
    """Figures of weighted draws ``(num_draws,) + shape``; ESS is that of independent draws."""
    flat = values.double().reshape(len(values), -1)
    found, squares = (
        reweight(x, run.log_weights, groups=run.groups) for x in (flat, flat.square())
    )
    variance = (squares.value - found.value.square()).clamp(min=0.0)
    unknown = torch.full_like(variance, math.nan)
    figures = {
        "mean": found.value,
        "mcse": found.standard_error,
        "rhat": unknown,
        "ess_bulk": variance / found.standard_error.square(),
        "ess_tail": unknown,
        "sd": variance.sqrt(),
    }
    arrays = {name: figure.numpy() for name, figure in figures.items()}
    return FieldSummary(tuple(values.shape[1:]), np.arange(flat.shape[1]), arrays)


def latent_target(target: Any, q: Any, args: Any, kwargs: Any) -> Target:
    """The target in the latent space of q, set up, evaluated by batches."""
    check_model_args(args)
    if isinstance(q, AutoContinuous):
        if isinstance(q, AutoLaplaceApproximation) or q.prototype_trace is None:
            is_point = isinstance(q, AutoLaplaceApproximation)
            state = "is a point" if is_point else "has not seen its model"
            raise ValueError(
                f"q is {a_kind(q)} that {state}; accepted: a guide with a density, after its "
                "first call (of a Laplace approximation: q.laplace_approximation(...))"
            )
        model = target.model if isinstance(target, LatticePotential) else target
        given = as_target(NeuTraReparam(q).reparam(model))
        try:
            return given.setup(*(args or ()), **(kwargs or {})).in_batches(FIELDS_AT_ONCE)
        except (AssertionError, KeyError, RuntimeError, ValueError):
            check_guide_of(ModelTarget(model).setup(*(args or ()), **(kwargs or {})).sites, q)
            raise  # it was something else
    else:
        flow = q.flow if isinstance(q, FlowGuide) else q
        accepted = "a flow or FlowGuide of an energy, or an AutoContinuous guide of a model"
        check_type("q", flow, TransformModule, accepted)
        owner = getattr(target, "__self__", None)  # of a potential's own model
        potential = owner if isinstance(owner, LatticePotential) else target
        shape = None if isinstance(potential, LatticePotential) else getattr(flow, "shape", None)
        try:
            given = as_target(potential, flow=flow, shape=shape)
        except TypeError as error:
            raise TypeError(
                f"target is {a_kind(target)}, and q a flow; accepted: a LatticePotential or the "
                f"energy of a field, or a model with an AutoContinuous guide ({error})"
            ) from error
    return given.setup(*(args or ()), **(kwargs or {})).in_batches(FIELDS_AT_ONCE)


def log_density(latent: Target, positions: Tensor) -> Tensor:
    """ln q of positions ``batch + (dim,)`` in its latent space, float64, of shape ``batch``."""
    shape = latent.event_shape
    z = positions.double().reshape(*positions.shape[:-1], *shape)
    return latent.base.log_prob(z, len(shape))


def weighted_positions(
    latent: Target, number: int, generator: torch.Generator
) -> tuple[Tensor, LogWeights]:
    """Draws of q in latent space, and their weights; none where the energy is not a number."""
    positions = latent.from_base(number, generator)
    values = -latent.energy(positions) - log_density(latent, positions)
    undefined = int(values.isnan().sum())
    values = values.masked_fill(values.isnan(), -math.inf)
    reason = "" if latent.failure is None else f" ({latent.failure})"
    if not bool((values > -math.inf).any()):
        raise ValueError(
            f"none of {number} draws of q has a finite energy{reason}; accepted: a flow or guide "
            "that was trained for the target"
        )
    if undefined:
        warn_user(
            f"the energy of {undefined} of {number} draws of q is NaN{reason}: they have no weight"
        )
    return positions, LogWeights(values)


def _kernel(latent: Target, plan: Plan) -> Kernel:
    flow = latent.start_flow
    assert flow is not None  # q makes it one
    jumps = IndependenceMetropolis(flow, latent, num_jumps=plan.num_jumps)
    if plan.method == "independence":
        return jumps
    return Cycle(HMC(latent, num_steps=LEAPFROGS, small_steps=SMALL_STEPS), jumps)


def _trial(
    kernel: Kernel,
    plan: Plan,
    starts: Mapping[str, Tensor],
    seed: int,
    progress: bool,
    record: Record | None,
    called: tuple[tuple[Any, ...], dict[str, Any]],
) -> VectorizedMCMC:
    """Warm-up of cycles, and the steps after it by which they are judged."""
    trial = VectorizedMCMC(
        kernel,
        TRIAL_STEPS,
        plan.warmup_steps,
        plan.num_chains,
        starts,
        seed=seed,
        progress=progress,
        record=record and replace(record, folder=Path(record.folder) / "warm-up"),
    )
    with stage("trial"):
        trial.run(*called[0], **called[1])
    if trial.interrupted:
        raise KeyboardInterrupt
    return trial


def _record_after_trial(record: Record | None) -> Record | None:
    """The record, to be resumed only where there is more than the trial."""
    if record is None or not record.resume:
        return record
    folder = Path(record.folder)
    return replace(
        record,
        resume=processes().broadcast_from_first(lambda: any(folder.glob("*.pt"))),
    )


def _repeats(trial: VectorizedMCMC, weights: LogWeights) -> tuple[int, float]:
    """How often a draw repeats the cycle, and an autocorrelation time in draws.

    As seldom as leaves the slowest coordinate of the trial ``LOCAL_TIME``. A short trial does not
    see what is seldom visited: a small effective fraction of q's draws asks for more, with a heavy
    tail for six at least and for chains as long as the plan's. The time is otherwise the trial's.
    """
    positions = trial.positions
    some = torch.linspace(0, positions.shape[-1] - 1, TRIAL_SITES).long().unique()
    effective = (
        summarise_field(positions[..., some].double(), TRIAL_SITES).figures["ess_bulk"].min()
    )
    time = float(positions[..., 0].numel() / effective)
    if not time > 0:  # NaN where nothing moved
        time = MOST_ASKED * LOCAL_TIME
    asked = min(MOST_ASKED, max(1, math.ceil(time / LOCAL_TIME - SLACK)))
    if weights.pareto_k > HEAVY_K and weights.ess < FAIR:
        return max(2 * asked, MOST_ASKED), LOCAL_TIME
    return max(asked, min(MOST_ASKED, math.ceil(FAIR / weights.ess))), time / asked


def _starts(positions: Tensor, number: int) -> Tensor:
    """So many starts ``(number, dim)`` of a run's positions ``(chains, steps, dim)``.

    The last ones first, then those of earlier steps, far apart.
    """
    chains, steps = positions.shape[:2]
    rounds = -(-number // chains)
    back = torch.arange(rounds) * (steps // rounds)
    return positions[:, steps - 1 - back].transpose(0, 1).flatten(0, 1)[:number]
