# SPDX-License-Identifier: Apache-2.0
"""The learned trajectory length: its sequence, its gradient, where it comes to rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual
from pyro_neuralrg.mcmc import Adaptation, ChEESHMC, Trajectory, as_target
from pyro_neuralrg.mcmc.adaptation import Warmup
from pyro_neuralrg.mcmc.hmc import halton
from pyro_neuralrg.mcmc.kernel import Mass
from pyro_neuralrg.mcmc.learning import (
    CRITERIA,
    PrincipalDirection,
    TrajectoryLength,
    criterion_slope,
    jump_slope,
)
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.statistics import summarise
from tests.mcmc.registry import HARD_TARGETS, run


def oscillators(time: float, chains: int = 20_000, dim: int = 3) -> Trajectory:
    """Exact trajectories of standard normals."""
    start, velocity = torch.randn(2, chains, dim)
    cosine, sine = math.cos(time), math.sin(time)
    return Trajectory(
        start, start * cosine + velocity * sine, velocity * cosine - start * sine, time
    )


def unit_mass(dim: int) -> Mass:
    return Mass.of(None, torch.zeros(1, dim))


def kernel_of(covariance: Tensor | None = None, max_steps: int = 1000) -> ChEESHMC:
    options: Any = {"shape": (3,), "inverse_mass": covariance, "max_steps": max_steps}
    return ChEESHMC(lambda x: 0.5 * x.square().sum(-1), step_size=0.1, **options)


@pytest.mark.parametrize("time", [0.3, 0.8, 1.2, 2.0, 2.8])
def test_criterion_and_slope_of_oscillators(time: float) -> None:
    """For d standard normals C = d sin^2 t, D = 2 d (1 - cos t); within five standard errors."""
    square, jump = 3 * math.sin(time) ** 2, 6 * (1 - math.cos(time))
    slope, jump_change = 3 * time * math.sin(2 * time), 6 * time * math.sin(time)
    for function, expected in (
        (criterion_slope, (slope - square, square)),
        (jump_slope, (jump_change - jump, jump)),
    ):
        paths = [oscillators(time, 1000) for _ in range(40)]
        found = torch.tensor([function(path, torch.ones(1000)) for path in paths])
        errors = found.std(0) / math.sqrt(40)
        assert ((found.mean(0) - torch.tensor(expected)).abs() < 5 * errors).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_length_is_that_of_whitened_positions(criterion: str) -> None:
    covariance = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    mass = Mass.of(covariance, torch.zeros(1, 3))
    white = oscillators(0.9, 50)
    wide = Trajectory(*(part @ mass.factor.mT for part in white[:3]), time=0.9)
    weights = torch.rand(50)
    expected, found = TrajectoryLength(0.5, criterion), TrajectoryLength(0.5, criterion)
    expected.update(white, weights, kernel_of())
    found.update(wide, weights, kernel_of(covariance))
    assert found.value == pytest.approx(expected.value)
    assert found.value != 0.5


def test_acceptances_do_not_hide_the_slope_of_short_trajectories() -> None:
    """C grows as T^2 at first, also if the chains' acceptances, which are weights, differ."""
    slope, value = criterion_slope(oscillators(1e-3, 64), torch.rand(64))
    assert slope / value == pytest.approx(1.0, abs=0.1)


def test_chains_that_ran_away_have_no_weight() -> None:
    trajectory = oscillators(0.9, 50)
    weights = torch.rand(50)
    sound = weights.index_fill(0, torch.tensor(7), 0.0)
    ran_away = trajectory.mapped(Tensor.clone)
    ran_away.end[7] = math.nan
    ran_away.velocity[7] = math.inf
    for function in (criterion_slope, jump_slope):
        assert function(ran_away, weights) == pytest.approx(function(trajectory, sound))
        assert function(trajectory, torch.zeros(50)) == (0.0, 0.0)


def test_the_length_comes_to_rest_at_the_first_maximum() -> None:
    """Means over u in (0, 1): sin^2(u T) (1 - cos(u T))^2 / T^3 is largest at T = 2.25."""
    length = TrajectoryLength(0.01)
    for index in range(1, 600):
        time = halton(index) * length.value
        length.update(oscillators(time, 64, 20), torch.ones(64), kernel_of())
    assert 2.0 < length.average < 2.5


def test_the_length_keeps_its_bounds() -> None:
    """A number of steps, and the mean distance of normals from their middle."""
    for time, most, bound in ((0.5, 12, 1.2), (2.5, 30, math.sqrt(2 / math.pi))):
        length = TrajectoryLength(1.0)
        for _ in range(200):
            length.update(oscillators(time, 64), torch.ones(64), kernel_of(max_steps=most))
        assert length.value == pytest.approx(bound, rel=0.1 if time > 1 else 1e-9)


