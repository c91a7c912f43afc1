# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a guide and an ELBO around a flow cost: a step of AutoHierarchicalFlow against the flow's.

A Gaussian field with noisy observations. Both train a flow of the same circuit with Adam: one with
SVI, the guide and the PDD loss, one with ln q and the model's density written out. The two take
turns; the ratio is one of medians of CPU time, which others on the machine do not lengthen.

    python -m tests.benchmarks.autoguide [--side 16] [--batch 128] [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch

from pyro_neuralrg import PDD, hierarchical_flow
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.train.optimizer import JoinedAdam

LEARNING_RATE = 1e-3


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
    q = FlowDistribution(flow)
    optimizer = JoinedAdam(list(flow.parameters()), LEARNING_RATE)

    def step() -> None:
        x = q.rsample((batch,))
        energy = 0.5 * x.square() + 2.0 * (x - data).square()
        gradient = optimizer.gradient((q.log_prob(x) + energy.sum((-1, -2))).mean())
        optimizer.step(gradient, float(gradient.norm()))

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data = torch.randn(arguments.side, arguments.side)
    guided, bare = guided_step(data, arguments.batch), bare_step(data, arguments.batch)
    for step in (guided, bare):
        step()
    with pyro.validation_enabled(False):
        times = [(seconds(guided), seconds(bare)) for _ in range(arguments.repeats)]
    one, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"L = {arguments.side}, batch {arguments.batch}: {1e3 * one:.1f} ms with the guide, "
        f"{1e3 * other:.1f} ms without: ratio {one / other:.2f}"
    )


if __name__ == "__main__":
    main()
