# SPDX-License-Identifier: Apache-2.0
"""Bridge sampling against exact ln Z, and its error against the scatter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.free_energy.bridge import bridge, effective

LOG_Z = 3.0


def draws_of_target(chains: int, number: int, memory: float) -> Tensor:
    """Standard normals, of chains that forget as an AR(1)."""
    x = torch.randn(chains, number)
    for t in range(1, number):
        x[:, t] = memory * x[:, t - 1] + math.sqrt(1 - memory**2) * x[:, t]
    return x


def log_weight(x: Tensor, mean: float, sd: float) -> Tensor:
    """ln pi - ln q: pi is exp(LOG_Z) times a standard normal, q a normal of this mean and sd."""
    return LOG_Z - 0.5 * x**2 + 0.5 * ((x - mean) / sd) ** 2 + math.log(sd)


@pytest.mark.parametrize(
    ("mean", "sd", "memory"), [(1.0, 0.5, 0.0), (1.5, 1.0, 0.8), (0.5, 2.0, 0.5), (0.0, 0.3, 0.8)]
)
def test_the_error_covers(mean: float, sd: float, memory: float) -> None:
    """Where q is narrow, shifted or wide, and the draws of the target are those of chains."""
    scores = []
    for _ in range(40):
        q = mean + sd * torch.randn(1000)
        p = draws_of_target(4, 300, memory)
        found = bridge(log_weight(q, mean, sd), log_weight(p, mean, sd))
        assert 0 < found.standard_error < 0.2
        scores.append((found.value - LOG_Z) / found.standard_error)
    scores_ = torch.tensor(scores)
    assert scores_.square().mean().sqrt() == pytest.approx(1.0, abs=0.35)
    assert abs(scores_.mean()) < 4 / math.sqrt(40)
    assert scores_.abs().max() < 4.5


def test_the_root_solves_both_equations() -> None:
    """The fixed point of Meng and Wong's iteration, by hand."""
    of_q, of_target = log_weight(torch.randn(500) + 1, 1.0, 1.0), draws_of_target(2, 100, 0.5)
    of_target = log_weight(of_target, 1.0, 1.0)
    ours = 500 / (500 + effective(of_target))
    z, w = 1.0, (of_q.exp(), of_target.exp())
    for _ in range(200):
        above = (w[0] / ((1 - ours) * w[0] + ours * z)).mean()
        z = float(above / (1 / ((1 - ours) * w[1] + ours * z)).mean())
    assert bridge(of_q, of_target).value == pytest.approx(math.log(z), abs=1e-9)


def test_a_constant_weight_is_exact_and_a_factor_shifts() -> None:
    found = bridge(torch.full((50,), 2.5), torch.full((2, 50), 2.5))
    assert found.value == pytest.approx(2.5, abs=1e-12)
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)
    of_q, of_target = torch.randn(300), torch.randn(2, 200) + 1
    one, other = bridge(of_q, of_target), bridge(of_q - 1000, of_target - 1000)
    assert other.value == pytest.approx(one.value - 1000, abs=1e-9)
    assert other.standard_error == pytest.approx(one.standard_error)


def test_half_of_the_draws_of_q_without_weight_halve_z() -> None:
    of_q, of_target = torch.zeros(400), torch.zeros(2, 200)
    of_q[::2] = -math.inf
    found = bridge(of_q, of_target)
    assert found.value == pytest.approx(-math.log(2), abs=1e-9)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 399), rel=1e-6)


def test_the_figures_tell_a_gulf() -> None:
    found = bridge(
        log_weight(6 + torch.randn(1000), 6.0, 1.0), log_weight(torch.randn(4, 250), 6, 1)
    )
    assert min(found.from_q, found.from_target) < 20
    apart = torch.randn(4, 250) + torch.arange(4.0).view(4, 1)
    assert bridge(torch.randn(1000), apart).rhat > 1.1
