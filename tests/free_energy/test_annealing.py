# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Annealing against exact free energies: correlated Gaussians, small Ising models, two humps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual
from pyro_neuralrg.free_energy import anneal, reweight
from pyro_neuralrg.free_energy.annealing import Annealing, _Run
from pyro_neuralrg.free_energy.particles import next_beta, systematic
from pyro_neuralrg.free_energy.tempered import TemperedTarget
from pyro_neuralrg.mcmc import EnergyTarget, LatentTarget
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow

BETAS = (0.0, 0.1, 0.3, 0.6, 1.0)


class CorrelatedGaussian:
    """exp(-x^T A x / 2) of four sites, A = 3 on the diagonal and -1 beside it."""

    shape = (4,)
    matrix = 3.0 * torch.eye(4, dtype=torch.float64) - torch.diag(
        torch.ones(3, dtype=torch.float64), 1
    )
    matrix = 0.5 * (matrix + matrix.T)
    exact = -0.5 * (4 * math.log(2 * math.pi) - float(torch.logdet(matrix)))

    @classmethod
    def energy(cls, x: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,ij,bj->b", x, cls.matrix.to(x), x)


def gaussian(**options: Any) -> Annealing:
    """A small run without a flow."""
    given: dict[str, Any] = {"num_particles": 256, "num_steps": 3, "progress": False, **options}
    return anneal(CorrelatedGaussian.energy, shape=(4,), **given)


def test_smc_from_a_standard_normal(seed: int) -> None:
    run = gaussian(num_particles=1024, conditional_ess=0.8, seed=seed)
    assert abs(run.free_energy - CorrelatedGaussian.exact) < 4 * run.standard_error
    assert run.standard_error < 0.1
    assert run.betas[0] == 0.0
    assert run.betas[-1] == 1.0
    steps = len(run.betas) - 1
    assert {len(run.ess), len(run.acceptance), len(run.step_sizes), len(run.resampled)} == {steps}
    assert run.ess[0] == pytest.approx(0.8, abs=1e-6)
    assert run.groups == 16
    assert all(math.isnan(rate) for rate in run.jump_acceptance)
    # the final particles: covariance is the inverse of the matrix
    exact = CorrelatedGaussian.matrix.inverse()
    x = run.fields
    found = reweight(x.unsqueeze(-1) * x.unsqueeze(-2), run.log_weights, groups=run.groups)
    assert bool(((found.estimate - exact).abs() < 5 * found.standard_error).all())


def test_ais_has_no_resampling_and_independent_weights(seed: int) -> None:
    run = gaussian(resample_below=0.0, conditional_ess=0.8, seed=seed)
    assert run.groups == 256
    assert not any(run.resampled)
    assert abs(run.free_energy - CorrelatedGaussian.exact) < 4 * run.standard_error
    assert run.free_energy == pytest.approx(-float(run.log_weights.logsumexp(0) - math.log(256)))


def test_weights_of_the_particles_give_the_estimate(seed: int) -> None:
    run = gaussian(resample_below=0.9, betas=BETAS, seed=seed)
    assert any(run.resampled)
    assert run.betas == BETAS
    assert run.free_energy == pytest.approx(-float(run.log_weights.logsumexp(0) - math.log(256)))


@pytest.mark.parametrize("resample_below", [0.0, 0.5])
def test_potential_in_the_latent_space_of_an_untrained_flow(
    resample_below: float, seed: int
) -> None:
    """A flow of two modes that knows nothing but the Gaussian part."""
    potential = IsingDual((2, 2))
    flow = potential.flow()
    run = anneal(
        potential,
        flow,
        num_particles=256,
        num_steps=4,
        conditional_ess=0.8,
        resample_below=resample_below,
        seed=seed,
        progress=False,
    )
    assert abs(run.free_energy + potential.log_partition()) < 4 * run.standard_error
    assert run.standard_error < 0.2
    assert run.fields.shape == (256, 2, 2)
    assert 0.0 < run.jump_acceptance[-1] < run.jump_acceptance[0] <= 1.0
    assert all(parameter.requires_grad for parameter in flow.parameters())


def test_exact_start_has_no_error(seed: int) -> None:
    """Energy of a standard normal: one temperature, every weight its normalisation."""
    run = anneal(
        lambda x: 0.5 * x.square().sum(-1), shape=(3,), num_particles=32, seed=seed, progress=False
    )
    assert run.betas == (0.0, 1.0)
    assert run.free_energy == pytest.approx(-1.5 * math.log(2 * math.pi))
    assert run.standard_error < 1e-6


def test_targets_that_are_given_ready(seed: int) -> None:
    potential = FreeField((2, 2), mass=1.0)
    flow = hierarchical_flow((2, 2))
    options: dict[str, Any] = {
        "num_particles": 128,
        "num_steps": 3,
        "conditional_ess": 0.8,
        "seed": seed,
        "progress": False,
    }
    direct = anneal(potential, flow, **options)
    ready = anneal(LatentTarget(potential, flow), **options)
    assert direct.free_energy == ready.free_energy
    plain = anneal(EnergyTarget(potential), **options)
    assert abs(plain.free_energy + potential.log_partition()) < 5 * plain.standard_error


def test_gradients_are_counted(seed: int) -> None:
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return CorrelatedGaussian.energy(x)

    run = anneal(energy, shape=(4,), num_particles=64, batch_size=24, seed=seed, progress=False)
    assert sum(calls) == run.gradient_evaluations
    assert max(calls) == 24


def test_same_seed_same_run(seed: int) -> None:
    first, second = gaussian(seed=seed), gaussian(seed=seed)
    assert first.free_energy == second.free_energy
    assert first.free_energy != gaussian(seed=seed + 1).free_energy
    torch.testing.assert_close(gaussian(seed=seed, batch_size=100).fields, first.fields)
    torch.manual_seed(seed)
    third = gaussian()
    torch.manual_seed(seed)
    assert third.free_energy == gaussian().free_energy


def test_step_size_follows_the_acceptance(seed: int) -> None:
    large = gaussian(step_size=3.0, conditional_ess=0.97, seed=seed)
    assert large.step_sizes[0] == 3.0
    assert large.acceptance[0] < 0.5
    assert abs(large.acceptance[-1] - 0.8) < 0.2
    small = gaussian(step_size=0.01, conditional_ess=0.97, seed=seed)
    assert small.step_sizes[-1] > 0.05


def test_no_moves_is_importance_sampling(seed: int) -> None:
    run = gaussian(moves=0, resample_below=0.0, betas=BETAS, seed=seed)
    one = gaussian(moves=0, resample_below=0.0, betas=(0.0, 1.0), seed=seed)
    assert run.free_energy == pytest.approx(one.free_energy)
    assert math.isnan(run.acceptance[0])
    assert run.gradient_evaluations == 256


def test_energies_that_are_infinite_somewhere(seed: int) -> None:
    """Half of a Gaussian: ln 2 more; the bisection is not caught in the first step."""
    half = lambda x: torch.where(x[:, 0] > 0, CorrelatedGaussian.energy(x), math.inf)  # noqa: E731
    run = anneal(half, shape=(4,), num_particles=1024, seed=seed, progress=False)
    exact = CorrelatedGaussian.exact + math.log(2)
    assert abs(run.free_energy - exact) < 4 * run.standard_error
    assert bool((run.fields[run.log_weights > -math.inf][:, 0] > 0).all())
    assert run.betas[1] > 0.01


def test_resampling_takes_all_of_a_particle_along(seed: int) -> None:
    run = _Run(
        TemperedTarget(EnergyTarget(CorrelatedGaussian.energy, (4,)), 0.0),
        groups=4,
        moves=1,
        num_steps=1,
        step_size=0.1,
        target_acceptance=0.8,
        resample_below=0.9,
        next_beta=lambda log_ratio, weights, beta: 1.0,
        generator=torch.Generator().manual_seed(seed),
    )
    run.start(40)
    before, first = run.positions, run.positions[:10].clone()
    run.log_weights = 3.0 * torch.randn(40)
    run.log_weights[:10] = 0.0  # a good group stays as it is
    sums = run.log_weights.view(4, 10).logsumexp(-1)
    run._resample()
    assert run.resampled == [0.75]
    assert len(run.positions.unique(dim=0)) < len(before)
    assert torch.equal(run.positions[:10], first)
    for group in range(4):  # copies of the own group's
        rows = slice(10 * group, 10 * group + 10)
        assert bool((run.positions[rows, None] == before[rows]).all(-1).any(-1).all())
    torch.testing.assert_close(run.log_weights.view(4, 10).logsumexp(-1), sums)
    carried = run.energy, run.gradient, run.base, run.base_gradient
    for old, new in zip(carried, run.tempered.both(run.positions), strict=True):
        torch.testing.assert_close(old, new)


def test_next_beta_leaves_the_conditional_ess() -> None:
    """Of normal ln w of variance v, step d leaves exp(-d^2 v)."""
    log_ratio = 3.0 * torch.randn(200_000)
    beta = next_beta(log_ratio, torch.zeros(200_000), 0.25, 0.9)
    assert beta - 0.25 == pytest.approx(math.sqrt(-math.log(0.9)) / 3.0, rel=0.02)
    assert next_beta(log_ratio, torch.zeros(200_000), 0.99, 0.9) == 1.0
    # particles without weight have no say
    weights = torch.where(log_ratio > 3.0, 0.0, -math.inf)
    assert next_beta(log_ratio, weights, 0.25, 0.9) > beta + 0.05


def test_systematic_resampling(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 50).log()
    expected = 50 * torch.softmax(weights, -1)
    total = torch.zeros(3, 50)
    rounds = 2000
    for _ in range(rounds):
        chosen = systematic(weights, generator)
        counts = torch.stack([torch.bincount(row, minlength=50) for row in chosen])
        assert bool(((counts - expected).abs() < 1.0 + 1e-9).all())
        total += counts
    # each count is one of two neighbouring integers: a variance of at most 1 / 4
    assert bool(((total / rounds - expected).abs() < 5 * 0.5 / rounds**0.5).all())


def test_resampling_leaves_out_what_has_no_weight() -> None:
    weights = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for seed in range(20):
        chosen = systematic(weights, torch.Generator().manual_seed(seed))
        assert set(chosen.flatten().tolist()) == {1, 3}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_particles": 1}, ValueError, "num_particles is 1; accepted"),
    ({"num_particles": 100}, ValueError, "num_particles is 100; accepted: a multiple of groups"),
    ({"groups": 1}, ValueError, "groups is 1; accepted"),
    ({"groups": 2.0}, TypeError, r"groups is 2\.0; accepted"),
    ({"moves": -1}, ValueError, "moves is -1; accepted"),
    ({"num_steps": 0}, ValueError, "num_steps is 0; accepted"),
    ({"step_size": 0.0}, ValueError, r"step_size is 0\.0; accepted"),
    ({"target_acceptance": 1.0}, ValueError, r"target_acceptance is 1\.0; accepted"),
    ({"conditional_ess": 1.0}, ValueError, r"conditional_ess is 1\.0; accepted"),
    ({"resample_below": 1.1}, ValueError, r"resample_below is 1\.1; accepted"),
    ({"betas": (0.0, 0.5)}, ValueError, r"betas is \(0\.0, 0\.5\); accepted"),
    ({"betas": (0.0, 0.6, 0.5, 1.0)}, ValueError, "betas is .*; accepted: increasing"),
    ({"betas": (0.0, "a", 1.0)}, TypeError, "betas is .*; accepted: increasing"),
    ({"betas": 3}, TypeError, "betas is 3; accepted: increasing"),
    ({"batch_size": 0}, ValueError, "batch_size is 0; accepted"),
    ({"seed": -1}, ValueError, "seed is -1; accepted"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        gaussian(**options)


def test_bad_targets() -> None:
    with pytest.raises(ValueError, match=r"flow has shape \(2, 4\), the field \(2, 2\)"):
        anneal(IsingDual((2, 2)), hierarchical_flow((2, 4)))
    with pytest.raises(ValueError, match="the energy of 32 of 32 starts is NaN; accepted"):
        anneal(lambda x: x.sum(-1) * math.nan, shape=(2,), num_particles=32, progress=False)
    with pytest.raises(ValueError, match="the energy of 32 of 32 starts is minus infinity"):
        anneal(lambda x: x.sum(-1) - math.inf, shape=(2,), num_particles=32, progress=False)
    with pytest.raises(ValueError, match="the energy of all 32 starts is infinite"):
        anneal(lambda x: x.sum(-1) + math.inf, shape=(2,), num_particles=32, progress=False)
    with pytest.raises(ValueError, match="energy returned"):
        anneal(lambda x: x, shape=(2,), num_particles=32, progress=False)


def covers(runs: list[Annealing], exact: float, bias: float = 0.0) -> None:
    """One standard error covers as often as it should; the bias of Z is within ``bias`` of it."""
    number = len(runs)
    pulls = torch.tensor([(run.free_energy - exact) / run.standard_error for run in runs])
    covered = float((pulls.abs() < 1.0).double().mean())
    assert abs(covered - 0.6827) < 3 * (0.6827 * 0.3173 / number) ** 0.5, covered
    ratios = torch.tensor([math.exp(exact - run.free_energy) for run in runs])
    off = float((ratios.mean() - 1.0) / ratios.std())
    assert abs(off) < bias + 3 / number**0.5, off
    # the errors are as large as the scatter, within what 200 runs tell
    claimed = torch.tensor([run.standard_error for run in runs]).square().mean().sqrt()
    assert float(ratios.std() / claimed) == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("resample_below", [0.0, 0.5, 1.0])
def test_error_bars_cover_and_z_is_unbiased(resample_below: float) -> None:
    runs = [
        gaussian(betas=BETAS, resample_below=resample_below, num_particles=512, seed=seed)
        for seed in range(200)
    ]
    covers(runs, CorrelatedGaussian.exact)


@pytest.mark.slow
@pytest.mark.parametrize("resample_below", [0.0, 0.5])
def test_error_bars_cover_with_adaptive_temperatures(resample_below: float) -> None:
    runs = [
        gaussian(conditional_ess=0.9, resample_below=resample_below, num_particles=512, seed=seed)
        for seed in range(200)
    ]
    covers(runs, CorrelatedGaussian.exact, bias=0.25)


@pytest.mark.slow
def test_error_bars_cover_with_a_flow() -> None:
    """An untrained one of two modes, in its latent space; the betas are those of a run before."""
    potential = IsingDual((2, 2))
    flow = potential.flow()
    options: dict[str, Any] = {"num_particles": 256, "num_steps": 4, "conditional_ess": 0.8}
    options |= {"progress": False}
    options["betas"] = anneal(potential, flow, seed=200, **options).betas
    runs = [anneal(potential, flow, seed=seed, **options) for seed in range(200)]
    covers(runs, -potential.log_partition())


def test_warns_of_few_effective_particles(seed: int) -> None:
    """Without moves or resampling, far from the start, a few weights are all there is."""
    with pytest.warns(UserWarning, match="the annealed estimate rests on"):
        anneal(
            lambda x: 50.0 * (x - 2.0).square().sum(-1),
            shape=(4,),
            num_particles=64,
            moves=0,
            resample_below=0.0,
            betas=(0.0, 1.0),
            seed=seed,
            progress=False,
        )
