# SPDX-License-Identifier: Apache-2.0
"""The choice of a sampler by the weights of a flow's draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pyro_neuralrg.arguments import check_choice, check_integer
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.weights import FINITE_VARIANCE_K, HEAVY_PARETO_K

METHODS = ("independence", "cycle", "annealing")
MAX_CHAINS = 256  # of jumps: as many fields make a flow's pass as cheap as it becomes
LOCAL_CHAINS = 64  # with gradients
MIN_CHAINS = 4
TIMES_PER_CHAIN = 300  # autocorrelation times
"""R-hat of chains of n times, halved, is 1 + 1 / n; 150 left the worst of 65 sites at 1.01."""

LOCAL_TIME = 3.0  # of draws by cycles
MAX_JUMP_TIME = 3.0  # jumps; with longer ones local moves go with them
EVEN, NEARLY_EVEN = 0.9, 0.8
"""Effective fractions from which on tails do not matter, or not those of a finite variance: at 0.85
and a k-hat of 0.41 (Ising, 16 x 16) 100,000 draws by jumps alone had R-hat 1.0007, the right mean,
and eight times as many effective ones a second as cycles."""
JUMPS_PER_TIME, MAX_JUMPS = 0.25, 32  # of one step: a quarter of the time, at most 32
MIN_EFFECTIVE = 10.0  # of the pilot's draws, the heaviest cut; with fewer jumps stand still
LOCAL_WARMUP = 150  # of local moves, whose step size is to be found
STEPS_TO_FORGET = 5  # warm-up of jumps, in autocorrelation times


class JumpFigures(NamedTuple):
    """Figures of stationary chains of independence Metropolis, from the weights alone.

    Attributes:
        acceptance: mean acceptance probability.
        time: integrated autocorrelation time in steps, of an observable that the weights say
            nothing of.
    """

    acceptance: float
    time: float


class Plan(NamedTuple):
    """A sampler, why it was chosen, and how much of it."""

    method: str
    reason: str
    num_chains: int
    num_samples: int
    warmup_steps: int
    num_jumps: int  # of each step


def jump_figures(weights: LogWeights) -> JumpFigures:
    r"""Acceptance and autocorrelation time of chains whose proposals have these weights.

    A chain at weight w rejects with probability :math:`\lambda(w) = 1 - E[\min(1, w' / w)]`, which
    is also the factor by which it forgets: the time is :math:`E[(1 + \lambda) / (1 - \lambda)]`
    over the target.

    References:
        Liu, Statistics and Computing 6, 113 (1996).

    Example:
        >>> jump_figures(LogWeights(torch.zeros(10)))
        JumpFigures(acceptance=1.0, time=1.0)
    """
    w = (weights.values - weights.values.max()).exp().sort().values
    w = w[w > 0]
    above = torch.arange(len(w) - 1, -1, -1, dtype=w.dtype)
    accepted = ((w.cumsum(0) / w + above) / len(weights)).clamp(max=1.0)
    share = w / w.sum()
    time = (share * (2.0 - accepted) / accepted).sum()
    return JumpFigures(float((share * accepted).sum()), float(time))


def truncated(weights: LogWeights) -> LogWeights:
    """The weights, none above the root of their number times their mean: one does not decide.

    References:
        Ionides, Journal of Computational and Graphical Statistics 17, 295 (2008).
    """
    largest = weights.log_mean.value + 0.5 * math.log(len(weights))
    return LogWeights(weights.values.clamp(max=largest))


def choose(
    weights: LogWeights,
    num_draws: int,
    num_chains: int | None = None,
    method: str | None = None,
    chains_only: bool = False,
    multiple: int = 1,
) -> Plan:
    """The sampler for a flow whose draws have these weights.

    Args:
        weights: of a pilot of independent draws.
        num_draws: wanted of all chains together; rounded up to a multiple of the chains.
        num_chains: of them, or None.
        method: one of ``METHODS`` where the choice is the user's.
        chains_only: weighted draws are not wanted.
        multiple: the chains are to be one of it.
    """
    jumps, effective = jump_figures(weights), weights.ess * len(weights)
    light = FINITE_VARIANCE_K if weights.ess >= NEARLY_EVEN else HEAVY_PARETO_K
    heavy = weights.pareto_k > light and weights.ess < EVEN  # a pilot may not show it
    quality = f"{effective:.0f} of {len(weights)} draws of the flow are effective"
    if method is not None:
        reason = f"as asked for; {quality}"
        method = check_choice("method", method, METHODS)
    elif jumps.time <= MAX_JUMP_TIME and not heavy:
        method = "independence"
        reason = f"{quality}, and chains that jump between them accept {jumps.acceptance:.0%}"
    elif chains_only or truncated(weights).ess * len(weights) >= MIN_EFFECTIVE:
        method = "cycle"
        why = f"with a heavy tail (Pareto k-hat {weights.pareto_k:.2f})" if heavy else "too few"
        reason = f"{quality}, {why} for jumps alone: local moves in latent space go with them"
    else:
        method = "annealing"
        reason = f"{quality}: too few to jump between, so particles are annealed to the target"
    num_jumps = min(MAX_JUMPS, max(1, round(JUMPS_PER_TIME * jumps.time)))
    if num_chains is None:
        if method == "independence":
            num_chains = chains_for(num_draws, jumps.time / num_jumps, multiple, MAX_CHAINS)
        else:
            num_chains = chains_for(num_draws, LOCAL_TIME, multiple)
    chains = check_integer("num_chains", num_chains, 1)
    warmup = (
        LOCAL_WARMUP if method == "cycle" else 1 + int(STEPS_TO_FORGET * jumps.time / num_jumps)
    )
    return Plan(method, reason, chains, -(-num_draws // chains), warmup, num_jumps)


def chains_for(num_draws: int, time: float, multiple: int, most: int = LOCAL_CHAINS) -> int:
    """As many chains as leave each 300 autocorrelation times of its share of the draws.

    At least 4, at most ``most``, rounded up to a multiple of ``multiple``.
    """
    number = max(MIN_CHAINS, min(most, int(num_draws / (TIMES_PER_CHAIN * max(1.0, time)))))
    return -(-number // multiple) * multiple
