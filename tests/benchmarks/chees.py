# SPDX-License-Identifier: Apache-2.0
"""The trajectory length that ChEES-HMC finds, against the best fixed one.

    python -m tests.benchmarks.chees [TARGET ...] [--warmup 500] [--seed 0]

Chains start from white noise, options are the defaults. Each target has two lines: ChEES-HMC, and
the best of HMC with fixed numbers of leapfrog steps (jittered), which go on from the last draws
with the same step size and mass and half as many gradients. Shown are the worst R-hat over the
target's moments, the largest distance from an exact moment in standard errors, the gradients of
each chain, and the gradients for one effective draw of the slowest moment; last, by how much
ChEES-HMC needs more. Of the Ising model at Tc the moment is the squared magnetisation;
it takes ``--chains 16``, for R-hat is about sqrt(1 + 2 chains / ESS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg import HMC, ChEESHMC, IsingDual, VectorizedMCMC
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Table, parse
from tests.mcmc.registry import HARD_TARGETS

Moments = Mapping[str, tuple[Callable[[Tensor], Tensor], float]]
DRAWS = {
    "ill-conditioned": 500,
    "banana": 1000,
    "quartic ridge": 1000,
    "funnel": 1500,
    "ising": 25_000,
}
RELATIVE = (0.5, 1.0, 2.0)
"""Fixed numbers of leapfrog steps, in units of the mean number of ChEES-HMC."""


class Row(NamedTuple):
    """Figures of one run."""

    steps: float
    rhat: float
    error: float
    gradients: float
    for_each: float


def figures(mcmc: VectorizedMCMC, moments: Moments) -> Row:
    """Figures of a run by the moments that it observed."""
    found = {name: summarise(mcmc.observables[name]) for name in moments}
    gradients = mcmc.gradient_evaluations.draws
    errors = [abs(found[name].mean - moments[name][1]) / found[name].mcse for name in moments]
    return Row(
        float(mcmc.sample_stats["n_steps"].double().mean()),
        max(one.rhat for one in found.values()),
        max(errors),
        gradients / mcmc.num_chains,
        gradients / min(one.ess_bulk for one in found.values()),
    )


def problem(name: str) -> tuple[ChEESHMC, Moments]:
    """The kernel as it is by default, and the target's moments."""
    if name == "ising":
        model = IsingDual((16, 16))
        exact = model.spins.structure_factor()
        return ChEESHMC(model), {"S": (model.observables()["structure_factor"], exact)}
    target = HARD_TARGETS[name]()
    return ChEESHMC(target.energy, shape=target.shape), target.moments


def compare(name: str, table: Table, warmup: int, chains: int, seed: int) -> None:
    """Print the lines of one target."""
    kernel, moments = problem(name)
    options = {
        "observables": {moment: function for moment, (function, _) in moments.items()},
        "keep_draws": False,
        "progress": False,
        "seed": seed,
    }
    mcmc = VectorizedMCMC(kernel, DRAWS[name], warmup, chains, **options)
    mcmc.run()
    learned = figures(mcmc, moments)
    table.row(name, *learned)
    assert mcmc._state is not None
    start = mcmc.kernel.target.unpack(mcmc._state.chains.position)
    fixed = []
    for steps in sorted({max(1, round(relative * learned.steps)) for relative in RELATIVE}):
        tuned = {"step_size": mcmc.kernel.step_size, "inverse_mass": mcmc.kernel.inverse_mass}
        other = HMC(kernel.target, num_steps=steps, **tuned)
        draws = max(50, int(learned.gradients / steps / 2))
        run = VectorizedMCMC(other, draws, 0, chains, start, **options)
        run.run()
        fixed.append(figures(run, moments))
    best = min((one for one in fixed if math.isfinite(one.for_each)), key=lambda one: one.for_each)
    table.row("  best fixed", *best, learned.for_each / best.for_each)


def main() -> None:
    """Print the table."""
    torch.set_default_dtype(torch.float64)
    targets = {"nargs": "*", "default": [], "choices": [*DRAWS, []], "help": "all if none is named"}
    options = parse(__doc__, ("targets", targets), warmup=500, chains=64, seed=0, threads=1)
    columns = {
        "leapfrogs": "10.1f", "R-hat": "8.3f", "errors": "8.2f", "gradients": "11.0f",
        "per draw": "10.1f", "ratio": "8.2f",
    }  # fmt: skip
    table = Table(18, columns)
    for name in options.targets or DRAWS:
        torch.manual_seed(options.seed)
        compare(name, table, options.warmup, options.chains, options.seed)


if __name__ == "__main__":
    main()
