# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Both bounds of a Gaussian by another one, whose distances are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_neuralrg.free_energy import bounds
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow

SITES = 4
WIDTH = 1.25  # of q over that of the target
EXACT = -0.5 * SITES * math.log(2.0 * math.pi)
KL_OF_Q = SITES * (0.5 * (WIDTH**2 - 1.0) - math.log(WIDTH))
KL_OF_TARGET = SITES * (0.5 * (WIDTH**-2 - 1.0) + math.log(WIDTH))


def energy(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def proposal() -> Any:
    return Independent(Normal(torch.zeros(SITES), WIDTH), 1)


def test_both_bounds_and_their_distances() -> None:
    found = bounds(energy, proposal(), 40_000, reference=torch.randn(20_000, SITES))
    assert found.lower + 10 * found.lower_se < EXACT < found.upper - 10 * found.upper_se
    assert abs(found.lower - (EXACT - KL_OF_TARGET)) < 4 * found.lower_se
    assert abs(found.upper - (EXACT + KL_OF_Q)) < 4 * found.upper_se
    # Var(ln w) = SITES (1 - ratio of the variances)^2 / 2
    sizes = (1 - WIDTH**-2) * (SITES / 2 / 20_000) ** 0.5, (WIDTH**2 - 1) * (SITES / 2 / 4e4) ** 0.5
    assert (found.lower_se, found.upper_se) == pytest.approx(sizes, rel=0.05)


def test_reference_samples_of_a_potential(seed: int) -> None:
    target = FreeField((2, 2), mass=1.0)
    flow = hierarchical_flow((2, 2))
    found = bounds(target, flow, 4000, seed=seed, batch_size=1500)
    assert found.lower - 4 * found.lower_se < -target.log_partition()
    assert found.upper + 4 * found.upper_se > -target.log_partition()
    assert found.lower < found.upper
    # the same reference from outside, in another dtype
    fields = target.sample_reference(4000, seed).float()
    again = bounds(target, flow, 10, reference=fields)
    assert again.lower == pytest.approx(found.lower, abs=1e-5)


def test_a_missed_mode_shows_in_the_lower_bound_only() -> None:
    """Of two far humps q knows one: the upper bound is ln 2 off, the lower one far more."""

    def two_humps(x: Tensor) -> Tensor:
        both = torch.stack([-0.5 * (x - s * 6.0).square().sum(-1) for s in (-1.0, 1.0)])
        return -both.logsumexp(0)

    q = Independent(Normal(torch.full((1,), 6.0), 1.0), 1)
    signs = torch.randint(2, (1000, 1)) * 2.0 - 1.0
    found = bounds(two_humps, q, 1000, reference=6.0 * signs + torch.randn(1000, 1))
    exact = -math.log(2 * math.sqrt(2 * math.pi))
    assert found.upper == pytest.approx(exact + math.log(2), abs=1e-3)
    assert found.lower < exact - 10


def test_chains_have_the_error_of_their_effective_samples() -> None:
    """An autoregressive reference of correlation 0.9: variance of the mean times 19."""
    chains, draws, rho = 8, 1000, 0.9
    x = torch.randn(chains, SITES)
    kept = []
    for _ in range(draws):
        x = rho * x + math.sqrt(1 - rho**2) * torch.randn(chains, SITES)
        kept.append(x)
    reference = torch.stack(kept, 1)
    of_chains = bounds(energy, proposal(), 10, reference=reference)
    naive = bounds(energy, proposal(), 10, reference=reference.flatten(0, 1))
    assert of_chains.lower == pytest.approx(naive.lower)
    # squares have correlation rho^2
    slower = math.sqrt((1 + rho**2) / (1 - rho**2))
    assert of_chains.lower_se == pytest.approx(slower * naive.lower_se, rel=0.15)
    assert abs(of_chains.lower - (EXACT - KL_OF_TARGET)) < 4 * of_chains.lower_se


def test_infinite_energies_leave_the_lower_bound() -> None:
    half_line = lambda x: torch.where(x[:, 0] > 0, energy(x), math.inf)  # noqa: E731
    reference = torch.randn(100, SITES)
    reference[:, 0].abs_()
    found = bounds(half_line, proposal(), 100, reference=reference)
    assert found.upper == math.inf
    assert math.isfinite(found.lower)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_samples": 0}, ValueError, "num_samples is 0; accepted"),
    ({"batch_size": 1.5}, TypeError, "batch_size is 1.5; accepted"),
    ({"reference": [0.0]}, TypeError, "reference is a list; accepted"),
    ({"reference": torch.zeros(3)}, ValueError, r"reference has shape \(3,\); accepted"),
    ({"reference": torch.zeros(0, SITES)}, ValueError, r"reference has shape \(0, 4\)"),
    ({"reference": torch.zeros(2, 3)}, ValueError, r"reference has shape \(2, 3\)"),
    ({"reference": torch.zeros(1, 2, 3, SITES)}, ValueError, r"reference has shape"),
    ({}, TypeError, "reference is None and target, a function, has no sample_reference"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        bounds(energy, proposal(), **options)


def test_bad_energies() -> None:
    reference = torch.randn(10, SITES)
    with pytest.raises(ValueError, match="10 of 10 log-weights of the reference are NaN"):
        bounds(lambda x: energy(x) * math.nan, proposal(), 10, reference=reference)
    with pytest.raises(ValueError, match=r"energy has shape \(10, 4\) for 10 fields"):
        bounds(lambda x: x, proposal(), 10, reference=reference)
    with pytest.raises(ValueError, match="log_weights has 20 of 20 entries that are NaN or plus"):
        bounds(lambda x: energy(x) - math.inf, proposal(), 20, reference=reference)


@pytest.mark.slow
def test_error_bars_cover() -> None:
    """One standard error covers the exact means as often as it should, over 200 seeds."""
    runs = [bounds(energy, proposal(), 500, reference=torch.randn(500, SITES)) for _ in range(200)]
    for pulls in (
        torch.tensor([(r.lower - EXACT + KL_OF_TARGET) / r.lower_se for r in runs]),
        torch.tensor([(r.upper - EXACT - KL_OF_Q) / r.upper_se for r in runs]),
    ):
        covered = float((pulls.abs() < 1.0).double().mean())
        assert abs(covered - 0.6827) < 3 * (0.6827 * 0.3173 / 200) ** 0.5
        assert abs(float(pulls.mean())) < 4 / 200**0.5
