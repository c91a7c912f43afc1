# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Independent configurations a second: a trained flow, with ln q, beside Swendsen-Wang.

The flow's draws are independent; with their weights they are worth ESS times as many of the target.
Swendsen-Wang's updates of the spins are correlated; their effective number for the structure factor
is ArviZ's, of several runs at once.

    python -m pyro_neuralrg ising --shape 16 16 --out trained
    python -m tests.benchmarks.drawing trained/flow.pt [--draws 100000]
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from pyro_neuralrg import IsingDual, load
from pyro_neuralrg.diagnostics import summarise
from pyro_neuralrg.free_energy.importance import from_log_weights, log_weights
from pyro_neuralrg.potentials.cluster import swendsen_wang
from tests.benchmarks.harness import parse, timed

BATCH = 500
CHAINS = 64  # of Swendsen-Wang, side by side


def main() -> None:
    arguments = parse(
        __doc__,
        ("flow", {"help": "file of a flow for the critical Ising model"}),
        draws=100_000,
        threads=torch.get_num_threads(),
    )
    flow = load(arguments.flow).flow
    target = IsingDual(flow.shape)
    log_weights(target, flow, BATCH, BATCH)
    draw = (target, flow, arguments.draws, BATCH)
    weights, seconds = timed(lambda: log_weights(*draw), time.perf_counter)
    ess = from_log_weights(weights).ess
    rate = arguments.draws / seconds
    print(f"flow: {arguments.draws} draws with ln q and ln pi in {seconds:.1f} s, {rate:.0f} a")
    print(f"second; importance ESS {ess:.1%}: {ess * rate:.0f} effective draws a second")
    sweeps = max(10, arguments.draws // CHAINS)
    start, options = (target.spins.bonds, None, math.prod(target.shape)), {"between": 1}
    options |= {"chains": CHAINS, "rounds": sweeps}
    spins, seconds = timed(lambda: swendsen_wang(*start, **options), time.perf_counter)
    magnetisation = spins.mean(2, dtype=np.float64)
    found = summarise(np.square(magnetisation).T)
    count = magnetisation.size
    print(f"Swendsen-Wang: {count} updates in {seconds:.1f} s, {count / seconds:.0f} a")
    print(f"second; {found.ess_bulk:.0f} effective draws, {found.ess_bulk / seconds:.0f} a second")


if __name__ == "__main__":
    main()
