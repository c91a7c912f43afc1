# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Samples per second of a training on one process, and on two under torchrun, one thread each.

    python -m tests.benchmarks.data_parallel [--sides 16 64] [--repeats 3]

The same batch for both; the two take turns, and medians of step times are compared: by the clock,
and in CPU seconds of a process, which other work on the machine disturbs less, but which leave out
waiting. The cost of communication is that of the all-reduce of a gradient, measured beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed

from pyro_neuralrg import IsingDual, Schedule, fit
from pyro_neuralrg.runtime.processes import joined, processes

STEPS, SKIPPED = 16, 4
BATCHES = {16: 256, 64: 32}


def worker(side: int) -> None:
    """Train for a few steps as part of whatever group there is; the first process prints."""
    torch.set_num_threads(1)
    with joined() as world:
        target = IsingDual((side, side))
        torch.manual_seed(0)
        flow = target.flow(dtype=torch.float32)
        marks: list[tuple[float, float]] = []
        fit(
            target,
            flow,
            steps=STEPS,
            batch=BATCHES[side],
            schedule=Schedule(cooling=None),
            seed=0,
            progress=False,
            callback=lambda _: marks.append((time.perf_counter(), time.process_time())),
        )
        step, cpu = (
            statistics.median(b - a for a, b in pairwise(clock[SKIPPED:]))
            for clock in zip(*marks, strict=True)
        )
        gradient = torch.zeros(sum(p.numel() for p in flow.parameters()))
        costs = []
        for _ in range(30):
            began = time.perf_counter()
            processes().mean(gradient)
            costs.append(time.perf_counter() - began)
        if world.is_first:
            print(json.dumps({"step": step, "cpu": cpu, "reduce": statistics.median(costs)}))


def measured(side: int, count: int) -> dict[str, float]:
    """Of one process, or of several under torchrun."""
    module = ["-m", "tests.benchmarks.data_parallel", "--worker", str(side)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command = [sys.executable, *module] if count == 1 else [*launcher, *module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def middle(found: Sequence[dict[str, float]], key: str) -> float:
    """The median over runs."""
    return statistics.median(one[key] for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 64], choices=sorted(BATCHES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    for side in arguments.sides:
        pairs = [(measured(side, 1), measured(side, 2)) for _ in range(arguments.repeats)]
        one, two = (
            {key: middle(found, key) for key in found[0]} for found in zip(*pairs, strict=True)
        )
        faster, per_cpu = (one[key] / two[key] for key in ("step", "cpu"))
        print(
            f"{side} x {side}, batch {BATCHES[side]}: one process {1000 * one['step']:.1f} ms a "
            f"step, two {1000 * two['step']:.1f}: {faster:.2f} times the samples per second, "
            f"{per_cpu:.2f} times per CPU second of a process; the all-reduce of a gradient takes "
            f"{1000 * two['reduce']:.2f} ms, {two['reduce'] / two['step']:.1%} of a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
