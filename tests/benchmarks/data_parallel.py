# SPDX-License-Identifier: Apache-2.0
"""Samples per second of a training on one process, and on two under torchrun, one thread each.

    python -m tests.benchmarks.data_parallel [--sides 16 64] [--repeats 3]

The same batch for both; the two take turns, and medians of step times are compared: by the clock,
and in CPU seconds of a process, which other work on the machine disturbs less, but which leave out
waiting. The cost of communication is that of the all-reduce of a gradient, measured beside.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed

from pyro_neuralrg import IsingDual, Schedule, fit
from pyro_neuralrg.runtime.processes import joined, processes
from tests.benchmarks.harness import Marks, in_turns, medians, parse

STEPS, SKIPPED = 16, 4
BATCHES = {16: 256, 64: 32}


def worker(side: int) -> None:
    """Train for a few steps as part of whatever group there is; the first process prints."""
    torch.set_num_threads(1)
    with joined() as world:
        target = IsingDual((side, side))
        torch.manual_seed(0)
        flow = target.flow(dtype=torch.float32)
        marks = Marks(SKIPPED)
        settings = {"steps": STEPS, "batch": BATCHES[side], "schedule": Schedule(cooling=None)}
        fit(target, flow, **settings, seed=0, progress=False, callback=marks)
        gradient = torch.zeros(sum(p.numel() for p in flow.parameters()))
        costs = in_turns([lambda: processes().mean(gradient)], 30, time.perf_counter)[0]
        if world.is_first:
            print(json.dumps({**marks.medians(), "reduce": statistics.median(costs)}))


def measured(side: int, count: int) -> dict[str, float]:
    """Figures of one process, or of several under torchrun."""
    module = ["-m", "tests.benchmarks.data_parallel", "--worker", str(side)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command = [sys.executable, *module] if count == 1 else [*launcher, *module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    options = parse(
        __doc__,
        sides={"type": int, "nargs": "+", "default": [16, 64], "choices": sorted(BATCHES)},
        repeats=3,
        worker=({"type": int}, "train as one of the processes"),
    )
    if options.worker:
        worker(options.worker)
        return
    for side in options.sides:
        pairs = [(measured(side, 1), measured(side, 2)) for _ in range(options.repeats)]
        one, two = map(medians, zip(*pairs, strict=True))
        faster, per_cpu = (one[key] / two[key] for key in ("wall", "cpu"))
        print(
            f"{side} x {side}, batch {BATCHES[side]}: one process {1000 * one['wall']:.1f} ms a "
            f"step, two {1000 * two['wall']:.1f}: {faster:.2f} times the samples per second, "
            f"{per_cpu:.2f} times per CPU second of a process; the all-reduce of a gradient takes "
            f"{1000 * two['reduce']:.2f} ms, {two['reduce'] / two['wall']:.1%} of a step"
        )


if __name__ == "__main__":
    main()
