# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One training step at the paper's set-up, ours against the straightforward version.

L = 16, batch 512, 10 couplings of 3 hidden layers of 10 on 2 x 2 blocks, Adam 1e-3, float32, and
the same weights, hence the same ln q, which is checked first. Once with the plain density, once
with that of the mixture over x -> -x. The two versions take turns; the table has medians.

    python -m tests.benchmarks.training_step [--threads 2] [--repeats 9]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pyro_neuralrg import IsingDual, SymmetrizedFlow, hierarchical_flow
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.transforms import HierarchicalFlow
from tests.benchmarks.harness import in_turns, parse
from tests.benchmarks.straightforward import StraightforwardFlow, straightforward_copy

SIDE, BATCH, LEARNING_RATE = 16, 512, 1e-3


def paper_flow(dtype: torch.dtype = torch.float32) -> HierarchicalFlow:
    """The paper's flow with weights that are not those of the start."""
    flow = hierarchical_flow((SIDE, SIDE), bijector="realnvp", dtype=dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return flow


def density(flow: HierarchicalFlow, symmetrized: bool) -> Any:
    return SymmetrizedFlow(flow) if symmetrized else FlowDistribution(flow)


def largest_difference(dtype: torch.dtype, symmetrized: bool) -> float:
    """Largest relative difference of the two ln q on a batch of our samples."""
    flow = paper_flow(dtype)
    theirs = straightforward_copy(flow)
    with torch.no_grad():
        x = flow(torch.randn(BATCH, SIDE, SIDE, dtype=dtype)).clone()
        ours = density(flow, symmetrized).log_prob(x)
        other = theirs.symmetrized_log_prob(x) if symmetrized else theirs.log_prob(x)
    return float(((ours - other) / other).abs().max())


def our_step(flow: HierarchicalFlow, target: IsingDual, symmetrized: bool) -> Callable[[], None]:
    optimizer = JoinedAdam(flow.parameters(), LEARNING_RATE)
    q = density(flow, symmetrized)

    def step() -> None:
        x = q.rsample((BATCH,))
        gradient = optimizer.gradient((q.log_prob(x) + target.energy(x)).mean())
        optimizer.step(gradient, float(gradient.norm()))

    return step


def their_step(
    flow: StraightforwardFlow, target: IsingDual, symmetrized: bool
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(flow.parameters(), LEARNING_RATE)
    sample = flow.symmetrized_sample if symmetrized else flow.sample

    def step() -> None:
        optimizer.zero_grad()
        x, log_q = sample(BATCH)
        (log_q + target.energy(x)).mean().backward()
        optimizer.step()

    return step


def main() -> None:
    options = parse(__doc__, threads=torch.get_num_threads(), repeats=9)
    torch.manual_seed(0)
    print(f"L = {SIDE}, batch {BATCH}, {options.threads} threads, torch {torch.__version__}")
    for symmetrized, name in enumerate(("plain", "symmetrised")):
        for dtype in (torch.float32, torch.float64):
            difference = largest_difference(dtype, bool(symmetrized))
            print(f"{name}: ln q differs by {difference:.1e} ({dtype})")
        flow, target = paper_flow(), IsingDual((SIDE, SIDE))
        ours = our_step(flow, target, bool(symmetrized))
        theirs = their_step(straightforward_copy(flow), target, bool(symmetrized))
        in_turns([ours, theirs], 1)  # compile, allocate
        times = in_turns([ours, theirs], options.repeats, time.perf_counter)
        one, other = map(statistics.median, times)
        ratios = [b / a for a, b in zip(*times, strict=True)]
        print(
            f"{name}: {1e3 * one:.0f} ms against {1e3 * other:.0f} ms: {other / one:.1f} times as "
            f"fast (single pairs {min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
