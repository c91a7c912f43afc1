# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of long runs: draws kept, or only observables of them.

HMC of 64 chains of a 64 x 64 dual Ising field. Each run has a process of its own, so that its peak
is its own.

    python -m tests.benchmarks.streaming [--draws 200 2000]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC

SIDE, CHAINS = 64, 64


def peak(draws: int, keep: bool) -> float:
    """MiB of this process after a run."""
    torch.set_num_threads(1)
    target = IsingDual((SIDE, SIDE))
    mcmc = VectorizedMCMC(
        HMC(target, num_steps=1),
        draws,
        warmup_steps=0,
        num_chains=CHAINS,
        seed=0,
        progress=False,
        keep_draws=keep,
        observables={"structure_factor": target.observables()["structure_factor"]},
    )
    mcmc.run()
    assert mcmc.observables["structure_factor"].shape == (CHAINS, draws)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(peak(arguments.case[0], bool(arguments.case[1])))
        return
    print(f"{'draws':>8}{'all kept, MiB':>16}{'observables only, MiB':>24}")
    for draws in arguments.draws:
        found = []
        for keep in (1, 0):
            command = [sys.executable, "-m", "tests.benchmarks.streaming", "--case"]
            done = subprocess.run(
                [*command, str(draws), str(keep)], check=True, stdout=subprocess.PIPE, text=True
            )
            found.append(float(done.stdout))
        print(f"{draws:>8}{found[0]:>16.0f}{found[1]:>24.0f}")


if __name__ == "__main__":
    main()
