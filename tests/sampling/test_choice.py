# SPDX-License-Identifier: Apache-2.0
"""The choice of a sampler, and the figures of chains that it rests on."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.sampling.choice import chains_for, choose, jump_figures, truncated
from pyro_neuralrg.statistics import LogWeights


def weights(spread: float, number: int = 4096) -> LogWeights:
    return LogWeights(spread * torch.randn(number))


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_figures_are_those_of_the_chain(spread: float) -> None:
    """Against the transition matrix of a finite set of proposals.

    Each comes twice, with an observable of +1 and of -1, of which the weights say nothing.
    """
    pool = weights(spread, 60)
    w = pool.values.exp().repeat(2)
    matrix = (w / w.unsqueeze(-1)).clamp(max=1.0) / len(w)
    accepted = matrix.sum(-1)
    matrix += torch.diag(1.0 - accepted)
    law, f = w / w.sum(), torch.cat([torch.ones(60), -torch.ones(60)])
    assert torch.allclose(law @ matrix, law)
    later = torch.linalg.solve(torch.eye(len(w)) - matrix + law, f)  # sum of P^k f, f of mean zero
    found = jump_figures(pool)
    assert found.acceptance == pytest.approx(float(law @ accepted))
    assert found.time == pytest.approx(float(law @ (f * (2.0 * later - f))))


def test_draws_of_weight_zero_are_never_accepted() -> None:
    found = jump_figures(LogWeights(torch.tensor([0.0, 0.0, -math.inf, -math.inf])))
    assert found == (0.5, 3.0)


@pytest.mark.parametrize(
    ("spread", "method", "least", "most"),
    [
        (0.2, "independence", 1, 1),
        (0.5, "independence", 1, 1),
        (1.2, "cycle", 1, 8),
        (3.0, "cycle", 16, 32),
        (15.0, "annealing", 32, 32),
    ],
)
def test_choice(spread: float, method: str, least: int, most: int) -> None:
    plan = choose(weights(spread), num_draws=10_000)
    assert plan.method == method
    assert least <= plan.num_jumps <= most
    assert 4 <= plan.num_chains <= 256
    assert plan.num_chains * plan.num_samples >= 10_000
    assert plan.reason


def test_one_heavy_weight_does_not_decide() -> None:
    """Seven of 4,096 effective, by one weight: local moves, as with hundreds without it."""
    values = weights(1.0).values
    values[0] = values.logsumexp(0) - 0.5  # two fifths of all
    heavy = LogWeights(values)
    assert heavy.ess * len(heavy) < 10
    assert truncated(heavy).ess * len(heavy) > 300
    assert choose(heavy, 1000).method == "cycle"


def test_choice_of_the_user() -> None:
    assert choose(weights(0.2), 100, num_chains=7, method="cycle")[0::2] == ("cycle", 7, 150)
    assert choose(weights(15.0), 100, chains_only=True).method == "cycle"
    with pytest.raises(ValueError, match="method is 'nuts'; accepted: independence, cycle"):
        choose(weights(0.2), 100, method="nuts")


def test_chains_are_shared_out_and_reasons_are_true() -> None:
    assert choose(weights(0.2), 1000, multiple=4).num_chains % 4 == 0
    heavy = choose(LogWeights(-1.2 * torch.rand(4096).log()), 1000)
    assert heavy.method == "cycle"
    assert "heavy tail" in heavy.reason


def test_a_tail_of_finite_variance_matters_where_weights_are_uneven() -> None:
    tail = ((torch.arange(4096.0) + 0.5) / 4096) ** -0.42
    near, uneven = (LogWeights((body + tail).log()) for body in (1.6, 0.8))
    assert uneven.pareto_k == pytest.approx(near.pareto_k)
    assert 1 / 3 < near.pareto_k < 0.5
    assert 0.8 < near.ess < 0.9
    assert uneven.ess < 0.8
    assert choose(near, 1000).method == "independence"
    assert choose(uneven, 1000).method == "cycle"


@pytest.mark.parametrize(
    ("time", "multiple", "expected"),
    [(3.0, 1, 11), (1.5, 1, 22), (0.2, 1, 33), (10.0, 1, 4), (3.0, 4, 12), (0.2, 64, 64)],
)
def test_chains_are_long_in_autocorrelation_times(
    time: float, multiple: int, expected: int
) -> None:
    assert chains_for(10_000, time, multiple) == expected
    assert chains_for(10**7, time, 1) == 64
    assert chains_for(10**7, time, 1, most=256) == 256
