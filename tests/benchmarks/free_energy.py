# SPDX-License-Identifier: Apache-2.0
"""Estimators of the free energy with one flow: error, error bar and cost.

    python -m tests.benchmarks.free_energy --flow flow.pt
    python -m tests.benchmarks.free_energy --steps 70 --particles 1024

For the Ising model at its critical temperature, whose ln Z is known. Without ``--flow`` a flow is
trained for ``--steps``, few enough to leave a gap of some nats. Evaluations are of the energy for
the first three rows, of its gradient (three times as dear) for the others; seconds are those of the
clock and, in the last column, of the processor.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg.free_energy import anneal, bounds, estimate
from tests.benchmarks.harness import Table, parse, timed, trained_flow

COLUMNS = {
    "-ln Z": "12.4f", "+-": "9.4f", "off": "10.4f", "in +-": "8.1f", "evaluations": "13",
    "s": "9.1f", "CPU s": "9.1f",
}  # fmt: skip
Row = tuple[str, float, float, int]


def of_samples(target: IsingDual, flow: Any, options: Any) -> list[Row]:
    """From independent samples: the bound and importance sampling."""
    number = options.samples
    found = estimate(target, flow, number)
    note = f"ESS {100 * found.ess:.2f} %, k-hat {found.pareto_k:.2f}"
    return [
        ("variational bound", found.variational, found.variational_se, number),
        (f"importance ({note})", found.importance, found.importance_se, number),
    ]


def of_reference(target: IsingDual, flow: Any, options: Any) -> list[Row]:
    """From cluster Monte Carlo of the target."""
    number = options.samples // 4
    found = bounds(target, flow, number, seed=options.seed)
    return [("lower bound", found.lower, found.lower_se, number)]


def of_annealing(resample_below: float, target: IsingDual, flow: Any, options: Any) -> list[Row]:
    """From particles that are carried to the target."""
    found = anneal(
        target, flow, num_particles=options.particles, conditional_ess=options.conditional_ess,
        resample_below=resample_below, seed=options.seed, progress=False,
    )  # fmt: skip
    name = "SMC" if resample_below else "AIS"
    note = f"{len(found.betas) - 1} temperatures, ESS {100 * found.ess[-1]:.0f} %"
    evaluations = found.gradient_evaluations
    return [(f"{name} ({note})", found.free_energy, found.standard_error, evaluations)]


def show(
    table: Table, target: IsingDual, estimator: Callable[..., list[Row]], *arguments: Any
) -> None:
    """Print the rows of an estimator."""
    once = functools.partial(estimator, target, *arguments)
    (rows, processor), clock = timed(lambda: timed(once), time.perf_counter)
    for name, value, error, evaluations in rows:
        off = value + target.log_partition()
        table.row(name, value, error, off, off / error, evaluations, clock, processor)


def main() -> None:
    arguments = parse(
        __doc__,
        side=(16, "of the square lattice"),
        flow=({"type": Path}, "file of a trained flow of that lattice"),
        steps=(70, "of the training, without --flow"),
        samples=(20_000, "of the flow"),
        particles=1024,
        conditional_ess=0.97,
        seed=0,
        threads=torch.get_num_threads(),
    )
    target = IsingDual((arguments.side, arguments.side))
    flow = trained_flow(target, arguments.flow, arguments.steps, arguments.seed)
    torch.manual_seed(arguments.seed)
    table = Table(44, COLUMNS)
    table.row("exact", -target.log_partition())
    without, with_resampling = (functools.partial(of_annealing, below) for below in (0.0, 0.5))
    for estimator in (of_samples, of_reference, without, with_resampling):
        show(table, target, estimator, flow, arguments)


if __name__ == "__main__":
    main()
