# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What each estimator of the free energy makes of one flow: error, error bar and cost.

    python -m tests.benchmarks.free_energy --flow flow.pt
    python -m tests.benchmarks.free_energy --steps 70 --particles 1024

For the Ising model at its critical temperature, whose ln Z is known. Without ``--flow`` a flow is
trained for ``--steps``, few enough to leave a gap of some nats. Evaluations are of the energy for
the first three rows, of its gradient (three times as dear) for the others; seconds are those of the
clock and, in the last column, of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import IsingDual, fit, load
from pyro_neuralrg.free_energy import anneal, bounds, estimate

Row = tuple[str, float, float, int]


def _flow(arguments: argparse.Namespace, target: IsingDual) -> Any:
    if arguments.flow is not None:
        return load(arguments.flow).flow
    flow = target.flow(dtype=torch.float32)
    fit(target, flow, steps=arguments.steps, seed=arguments.seed, progress=False)
    return flow


def of_samples(target: IsingDual, flow: Any, arguments: argparse.Namespace) -> list[Row]:
    """From independent samples: the bound and importance sampling."""
    number = arguments.samples
    found = estimate(target, flow, number)
    note = f"ESS {100 * found.ess:.2f} %, k-hat {found.pareto_k:.2f}"
    return [
        ("variational bound", found.variational, found.variational_se, number),
        (f"importance ({note})", found.importance, found.importance_se, number),
    ]


def of_reference(target: IsingDual, flow: Any, arguments: argparse.Namespace) -> list[Row]:
    """From cluster Monte Carlo of the target."""
    number = arguments.samples // 4
    found = bounds(target, flow, number, seed=arguments.seed)
    return [("lower bound", found.lower, found.lower_se, number)]


def of_annealing(
    target: IsingDual, flow: Any, arguments: argparse.Namespace, resample_below: float
) -> list[Row]:
    """From particles that are carried to the target."""
    found = anneal(
        target,
        flow,
        num_particles=arguments.particles,
        conditional_ess=arguments.conditional_ess,
        resample_below=resample_below,
        seed=arguments.seed,
        progress=False,
    )
    name = "SMC" if resample_below else "AIS"
    note = f"{len(found.betas) - 1} temperatures, ESS {100 * found.ess[-1]:.0f} %"
    return [
        (f"{name} ({note})", found.free_energy, found.standard_error, found.gradient_evaluations)
    ]


def _timed(target: IsingDual, estimator: Callable[[], list[Row]]) -> None:
    clock, processor = time.perf_counter(), time.process_time()
    rows = estimator()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    for name, value, error, evaluations in rows:
        off = value + target.log_partition()
        print(
            f"{name:<44}{value:>12.4f}{error:>9.4f}{off:>10.4f}{off / error:>8.1f}"
            f"{evaluations:>13}{clock:>9.1f}{processor:>9.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--side", type=int, default=16, help="of the square lattice")
    add("--flow", type=Path, help="file of a trained flow of that lattice")
    add("--steps", type=int, default=70, help="of the training, without --flow")
    add("--samples", type=int, default=20_000, help="of the flow")
    add("--particles", type=int, default=1024)
    add("--conditional-ess", type=float, default=0.97)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    target = IsingDual((arguments.side, arguments.side))
    flow = _flow(arguments, target)
    torch.manual_seed(arguments.seed)
    heads = ("-ln Z", "+-", "off", "in +-", "evaluations", "s", "CPU s")
    widths = (12, 9, 10, 8, 13, 9, 9)
    print(f"{'':<44}" + "".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True)))
    print(f"{'exact':<44}{-target.log_partition():>12.4f}", flush=True)
    _timed(target, lambda: of_samples(target, flow, arguments))
    _timed(target, lambda: of_reference(target, flow, arguments))
    _timed(target, lambda: of_annealing(target, flow, arguments, 0.0))
    _timed(target, lambda: of_annealing(target, flow, arguments, 0.5))


if __name__ == "__main__":
    main()
