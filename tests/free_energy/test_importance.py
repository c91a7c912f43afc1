# SPDX-License-Identifier: Apache-2.0
"""Estimates and bounds of the free energy of a Gaussian, from samples of a wider one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_neuralrg.distributions import SymmetrizedFlow
from pyro_neuralrg.free_energy import bounds, estimate
from pyro_neuralrg.free_energy.importance import from_log_weights
from pyro_neuralrg.infer import FlowGuide
from pyro_neuralrg.potentials import FreeField, IsingDual, LatticePotential
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.transforms import hierarchical_flow
from tests.free_energy.gaussian import (
    ESS,
    EXACT,
    KL_OF_Q,
    KL_OF_TARGET,
    SITES,
    WIDTH,
    check_coverage,
    energy,
    proposal,
)


def test_both_estimates_against_exact_values() -> None:
    found = estimate(energy, proposal(), num_samples=40_000, batch_size=7000)
    assert found.num_samples == 40_000
    assert abs(found.variational - (EXACT + KL_OF_Q)) < 5 * found.variational_se
    assert abs(found.importance - EXACT) < 5 * found.importance_se
    assert abs(found.ess - ESS) < 0.02
    # Var(ln w) = SITES (WIDTH^2 - 1)^2 / 2 and Var(w) / E[w]^2 = 1/ESS - 1.
    size = (WIDTH**2 - 1) * (SITES / 2 / 40_000) ** 0.5
    assert found.variational_se == pytest.approx(size, rel=0.05)
    assert found.importance_se == pytest.approx(((1 / ESS - 1) / 40_000) ** 0.5, rel=0.05)


KINDS: list[Any] = [
    lambda flow: flow, FlowGuide, SymmetrizedFlow, lambda flow: FlowGuide(flow).distribution()
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_q(target: Any, flow: Any, kind: Any) -> None:
    flow.set_exact(target)
    found = estimate(target, kind(flow), num_samples=2000, batch_size=600)
    if kind is not SymmetrizedFlow:
        assert found.variational == pytest.approx(-target.log_partition(), abs=1e-9)
        assert found.importance_se < 1e-6
    assert abs(found.importance + target.log_partition()) < 5 * found.importance_se + 1e-9


def test_warns_of_few_effective_samples() -> None:
    with pytest.warns(UserWarning, match="rests on .* effective samples of 50") as caught:
        found = estimate(lambda x: 50.0 * energy(x), proposal(4.0), num_samples=50)
    assert caught[0].filename == __file__
    assert not found.is_trustworthy


def test_both_bounds_and_their_distances() -> None:
    found = bounds(energy, proposal(), 40_000, reference=torch.randn(20_000, SITES))
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
    # the same reference from outside, in another dtype
    fields = target.sample_reference(4000, seed).float()
    again = bounds(target, flow, 10, reference=fields)
    assert again.lower == pytest.approx(found.lower, abs=1e-5)


def test_a_missed_mode_shows_in_the_lower_bound_only() -> None:
    """q knows one of two far humps: the upper bound is ln 2 off, the lower one far more."""

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
    kept = [torch.randn(chains, SITES)]
    for _ in range(draws - 1):
        kept.append(rho * kept[-1] + math.sqrt(1 - rho**2) * torch.randn(chains, SITES))
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


@pytest.mark.parametrize("function", [bounds, estimate])
def test_bad_numbers(function: Any) -> None:
    with pytest.raises(ValueError, match="num_samples is 0; accepted"):
        function(energy, proposal(), 0)
    with pytest.raises(TypeError, match=r"batch_size is 1\.5; accepted"):
        function(energy, proposal(), batch_size=1.5)


class FarAway(LatticePotential):
    """A Gaussian of width 0.01, whose energy fails by its numbers at |x| > 0.2."""

    def energy(self, x: Tensor) -> Tensor:
        torch.linalg.cholesky(0.2 - x.abs().amax().reshape(1, 1))
        return 5e3 * x.square().sum(-1)


def test_energies_that_fail_far_from_all_samples() -> None:
    q = Independent(Normal(torch.zeros(SITES), 0.01), 1)
    exact = -0.5 * SITES * math.log(2 * math.pi * 1e-4)
    found = estimate(FarAway((SITES,)), q, 100)
    assert found.importance == pytest.approx(exact, abs=1e-9)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"reference": [0.0]}, TypeError, "reference is a list; accepted"),
    ({"reference": torch.zeros(0, SITES)}, ValueError, r"reference has shape \(0, 4\)"),
    ({"reference": torch.zeros(2, 3)}, ValueError, r"reference has shape \(2, 3\)"),
    ({"reference": torch.zeros(1, 2, 3, SITES)}, ValueError, r"reference has shape"),
    ({}, TypeError, "reference is None and target, a function, has no sample_reference"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        bounds(energy, proposal(), **options)


def of_reference(function: Any, q: Any, number: int) -> Any:
    return bounds(function, q, number, reference=torch.randn(number, SITES))


def diverged() -> Any:
    """A flow whose parameters are NaN."""
    flow = hierarchical_flow((2, 2))
    for parameter in flow.parameters():
        parameter.data.fill_(math.nan)
    return flow


BAD_ENERGIES: list[tuple[Any, Any, type[Exception], str]] = [
    (lambda x: energy(x) * math.nan, proposal(), ValueError, "has 10 of 10 entries that are NaN"),
    (lambda x: x, proposal(), ValueError, r"target returned shape \(10, 4\) for fields"),
    (
        lambda x: None,
        proposal(),
        TypeError,
        r"target of fields is a NoneType; .* estimate\(model, guide, model_args",
    ),
    (
        lambda: None,
        proposal(),
        TypeError,
        r"target does not take fields alone: .* estimate\(model, guide, model_args",
    ),
    ("ising", proposal(), TypeError, "target is a str"),
    (energy, "flow", TypeError, "q is a str"),
]


@pytest.mark.parametrize("estimator", [of_reference, estimate])
@pytest.mark.parametrize(("target", "q", "error", "match"), BAD_ENERGIES)
def test_bad_energies(estimator: Any, target: Any, q: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        estimator(target, q, 10)


def test_flows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"q has shape \(2, 2\), the target \(4, 4\)"):
        estimate(IsingDual((4, 4)), hierarchical_flow((2, 2)), num_samples=10)
    with pytest.raises(ValueError, match=r"^samples of q are not finite; accepted: [^\n]*$"):
        estimate(IsingDual((2, 2)), diverged(), num_samples=10)


@pytest.mark.slow
def test_error_bars_cover() -> None:
    runs = [estimate(energy, proposal(), 2000, 2000) for _ in range(200)]
    check_coverage([(run.variational - EXACT - KL_OF_Q) / run.variational_se for run in runs])
    check_coverage([(run.importance - EXACT) / run.importance_se for run in runs])
    both = [bounds(energy, proposal(), 500, reference=torch.randn(500, SITES)) for _ in range(200)]
    check_coverage([(found.lower - EXACT + KL_OF_TARGET) / found.lower_se for found in both])
    check_coverage([(found.upper - EXACT - KL_OF_Q) / found.upper_se for found in both])


@pytest.mark.parametrize(("shape", "least", "most"), [(0.1, 1.0, 1.0), (0.6, 1.05, 5.0)])
def test_the_error_takes_in_a_heavy_tail(shape: float, least: float, most: float) -> None:
    """Weights u^-k of uniform u, a third of them zero; above a k-hat of 1 it is infinite."""
    u = torch.rand(5000)
    zero = torch.arange(5000) % 3 == 0
    weights = LogWeights((-shape * u.log()).masked_fill(zero, -math.inf))
    ratio = from_log_weights(weights).importance_se / weights.log_mean.standard_error
    assert least - 1e-9 <= ratio <= most + 1e-9
    assert weights.log_mean_with_tail.standard_error == from_log_weights(weights).importance_se
    assert from_log_weights(LogWeights(-2.0 * u.log())).importance_se == math.inf
