# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cost of a guide and an ELBO around a flow: a step of AutoHierarchicalFlow against the flow's.

A Gaussian field with noisy observations. Both train a flow of the same circuit with Adam: one with
SVI, the guide and the PDD loss, one with ln q and the model's density written out. The two take
turns; the ratio is one of medians of CPU time, which others on the machine do not lengthen.

    python -m tests.benchmarks.autoguide [--side 16] [--batch 128] [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch

from pyro_neuralrg import PDD, hierarchical_flow
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.train.optimizer import JoinedAdam
from tests.benchmarks.harness import in_turns, parse
from tests.benchmarks.training_step import LEARNING_RATE, our_step


def guided_step(data: torch.Tensor, batch: int) -> Callable[[], None]:
    """A model, its guide and the ELBO."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=data)

    guide = AutoHierarchicalFlow(model, "x")
    loss = PDD(num_particles=batch, max_plate_nesting=0, vectorize_particles=True)
    optimizer = JoinedAdam(list(guide.parameters()), LEARNING_RATE)

    def step() -> None:
        gradient = optimizer.gradient(loss.differentiable_loss(model, guide))
        optimizer.step(gradient, float(gradient.norm()))

    return step


def bare_step(data: torch.Tensor, batch: int) -> Callable[[], None]:
    """The flow alone."""
    flow = hierarchical_flow(tuple(data.shape))

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (0.5 * x.square() + 2.0 * (x - data).square()).sum((-1, -2))

    return our_step(flow, FlowDistribution(flow), energy, batch)


def main() -> None:
    options = parse(__doc__, side=16, batch=128, repeats=15, threads=1)
    torch.manual_seed(0)
    data = torch.randn(options.side, options.side)
    steps = [guided_step(data, options.batch), bare_step(data, options.batch)]
    in_turns(steps, 1)
    with pyro.validation_enabled(False):
        one, other = map(statistics.median, in_turns(steps, options.repeats))
    print(
        f"L = {options.side}, batch {options.batch}: {1e3 * one:.1f} ms with the guide, "
        f"{1e3 * other:.1f} ms without: ratio {one / other:.2f}"
    )


if __name__ == "__main__":
    main()
