# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Draws per second of HMC: 64 chains in one batch against Pyro's, one chain after another.

The same 16 x 16 dual Ising potential at Tc, the same step size and number of leapfrog steps, no
adaptation, float64. The two take turns; medians, and the ratio of the medians.

    python -m tests.benchmarks.hmc_throughput [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import pyro
import pyro.infer
import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC

SIDE, CHAINS, STEP_SIZE, STEPS = 16, 64, 0.1, 10
OUR_DRAWS, THEIR_DRAWS = 100, 100


def ours(target: IsingDual, seed: int) -> float:
    """Draws of all chains per second."""
    kernel = HMC(target, step_size=STEP_SIZE, num_steps=STEPS)
    mcmc = VectorizedMCMC(
        kernel, OUR_DRAWS, warmup_steps=0, num_chains=CHAINS, seed=seed, progress=False
    )
    start = time.perf_counter()
    mcmc.run()
    return CHAINS * OUR_DRAWS / (time.perf_counter() - start)


def theirs(target: IsingDual, seed: int) -> float:
    """Draws per second of one chain, and so of any number one after another."""
    pyro.set_rng_seed(seed)
    kernel = pyro.infer.HMC(
        potential_fn=target.potential_fn,
        step_size=STEP_SIZE,
        num_steps=STEPS,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    mcmc = pyro.infer.MCMC(
        kernel,
        num_samples=THEIR_DRAWS,
        warmup_steps=0,
        initial_params={"x": torch.randn(SIDE, SIDE)},
        disable_progbar=True,
    )
    start = time.perf_counter()
    mcmc.run()
    return THEIR_DRAWS / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_default_dtype(torch.float64)
    target = IsingDual((SIDE, SIDE))
    ours(target, 0), theirs(target, 0)
    pairs = [(ours(target, seed), theirs(target, seed)) for seed in range(arguments.repeats)]
    batched, sequential = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{SIDE} x {SIDE}, {STEPS} leapfrog steps, {arguments.threads} threads: {CHAINS} chains in "
        f"one batch {batched:.0f} draws/s, Pyro's HMC {sequential:.1f} draws/s: "
        f"{batched / sequential:.1f} times as many"
    )


if __name__ == "__main__":
    main()
