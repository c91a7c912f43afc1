# SPDX-License-Identifier: Apache-2.0
"""Variance of the training gradient: plain, path gradient, and with antithetic pairs z and -z.

For a flow as it begins, and after a training at Tc. The variance is that of one step of 256 fields,
summed over all parameters, as a multiple of the squared norm of the mean gradient at the start. A
flow that is odd, like its target, has the same gradient at z and at -z: pairs then halve the number
of samples, and that is why there is no option for them; for a flow that is not odd they are shown.

    python -m tests.benchmarks.gradients [--side 8] [--steps 1000]
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg import IsingDual, fit
from tests.benchmarks.harness import parse

BATCH, REPEATS = 256, 24


def gradient(target: IsingDual, flow: Any, z: Tensor, path: bool) -> Tensor:
    """Gradient of the mean of ln q - ln pi, as one vector."""
    flow.zero_grad()
    if path:
        x, _, score = flow.forward_with_score(z)
        loss = target.energy(x) + (score * x).sum((-1, -2))
    else:
        x, ladj = flow.forward_and_ladj(z)
        loss = target.energy(x) - ladj
    loss.mean().backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])


def spread(target: IsingDual, flow: Any, path: bool, antithetic: bool) -> tuple[float, Tensor]:
    """Total variance of the gradient, and its mean."""
    found = []
    for _ in range(REPEATS):
        z = flow.base.sample((BATCH, *target.shape), 2)
        if antithetic:
            z = torch.cat([z[: BATCH // 2], -z[: BATCH // 2]])
        found.append(gradient(target, flow, z, path))
    stacked = torch.stack(found)
    return float(stacked.var(0).sum()), stacked.mean(0)


def main() -> None:
    arguments = parse(__doc__, side=8, steps=1000)
    target = IsingDual((arguments.side, arguments.side))
    for odd in (True, False):
        torch.manual_seed(0)
        flow = target.flow(odd=odd)
        scale = float(spread(target, flow, True, False)[1].square().sum())
        for stage in ("at the start", f"after {arguments.steps} steps"):
            for antithetic, path in itertools.product((False, True), repeat=2):
                torch.manual_seed(1)
                variance, _ = spread(target, flow, path, antithetic)
                kind = f"{'path' if path else 'plain'}{', antithetic' if antithetic else ''}"
                label = "odd" if odd else "not odd"
                print(f"{label:>8}, {stage:<16} {kind:<18} {variance / scale:.3g}")
            if stage == "at the start":
                fit(target, flow, steps=arguments.steps, seed=0, progress=False)


if __name__ == "__main__":
    main()
