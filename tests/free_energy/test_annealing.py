# SPDX-License-Identifier: Apache-2.0
"""Annealing against exact free energies: correlated Gaussians, small Ising models, two humps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual
from pyro_neuralrg.free_energy import anneal, annealing, reweight
from pyro_neuralrg.free_energy.annealing import Annealing
from pyro_neuralrg.free_energy.tempered import next_beta, resample_groups, systematic
from pyro_neuralrg.mcmc import EnergyTarget, LatentTarget
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow

BETAS = (0.0, 0.1, 0.3, 0.6, 1.0)
NEIGHBOURS = torch.ones(3, dtype=torch.float64).diag(1)
PRECISION = 3.0 * torch.eye(4, dtype=torch.float64) - 0.5 * (NEIGHBOURS + NEIGHBOURS.T)
EXACT = -0.5 * (4 * math.log(2 * math.pi) - float(torch.logdet(PRECISION)))


def energy(x: Tensor) -> Tensor:
    """The energy of a Gaussian of four sites."""
    return 0.5 * torch.einsum("bi,ij,bj->b", x, PRECISION.to(x), x)


def small(target: Any, flow: Any = None, **options: Any) -> Annealing:
    given: dict[str, Any] = {"num_particles": 256, "num_steps": 3, "progress": False, **options}
    return anneal(target, flow, **given)


def gaussian(**options: Any) -> Annealing:
    """A small run without a flow."""
    return small(EnergyTarget(energy, (4,)), **options)


def test_smc_from_a_standard_normal(seed: int) -> None:
    run = gaussian(num_particles=1024, conditional_ess=0.8, seed=seed)
    assert abs(run.free_energy - EXACT) < 4 * run.standard_error
    assert run.standard_error < 0.1
    assert repr(run).startswith("Annealing(-ln Z = ")
    assert (run.betas[0], run.betas[-1]) == (0.0, 1.0)
    assert len(run.ess) == len(run.acceptance) == len(run.step_sizes) == len(run.betas) - 1
    assert run.ess[0] == pytest.approx(0.8, abs=1e-6)
    assert run.groups == 16
    assert all(math.isnan(rate) for rate in run.jump_acceptance)
    x = run.fields
    found = reweight(x.unsqueeze(-1) * x.unsqueeze(-2), run.log_weights, groups=run.groups)
    off = (found.value - PRECISION.inverse()).abs()
    assert bool((off < 5 * found.standard_error).all())


@pytest.mark.parametrize("resample_below", [0.0, 0.9])
def test_weights_of_the_particles_give_the_estimate(resample_below: float, seed: int) -> None:
    run = gaussian(resample_below=resample_below, betas=BETAS, seed=seed)
    assert run.groups == (16 if resample_below else 256)  # AIS: independent particles
    assert any(run.resampled) == (resample_below > 0)
    assert run.betas == BETAS
    assert abs(run.free_energy - EXACT) < 4 * run.standard_error
    assert run.free_energy == pytest.approx(-float(run.log_weights.logsumexp(0) - math.log(256)))


@pytest.mark.parametrize("resample_below", [0.0, 0.5])
def test_potential_in_the_latent_space_of_an_untrained_flow(
    resample_below: float, seed: int
) -> None:
    """A flow of two modes that knows nothing but the Gaussian part."""
    potential = IsingDual((2, 2))
    flow = potential.flow()
    options = {"resample_below": resample_below, "conditional_ess": 0.8, "seed": seed}
    run = small(potential, flow, num_steps=4, **options)
    assert abs(run.free_energy + potential.log_partition()) < 4 * run.standard_error
    assert run.standard_error < 0.2
    assert run.fields.shape == (256, 2, 2)
    assert 0.0 < run.jump_acceptance[-1] < run.jump_acceptance[0] <= 1.0
    assert all(parameter.requires_grad for parameter in flow.parameters())


def test_exact_start_has_no_error(seed: int) -> None:
    """Energy of a standard normal: one temperature, every weight its normalisation."""
    target = EnergyTarget(lambda x: 0.5 * x.square().sum(-1), (3,))
    run = small(target, num_particles=32, seed=seed)
    assert run.betas == (0.0, 1.0)
    assert run.free_energy == pytest.approx(-1.5 * math.log(2 * math.pi))
    assert run.standard_error < 1e-6


def test_next_beta_leaves_the_conditional_ess() -> None:
    """Step d leaves exp(-d^2 v) of normal ln w of variance v; without weight none has a say."""
    log_ratio, weights = 3.0 * torch.randn(200_000), torch.zeros(200_000)
    beta = next_beta(log_ratio, weights, 0.25, 0.9)
    assert beta - 0.25 == pytest.approx(math.sqrt(-math.log(0.9)) / 3.0, rel=0.02)
    assert next_beta(log_ratio, weights, 0.99, 0.9) == 1.0
    weights = weights.where(log_ratio > 3.0, -math.inf)
    assert next_beta(log_ratio, weights, 0.25, 0.9) > beta + 0.05


def test_targets_that_are_given_ready(seed: int) -> None:
    potential = FreeField((2, 2), mass=1.0)
    flow = hierarchical_flow((2, 2))
    options: dict[str, Any] = {"num_particles": 128, "conditional_ess": 0.8, "seed": seed}
    direct = small(potential, flow, **options)
    ready = small(LatentTarget(potential, flow), **options)
    assert direct.free_energy == ready.free_energy
    parts = small(potential, flow, batch_size=50, **options)
    torch.testing.assert_close(parts.fields, direct.fields)
    plain = small(EnergyTarget(potential), **options)
    assert abs(plain.free_energy + potential.log_partition()) < 5 * plain.standard_error


def test_gradients_are_counted(seed: int) -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return energy(x)

    target = EnergyTarget(counted, (4,))
    calls.clear()  # of the trial on two fields
    run = small(target, num_particles=64, batch_size=24, seed=seed)
    assert sum(calls) == run.gradient_evaluations
    assert max(calls) == 24


def test_same_seed_same_run(seed: int) -> None:
    found = []
    for own in (seed, seed, seed + 1, None, None):
        torch.manual_seed(seed)
        found.append(gaussian(conditional_ess=0.7, num_particles=128, seed=own).free_energy)
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4]


def test_step_size_follows_the_acceptance(seed: int) -> None:
    """To a target much narrower than the start."""
    target = EnergyTarget(lambda x: 50.0 * x.square().sum(-1), (4,))
    run = small(target, num_particles=64, num_steps=10, conditional_ess=0.9, seed=seed)
    assert abs(run.acceptance[-1] - 0.8) < 0.2
    assert run.step_sizes[-1] < 0.3 * run.step_sizes[0]


def test_energies_that_are_infinite_somewhere(seed: int) -> None:
    """Half of a Gaussian: ln 2 more; the bisection is not caught in the first step."""
    half = lambda x: torch.where(x[:, 0] > 0, energy(x), math.inf)  # noqa: E731
    run = small(EnergyTarget(half, (4,)), num_particles=1024, num_steps=10, seed=seed)
    assert abs(run.free_energy - EXACT - math.log(2)) < 4 * run.standard_error
    assert bool((run.fields[run.log_weights > -math.inf][:, 0] > 0).all())
    assert run.betas[1] > 0.01


def test_only_poor_groups_are_resampled_and_keep_their_mean_weight(seed: int) -> None:
    weights = 3.0 * torch.randn(4, 10)
    weights[0], weights[3] = 0.0, -math.inf  # even weights, and none at all
    rows, new, poor = resample_groups(weights, 0.9, torch.Generator().manual_seed(seed))
    assert poor.tolist() == [False, True, True, False]
    assert torch.equal(rows[~poor], torch.arange(40).view(4, 10)[~poor])
    assert torch.equal(rows // 10, torch.arange(4)[:, None].expand(4, 10))  # copies of its own
    assert len(rows[poor].unique()) < 20
    torch.testing.assert_close(new.logsumexp(-1), weights.logsumexp(-1))
    assert bool((new[poor] == new[poor][:, :1]).all())


def test_systematic_resampling(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 50).log()
    weights[:, [0, 20, -1]] = -math.inf
    expected = 50 * torch.softmax(weights, -1)
    total = torch.zeros(3, 50)
    rounds = 2000
    for _ in range(rounds):
        chosen = systematic(weights, generator)
        counts = torch.stack([torch.bincount(row, minlength=50) for row in chosen])
        assert bool(((counts - expected).abs() < 1.0 + 1e-9).all())
        assert not bool(counts[expected == 0].any())
        total += counts
    # each count is one of two neighbouring integers: a variance of at most 1 / 4
    assert bool(((total / rounds - expected).abs() < 5 * 0.5 / rounds**0.5).all())


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_particles": 100}, ValueError, "num_particles is 100; accepted: a multiple of 16"),
    ({"num_steps": 0}, ValueError, "num_steps is 0; accepted"),
    ({"conditional_ess": 1.0}, ValueError, r"conditional_ess is 1\.0; accepted"),
    ({"resample_below": 1.1}, ValueError, r"resample_below is 1\.1; accepted"),
    ({"betas": (0.0, 0.6, 0.5, 1.0)}, ValueError, "betas is .*; accepted: increasing"),
    ({"betas": (0.0, "a", 1.0)}, TypeError, "betas is .*; accepted: increasing"),
    ({"betas": 3}, TypeError, "betas is an int; accepted: increasing"),
    ({"batch_size": 0}, ValueError, "batch_size is 0; accepted"),
    ({"seed": -1}, ValueError, "seed is -1; accepted"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        gaussian(**options)


def singular(x: Tensor) -> Tensor:
    """Which fails by its numbers, at any x."""
    return x.sum(-1) + torch.linalg.cholesky(-torch.eye(2)).sum()


@pytest.mark.parametrize(
    ("energy", "match"),
    [
        (lambda x: x.sum(-1) * math.nan, "the energy of 32 of 32 starts is NaN or minus inf"),
        (lambda x: x.sum(-1) - math.inf, "the energy of 32 of 32 starts is NaN or minus inf"),
        (lambda x: x.sum(-1) + math.inf, "minus infinity, of 32 infinite; accepted"),
        (lambda x: x, "energy returned"),
        (singular, r"minus infinity \(the model says '.*not positive-definite.*'\), of 0 infinite"),
    ],
)
def test_bad_energies(energy: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        anneal(EnergyTarget(energy, (2,)), num_particles=32, progress=False)


def test_a_target_that_is_too_far_away(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step and without resampling a few weights are all there is."""
    target = EnergyTarget(lambda x: 50.0 * (x - 2.0).square().sum(-1), (4,))
    with pytest.warns(UserWarning, match="the annealed estimate rests on"):
        small(target, num_particles=64, seed=seed, betas=(0.0, 1.0), resample_below=0.0)
    monkeypatch.setattr(annealing, "MAX_TEMPERATURES", 2)
    with pytest.raises(RuntimeError, match="after 2 temperatures"):
        gaussian(num_particles=16)
