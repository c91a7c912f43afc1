# Copyright the pyro_neuralrg contributors.
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

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyro_neuralrg import (
    HMC,
    ChEESHMC,
    Cycle,
    IndependenceMetropolis,
    IsingDual,
    VectorizedMCMC,
    fit,
    load,
)
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.mcmc import MALA, Kernel, RandomWalkMetropolis
from pyro_neuralrg.observables import structure_factor
from pyro_neuralrg.statistics import Summary, summarise

HEADINGS = (
    f"{'sampler':<26}{'step':>7}{'length':>8}{'accept':>8}{'S':>9}{'MCSE':>9}{'R-hat':>8}{'ESS':>8}"
    f"{'/1000 grad':>12}{'/s':>8}{'/s, all':>9}"
)


class Row(NamedTuple):
    """One sampler's figures."""

    step_size: float
    length: float
    acceptance: float
    found: Summary
    gradients: float
    seconds: float
    warmup_seconds: float


def run(kernel: Kernel, target: IsingDual, draws: int, warmup: int, chains: int) -> Row:
    """Run one of our samplers."""
    mcmc = VectorizedMCMC(
        kernel,
        draws,
        warmup,
        chains,
        seed=0,
        progress=False,
        observables={"s": lambda x: structure_factor(x, target.shape)},
        keep_draws=False,
    )
    mcmc.run()
    first = next(iter(mcmc.adapted.values()))
    return Row(
        first["step_size"] or math.nan,
        first["trajectory_length"] or math.nan,
        float(mcmc.sample_stats["acceptance_rate"].mean()),
        summarise(mcmc.observables["s"]),
        mcmc.gradient_evaluations.draws,
        mcmc.seconds.draws,
        mcmc.seconds.warmup,
    )


def run_pyros_nuts(target: IsingDual, draws: int, warmup: int) -> Row:
    """Pyro's NUTS, one chain in physical space, its gradients counted by its energy's calls."""
    calls = 0

    def potential_fn(params: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return target.potential_fn(params)

    pyro.set_rng_seed(0)
    kernel = pyro.infer.NUTS(potential_fn=potential_fn, adapt_mass_matrix=False)
    after_warmup = []

    def hook(kernel: object, samples: object, stage: str, index: int) -> None:
        if stage == "Sample" and not after_warmup:
            after_warmup.extend([calls, time.perf_counter()])

    mcmc = pyro.infer.MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        initial_params={"x": torch.randn(target.shape)},
        hook_fn=hook,
        disable_progbar=True,
    )
    began = time.perf_counter()
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    return Row(
        kernel.step_size,
        math.nan,
        math.nan,
        summarise(structure_factor(x, target.shape)),
        calls - after_warmup[0],
        time.perf_counter() - after_warmup[1],
        after_warmup[1] - began,
    )


def show(name: str, row: Row, training: float) -> None:
    """Print one line."""
    found = row.found
    whole = row.seconds + row.warmup_seconds + training
    print(
        f"{name:<26}{row.step_size:>7.3f}{row.length:>8.2f}{row.acceptance:>8.2f}"
        f"{found.mean:>9.4f}{found.mcse:>9.4f}{found.rhat:>8.3f}{found.ess_bulk:>8.0f}"
        f"{1000 * found.ess_bulk / row.gradients:>12.3g}{found.ess_bulk / row.seconds:>8.1f}"
        f"{found.ess_bulk / whole:>9.2f}",
        flush=True,
    )


def approach(
    kernel: Kernel, target: IsingDual, chains: int, gradients: int
) -> tuple[list[int], Tensor]:
    """Averages over chains of the structure factor from a cold start, step by step."""
    generator = torch.Generator().manual_seed(1)
    space = kernel.target.in_batches(1024)
    kernel = kernel.on(space)
    state = kernel.init(space.initial(chains, generator, "prior"))
    spent, averages = [0], []

    def average() -> Tensor:
        parts = state.position.split(1024)
        values = [structure_factor(space.physical(part)["x"], target.shape) for part in parts]
        return torch.cat(values).double().mean()

    averages.append(average())
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
            ChEESHMC(target, flow=flow), IndependenceMetropolis(flow)
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


def table(
    target: IsingDual, latent: Kernels, physical: Kernels, training: float, options: Any
) -> dict[str, Row]:
    """Print a line for each sampler; return the rows by name."""
    rows: dict[str, Row] = {}
    for name, make in latent.items():
        rows[name] = run(make(), target, options.draws, options.warmup, options.chains)
        show(name, rows[name], training)
    for name, make in physical.items():
        rows[name] = run(make(), target, options.draws, options.warmup, options.chains)
        show(name, rows[name], 0.0)
    nuts = run_pyros_nuts(target, options.draws, options.warmup)
    show("physical NUTS of Pyro", nuts, 0.0)
    return rows


def from_a_cold_start(
    target: IsingDual, makers: Kernels, rows: dict[str, Row], options: Any
) -> None:
    """Print after how many gradients each sampler stays close to the exact value."""
    exact = target.exact_structure_factor()
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
            f"start {float(averages[0]):.3f}, end {float(averages[-1]):.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", help="a file of pyro_neuralrg.save")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150, help="of training, without --flow")
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cold", action="store_true", help="the approach from a cold start, too")
    parser.add_argument("--cold-chains", type=int, default=4096)
    parser.add_argument("--cold-gradients", type=int, default=40)
    parser.add_argument("--cold-physical", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = IsingDual((options.side, options.side))
    began = time.perf_counter()
    if options.flow:
        flow = load(options.flow).flow
    else:
        flow = fit(
            target, target.flow(dtype=torch.float32), steps=options.steps, seed=0, progress=False
        ).flow
    training = time.perf_counter() - began
    quality = estimate(target, flow, 4000)
    gap = quality.variational + target.log_partition()
    exact = target.exact_structure_factor()
    print(
        f"{options.side} x {options.side}, flow of gap {gap:.2f} +- {quality.variational_se:.2f} "
        f"nats, importance ESS {quality.ess:.1%}, "
        + (f"trained in {training:.0f} s" if not options.flow else "training not timed")
    )
    print(f"exact S {exact:.6f}; {options.chains} chains, {options.draws} draws\n{HEADINGS}")
    latent, physical = kernels(target, flow)
    rows = table(target, latent, physical, training, options)
    if options.cold:
        from_a_cold_start(target, latent | physical, rows, options)


if __name__ == "__main__":
    main()
