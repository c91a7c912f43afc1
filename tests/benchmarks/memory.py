# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one training step for L = 16, 32, 64: it should grow linearly with the sites.

Every case runs in a process of its own; the figure is the highest resident memory during the step
above the resident memory just before it (Linux). The batch is 64 everywhere.

    python -m tests.benchmarks.memory
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg.distributions import flow_distribution

BATCH, SIDES, BIJECTORS = 64, (16, 32, 64), ("neighbour", "realnvp")


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def step_peak(side: int, bijector: str) -> float:
    """MiB that one step needs, parameters and compiled code not counted."""
    target = IsingDual((side, side))
    options = {"monotone_steps": 0, "odd": False} if bijector == "realnvp" else {}
    q = flow_distribution(target.flow(bijector=bijector, **options))

    def step(batch: int) -> None:
        x = q.rsample((batch,))
        (q.log_prob(x) + target.energy(x)).mean().backward()

    step(8)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    before = resident("VmRSS")
    step(BATCH)
    return resident("VmHWM") - before


def main() -> None:
    if len(sys.argv) == 3:
        torch.set_num_threads(1)
        print(step_peak(int(sys.argv[1]), sys.argv[2]))
        return
    print(f"peak memory of a step, batch {BATCH}, float32")
    for bijector in BIJECTORS:
        for side in SIDES:
            command = [sys.executable, __file__, str(side), bijector]
            peak = float(subprocess.run(command, check=True, capture_output=True).stdout)
            per_site = peak * 2**20 / (BATCH * side**2)
            print(f"{bijector:>9}  L = {side:2}: {peak:7.1f} MiB, {per_site:6.0f} bytes a site")


if __name__ == "__main__":
    main()
