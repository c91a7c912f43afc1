# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Passes through flow and energy that a step of a run takes, and no more."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, IndependenceMetropolis
from pyro_neuralrg.mcmc import Cycle, Kernel, Mixture, as_target
from tests.mcmc.registry import ToyFlow, normal, run

passes: Counter[str] = Counter()


class CountedFlow(ToyFlow):
    def _call(self, z: Tensor) -> Tensor:
        passes["forward"] += 1
        return super()._call(z)

    def _inverse(self, x: Tensor) -> Tensor:
        passes["inverse"] += 1
        return super()._inverse(x)


def counted(x: Tensor) -> Tensor:
    passes["gradient" if x.requires_grad else "energy"] += 1
    return normal(x)


@pytest.mark.parametrize(
    ("name", "every_step", "once"),
    [
        ("jump", {"forward": 1, "energy": 1}, {"inverse": 1}),
        ("latent jump", {"forward": 1, "energy": 1}, {}),
        ("latent cycle", {"forward": 4, "gradient": 4}, {}),
        ("cycle", {"forward": 2, "gradient": 5, "inverse": 1}, {}),
    ],
)
def test_a_step_makes_the_passes_that_it_needs(
    name: str, every_step: dict[str, int], once: dict[str, int]
) -> None:
    """A cycle in physical space moves chains to where the flow's density is not known."""
    flow = CountedFlow((4,))
    target = (
        LatentTarget(counted, flow, (4,)) if "latent" in name else as_target(counted, shape=(4,))
    )
    jump = IndependenceMetropolis(flow, target)
    local = HMC(target, num_steps=3, jitter=0.0)
    cycle = Cycle(local, jump) if "latent" in name else Cycle(local, jump, jump)
    found = []
    for draws in (5, 15):
        passes.clear()
        run(jump if "jump" in name else cycle, draws, warmup_steps=0)
        found.append(Counter(passes))
    more = {key: found[1][key] - found[0][key] for key in found[1]}
    assert {key: n / 10 for key, n in more.items() if n} == every_step
    for key, number in once.items():
        assert found[0][key] == number


@pytest.mark.parametrize("kind", [Cycle, Mixture])
@pytest.mark.parametrize("flows", [1, 2])
def test_what_is_kept_of_the_density_is_that_of_the_position(kind: Any, flows: int) -> None:
    target = as_target(normal, shape=(4,))
    one, other = ToyFlow((4,)), ToyFlow((4,))
    jumps = [IndependenceMetropolis(flow, target) for flow in (one, other if flows == 2 else one)]
    kernel: Kernel = kind(HMC(target, step_size=0.3, num_steps=2), *jumps)
    state, generator, known = kernel.init(torch.randn(6, 4)), torch.Generator().manual_seed(0), 0
    for _ in range(20):
        state, _ = kernel.step(state, generator)
        if state.log_q is not None:
            known += 1
            torch.testing.assert_close(state.log_q, jumps[-1]._log_q(state.position))
    assert (known > 0) == (flows == 1)
