# SPDX-License-Identifier: Apache-2.0
"""Crossings of Pyro's NUTS between the phases of the Ising dual behind a flow.

Sign changes of the magnetisation of x per 1000 gradients, of the 8 x 8 model at Tc (or another
temperature), with the target's own flow, untrained or trained for some steps. With ``--hmc`` of 192
chains of HMC that start at exact draws, 20 times 10 leapfrog steps of that size: a hundred times as
many crossings in the same time.

    python -m tests.benchmarks.crossings --steps 0 --draws 500 --seeds 2
    python -m tests.benchmarks.crossings --steps 400 --hmc 0.2 --from-normal
"""

from __future__ import annotations

import functools
import time

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.mcmc.util import initialize_model

from pyro_neuralrg import PDD, FlowGuide, FlowReparam, IsingDual
from pyro_neuralrg.mcmc import HMC, LatentTarget
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE
from tests.benchmarks.harness import parse, pyros_nuts, timed

CHAINS = 192


def trained(target: IsingDual, steps: int) -> torch.nn.Module:
    """The target's flow after some steps of SVI, without cooling."""
    flow = target.flow()
    loss = PDD(num_particles=128, vectorize_particles=True)
    svi = SVI(target.model, FlowGuide(flow), pyro.optim.Adam({"lr": 3e-3}), loss=loss)
    for _ in range(steps):
        svi.step()
    return flow.requires_grad_(False)


def by_nuts(
    target: IsingDual, reparam: FlowReparam, warmup: int, draws: int, seed: int
) -> tuple[int, int]:
    """Crossings and gradients of one chain of Pyro's NUTS after its warm-up."""
    model = pyro.poutine.reparam(target.model, config={"x": reparam})
    _, energy, transforms, _ = initialize_model(model)
    u, _, calls = pyros_nuts(
        lambda params: energy({"x_latent": params["x"]}), target.shape, draws, warmup, seed, True
    )
    x = reparam.transform_sample(transforms["x_latent"].inv(u[0]))
    signs = x.mean((-1, -2)).sign()
    return int((signs[1:] != signs[:-1]).sum()), calls.calls - calls.marks[0]


def by_hmc(
    target: IsingDual, flow: torch.nn.Module, step_size: float, **choice: bool
) -> tuple[int, int]:
    """Crossings and gradients of many chains from exact draws."""
    latent = LatentTarget(target, flow, **choice)
    x = target.sample_reference(CHAINS, 1).float()
    kernel = HMC(latent, step_size=step_size, num_steps=10, jitter=0.0)
    state = kernel.init(latent.pack({"x": x}, CHAINS))
    sign, crossings, gradients = x.mean((-1, -2)).sign(), 0, 0
    for _ in range(20):
        state, info = kernel.step(state)
        before, sign = sign, latent.physical(state.position)["x"].mean((-1, -2)).sign()
        crossings += int((sign != before).sum())
        gradients += CHAINS * info.gradient_evaluations
    return crossings, gradients


def main() -> None:
    """Print a row for each seed."""
    options = parse(
        __doc__,
        steps=(0, "training steps"),
        draws=(500, "of NUTS"),
        warmup=(100, "draws of NUTS"),
        seeds=2,
        temperature=CRITICAL_TEMPERATURE,
        hmc=({"type": float}, "step size"),
        from_normal=(False, "sample what is behind z"),
    )
    total = torch.zeros(2)
    for seed in range(options.seeds):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        target = IsingDual((8, 8), options.temperature)
        flow = trained(target, options.steps)
        choice = {"from_normal": options.from_normal}
        if options.hmc:
            run = functools.partial(by_hmc, target, flow, options.hmc, **choice)
        else:
            chosen = (FlowReparam(flow, **choice), options.warmup, options.draws, seed)
            run = functools.partial(by_nuts, target, *chosen)
        found, seconds = timed(run, time.perf_counter)
        total += torch.tensor(found)
        print(
            f"steps {options.steps}, seed {seed}: {found[0]} crossings in {found[1]} gradients "
            f"({seconds:.0f} s)"
        )
    print(f"all seeds: {1000 * float(total[0] / total[1]):.2f} crossings per 1000 gradients")


if __name__ == "__main__":
    main()
