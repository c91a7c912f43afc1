# SPDX-License-Identifier: Apache-2.0
"""Gradients that kernels need for the power spectrum of phi^4 near criticality.

The action is the sum over sites of -2 phi phi' over bonds + (4 + m^2) phi^2 + lambda phi^4, with
m^2 = -4 and lambda = 4.25 (1 + 4 / L). After how many gradients of each chain does the squared
error of its running mean of |phi_k|^2, in units of the variance, averaged over modes and chains,
stay below 1 %? Kernels are tuned before, in a warm-up of other chains from white noise, whose
gradients stand beside. Chains begin at white noise, or where those of the warm-up ended: steps as
tuned are too long for an adjusted kernel to leave white noise. Mean and variance are those of
reference draws, averaged over reflections.

    python -m tests.benchmarks.phi4_spectrum
    python -m tests.benchmarks.phi4_spectrum --side 64 --kernels MCLMC MAMS --chains 32
    python -m tests.benchmarks.phi4_spectrum --latent 500
    python -m tests.benchmarks.phi4_spectrum --side 64 --latent 100 --flow 32x32-phi4-seed0.pt

With ``--latent STEPS`` a flow is trained for so many steps, and kernels in its latent space stand
beside: there chains begin at draws of the flow, and a jump counts as a gradient. ``--flow FILE``
grows a trained flow to the side before that.

Published (Robnik and Seljak 2023) at L = 64: MCLMC 1,050, adjusted HMC 4,872. Here, warm and of 32
chains: MCLMC 800, MAMS 1,834, HMC 2,399 at L = 16; 1,018, 2,758, 3,287 at L = 32.
With ``--latent 500 --warmup 150`` at L = 16 (ESS of the flow 0.64): HMC 2,346, MAMS 1,848, latent
MAMS 818, and 822 from draws of the flow. At L = 32 (``--chains 32``, ESS 0.12): HMC 3,133, MAMS
2,588, latent MAMS 1,158, latent HMC 4,098. At L = 64 (``--latent 400 --flow``, one of 32 x 32 after
half an hour of ``accuracy --phi4``; ESS 0.54): MAMS 4,000, latent MAMS 1,390, jumps 307.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg import (
    HMC,
    MAMS,
    MCLMC,
    ChEESHMC,
    IndependenceMetropolis,
    Phi4,
    Schedule,
    VectorizedMCMC,
    estimate,
    fit,
    load,
)
from pyro_neuralrg.mcmc import Adaptation, Cycle, Kernel, as_target
from pyro_neuralrg.transforms import HierarchicalFlow
from tests.benchmarks.harness import Table, parse

KERNELS: dict[str, Callable[[Phi4, Any], Kernel]] = {
    "MCLMC": lambda target, options: MCLMC(
        target, energy_variance=options.energy_variance, integrator=options.integrator
    ),
    "MAMS": lambda target, options: MAMS(target, integrator=options.integrator),
    "HMC": lambda target, options: HMC(target, num_steps=options.leapfrogs),
    "ChEES": lambda target, _: ChEESHMC(target),
}
LATENT: dict[str, Callable[[Phi4, Any, Any], Kernel]] = {
    "latent MAMS": lambda target, flow, options: MAMS(
        target, flow=flow, integrator=options.integrator
    ),
    "latent HMC": lambda target, flow, options: HMC(target, flow=flow, num_steps=options.leapfrogs),
    "jumps": lambda target, flow, _: IndependenceMetropolis(flow, as_target(target, flow=flow)),
    "jumps and HMC": lambda target, flow, _: Cycle(
        HMC(target, flow=flow, num_steps=2), IndependenceMetropolis(flow)
    ),
}
WEIGHTS, FIELDS_AT_ONCE = 4096, 256
BOUND = 0.01
LONGER = 2.0
"""A run ends at so many times the gradients after which the error was last above the bound."""


def spectrum(x: Tensor) -> Tensor:
    """|phi_k|^2 of fields ``(chains, L, L)``, by modes ``(chains, L, L // 2 + 1)``."""
    return torch.fft.rfft2(x, norm="ortho").abs().square()


def weights(side: int) -> Tensor:
    """How often each of these modes stands for itself and its opposite."""
    twice = torch.full((side // 2 + 1,), 2.0)
    twice[0] = 1.0
    if side % 2 == 0:
        twice[-1] = 1.0
    return twice


def reference(target: Phi4, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the power spectrum."""
    powers = spectrum(target.sample_reference(draws, seed).double())

    def symmetric(values: Tensor) -> Tensor:
        return 0.5 * (values + values.roll(-1, 0).flip(0))

    mean, square = symmetric(powers.mean(0)), symmetric(powers.square().mean(0))
    return mean, square - mean.square()


def tuned(
    kernel: Kernel, steps: int, chains: int, seed: int, mass: str
) -> tuple[Kernel, Tensor, float]:
    """The kernel after warm-up, where its chains ended, and the gradients of each."""
    adaptation = Adaptation(steps=steps, mass=mass)
    mcmc = VectorizedMCMC(kernel, 1, adaptation, chains, seed=seed, progress=False)
    mcmc.run()
    return mcmc.kernel, mcmc.positions[:, -1], mcmc.gradient_evaluations.warmup / chains


def gradients_needed(
    kernel: Kernel, start: Tensor, mean: Tensor, variance: Tensor, most: int, seed: int
) -> tuple[float, float]:
    """Gradients after which the error stays below the bound (infinity if never), the last error."""
    generator, target = torch.Generator().manual_seed(seed), kernel.target
    state = kernel.init(start)
    share, total = weights(len(mean)) / len(mean) ** 2, torch.zeros(len(start), *mean.shape)
    draws, gradients, needed, error = 0, 0, 0, 1.0
    while gradients < most and (not needed or gradients < LONGER * needed or error > BOUND):
        state, info = kernel.step(state, generator)
        draws, gradients = draws + 1, gradients + info.gradient_evaluations
        total += spectrum(target.physical(state.position)["x"].double())
        squares = (total / draws - mean).square() / variance
        error = float((squares * share).sum((-2, -1)).mean())
        if error > BOUND:
            needed = gradients
    return (needed if error < BOUND else math.inf), error


def critical(side: int) -> Phi4:
    """The target on a square."""
    return Phi4.from_mass((side, side), m2=-4.0, g=6 * 4.25 * (1 + 4 / side))


def trained(target: Phi4, options: Any) -> HierarchicalFlow:
    """A flow of the target, grown from that of a file where one is given."""
    torch.manual_seed(options.seed)
    schedule = None if options.flow is None else Schedule(cooling=None)
    flow = target.flow(dtype=torch.float32) if options.flow is None else load(options.flow).flow
    while flow.shape[0] < target.shape[0]:
        flow = flow.grow(critical(2 * flow.shape[0]).spectrum)
    training = {"seed": options.seed, "progress": False, "schedule": schedule}
    result = fit(target, flow, steps=options.latent, **training)
    ess = estimate(target, flow, WEIGHTS, FIELDS_AT_ONCE).ess
    print(f"L = {target.shape[0]}: ESS {ess:.3f} of the flow's draws, {result.seconds:.0f} s")
    return flow.requires_grad_(False)


def main() -> None:
    """Print a table for each lattice."""
    options = parse(
        __doc__,
        side=[16],
        kernels=[*KERNELS, *LATENT],
        chains=64,
        warmup=(300, "steps"),
        mass="unit",
        latent=(0, "training steps of a flow; 0: no latent kernels"),
        flow=({"type": Path}, "a file with a flow of a smaller lattice, or of this"),
        most=(10_000, "gradients, at most"),
        reference=(4000, "draws"),
        energy_variance=5e-4,
        integrator="minimal_norm",
        leapfrogs=10,
        seed=0,
        threads=1,
    )
    if options.flow and not options.latent:
        raise SystemExit("--flow needs --latent STEPS")
    torch.set_default_dtype(torch.float64)
    for side in options.side:
        target = critical(side)
        mean, variance = reference(target, options.reference, options.seed)
        heads = dict.fromkeys(["cold", "warm", "tuning"], "9.0f")
        heads |= {"last error": "12.5f", "step size": "11.3f", "length": "9.3f", "CPU s": "9.1f"}
        table = Table(8, heads, f"L = {side}")
        kernels = {
            name: KERNELS[name](target, options) for name in KERNELS if name in options.kernels
        }
        if options.latent:
            flow = trained(target, options)
            kernels |= {
                name: made(target, flow, options)
                for name, made in LATENT.items()
                if name in options.kernels
            }
        for name, kernel in kernels.items():
            began = time.process_time()
            settings = options.warmup, options.chains, options.seed, options.mass
            kernel, warm, cost = tuned(kernel, *settings)
            generator = torch.Generator().manual_seed(options.seed)
            cold = kernel.target.initial(options.chains, generator)
            after = {}
            for start in (cold, warm):
                goal = mean, variance, options.most, options.seed + 1
                after[len(after)], error = gradients_needed(kernel, start, *goal)
            step = kernel.step_size or math.nan
            length = kernel.trajectory_length or options.leapfrogs * step
            figures = error, step, length, time.process_time() - began
            table.row(name, *after.values(), cost, *figures)


if __name__ == "__main__":
    main()
