# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How often Pyro's NUTS crosses between the phases of the Ising dual behind a flow.

Sign changes of the magnetisation of x per 1000 gradients, of the 8 x 8 model at Tc (or another
temperature), with the target's own flow, untrained or trained for some steps. With ``--hmc`` of 192
chains of HMC that start at exact draws, 20 times 10 leapfrog steps of that size: a hundred times as
many crossings in the same time.

    python tests/benchmarks/crossings.py --steps 0 --gradients 5000 --seeds 2
    python tests/benchmarks/crossings.py --steps 400 --hmc 0.2 --from-normal
"""

from __future__ import annotations

import argparse
import contextlib
import time

import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI

from pyro_neuralrg import PDD, FlowGuide, FlowReparam, IsingDual
from pyro_neuralrg.mcmc import HMC, LatentTarget
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE


def trained(target: IsingDual, steps: int) -> torch.nn.Module:
    """The target's flow after some steps of SVI, without cooling."""
    flow = target.flow()
    loss = PDD(num_particles=128, vectorize_particles=True)
    svi = SVI(target.model, FlowGuide(flow), pyro.optim.Adam({"lr": 3e-3}), loss=loss)
    for _ in range(steps):
        svi.step()
    return flow.requires_grad_(False)


CHAINS = 192


class EnoughError(Exception):
    """The gradients are spent."""


class Count:
    """The hook of a run: what happened since warm-up ended."""

    def __init__(self, reparam: FlowReparam, gradients: int) -> None:
        self.reparam, self.most = reparam, gradients
        self.gradients = self.draws = self.crossings = 0
        self.sign = 0.0

    def __call__(self, kernel: NUTS, values: dict[str, torch.Tensor], stage: str, i: int) -> None:
        """Look at a draw."""
        if stage != "Sample":
            return
        if self.draws == 0:
            energy = kernel.potential_fn

            def counted(values: dict[str, torch.Tensor]) -> torch.Tensor:
                self.gradients += 1
                return energy(values)

            kernel.potential_fn = counted
        z = kernel.transforms["x_latent"].inv(values["x_latent"])
        sign = float(self.reparam.transform_sample(z).mean().sign())
        self.crossings += self.draws > 0 and sign != self.sign
        self.draws, self.sign = self.draws + 1, sign
        if self.gradients >= self.most:
            raise EnoughError


def by_hmc(target: IsingDual, flow: torch.nn.Module, step_size: float, **choice: bool) -> str:
    """Crossings of many chains from exact draws."""
    latent = LatentTarget(target, flow, **choice)
    x = target.sample_reference(CHAINS, 1).float()
    kernel = HMC(latent, step_size=step_size, num_steps=10)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=0, help="training steps")
    parser.add_argument("--gradients", type=int, default=5000)
    parser.add_argument("--warmup", type=int, default=100, help="draws")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=CRITICAL_TEMPERATURE)
    parser.add_argument("--hmc", type=float, help="step size")
    parser.add_argument("--from-normal", action="store_true", help="sample what is behind z")
    options = parser.parse_args()
    choice = {"from_normal": True} if options.from_normal else {}
    crossings, gradients = 0, 0
    for seed in range(options.seeds):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        target = IsingDual((8, 8), options.temperature)
        flow = trained(target, options.steps)
        if options.hmc:
            found = by_hmc(target, flow, options.hmc, **choice)
            print(f"steps {options.steps}, seed {seed}: {found}", flush=True)
            continue
        reparam = FlowReparam(flow, **choice)
        count = Count(reparam, options.gradients)
        kernel = NUTS(pyro.poutine.reparam(target.model, config={"x": reparam}))
        began = time.perf_counter()
        mcmc = MCMC(kernel, 10**6, options.warmup, hook_fn=count, disable_progbar=True)
        with contextlib.suppress(EnoughError):
            mcmc.run()
        crossings, gradients = crossings + count.crossings, gradients + count.gradients
        print(
            f"steps {options.steps}, seed {seed}: {count.crossings} crossings in {count.draws} "
            f"draws, {count.gradients} gradients ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    if gradients:
        print(f"all seeds: {1000 * crossings / gradients:.2f} crossings per 1000 gradients")


if __name__ == "__main__":
    main()