def test_the_principal_direction_of_chains() -> None:
    """Widths of 1 and 3, however rotated, from 32 chains at a time."""
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    direction = PrincipalDirection()
    for _ in range(200):
        components = torch.randn(32, 20)
        components[:, 0] *= 3.0
        positions = 5.0 + components @ rotation.T
        path = Trajectory(positions, positions, positions, 1.0)
        direction.update(positions, unit_mass(20))
        found = direction.projected(path).end.squeeze(-1)
    centred, expected = found - found.mean(), components[:, 0] - components[:, 0].mean()
    assert abs(float(centred @ expected / (centred.norm() * expected.norm()))) > 0.97
    other = PrincipalDirection()
    other.load_state_dict(direction.state_dict())
    assert torch.equal(other.projected(path).end, direction.projected(path).end)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_adapts_from_one_point_for_all_chains(criterion: str) -> None:
    """Half a period of unit normals is 3.1; they begin all at the mode."""
    kernel = ChEESHMC(lambda x: 0.5 * x.square().sum(-1), shape=(10,), criterion=criterion)
    start = {"x": torch.zeros(32, 10)}
    mcmc = run(kernel, 5, warmup_steps=150, num_chains=32, initial_params=start)
    assert 0.7 < mcmc.kernel.trajectory_length < 3.0


def test_the_distance_between_modes_is_no_width() -> None:
    """Two modes at +-1, 0.2 wide, that no chain leaves; within one, 1.6 would be half a period."""

    def energy(x: Tensor) -> Tensor:
        squares = [(x - sign).square().sum(-1) / (2 * 0.2**2) for sign in (1, -1)]
        return -torch.logaddexp(-squares[0], -squares[1])

    signs = torch.ones(32, 1).index_fill(0, torch.arange(16), -1.0)
    mcmc = run(
        ChEESHMC(energy, shape=(64,)),
        100,
        warmup_steps=150,
        num_chains=32,
        initial_params={"x": signs + 0.2 * torch.randn(32, 64)},
    )
    inside = summarise(mcmc.positions[..., 0] - mcmc.positions[..., 1])
    gradients = mcmc.gradient_evaluations.draws
    assert 1000 * inside.ess_bulk / gradients > 100  # 18 at the distance between the modes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the chains do not agree at the end of warm-up")
@pytest.mark.parametrize("name", [*HARD_TARGETS, "critical Ising"])
def test_it_finds_the_length_from_white_noise(name: str) -> None:
    """With all defaults, R-hat below 1.01 where draws are many, exact moments within four errors.

    The critical Ising model has one effective draw of 120: 80 in each chain, R-hat 1.014.
    """
    if name == "critical Ising":
        model = IsingDual((16, 16))
        exact = model.spins.structure_factor()
        moments: Any = {"S": (model.observables()["structure_factor"], exact)}
        kernel, draws, chains = ChEESHMC(model), 10_000, 32
    else:
        target = HARD_TARGETS[name]()
        kernel, moments = ChEESHMC(target.energy, shape=target.shape), target.moments
        draws, chains = 2000 if name == "funnel" else 1000, 64
    observables = {moment: function for moment, (function, _) in moments.items()}
    options: Any = {"observables": observables, "keep_draws": False}
    mcmc = run(kernel, draws, warmup_steps=500, num_chains=chains, **options)
    for moment, (_, exact) in moments.items():
        found = summarise(mcmc.observables[moment])
        assert found.rhat < (1.02 if name == "critical Ising" else 1.01), moment
        assert abs(found.mean - exact) < 4 * found.mcse, moment


def test_chains_that_do_not_agree_after_warm_up_are_told() -> None:
    """Two modes that no trajectory leaves, one of them wider: with it the length is adapted."""

    def energy(x: Tensor) -> Tensor:
        width = torch.where(x > 0, 1.0, 3.0)
        return (0.5 * ((x.abs() - 100) / width).square()).sum(-1)

    start = {"x": 100.0 * torch.cat([torch.ones(24, 1), -torch.ones(8, 1)])}
    kernel = ChEESHMC(energy, shape=(1,), max_steps=4)
    with pytest.warns(UserWarning, match=r"chains do not agree .* R-hat is \d"):
        run(kernel, 4, warmup_steps=100, num_chains=32, initial_params=start)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_sees_the_one_wide_direction_of_many(criterion: str) -> None:
    """One width of 10 beside 300 of 1, whose squares outweigh its own: 22.5 is best, not 2.25."""
    scale = torch.ones(301).index_fill(0, torch.tensor(17), 10.0)
    kernel = ChEESHMC(
        lambda x: 0.5 * (x / scale).square().sum(-1), shape=(301,), criterion=criterion
    )
    warmup = Adaptation(steps=300, mass="unit")
    mcmc = run(kernel, 60, warmup_steps=warmup, num_chains=32, seed=1)
    assert 16 < mcmc.kernel.trajectory_length < 28
    assert summarise(mcmc.positions[..., 17]).ess_bulk > 500  # of 1920


