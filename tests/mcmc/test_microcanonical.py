# SPDX-License-Identifier: Apache-2.0
"""Microcanonical kernels: their dynamics, their tuning, and the bias of the one that is biased."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import diagnose
from pyro_neuralrg.mcmc import (
    HMC,
    MALA,
    MAMS,
    MCLMC,
    Adaptation,
    Cycle,
    EnergyTarget,
    IndependenceMetropolis,
    LatentTarget,
    as_target,
)
from pyro_neuralrg.mcmc.kernel import Trajectory
from pyro_neuralrg.mcmc.learning import DecorrelationLength
from pyro_neuralrg.mcmc.microcanonical import (
    INTEGRATORS,
    isokinetic_step,
    random_direction,
    turned,
    turned_at_random,
)
from tests.mcmc.registry import TARGETS, ToyFlow, normal, run

KINDS = {"mclmc": MCLMC, "mams": MAMS}


def test_turns_solve_their_equation() -> None:
    """Parts of a turn make the whole, and a short one goes down the slope across the direction."""
    slope, u = 3 * torch.randn(6, 4), random_direction(torch.zeros(6, 4), None)
    whole, volume = turned(u, slope, 1.0)
    half, first = turned(u, slope, 0.4)
    rest, second = turned(half, slope, 0.6)
    torch.testing.assert_close(rest, whole)
    torch.testing.assert_close(first + second, volume)
    end, volume = turned(u, slope, 1e-6)
    across = slope - (slope * u).sum(-1, keepdim=True) * u
    torch.testing.assert_close((end - u) / 1e-6, -across / 3, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(volume / 1e-6, -(slope * u).sum(-1), atol=1e-4, rtol=1e-4)


def test_the_volume_of_a_turn() -> None:
    """ln |det| on the sphere, in bases of the tangents before and after."""
    slope, u = 2 * torch.randn(1, 5), random_direction(torch.zeros(1, 5), None)
    end, volume = turned(u, slope, 1.3)

    def free(v: Tensor) -> Tensor:
        return turned((v / v.norm()).unsqueeze(0), slope, 1.3)[0][0]

    jacobian = torch.autograd.functional.jacobian(free, u[0])
    before, after = (
        torch.linalg.qr(torch.cat([v.mT, torch.eye(5)[:, :4]], 1))[0][:, 1:] for v in (u, end)
    )
    log_det = torch.linalg.slogdet(after.mT @ jacobian @ before)[1]
    torch.testing.assert_close(log_det, -volume[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_turns_of_no_slope_and_of_a_cliff(dtype: torch.dtype) -> None:
    u = random_direction(torch.zeros(3, 4, dtype=dtype), None)
    end, volume = turned(u, torch.zeros_like(u), 1.0)
    torch.testing.assert_close(end, u)
    assert (volume == 0).all()
    end, volume = turned(u, torch.full_like(u, 1e6), 1.0)
    torch.testing.assert_close(end, torch.full_like(u, -0.5))
    torch.testing.assert_close(volume / 2e6, torch.ones(3), rtol=1e-5, atol=0)


def test_a_chain_that_moves_straight_uphill_turns_round() -> None:
    """In float32 nothing may be left of its direction after a turn."""
    steep = EnergyTarget(lambda x: 17.5 * x.sum(-1), (2,), dtype=torch.float32)
    kernel = MCLMC(steep, step_size=1.0, trajectory_length=1e9, integrator="leapfrog")
    start = kernel.init(torch.zeros(1, 2, dtype=torch.float32))
    uphill = torch.full((1, 2), 0.5**0.5, dtype=torch.float32)
    state, _ = kernel.step(start._replace(direction=uphill))
    assert state.direction is not None
    assert bool(torch.isfinite(state.direction).all())


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("inverse_mass", [None, torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0])])
def test_a_step_reverses_and_its_error_is_of_third_order(
    integrator: str, inverse_mass: Tensor | None
) -> None:
    target = TARGETS["correlated Gaussian"]()
    kernel = MCLMC(target.energy, shape=(5,), inverse_mass=inverse_mass)
    state = kernel.init(target.sample(200))
    mass, u = kernel.mass(state.position), random_direction(state.position, None)
    squares = []
    for size in (0.04, 0.02):
        options = size, integrator
        end, there, error = isokinetic_step(kernel.target, mass, state, u, *options)
        back, here, undone = isokinetic_step(kernel.target, mass, end, -there, *options)
        torch.testing.assert_close(back.position, state.position)
        torch.testing.assert_close(here, -u)
        torch.testing.assert_close(undone, -error)
        squares.append(error.square().mean())
    assert 50 < float(squares[0] / squares[1]) < 100  # 2^6


def test_random_turns_forget_exponentially() -> None:
    u = random_direction(torch.zeros(50, 4000), None)
    for time in (0.1, 1.0):
        cosine = (turned_at_random(u, time, None) * u).sum(-1)
        torch.testing.assert_close(cosine.mean(), torch.tensor(math.exp(-time)), atol=0.01, rtol=0)
    assert turned_at_random(u, 0.0, None) is u
    assert float((turned_at_random(u, math.inf, None) * u).sum(-1).abs().max()) < 0.1


def second_moment(step_size: float, integrator: str = "leapfrog") -> tuple[float, float]:
    """E x^2 - 1 of 20 standard normals, which chains of length 40 from exact draws find."""
    chains, draws = 1000, math.ceil(40 / step_size)
    kernel = MCLMC(normal, shape=(20,), step_size=step_size, integrator=integrator)
    generator = torch.Generator().manual_seed(1)
    state, found = kernel.init(torch.randn(chains, 20, generator=generator)), []
    for _ in range(draws):
        state, _ = kernel.step(state, generator)
        found.append(state.position.square().mean(-1) - 1)
    means = torch.stack(found[draws // 4 :]).mean(0)
    return float(means.mean()), float(means.std() / math.sqrt(chains))


def test_the_bias_falls_as_the_square_of_the_step() -> None:
    (coarse, _), (fine, error) = second_moment(0.8), second_moment(0.4)
    assert abs(coarse - 0.8**2 / 12) < 0.01  # as measured: one twelfth of the square
    assert abs(fine - coarse / 4) < 4 * error + 0.002
    finest, error = second_moment(0.1)
    assert abs(finest) < 4 * error
    assert abs(second_moment(0.8, "minimal_norm")[0]) < coarse / 4


@pytest.mark.parametrize(("wanted", "dim"), [(5e-4, 100), (0.01, 10)])
def test_warm_up_finds_the_energy_variance(wanted: float, dim: int) -> None:
    kernel = MCLMC(normal, shape=(dim,), energy_variance=wanted, num_steps=4)
    mcmc = run(kernel, 1, warmup_steps=100, num_chains=32)
    _, info = mcmc.kernel.step(mcmc.kernel.init(torch.randn(2000, dim)))
    assert info.energy_error is not None
    assert 0.6 < float(info.energy_error.mean()) / dim / wanted < 1.6
    assert mcmc.kernel.acceptance(info) == pytest.approx(0.5, abs=0.05)


def test_warm_up_of_the_adjusted_kernel() -> None:
    widths = torch.linspace(0.1, 10.0, 20)
    kernel = MAMS(lambda x: 0.5 * (x / widths).square().sum(-1), shape=(20,))
    mcmc = run(kernel, 100, warmup_steps=Adaptation(mass="diagonal", steps=300), num_chains=32)
    assert mcmc.sample_stats["acceptance_rate"].mean() == pytest.approx(0.9, abs=0.06)
    assert 0.8 < mcmc.kernel.trajectory_length < 2.0  # widths of one, in units of the mass


@pytest.mark.parametrize("before", [0.0, 0.4])  # of the time, in earlier turns of a cycle
@pytest.mark.parametrize(("memory", "known"), [(0.8, True), (0.0, False), (0.999, False)])
def test_lengths_are_a_share_of_the_autocorrelation_time(
    memory: float, known: bool, before: float
) -> None:
    """Autoregressive chains of width 3, whose time is (1 + r) / (1 - r) draws of 0.5."""
    chains, dim = 32, 40
    learner, x = DecorrelationLength(1.0), 3 * torch.randn(chains, dim)
    kernel = MAMS(lambda x: x.sum(-1), shape=(dim,), step_size=0.01)
    for _ in range(10 + 20 + 40 + 80 + 160):
        learner.update(Trajectory(x, x, x, 0.5 - before, before), torch.ones(chains), kernel)
        x = memory * x + 3 * math.sqrt(1 - memory**2) * torch.randn(chains, dim)
    expected = 0.4 * 0.5 * (1 + memory) / (1 - memory) if known else 3.0
    assert learner.value == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("integrator", "calls"), [("leapfrog", 1), ("minimal_norm", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_counted(kind: str, integrator: str, calls: int) -> None:
    seen = []

    def energy(x: Tensor) -> Tensor:
        seen.append(len(x))
        return normal(x)

    options: dict[str, Any] = {"num_steps": 3} if kind == "mclmc" else {"trajectory_length": 0.25}
    kernel = KINDS[kind](energy, shape=(4,), integrator=integrator, **options)
    state = kernel.init(torch.zeros(7, 4))
    seen.clear()
    _, info = kernel.step(state)
    assert seen == [7] * 3 * calls
    assert (info.n_steps, info.gradient_evaluations) == (3, 3 * calls)


def test_directions_are_kept_between_draws() -> None:
    """Two draws of one step are one draw of two."""
    target = as_target(normal, shape=(4,))
    state = MCLMC(target).init(torch.randn(5, 4))
    ends = []
    for kernel, draws in ((MCLMC(target), 2), (MCLMC(target, num_steps=2), 1)):
        generator, new = torch.Generator().manual_seed(0), state
        for _ in range(draws):
            new, _ = kernel.step(new, generator)
        ends.append(new)
    assert torch.equal(ends[0].position, ends[1].position)
    assert ends[0].direction is not None
    torch.testing.assert_close(ends[0].direction.norm(dim=-1), torch.ones(5))


def test_the_biased_kernel_says_so() -> None:
    flow = ToyFlow((4,))
    latent = LatentTarget(normal, flow, (4,))
    assert repr(MCLMC(latent)).endswith("step_size=0.1, trajectory_length=1, biased)")
    cycle = Cycle(MCLMC(latent), IndependenceMetropolis(flow))
    for kernel, is_biased in ((cycle, True), (MAMS(latent), False)):
        assert kernel.is_biased is is_biased
        verdict = diagnose(run(kernel, 10))
        assert ("biased" in [finding.name for finding in verdict.findings]) is is_biased
        assert ("note: biased" in str(verdict)) is is_biased
    assert not HMC(latent).is_biased


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mclmc", {"trajectory_length": 0.0}),
        ("mclmc", {"num_steps": 0}),
        ("mclmc", {"energy_variance": -1.0}),
        ("mclmc", {"integrator": "euler"}),
        ("mams", {"max_steps": 0}),
        ("mams", {"step_size": math.inf}),
    ],
)
def test_bad_arguments_are_named(kind: str, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name} is .*; accepted"):
        KINDS[kind](normal, shape=(2,), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_dimension_is_refused(kind: str) -> None:
    target = as_target(normal, shape=(1,))
    with pytest.raises(ValueError, match=r"target has 1 dimension; accepted by M.*: at least 2"):
        KINDS[kind](target).init(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"target has 1 dimension; accepted by M.*: at least 2"):
        Cycle(KINDS[kind](target), MALA(target)).init(torch.zeros(3, 1))


def test_turns_of_a_cycle_count_in_the_length() -> None:
    """Starts are as many turns apart: a part says the time of those before."""
    kernel = MCLMC(normal, shape=(8,), num_steps=2, step_size=0.1)
    state = kernel.init(torch.randn(16, 8))
    infos = [Cycle(kernel, repeats=n).step(state)[1].parts["mclmc"] for n in (1, 4)]
    one, four = (info.trajectory for info in infos)
    assert one is not None
    assert four is not None
    assert (one.before, four.before) == (0.0, pytest.approx(3 * one.time))
