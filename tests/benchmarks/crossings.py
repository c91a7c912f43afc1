# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Crossings of Pyro's NUTS between the phases of the Ising dual behind a flow.

Sign changes of the magnetisation of x per 1000 gradients, of the 8 x 8 model at Tc (or another
temperature), with the target's own flow, untrained or trained for some steps. With ``--hmc`` of 192
chains of HMC that start at exact draws, 20 times 10 leapfrog steps of that size: a hundred times as
many crossings in the same time.

    python -m tests.benchmarks.crossings --steps 0 --gradients 5000 --seeds 2
    python -m tests.benchmarks.crossings --steps 400 --hmc 0.2 --from-normal
"""

from __future__ import annotations

import contextlib
import itertools
import time

import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI

from pyro_neuralrg import PDD, FlowGuide, FlowReparam, IsingDual
from pyro_neuralrg.mcmc import HMC, LatentTarget
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE
from tests.benchmarks.harness import Gradients, parse

CHAINS = 192


def trained(target: IsingDual, steps: int) -> torch.nn.Module:
    """The target's flow after some steps of SVI, without cooling."""
    flow = target.flow()
    loss = PDD(num_particles=128, vectorize_particles=True)
    svi = SVI(target.model, FlowGuide(flow), pyro.optim.Adam({"lr": 3e-3}), loss=loss)
    for _ in range(steps):
        svi.step()
    return flow.requires_grad_(False)


class EnoughError(Exception):
    """The gradients are spent."""


def by_nuts(target: IsingDual, reparam: FlowReparam, warmup: int, gradients: int) -> list[int]:
    """Crossings, draws and gradients of one chain of Pyro's NUTS after its warm-up."""
    signs: list[float] = []
    energy = Gradients(None)

    def hook(kernel: NUTS, values: dict[str, torch.Tensor], stage: str, index: int) -> None:
        if stage != "Sample":
            return
        if not signs:  # from here on they count
            energy.energy, kernel.potential_fn = kernel.potential_fn, energy
        z = kernel.transforms["x_latent"].inv(values["x_latent"])
        signs.append(float(reparam.transform_sample(z).mean().sign()))
        if energy.calls >= gradients:
            raise EnoughError

    kernel = NUTS(pyro.poutine.reparam(target.model, config={"x": reparam}))
    mcmc = MCMC(kernel, 10**6, warmup, hook_fn=hook, disable_progbar=True)
    with contextlib.suppress(EnoughError):
        mcmc.run()
    crossings = sum(one != other for one, other in itertools.pairwise(signs))
    return [crossings, len(signs), energy.calls]


def by_hmc(target: IsingDual, flow: torch.nn.Module, step_size: float, **choice: bool) -> str:
    """Crossings of many chains from exact draws."""
    latent = LatentTarget(target, flow, **choice)
    x = target.sample_reference(CHAINS, 1).float()
    kernel = HMC(latent, step_size=step_size, num_steps=10, jitter=0.0)
    state = kernel.init(latent.pack({"x": x}, CHAINS))
    sign, crossings, gradients, acceptance = x.mean((-1, -2)).sign(), 0, 0, 0.0
    for _ in range(20):
        state, info = kernel.step(state)
        before, sign = sign, latent.physical(state.position)["x"].mean((-1, -2)).sign()
        crossings += int((sign != before).sum())
        gradients += CHAINS * info.gradient_evaluations
        acceptance += float(info.acceptance_rate.mean()) / 20
    return (
        f"{crossings} crossings, {1000 * crossings / gradients:.2f} per 1000 gradients, "
        f"acceptance {acceptance:.2f}"
    )


def main() -> None:
    """Print a row for each seed."""
    options = parse(
        __doc__,
        steps=(0, "training steps"),
        gradients=5000,
        warmup=(100, "draws"),
        seeds=2,
        temperature=CRITICAL_TEMPERATURE,
        hmc=({"type": float}, "step size"),
        from_normal=(False, "sample what is behind z"),
    )
    choice = {"from_normal": True} if options.from_normal else {}
    crossings = gradients = 0
    for seed in range(options.seeds):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        target = IsingDual((8, 8), options.temperature)
        flow = trained(target, options.steps)
        said, began = f"steps {options.steps}, seed {seed}:", time.perf_counter()
        if options.hmc:
            print(said, by_hmc(target, flow, options.hmc, **choice))
            continue
        reparam = FlowReparam(flow, **choice)
        found = by_nuts(target, reparam, options.warmup, options.gradients)
        crossings, gradients = crossings + found[0], gradients + found[2]
        seconds = time.perf_counter() - began
        print(
            f"{said} {found[0]} crossings in {found[1]} draws, {found[2]} gradients "
            f"({seconds:.0f} s)"
        )
    if gradients:
        print(f"all seeds: {1000 * crossings / gradients:.2f} crossings per 1000 gradients")


if __name__ == "__main__":
    main()
