# SPDX-License-Identifier: Apache-2.0
"""Memory of long runs: draws kept, or only observables of them.

HMC of 64 chains of a 64 x 64 dual Ising field. Each run has a process of its own, so that its peak
is its own.

    python -m tests.benchmarks.streaming [--draws 200 2000]
"""

from __future__ import annotations

import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC
from tests.benchmarks.harness import Table, parse, peak_mib, result, start

SIDE, CHAINS = 64, 64


def peak(draws: int, keep: bool) -> float:
    """MiB of this process after a run."""
    torch.set_num_threads(1)
    target = IsingDual((SIDE, SIDE))
    observables = {"structure_factor": target.observables()["structure_factor"]}
    options = {"keep_draws": keep, "observables": observables, "progress": False}
    mcmc = VectorizedMCMC(HMC(target, num_steps=1), draws, 0, CHAINS, seed=0, **options)
    mcmc.run()
    assert mcmc.observables["structure_factor"].shape == (CHAINS, draws)
    return peak_mib()


def main() -> None:
    options = parse(__doc__, draws=[200, 2000])
    table = Table(8, {"all kept, MiB": "16.0f", "observables only, MiB": "24.0f"}, "draws")
    for draws in options.draws:
        table.row(str(draws), *(result(start(peak, draws, keep)) for keep in (True, False)))


if __name__ == "__main__":
    main()
