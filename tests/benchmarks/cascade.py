# SPDX-License-Identifier: Apache-2.0
"""The Ising dual at Tc on 64 x 64 from smaller lattices, against exact values.

    python -m tests.benchmarks.cascade --alone

Flows are trained from the smallest lattice on, each grown from the one before. Then ``cascade``
carries fields from lattice to lattice. For each level: the free energy and the uniform structure
factor less the exact values, these differences in standard errors, and what it took, in gradient
evaluations per field and site of that lattice and in CPU seconds. Below: the last lattice alone, by
``anneal`` from its flow with as many particles, and by importance weights of draws of it that take
about as long.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import IsingDual, Schedule, anneal, expectations, fit, load
from pyro_neuralrg.free_energy import Annealing, cascade, reweight
from tests.benchmarks.harness import Table, gap_of, parse, timed

COLUMNS = {
    "-ln Z off": "11.4f",
    "+-": "8.4f",
    "errors": "8.2f",
    "S": "9.4f",
    "+-  ": "8.4f",
    "exact": "8.4f",
    "errors ": "8.2f",
    "ESS": "7.2f",
    "stages": "8.0f",
    "jumps": "7.2f",
    "work": "7.1f",
    "CPU s": "8.0f",
}


def figures(target: IsingDual, found: Annealing, seconds: float) -> list[float]:
    """A line of the table."""
    values = target.observables()["structure_factor"](found.fields)
    factor = reweight(values, found.log_weights, groups=found.groups)
    line = compared(target, found.free_energy, found.standard_error, factor)
    jumps = sum(found.jump_acceptance) / len(found.jump_acceptance)
    work = found.gradient_evaluations / len(found.log_weights)
    return [*line, factor.ess, len(found.betas) - 1, jumps, work, seconds]


def compared(target: IsingDual, energy: float, error: float, factor: Any) -> list[float]:
    """Free energy and structure factor against the exact ones."""
    off, exact = energy + target.log_partition(), target.spins.structure_factor()
    value, its_error = float(factor.value), float(factor.standard_error)
    return [off, error, off / error, value, its_error, exact, (value - exact) / its_error]


def trained(target: IsingDual, batch: int, before: list[Any], options: Any) -> Any:
    """The flow of a file, or one grown from that before and trained."""
    if options.flows is not None:
        return load(options.flows / f"flow{target.shape[0]}.pt").flow
    schedule = Schedule(cooling=None) if before else None
    flow = before[-1].grow(target.spectrum) if before else target.flow(dtype=torch.float32)
    settings = {"steps": options.steps, "batch": batch, "seed": options.seed, "progress": False}
    _, seconds = timed(lambda: fit(target, flow, schedule=schedule, **settings))
    print(f"{target.shape}: {options.steps} steps of {batch}, CPU s {seconds:.0f}")
    return flow


def main() -> None:
    options = parse(
        __doc__,
        sides=[16, 32, 64],
        steps=(300, "of each training"),
        batches=[256, 128, 64],
        particles=512,
        leapfrogs=(5, "of a move"),
        conditional_ess=0.9,
        seed=0,
        threads=1,
        alone=(False, "also the last lattice alone"),
        flows=({"type": Path}, "folder with flow16.pt, ..., instead of trainings"),
    )
    torch.manual_seed(options.seed)
    targets = [IsingDual((side, side)) for side in options.sides]
    flows: list[Any] = []
    for target, batch in zip(targets, options.batches, strict=True):
        flows.append(trained(target, batch, flows, options))
        gap, found = gap_of(target, flows[-1], 4000, options.seed + 1, 250)
        print(f"{target.shape}: gap {gap:.3f}, ESS {found.ess:.3f}")
    table = Table(22, COLUMNS)
    common = {"num_particles": options.particles, "num_steps": options.leapfrogs}
    common |= {"conditional_ess": options.conditional_ess, "seed": options.seed}
    result, seconds = timed(lambda: cascade(targets, flows, progress=False, **common))
    total = sum(
        level.gradient_evaluations * math.prod(level.fields.shape[1:]) for level in result.levels
    )
    for target, level in zip(targets, result.levels, strict=True):
        share = level.gradient_evaluations * math.prod(target.shape) / total
        table.row(f"cascade {target.shape}", *figures(target, level, seconds * share))
    print(f"all levels: {result.work:.1f} evaluations per site and field, CPU s {seconds:.0f}")
    if options.alone:
        target, flow = targets[-1], flows[-1]
        single, seconds = timed(lambda: anneal(target, flow, progress=False, **common))
        table.row(f"alone {target.shape}", *figures(target, single, seconds))
        names = {"S": target.observables()["structure_factor"]}
        draws = int(4 * single.gradient_evaluations)
        plain, seconds = timed(lambda: expectations(target, flow, names, draws, batch_size=250))
        energy, factor = plain.free_energy, plain.observables["S"]
        line = compared(target, energy.importance, energy.importance_se, factor)
        table.row("weights alone", *line, factor.ess, note=f"{draws} draws, CPU s {seconds:.0f}")


if __name__ == "__main__":
    main()
