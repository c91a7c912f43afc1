# SPDX-License-Identifier: Apache-2.0
"""Chain-leapfrogs per second of HMC: 64 chains in one batch against Pyro's, one after another.

The same 16 x 16 dual Ising potential at Tc, the same step size and number of leapfrog steps, no
adaptation, float64. The two take turns; medians, and the ratio of the medians. Beside it, what the
kernel adds to its gradients, and the runner to the kernel, as fractions of the time of the
gradients.

    python -m tests.benchmarks.hmc_throughput [--repeats 5]
"""

from __future__ import annotations

import statistics

import pyro
import pyro.infer
import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC
from tests.benchmarks.harness import parse, timed

SIDE, CHAINS, STEP_SIZE, STEPS = 16, 64, 0.1, 10
OUR_DRAWS, THEIR_DRAWS = 1000, 100


def ours(target: IsingDual, seed: int) -> tuple[float, float, float]:
    """Chain-leapfrogs per second, and what kernel and runner add to the time of the gradients."""
    kernel = HMC(target, step_size=STEP_SIZE, num_steps=STEPS, jitter=0.0)
    mcmc = VectorizedMCMC(kernel, OUR_DRAWS, 0, CHAINS, seed=seed, progress=False)
    _, whole = timed(mcmc.run)
    state = kernel.init(torch.randn(CHAINS, SIDE * SIDE))
    generator = torch.Generator().manual_seed(seed)

    def steps() -> None:
        moving = state
        for _ in range(OUR_DRAWS):
            moving, _ = kernel.step(moving, generator)

    def gradients() -> None:
        for _ in range(OUR_DRAWS * STEPS):
            kernel.target.energy_and_grad(state.position)

    (_, stepping), (_, differentiating) = timed(steps), timed(gradients)
    return (
        CHAINS * OUR_DRAWS * STEPS / whole,
        (stepping - differentiating) / differentiating,
        (whole - stepping) / differentiating,
    )


def theirs(target: IsingDual, seed: int) -> float:
    """Leapfrogs per second of one chain, and so of any number one after another."""
    pyro.set_rng_seed(seed)
    fixed = {"adapt_step_size": False, "adapt_mass_matrix": False}
    kernel = pyro.infer.HMC(
        potential_fn=target.potential_fn, step_size=STEP_SIZE, num_steps=STEPS, **fixed
    )
    start = {"x": torch.randn(SIDE, SIDE)}
    mcmc = pyro.infer.MCMC(kernel, THEIR_DRAWS, 0, start, disable_progbar=True)
    return THEIR_DRAWS * STEPS / timed(mcmc.run)[1]


def main() -> None:
    options = parse(__doc__, repeats=5, threads=1)
    torch.set_default_dtype(torch.float64)
    target = IsingDual((SIDE, SIDE))
    ours(target, 0), theirs(target, 0)
    pairs = [(*ours(target, seed), theirs(target, seed)) for seed in range(options.repeats)]
    rate, kernel, runner, sequential = map(statistics.median, zip(*pairs, strict=True))
    print(
        f"{SIDE} x {SIDE}, {options.threads} threads: {CHAINS} chains in one batch {rate:.0f} "
        f"chain-leapfrogs/s, Pyro's HMC {sequential:.0f}: {rate / sequential:.1f} times as many; "
        f"of the time of the gradients, the kernel adds {kernel:.0%}, the runner {runner:.1%}"
    )


if __name__ == "__main__":
    main()
