# SPDX-License-Identifier: Apache-2.0
"""One call for the evidence of a model, :func:`evidence`, by the method that can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyro_neuralrg.arguments import LARGEST_SEED, check_choice, check_integer, check_type
from pyro_neuralrg.free_energy import Annealing, anneal
from pyro_neuralrg.free_energy.annealing import NUM_GROUPS
from pyro_neuralrg.free_energy.bridge import Bridge, bridge, effective
from pyro_neuralrg.free_energy.importance import without_undefined
from pyro_neuralrg.free_energy.reweighting import weighted_mean
from pyro_neuralrg.mcmc.target import Target, frozen
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.sampling.choice import LOCAL_CHAINS, MIN_CHAINS
from pyro_neuralrg.sampling.draws import latent_target, log_density, sample, weighted_positions
from pyro_neuralrg.statistics import Estimate, LogWeights, summarise
from pyro_neuralrg.statistics.weights import FINITE_VARIANCE_K, MIN_EFFECTIVE_SAMPLES

EVIDENCE_METHODS = ("importance", "bridge", "annealing")
MIN_DRAWS_OF_Q = 1000  # with fewer a k-hat tells little
NEAR = 5e-3  # nats, the gap of a q whose weights are believed
ALIKE = 1e-6  # half a variance of log-weights that are as good as equal
MIN_OVERLAP, WORST_RHAT = 50.0, 1.05  # of a bridge
DRAWS_PER_ENTRY = 10  # effective ones, for each row of a covariance that is fitted
DRAWS_PER_PARTICLE = 8
WELL_COVERED, DRAWS_PER_CHAIN = 0.05, 150
"""Effective fraction of q's draws from which on chains of the target are many and short: a gradient
of 64 takes as long as one of 11 (16 ms, 50 unknowns). Chains of 157 draws and an autocorrelation
time of 3 have R-hat 1.013, of 32 draws 1.064."""
COARSE, FINE = 0.97, 0.99  # conditional ESS of two annealings
"""By a guide that left out a corner one alone was off by four of its errors, the other by two."""
MIN_DRAWS_PER_CHAIN = 8  # given; an R-hat of the halves of a half takes four
POSTERIOR = "draws (chains, draws) + site shape by site, as get_samples(group_by_chain=True)"


class _TargetDraws(NamedTuple):
    """Draws of the target: positions ``(chains, draws, dim)`` in the latent space, and ln pi."""

    positions: Tensor
    log_pi: Tensor

    def log_weights(self, latent: Target) -> Tensor:
        """ln pi - ln q, float64, ``(chains, draws)``."""
        return self.log_pi - log_density(latent, self.positions).to(self.log_pi.device)


@dataclass(frozen=True, repr=False)
class Evidence(Estimate[float]):
    """An estimate of ln Z, of a model its evidence; all in nats.

    Attributes:
        method: "importance", "bridge" or "annealing".
        reason: why this one, in a sentence.
        lower: mean of the log-weights over q, the ELBO, in expectation at most ln Z.
        upper: their mean over the target, in expectation at least ln Z: of its draws, of the
            weighted ones of annealing, or of those of q by their weights.
        weights: of the draws of q.
    """

    value: float
    standard_error: float
    method: str
    reason: str
    lower: Estimate
    upper: Estimate
    weights: LogWeights

    def __repr__(self) -> str:
        bounds = f"{self.lower} <= ln Z <= {self.upper}"
        return f"Evidence(ln Z = {super().__str__()}, {bounds}, by {self.method}: {self.reason})"

    def __str__(self) -> str:
        return f"{super().__str__()} by {self.method}"

    def _repr_html_(self) -> str:
        rows = {"ln Z": super().__str__(), "at least": self.lower, "at most": self.upper}
        return html_table("Evidence", {**rows, "by": self.method, "because": self.reason})


def evidence(
    target: Any,
    q: Any,
    num_draws: int = 10_000,
    *,
    posterior: Mapping[str, Tensor] | None = None,
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Evidence:
    r"""Estimate ln Z, of a Pyro model its evidence ln p(data), with an error that covers.

    The log-weights :math:`l = \ln\pi - \ln q` of draws of q decide how:

    * "importance": the mean of Pareto-smoothed weights, where k-hat is at most 0.5 and the gap of
      the ELBO to that estimate, like half the variance of l, which a normal l has as its gap, at
      most 0.005: of a larger one, what q seldom draws may be missed unseen, and the estimate
      drifts with the number of draws;
    * "bridge" sampling otherwise, between draws of q and of the target, by :func:`sample` if they
      are not given; where these overlap in fewer than 50 effective draws, a normal fitted to the
      first half of each chain takes the place of q;
    * "annealing" of particles from q to the target, where that overlaps no better, or the chains
      disagree (R-hat above 1.05): twice, the second time in smaller steps. By how much the two
      differ is part of the error, and by how much more than its own error the bridge does: chains
      may have been where no particle was.

    Everything is computed in the latent space of q, where both densities are known. With an
    improper prior, as a GaussianMarkovField without a mass is, ln Z has a constant of its own: of
    two such models it compares only those with the same one.

    Args:
        target: a Pyro model, a LatticePotential or a batched energy.
        q: of a model an ``AutoContinuous`` guide, such as ``AutoHierarchicalFlow``; else a flow or
            FlowGuide; as of :func:`sample`.
        num_draws: of q, at least 1000, and as many of the target; an eighth as many particles, in
            each of two runs.
        posterior: draws of the target for a bridge, ``(chains, draws) + site shape`` by site, as
            ``get_samples(group_by_chain=True)`` gives them, here and in Pyro; at least 8 a chain.
        model_args: of the model.
        model_kwargs: likewise by keyword.
        method: one of the three, where the choice is not to be made here.
        seed: of all random numbers; None draws one from torch's generator.
        progress: show progress bars.

    Raises:
        TypeError, ValueError: naming the argument, of a posterior also the site.

    Warns:
        UserWarning: if a method was asked for that is not to be believed here.

    References:
        Vehtari et al., JMLR 25 (2024), smoothing; Gronau et al., J. Math. Psychology 81, 80 (2017),
        bridges; Grosse, Ghahramani, Adams (2015), bounds from both sides.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoDiagonalNormal
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))
        >>> guide = AutoDiagonalNormal(model, init_scale=0.6)
        >>> _ = guide()
        >>> found = evidence(model, guide, 2000, seed=0, progress=False)
        >>> exact = float(dist.Normal(torch.zeros(2), 2.0**0.5).log_prob(torch.ones(2)).sum())
        >>> abs(found.value - exact) < 4 * found.standard_error
        True
    """
    num_draws = check_integer("num_draws", num_draws, MIN_DRAWS_OF_Q)
    if method is not None:
        check_choice("method", method, EVIDENCE_METHODS)
    if posterior is not None and method in ("importance", "annealing"):
        raise ValueError(
            f"posterior is given, and method is {method!r}, which has no use of it; accepted with "
            "draws of the target: 'bridge', None"
        )
    latent = latent_target(target, q, model_args, model_kwargs)
    if seed is None:
        seed = int(processes().broadcast_from_first(lambda: int(torch.randint(2**31, ()))))
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    generator = torch.Generator(latent.device).manual_seed(seed)
    with frozen(latent.modules()):
        draws = None if posterior is None else _given_draws(latent, posterior)
        weights = weighted_positions(latent, num_draws, generator)[1]
        seed = int(torch.randint(2**31, (), generator=generator, device=latent.device))
        options: Any = {"seed": seed, "progress": progress}  # not the same draws of q again
        doubt = doubt_of(weights)
        if method == "importance" or (method is None and doubt is None and draws is None):
            return _by_importance(weights, doubt)
        why = "as asked for" if method else (doubt or "draws of the target are given")
        found: Bridge | None = None
        if method != "annealing":
            if draws is None:
                # jumps alone stick, seldom and long, where weights have the tail that leads here
                given: Any = {"model_args": model_args, "model_kwargs": model_kwargs, **options}
                given["num_chains"] = _number_of_chains(weights, num_draws)
                run: Any = sample(target, q, num_draws, method="cycle", **given).run
                draws = _TargetDraws(run.positions, run.sample_stats["lp"])
            found, how, poor = _bridged(latent, weights, draws, generator)
            why = f"{why}; {how}"
            if method == "bridge" or poor is None:
                _warn(poor)
                all_draws = summarise(draws.log_weights(latent))
                upper = Estimate(all_draws.mean, all_draws.mcse)
                return _result(found, "bridge", why, weights, upper)
            why = f"{why}, where {poor}"
        number = -(-num_draws // DRAWS_PER_PARTICLE // NUM_GROUPS) * NUM_GROUPS
        coarse, fine = (
            anneal(latent, num_particles=number, conditional_ess=fraction, **options)
            for fraction in (COARSE, FINE)
        )
        return _by_annealing(latent, weights, coarse, fine, why, found)


def _number_of_chains(weights: LogWeights, num_draws: int) -> int | None:
    """So many short chains of the target where q covers it; None for those of :func:`sample`."""
    world = processes()
    if not world.broadcast_from_first(lambda: weights.ess >= WELL_COVERED):
        return None
    number = max(MIN_CHAINS, min(LOCAL_CHAINS, num_draws // DRAWS_PER_CHAIN))
    return -(-number // world.size) * world.size


def _result(
    estimate: Estimate, method: str, reason: str, weights: LogWeights, upper: Estimate
) -> Evidence:
    return Evidence(*estimate, method, reason, weights.mean_log, upper, weights)  # type: ignore[call-arg]


def doubt_of(weights: LogWeights) -> str | None:
    """Why the mean of these weights is not to be believed, if so.

    A light tail among the draws is not enough: with a normal guide of a normal mean and precision,
    4000 draws with a k-hat of 0.2 and a gap of 0.1 missed 0.018 nats, three errors, in tails that
    none of them saw. What is missed is less than the gap.
    """
    gap, half = _gaps(weights)
    if half < ALIKE:
        return None
    if weights.pareto_k > FINITE_VARIANCE_K:
        return f"the weights of q have a heavy tail (Pareto k-hat {weights.pareto_k:.2f})"
    if not max(gap, half) <= NEAR:
        return (
            f"q is not near enough for its weights alone: the gap of the ELBO to their estimate is "
            f"{gap:.2g}, half the variance of their logarithms {half:.2g}"
        )
    return None


def _gaps(weights: LogWeights) -> tuple[float, float]:
    """Gap of the ELBO to the estimate, and half the variance of ln w, equal of normal ln w."""
    return weights.log_mean.value - weights.mean_log.value, 0.5 * float(weights.values.var())


def _warn(poor: str | None) -> None:
    if poor is not None:
        warn_user(
            f"{poor}: neither this evidence nor its error can be trusted; train longer, or use "
            "method=None, which goes on to bridge sampling or annealing"
        )


def _by_importance(weights: LogWeights, doubt: str | None) -> Evidence:
    _warn(doubt)
    gap, half = _gaps(weights)
    smoothed = weights.smoothed
    errors = [w.log_mean_with_tail.standard_error for w in (smoothed, weights)]
    found = Estimate(smoothed.log_mean.value, max(errors))  # smoothing cuts the largest weights
    upper = _reweighted(smoothed.values, smoothed.values)
    if doubt is not None:
        reason = f"as asked for, though {doubt}"
    elif half < ALIKE:  # a tail would be one of rounding
        found, reason = weights.log_mean, f"the weights of {len(weights)} draws of q are equal"
    else:
        reason = (
            f"the weights of {len(weights)} draws of q have no heavy tail (Pareto k-hat "
            f"{weights.pareto_k:.2f}), half the variance of their logarithms is {half:.2g} and the "
            f"gap of the ELBO {gap:.2g}"
        )
    return _result(found, "importance", reason, weights, upper)


def _by_annealing(
    latent: Target,
    weights: LogWeights,
    coarse: Annealing,
    run: Annealing,
    why: str,
    beside: Bridge | None = None,
) -> Evidence:
    """The finer run; what it differs by from the coarser one and a bridge counts as error."""
    try:
        particles = _given_draws(latent, {name: x.unsqueeze(0) for name, x in run.sites.items()})
        upper = _reweighted(particles.log_weights(latent)[0], run.log_weights, run.groups)
    except ValueError:  # of values that are rounded to the end of a support
        upper = Estimate(math.nan, math.nan)
    steps = f"{len(coarse.betas)} and over {len(run.betas)} temperatures"
    reason = f"{why}; {len(run.log_weights)} particles over {steps}"
    change, apart = run.free_energy - coarse.free_energy, 0.0
    if beside is not None and min(beside.from_q, beside.from_target) >= MIN_EFFECTIVE_SAMPLES:
        apart = max(0.0, abs(beside.value + run.free_energy) - beside.standard_error)
        reason = f"{reason}; {apart:.2g} nats farther from the bridge than its error"
    estimate = Estimate(-run.free_energy, math.hypot(run.standard_error, change, apart))
    return _result(estimate, "annealing", reason, weights, upper)


def _reweighted(values: Tensor, log_weights: Tensor, groups: int | None = None) -> Estimate:
    """Mean over the target; a value without weight does not matter."""
    values = values.masked_fill(log_weights == -math.inf, 0.0)
    value, error = weighted_mean(values, log_weights, groups=groups)
    return Estimate(float(value), float(error))


def _bridged(
    latent: Target, weights: LogWeights, draws: _TargetDraws, generator: torch.Generator
) -> tuple[Bridge, str, str | None]:
    """The bridge from q, or else from a normal that is fitted; its reason, and what is poor."""
    found = bridge(weights.values, draws.log_weights(latent))
    number, poor = draws.log_pi.numel(), _poor(found)
    reason = (
        f"{found.from_q:.0f} of {len(weights)} draws of q and {found.from_target:.0f} of {number} "
        "of the target overlap"
    )
    if poor is None or found.rhat > WORST_RHAT:
        return found, reason, poor
    found = _bridge_from_normal(latent, draws, len(weights), generator)
    reason = (
        f"{reason}, so that a normal fitted to half of these took the place of q: "
        f"{found.from_q:.0f} of its draws overlap with {found.from_target:.0f} of the other half"
    )
    return found, reason, _poor(found)


def _poor(found: Bridge) -> str | None:
    """Why a bridge is not to be believed, if so."""
    if found.rhat > WORST_RHAT:
        return f"chains of the target disagree (R-hat {found.rhat:.2f})"
    least = min(found.from_q, found.from_target)
    if not math.isfinite(found.standard_error):
        return "draws of the target are too few for an error"
    if least >= MIN_OVERLAP:
        return None
    return f"draws of q and of the target overlap in {least:.1f} effective ones only"


def _bridge_from_normal(
    latent: Target, draws: _TargetDraws, number: int, generator: torch.Generator
) -> Bridge:
    """The bridge from a normal in latent space that was fitted to the first half of each chain."""
    half = draws.log_pi.shape[1] // 2
    normal = _normal(draws.positions[:, :half].flatten(0, 1), effective(draws.log_pi[:, :half]))
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device=latent.device)))
        z = normal.sample((number,)).to(latent.dtype)
    of_normal = without_undefined(-latent.energy(z) - normal.log_prob(z.double()))
    log_q = normal.log_prob(draws.positions[:, half:].double())
    return bridge(of_normal, draws.log_pi[:, half:] - log_q.to(draws.log_pi.device))


def _normal(positions: Tensor, number: float) -> Distribution:
    """A normal of the mean and covariance of positions ``(n, dim)``, so many of them effective.

    Of the variances alone where they are too few for more.
    """
    positions = positions.double()
    mean = positions.mean(0)
    if number >= DRAWS_PER_ENTRY * len(mean):
        factor, failed = torch.linalg.cholesky_ex(torch.atleast_2d(positions.T.cov()))
        if not failed:
            return MultivariateNormal(mean, scale_tril=factor)
    return Independent(Normal(mean, positions.std(0)), 1)


def _given_draws(latent: Target, posterior: Mapping[str, Tensor]) -> _TargetDraws:
    """The draws ``(chains, draws) + site shape`` of each site, in latent space."""
    check_type("posterior", posterior, Mapping, POSTERIOR)
    draws = {name: torch.as_tensor(x) for name, x in posterior.items() if name not in latent.sites}
    batches = {tuple(x.shape[:2]) for x in draws.values()}
    if len(batches) != 1 or len(min(batches)) != 2:
        shapes = {name: tuple(x.shape) for name, x in draws.items()}
        raise ValueError(f"posterior has the shapes {shapes}; accepted: {POSTERIOR}")
    (batch,) = batches
    if batch[1] < MIN_DRAWS_PER_CHAIN:
        raise ValueError(
            f"posterior has {batch[1]} draws a chain; accepted: at least {MIN_DRAWS_PER_CHAIN}"
        )
    try:
        values = latent.unconstrained({name: x.flatten(0, 1) for name, x in draws.items()})
        positions = latent.pack(values, math.prod(batch))
    except ValueError as error:
        raise ValueError(str(error).replace("initial_params", "posterior")) from None
    for name, value in values.items():
        chains = value.unflatten(0, batch)
        if value.numel() and bool((chains == chains[:, :1]).all()):
            raise ValueError(
                f"posterior[{name!r}] is the same in all draws of a chain; accepted: those of "
                "chains that move"
            )
    found = _TargetDraws(positions.view(*batch, -1), -latent.energy(positions).view(batch))
    bad = int((~found.log_weights(latent).isfinite()).sum())
    if bad:
        raise ValueError(
            f"posterior has {bad} of {len(positions)} draws at which the target or q has no finite "
            "density; accepted: draws of the target"
        )
    return found
