# SPDX-License-Identifier: Apache-2.0
"""Samplers of one target, in the latent space of one frozen flow and in physical space.

    python -m tests.benchmarks.sampling [--flow PATH] [--steps 150] [--cold]

The dual Ising model at Tc. The flow is loaded, or trained for so many steps. The table shows bulk
effective samples of the squared magnetisation for each 1000 gradient evaluations (a jump counts as
one) and per second, without and with the time of training; warm-up is left out of the former and
counted in the latter. Pyro's NUTS runs one chain, whose figures are those of any number of chains
one after another.

With ``--cold``, many chains start from standard normals in physical space (latent ones from their
images) with step sizes from the table, and the gradient evaluations are counted after which the
average of the structure factor over chains stays within 2 % (latent) or 20 % (physical) of the
exact value.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg import HMC, ChEESHMC, Cycle, IndependenceMetropolis, IsingDual
from pyro_neuralrg.mcmc import MALA, Kernel, RandomWalkMetropolis
from pyro_neuralrg.statistics import Summary, summarise
from tests.benchmarks.harness import Table, gap_of, parse, pyros_nuts, timed, trained_flow, watch

COLUMNS = {
    "step": "7.3f", "length": "8.2f", "accept": "8.2f", "S": "9.4f", "MCSE": "9.4f",
    "R-hat": "8.3f", "ESS": "8.0f", "/1000 grad": "12.3g", "/s": "8.1f", "/s, all": "9.2f",
}  # fmt: skip


class Row(NamedTuple):
    """One sampler's figures."""

    step_size: float
    length: float
    acceptance: float
    found: Summary
    gradients: float
    seconds: float
    warmup_seconds: float


def run(kernel: Kernel, target: IsingDual, options: Any) -> Row:
    """Run one of our samplers."""
    structure_factor = target.observables()["structure_factor"]
    mcmc, found = watch(kernel, structure_factor, options.draws, options.warmup, options.chains)
    first = next(iter(mcmc.adapted.values()))
    return Row(
        first["step_size"] or math.nan,
        first["trajectory_length"] or math.nan,
        float(mcmc.sample_stats["acceptance_rate"].mean()),
        found,
        mcmc.gradient_evaluations.draws,
        mcmc.seconds.draws,
        mcmc.seconds.warmup,
    )


def run_pyros_nuts(target: IsingDual, options: Any) -> Row:
    """Pyro's NUTS, one chain in physical space, its gradients counted by its energy's calls."""
    began = time.perf_counter()
    x, kernel, calls = pyros_nuts(target.potential_fn, target.shape, options.draws, options.warmup)
    ended, warm = time.perf_counter(), calls.times[0]
    found = summarise(target.observables()["structure_factor"](x))
    gradients = calls.calls - calls.marks[0]
    return Row(kernel.step_size, math.nan, math.nan, found, gradients, ended - warm, warm - began)


def show(table: Table, name: str, row: Row, training: float) -> None:
    """Print one line."""
    found = row.found
    table.row(
        name, row.step_size, row.length, row.acceptance, found.mean, found.mcse, found.rhat,
        found.ess_bulk, 1000 * found.ess_bulk / row.gradients, found.ess_bulk / row.seconds,
        found.ess_bulk / (row.seconds + row.warmup_seconds + training),
    )  # fmt: skip


def approach(kernel: Kernel, target: IsingDual, chains: int, gradients: int) -> Any:
    """Averages over chains of the structure factor from a cold start, and gradients spent."""
    generator = torch.Generator().manual_seed(1)
    space = kernel.target.in_batches(1024)
    kernel = kernel.on(space)
    state = kernel.init(space.initial(chains, generator, "prior"))
    structure_factor = target.observables()["structure_factor"]

    def average() -> Tensor:
        parts = state.position.split(1024)
        values = [structure_factor(space.physical(part)["x"]) for part in parts]
        return torch.cat(values).double().mean()

    spent, averages = [0], [average()]
    while spent[-1] < gradients:
        state, info = kernel.step(state, generator)
        spent.append(spent[-1] + info.gradient_evaluations)
        averages.append(average())
    return spent, torch.stack(averages)


