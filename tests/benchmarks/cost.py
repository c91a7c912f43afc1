# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a training step for L = 8 to 128: both should grow with the sites.

Every case runs in a process of its own, with so many fields that all lattices have the same number
of sites in total. The memory is the highest resident memory during the step above the resident
memory just before it (Linux); the time is the median of several steps. Default couplings with path
gradients, as ``fit`` trains them, and the paper's Real NVP blocks without.

    python -m tests.benchmarks.cost [--sides 8 16 32 64 128] [--threads 1]
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path

import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg.distributions import FlowDistribution, StandardNormal
from tests.benchmarks.harness import in_turns, parse, result, start

SITES = 2**17
REPEATS = 7
BIJECTORS = ("neighbour", "realnvp")


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def cost(side: int, bijector: str, threads: int) -> dict[str, float]:
    """Seconds and MiB that one step needs, parameters and compiled code not counted."""
    torch.set_num_threads(threads)
    target = IsingDual((side, side))
    options = {"odd": False, "base": StandardNormal()} if bijector == "realnvp" else {}
    flow = target.flow(bijector=bijector, **options)
    q = FlowDistribution(flow)

    def step(batch: int) -> None:
        flow.zero_grad()
        if bijector == "realnvp":
            x = q.rsample((batch,))
            (q.log_prob(x) + target.energy(x)).mean().backward()
        else:
            x, _, score = q.rsample_with_score((batch,))
            (target.energy(x) + (score * x).sum((-1, -2))).mean().backward()

    batch = SITES // side**2
    step(2)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    before = resident("VmRSS")
    step(batch)
    peak = resident("VmHWM") - before
    (times,) = in_turns([lambda: step(batch)], REPEATS, time.perf_counter)
    return {"seconds": statistics.median(times), "mib": peak}


def main() -> None:
    options = parse(__doc__, sides=[8, 16, 32, 64, 128], bijectors=list(BIJECTORS), threads=1)
    print(f"a step of {SITES} sites in all, float32, {options.threads} threads")
    for bijector, side in itertools.product(options.bijectors, options.sides):
        found = result(start(cost, side, bijector, options.threads))
        print(
            f"{bijector:>9}  L = {side:3}, {SITES // side**2:4} fields: "
            f"{1e3 * found['seconds']:7.1f} ms, {1e6 * found['seconds'] / SITES:.2f} "
            f"microseconds a site; {found['mib']:6.0f} MiB, "
            f"{2**20 * found['mib'] / SITES:5.0f} bytes a site"
        )


if __name__ == "__main__":
    main()
