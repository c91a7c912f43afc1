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

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg.distributions import FlowDistribution, StandardNormal

SITES = 2**17
REPEATS = 7
BIJECTORS = ("neighbour", "realnvp")


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def cost(side: int, bijector: str) -> dict[str, float]:
    """Seconds and MiB that one step needs, parameters and compiled code not counted."""
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
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times), "mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--bijectors", nargs="+", default=list(BIJECTORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        print(json.dumps(cost(*arguments.case)))
        return
    print(f"a step of {SITES} sites in all, float32, {arguments.threads} threads")
    for bijector in arguments.bijectors:
        for side in arguments.sides:
            command = [sys.executable, __file__, "--threads", str(arguments.threads)]
            command += ["--case", json.dumps([side, bijector])]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(
                f"{bijector:>9}  L = {side:3}, {SITES // side**2:4} fields: "
                f"{1e3 * found['seconds']:7.1f} ms, {1e6 * found['seconds'] / SITES:.2f} "
                f"microseconds a site; {found['mib']:6.0f} MiB, "
                f"{2**20 * found['mib'] / SITES:5.0f} bytes a site",
                flush=True,
            )


if __name__ == "__main__":
    main()
