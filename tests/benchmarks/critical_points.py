# SPDX-License-Identifier: Apache-2.0
"""Critical couplings and nu from one conditional flow for each size, or from cluster Monte Carlo.

    python -m tests.benchmarks.critical_points --sides 8 16 --steps 600
    python -m tests.benchmarks.critical_points --lam 0.5 --sides 6 12
    python -m tests.benchmarks.critical_points --cluster --samples 20000

Binder's cumulant and xi / L of the Ising model against J / T, or of phi^4 with ``--lam`` against
kappa, in windows ``p_c (1 +- window / L)``; their crossings, and the collapse of all sizes, with
(from three sizes on) and without a correction of L^(-7/4), each beside the known p_c and nu = 1.
``--cluster`` puts independent configurations in the place of flows: what is then off by more than
its error is so by corrections to scaling. xi / L of the Ising model is exact up to ``--exact``; the
lines "exact" show the corrections without any noise. Seconds are CPU time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_neuralrg import fit
from pyro_neuralrg.free_energy import (
    Curve,
    ScalingCurves,
    crossings,
    scaling_collapse,
    scaling_curves,
)
from pyro_neuralrg.observables import binder_cumulant, correlation_length
from pyro_neuralrg.plotting import plot_collapse
from pyro_neuralrg.plotting.style import png
from pyro_neuralrg.potentials import IsingDualFamily, IsingModel, Phi4, Phi4Family
from pyro_neuralrg.potentials.cluster import SITES_AT_ONCE
from pyro_neuralrg.potentials.ising_model import CRITICAL_TEMPERATURE
from tests.benchmarks.harness import Table, parse, timed

KNOWN = {0.1: 0.302724, 0.5: 0.342570, 1.0: 0.339628}
"""kappa_c of phi^4 by lambda, from Binder crossings of published ensembles."""
CORRECTION = 7 / 4
COLUMNS = {
    "p": "10.5f", "U4": "9.4f", "+-": "8.4f", "xi / L": "9.4f", "+- ": "8.4f", "exact": "9.4f",
    "ESS": "7.3f", "k-hat": "7.2f",
}  # fmt: skip


def by_flow(side: int, grid: Any, options: Any) -> ScalingCurves:
    """A conditional flow, trained on the range of the grid, and what it gives."""
    family: Any
    if options.lam is None:
        family = IsingDualFamily((side, side), (1 / grid[-1], 1 / grid[0]))
    else:
        family = Phi4Family((side, side), (grid[0], grid[-1]), options.lam)
    torch.manual_seed(options.seed)
    flow = family.flow(dtype=torch.float32)
    settings = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    _, seconds = timed(lambda: fit(family, flow, progress=False, **settings))
    values = 1 / grid if options.lam is None else grid
    found, more = timed(lambda: scaling_curves(family, flow, values, options.samples))
    print(f"{side}: {options.steps} steps in {seconds:.0f} s, samples in {more:.0f} s")
    if options.lam is None:  # the Boltzmann weight is linear in 1 / T
        both = (Curve(grid, *curve[1:]) for curve in found[:2])
        found = ScalingCurves(*both, *found[2:])
    return found


def by_clusters(side: int, grid: Any, options: Any) -> ScalingCurves:
    """The same from configurations of chains that run side by side."""
    chains = max(1, min(options.samples, SITES_AT_ONCE // side**2))
    number = options.samples // chains * chains
    rows, spent = [], 0.0
    for index, value in enumerate(grid):
        target: Any = IsingModel((side, side), 1 / value)
        draw = target.sample
        if options.lam is not None:
            target = Phi4((side, side), value, options.lam)
            draw = target.sample_reference
        drawn, seconds = timed(lambda d=draw, i=index: d(number, options.seed + i))
        spent += seconds
        functions = target.observables()
        names = ["structure_factor", "fourth_moment"]
        names += [f"structure_factor_axis{axis}" for axis in range(2)]
        uniform, fourth, *lowest = (
            torch.cat([functions[name](part.double()) for part in drawn.split(4096)])
            for name in names
        )
        series = [v.view(-1, chains).T for v in (uniform, fourth, (lowest[0] + lowest[1]) / 2)]
        length = correlation_length(series[0], series[2], side)
        rows.append(
            [*binder_cumulant(*series[:2]), length.value / side, length.standard_error / side]
        )
    print(f"{side}: {number} configurations at each coupling, {spent:.0f} s")
    binder, error, ratio, its_error = np.array(rows).T
    unknown = np.full(len(grid), math.nan)
    return ScalingCurves(
        Curve(grid, binder, error), Curve(grid, ratio, its_error), unknown, unknown
    )


def exact_ratio(side: int, temperature: float) -> float:
    """Exact xi / L of the Ising model."""
    correlations = IsingModel((side, side), temperature).correlations().double()
    waves = torch.fft.fft2(correlations).real
    return math.sqrt(waves[0, 0] / waves[0, 1] - 1) / (2 * side * math.sin(math.pi / side))


def report(name: str, curves: dict[int, Any], known: float, corrected: bool) -> Any:
    """Crossings and collapses of one quantity, beside p_c in per cent."""
    for crossing in crossings(curves):
        value, error = crossing.parameter
        print(
            f"{name:10} crossing {crossing.sides}: p_c {crossing.parameter}, "
            f"{100 * (value / known - 1):+.3f}({100 * error / known:.3f}) %, nu {crossing.nu}, "
            f"value {crossing.value}"
        )
    found = None
    for correction in (None, CORRECTION) if corrected else (None,):
        found = scaling_collapse(curves, correction=correction)
        value, error = found.parameter
        print(
            f"{name:10} collapse, correction {correction}: p_c {found.parameter}, "
            f"{100 * (value / known - 1):+.3f}({100 * error / known:.3f}) %, nu {found.nu}, value "
            f"{found.value}, chi^2 {found.chi_square:.1f} of {found.degrees_of_freedom}"
        )
    return found


def main() -> None:
    options = parse(
        __doc__,
        sides=[4, 8, 16, 32],
        lam=({"type": float}, "phi^4 of this lambda instead of the Ising model"),
        critical=({"type": float}, "known kappa_c, where it is not one of three"),
        window=(0.64, "half a window in units of p_c / L"),
        points=(7, "of each curve"),
        steps=600,
        batch=256,
        samples=(10_000, "at each point"),
        cluster=(False, "configurations of cluster Monte Carlo instead of flows"),
        exact=(16, "largest side of exact xi / L"),
        seed=0,
        threads=1,
        figure=({"type": Path}, "file of a picture"),
    )
    known = 1 / CRITICAL_TEMPERATURE if options.lam is None else options.critical
    known = KNOWN[options.lam] if known is None else known
    found, exact = {}, {}
    for side in options.sides:
        grid = known * (1 + options.window / side * np.linspace(-1, 1, options.points))
        found[side] = (by_clusters if options.cluster else by_flow)(side, grid, options)
        reference = np.full(len(grid), math.nan)
        if options.lam is None and side <= options.exact:
            reference = np.array([exact_ratio(side, 1 / value) for value in grid])
            exact[side] = Curve(grid, reference, np.zeros(len(grid)))
        table = Table(4, COLUMNS, "L")
        rows = zip(grid, *found[side].binder[1:], *found[side].length_ratio[1:], reference,
                   *found[side][2:], strict=True)  # fmt: skip
        for row in rows:
            table.row(str(side), *row)
    corrected = len(options.sides) > 2
    binder = {side: one.binder for side, one in found.items()}
    collapse = report("U4", binder, known, corrected)
    report("xi / L", {side: one.length_ratio for side, one in found.items()}, known, corrected)
    if len(exact) > 1:
        report("exact xi/L", exact, known, len(exact) > 2)
    if options.figure:
        name = "J / T" if options.lam is None else "kappa"
        picture = plot_collapse(binder, collapse, names=(name, "Binder cumulant"), critical=known)
        options.figure.write_bytes(png(picture, 110))


if __name__ == "__main__":
    main()
