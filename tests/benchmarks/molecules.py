# SPDX-License-Identifier: Apache-2.0
"""Quantum particles, crystals and XY spins by flows: gaps, weights and means beside exact ones.

    python -m tests.benchmarks.molecules ring [--beads 16 32 64 128] [--splitting]
    python -m tests.benchmarks.molecules crystal [--cells 8x8 16x16 2x2x2]
    python -m tests.benchmarks.molecules xy [--temperatures 2.0 1.0] [--side 16]

``ring``: in one dimension the double well (x^2 - 4)^2 / 32 at beta = 8, in three the quartic r^4 at
beta = 4, mass 1: the gap to the exact -ln Z, the importance ESS, and z of -ln Z, of the energy and
the mean square, and the largest z of <x_0 x_k>, all in standard errors. ``--splitting`` trains a
flow of the twisted ring as well, whose ln Z gives E1 - E0 of the double well: beside the exact one
with its error, and in per cent of it. (A fit of <x_0 x_k> does not: at beta = 8 higher levels have
a fifth of the weight, and fits of three and four levels to the exact values, sum rule included, are
within 1e-4 of them with splittings up to 10 % off.)

``crystal``: triangular at density 1 and T = 1, fcc at 1.28 and 2: gap and Var(ln w) of the harmonic
crystal and of the flow, both with the potential linear below 0.8; beta F / N by the flow, with the
potential itself, and by annealing from the harmonic crystal (``--particles``).

``xy``: the dual of XY spins; the importance ESS, the energy per spin and the structure factor by
the weights of the flow's draws, and by reflected clusters (``--configurations``).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_neuralrg import anneal, estimate, expectations, fit
from pyro_neuralrg.potentials import (
    Central,
    DoubleWell,
    LennardJonesCrystal,
    QuarticWell,
    RingPolymer,
    Rotor,
    VectorSpinDual,
)
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Table, parse, shape, timed

RING = {
    "gap": "9.4f", "+-": "8.4f", "ESS": "7.3f", "z ln Z": "8.2f", "z E": "7.2f", "z x^2": "7.2f",
    "z corr": "8.2f", "seconds": "9.0f", "E1-E0": "9.4f", "+- ": "8.4f", "% off": "7.2f",
    "its ESS": "9.3f",
}  # fmt: skip
CRYSTAL = {
    "gap": "9.3f", "harmonic": "10.2f", "Var ln w": "10.3f", "harmonic ": "10.1f", "ESS": "7.3f",
    "beta F/N": "11.5f", "+-": "9.5f", "annealed": "11.5f", "+- ": "9.5f", "seconds": "9.0f",
}  # fmt: skip

XY = {
    "ESS": "7.3f", "energy": "10.5f", "+-": "9.5f", "clusters": "10.5f", "+- ": "9.5f", "z": "7.2f",
    "S": "10.5f", " +-": "9.5f", "clusters ": "10.5f", " +- ": "9.5f", "z ": "7.2f",
    "seconds": "9.0f",
}  # fmt: skip


def ring(beads: int, dimensions: int, options: Any) -> tuple[float, ...]:
    """One ring polymer."""
    torch.manual_seed(options.seed)
    if dimensions == 1:
        target = RingPolymer(beads, DoubleWell(), beta=8.0)
    else:
        potential = Central(QuarticWell())
        target = RingPolymer(beads, potential, beta=4.0, dimensions=dimensions)
    flow = target.flow(dtype=torch.float32)
    training = {"steps": options.steps, "seed": options.seed, "progress": False}
    _, seconds = timed(lambda: fit(target, flow, **training))
    observables = {**target.observables(), "correlations": target.correlations}
    found = expectations(target, flow, observables, options.samples)
    free, means = found.free_energy, found.observables
    exact = {"quantum_energy": target.internal_energy(), "mean_square": target.mean_square()}
    z = [(free.importance + target.log_partition()) / free.importance_se]
    for name, value in exact.items():
        z.append(float((means[name].value - value) / means[name].standard_error))
    gap = free.variational + target.log_partition()
    figures = (gap, free.variational_se, free.ess, *z)
    if dimensions > 1:
        return *figures, math.nan, seconds
    series = means["correlations"]
    off = (series.value - torch.from_numpy(target.correlation_function())) / series.standard_error
    figures = (*figures, float(off.abs().max()), seconds)
    return (*figures, *splitting(beads, training, options)) if options.splitting else figures


def splitting(beads: int, training: dict[str, Any], options: Any) -> tuple[float, ...]:
    """E1 - E0 by the flow of a twisted ring, its error, how far off it is in per cent, the ESS."""
    target = RingPolymer(beads, DoubleWell(), beta=8.0, twisted=True)
    flow = target.flow(dtype=torch.float32)
    fit(target, flow, **training)
    found = estimate(target, flow, options.samples)
    signs = (-1.0, 1.0, 0.0)
    low, high, value = (
        target.splitting(sign * found.importance_se - found.importance) for sign in signs
    )
    lowest = target.levels(2)
    exact = float(lowest[1] - lowest[0])
    return value, 0.5 * (high - low), 100 * (value / exact - 1), found.ess


def crystal(cells: list[int], options: Any) -> tuple[float, ...]:
    """One crystal."""
    torch.manual_seed(options.seed)
    density, temperature = (1.0, 1.0) if len(cells) == 2 else (1.28, 2.0)
    target = LennardJonesCrystal(cells, density, temperature)
    line, flow = target.linearised(), target.flow(dtype=torch.float32)
    harmonic = target.flow(depth=0, dtype=torch.float32)
    training = {"steps": options.steps, "seed": options.seed, "progress": False}
    _, seconds = timed(lambda: fit(line, flow, **training))
    found = estimate(target, flow, options.samples)
    before, after = (estimate(line, one, options.samples) for one in (harmonic, flow))
    gaps = [one.variational - after.importance for one in (after, before)]
    variances = [one.variational_se**2 * options.samples for one in (after, before)]
    free_energy, error = target.helmholtz(-found.importance), found.importance_se / target.atoms
    annealed = (math.nan, math.nan)
    if options.particles:
        settings = {"num_particles": options.particles, "seed": options.seed, "progress": False}
        run = anneal(target, harmonic, **settings)
        annealed = target.helmholtz(-run.free_energy), run.standard_error / target.atoms
    return (
        gaps[0], gaps[1], variances[0], variances[1], found.ess, free_energy, error, *annealed,
        seconds,
    )  # fmt: skip


def xy(temperature: float, options: Any) -> tuple[float, ...]:
    """XY spins at one temperature."""
    torch.manual_seed(options.seed)
    target = VectorSpinDual((options.side, options.side), Rotor(2), temperature)
    flow = target.flow(dtype=torch.float32)
    training = {"steps": options.steps, "seed": options.seed, "progress": False}
    _, seconds = timed(lambda: fit(target, flow, **training))
    observables = target.observables()
    found = expectations(target, flow, observables, options.samples)
    fields = target.sample_reference(options.configurations, options.seed)
    figures: list[float] = [found.free_energy.ess]
    for name, observable in observables.items():
        ours, theirs = found.observables[name], summarise(observable(fields).reshape(4, -1))
        value, error = float(ours.value), float(ours.standard_error)
        z = (value - theirs.mean) / math.hypot(error, theirs.mcse)
        figures += [value, error, theirs.mean, theirs.mcse, z]
    return (*figures, seconds)


def main() -> None:
    options = parse(
        __doc__,
        ("what", {"choices": ["ring", "crystal", "xy"]}),
        beads=[16, 32, 64, 128],
        dimensions=[1, 3],
        cells={"type": shape, "nargs": "+", "default": [[8, 8], [16, 16], [2, 2, 2]]},
        splitting=(False, "by the twisted ring, which is trained as well"),
        steps=(3000, "of training"),
        samples=20_000,
        particles=(1024, "of annealing; 0: none"),
        temperatures=[2.0, 1.0],
        side=16,
        configurations=(4000, "of cluster Monte Carlo"),
        seed=0,
        threads=1,
    )
    if options.what == "ring":
        table = Table(16, RING, "beads")
        for dimensions in options.dimensions:
            for beads in options.beads:
                table.row(f"{beads}, {dimensions}-d", *ring(beads, dimensions, options))
        return
    if options.what == "xy":
        table = Table(10, XY, "T")
        for temperature in options.temperatures:
            table.row(f"{temperature:g}", *xy(temperature, options))
        return
    table = Table(10, CRYSTAL, "cells")
    for cells in options.cells:
        table.row("x".join(map(str, cells)), *crystal(cells, options))


if __name__ == "__main__":
    main()