def stays_within(spent: list[int], averages: Tensor, exact: float, fraction: float) -> str:
    """The gradients after which all averages are within a fraction of the exact value."""
    outside = ((averages / exact - 1).abs() > fraction).nonzero().flatten()
    first = 0 if len(outside) == 0 else int(outside[-1]) + 1
    return f"{spent[first]}" if first < len(spent) else f"not within {spent[-1]}"


Kernels = dict[str, Callable[[], Kernel]]


def kernels(target: IsingDual, flow: Any) -> tuple[Kernels, Kernels]:
    """In the latent space of the flow, and in physical space."""
    latent: Kernels = {
        "latent ChEES": lambda: ChEESHMC(target, flow=flow),
        "latent ChEES + jump": lambda: Cycle(
            latent["latent ChEES"](), IndependenceMetropolis(flow)
        ),
        "latent HMC, 5 leapfrogs": lambda: HMC(target, num_steps=5, jitter=0.5, flow=flow),
        "jumps alone": lambda: IndependenceMetropolis(flow, HMC(target, flow=flow).target),
    }
    physical: Kernels = {
        "physical ChEES": lambda: ChEESHMC(target),
        "physical HMC, 20 leapfrogs": lambda: HMC(target, num_steps=20, jitter=0.5),
        "physical MALA": lambda: MALA(target),
        "physical random walk": lambda: RandomWalkMetropolis(target),
    }
    return latent, physical


def from_a_cold_start(
    target: IsingDual, makers: Kernels, rows: dict[str, Row], options: Any
) -> None:
    """Print after how many gradients each sampler stays close to the exact value."""
    exact = target.spins.structure_factor()
    print("from a cold start, gradient evaluations of each chain until the average stays close")
    for name, fraction, gradients in (
        ("latent ChEES", 0.02, options.cold_gradients),
        ("latent ChEES + jump", 0.02, options.cold_gradients),
        ("physical ChEES", 0.20, options.cold_physical),
    ):
        kernel = makers[name]()
        members = kernel.members
        for member, tuned in members.items():
            if tuned.step_size is not None:
                members[member] = tuned.tuned(
                    step_size=rows[name].step_size, trajectory_length=rows[name].length
                )
        spent, averages = approach(
            kernel.with_members(members), target, options.cold_chains, gradients
        )
        print(
            f"{name:<26}within {fraction:.0%}: {stays_within(spent, averages, exact, fraction)}; "
            f"start {float(averages[0]):.3f}, end {float(averages[-1]):.4f}"
        )


def main() -> None:
    options = parse(
        __doc__,
        flow=({}, "a file of pyro_neuralrg.save"),
        side=16,
        steps=(150, "of training, without --flow"),
        chains=64,
        draws=300,
        warmup=200,
        threads=torch.get_num_threads(),
        cold=(False, "the approach from a cold start, too"),
        cold_chains=4096,
        cold_gradients=40,
        cold_physical=4000,
    )
    target = IsingDual((options.side, options.side))
    known = (target, options.flow, options.steps, 0)
    flow, training = timed(lambda: trained_flow(*known), time.perf_counter)
    gap, quality = gap_of(target, flow, 4000, 0)
    exact = target.spins.structure_factor()
    print(
        f"{options.side} x {options.side}, flow of gap {gap:.2f} +- {quality.variational_se:.2f} "
        f"nats, importance ESS {quality.ess:.1%}, "
        + (f"trained in {training:.0f} s" if not options.flow else "training not timed")
    )
    print(f"exact S {exact:.6f}; {options.chains} chains, {options.draws} draws")
    table = Table(26, COLUMNS, "sampler")
    latent, physical = kernels(target, flow)
    rows: dict[str, Row] = {}
    for name, make in (latent | physical).items():
        rows[name] = run(make(), target, options)
        show(table, name, rows[name], training if name in latent else 0.0)
    show(table, "physical NUTS of Pyro", run_pyros_nuts(target, options), 0.0)
    if options.cold:
        from_a_cold_start(target, latent | physical, rows, options)


if __name__ == "__main__":
    main()