def test_trajectories_follow_the_sequence_up_to_the_length() -> None:
    options = {"step_size": 0.1, "trajectory_length": 1.59, "max_steps": 11}
    kernel = ChEESHMC(lambda x: 0.5 * x.square().sum(-1), shape=(2,), **options)
    state = kernel.init(torch.zeros(3, 2))
    steps = []
    for _ in range(7):
        state, info = kernel.step(state)
        steps.append(info.n_steps)
        assert info.trajectory is not None
        assert info.trajectory.time == pytest.approx(0.1 * info.n_steps)
    # 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8 of 15.9 steps, rounded up, at most eleven
    assert steps == [8, 4, 11, 2, 10, 6, 11]


def test_it_mixes_where_trajectories_of_fixed_length_do_not() -> None:
    """Widths from 0.1 to 10: the squares of the widest, within four standard errors."""
    scale = torch.logspace(-1, 1, 10)
    kernel = ChEESHMC(lambda x: 0.5 * (x / scale).square().sum(-1), shape=(10,))
    warmup = Adaptation(mass="diagonal", steps=400)
    mcmc = run(kernel, 100, warmup_steps=warmup, num_chains=64, seed=1)
    assert mcmc.adapted["chees"]["trajectory_length"] == mcmc.kernel.trajectory_length
    widest = mcmc.positions[..., -1].square().mean(1) / 100
    assert abs(float(widest.mean()) - 1) < 4 * float(widest.std()) / math.sqrt(64)
    assert float(mcmc.sample_stats["n_steps"].double().mean()) < 20


def test_a_single_chain_cannot_adapt_it() -> None:
    kernel = ChEESHMC(lambda x: 0.5 * x.square().sum(-1), shape=(2,), trajectory_length=0.4)
    with pytest.raises(ValueError, match=r"num_chains is 1; accepted: at least 2"):
        run(kernel, 5, warmup_steps=20, num_chains=1)
    fixed = Adaptation(trajectory_length=False, steps=20)
    mcmc = run(kernel, 5, warmup_steps=fixed, num_chains=1)
    assert mcmc.kernel.trajectory_length == 0.4


@pytest.mark.parametrize("name", ["step_size", "trajectory_length", "max_steps"])
def test_bad_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0; accepted"):
        ChEESHMC(lambda x: x.sum(-1), shape=(2,), **{name: 0})


def test_the_acceptance_is_the_harmonic_mean_over_chains() -> None:
    kernel = ChEESHMC(lambda x: 0.5 * x.square().sum(-1), shape=(2,))
    _, info = kernel.step(kernel.init(torch.randn(4, 2)), torch.Generator().manual_seed(0))
    rates = torch.tensor([1.0, 1.0, 0.5, 0.25])
    found = kernel.acceptance(info._replace(acceptance_rate=rates))
    assert found == pytest.approx(4 / (1 + 1 + 2 + 4))
    assert kernel.acceptance(info._replace(acceptance_rate=0 * rates)) < 1e-9


def test_the_length_begins_anew_with_each_mass() -> None:
    """At one step; what was learned in the old units may lie beyond the first maximum."""
    target = as_target(lambda x: 0.5 * (x / torch.tensor([0.1, 10.0])).square().sum(-1), shape=(2,))
    kernel = ChEESHMC(target)
    steps, generator = 100, torch.Generator().manual_seed(0)
    warmup = Warmup(kernel, Adaptation(mass="diagonal"), steps, 16, Processes())
    state = kernel.init(torch.randn(16, 2))
    warmup.begin(state, generator)
    anew = 0
    for index in range(steps):
        before = warmup.kernel
        state, info = before.step(state, generator)
        warmup.update(index, state, info, generator)
        after = warmup.kernel
        if after.inverse_mass is not before.inverse_mass:
            anew += 1
            assert before.trajectory_length > 1.5 * before.step_size
            assert after.trajectory_length == pytest.approx(after.step_size)
    assert anew >= 1
