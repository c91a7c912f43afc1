# SPDX-License-Identifier: Apache-2.0
"""Laws of every kernel, and what each does with numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.mcmc import (
    HMC,
    ConditionalMetropolis,
    Cycle,
    EnergyTarget,
    IndependenceMetropolis,
    Kernel,
    LatentTarget,
    Mixture,
    RandomWalkMetropolis,
    as_target,
)
from pyro_neuralrg.mcmc.hmc import leapfrog
from pyro_neuralrg.mcmc.kernel import Mass
from pyro_neuralrg.statistics import summarise
from tests.mcmc.registry import (
    BIASED,
    HARD_TARGETS,
    KERNELS,
    TARGETS,
    ExactTarget,
    ToyFlow,
    detail,
    flow_for,
    flow_of_two_modes,
    kinked,
    normal,
    run,
)

CHAINS, STEPS = 4000, 8


def moments(x: Tensor) -> Tensor:
    """First and second moments, and the squared mean, of fields ``(..., chains) + shape``."""
    flat = x.flatten(2)
    return torch.cat(
        [flat, flat.square(), flat[..., :-1] * flat[..., 1:], flat.mean(-1, keepdim=True) ** 2], -1
    )


def deviations(kernel: Kernel, target: ExactTarget) -> Tensor:
    """Drift of the moments of chains started from exact samples, in standard errors.

    Chains are independent, so each one's mean over the steps, less its start, has a known standard
    error. The start is a control variate: its own fluctuations drop out of the difference.
    """
    start = target.sample(CHAINS)
    name = "x" if kernel.target.flow is not None else next(iter(kernel.target.sites))
    start_positions = kernel.target.pack({name: start}, CHAINS)
    state = kernel.init(start_positions)
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    visited = []
    for _ in range(STEPS):
        state, info = kernel.step(state, generator)
        visited.append(kernel.target.physical(state.position)["x"])
    assert 0.01 < float(info.acceptance_rate.mean()) < 0.999, "neither all nor nothing is accepted"
    drift = moments(torch.stack(visited)).mean(0) - moments(start.unsqueeze(0))[0]
    return drift.mean(0) / (drift.std(0) / math.sqrt(CHAINS))


def tolerance(count: int) -> float:
    """Standard errors that one of ``count`` normal deviates exceeds once in 10^5 runs."""
    return float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - 0.5e-5 / count)))


@pytest.mark.parametrize(
    ("kernel_name", "target_name"),
    [
        *product(KERNELS, ["correlated Gaussian", "bimodal"]),
        *product(["hmc", "mams", "latent cycle"], ["free field", "dual Ising"]),
        *product(["hmc jittered", "chees"], HARD_TARGETS),
    ],
)
def test_exact_samples_stay_exact(kernel_name: str, target_name: str) -> None:
    target = (TARGETS | HARD_TARGETS)[target_name]()
    found = deviations(KERNELS[kernel_name](target), target)
    assert found.abs().max() < tolerance(len(found))


class NoJacobian(LatentTarget):
    def _evaluate(self, positions: Tensor) -> Tensor:
        return self._energy(self.flow(positions.reshape(-1, *self.shape))).double()


class FlippedJacobian(LatentTarget):
    def _evaluate(self, positions: Tensor) -> Tensor:
        z = positions.reshape(-1, *self.shape)
        x = self.flow(z)
        return (self._energy(x) + self.flow.log_abs_det_jacobian(z, x)).double()


class NoJacobianOfTheBase(LatentTarget):
    def _latents(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        z, slope = super()._latents(positions)
        return z, torch.zeros_like(slope)


class FlippedWeight(IndependenceMetropolis):
    def _log_q(self, position: Tensor) -> Tensor:
        return -super()._log_q(position)


class WeightWithoutFlow(IndependenceMetropolis):
    def _log_q(self, position: Tensor) -> Tensor:
        return NORMAL.log_prob(position.double(), 1)

    def _propose(self, *args: Any) -> tuple[Tensor, Tensor]:
        position, _ = super()._propose(*args)
        return position, self._log_q(position)


class DetailWithoutFlow(WeightWithoutFlow, ConditionalMetropolis):
    pass


class AlwaysAccept(HMC):
    def step(self, state, generator=None):  # type: ignore[no-untyped-def]
        momentum = torch.randn(state.position.shape, generator=generator)
        mass = self.mass(state.position)
        proposal, _ = leapfrog(self.target, state, momentum, mass, self.step_size, self.num_steps)
        return proposal, super().step(state, generator)[1]


@pytest.mark.parametrize(
    "broken",
    [
        NoJacobian,
        FlippedJacobian,
        NoJacobianOfTheBase,
        FlippedWeight,
        WeightWithoutFlow,
        DetailWithoutFlow,
        AlwaysAccept,
    ],
)
def test_the_law_notices(broken: Any) -> None:
    """Kernels and targets with one sign or term wrong: the law above must notice every one."""
    target = TARGETS["correlated Gaussian"]()
    of_base = broken is NoJacobianOfTheBase
    flow = flow_of_two_modes(target, 2.0) if of_base else flow_for(target)
    if issubclass(broken, LatentTarget):
        latent = broken(target.energy, flow, target.shape, from_normal=True)
        kernel: Kernel = HMC(latent, step_size=0.1 if of_base else 0.25, num_steps=4, jitter=0.0)
    elif issubclass(broken, ConditionalMetropolis):
        kernel = detail(target)
        kernel = broken(kernel.flow, target.energy, shape=target.shape, scale=1)
    elif issubclass(broken, IndependenceMetropolis):
        kernel = broken(flow, target.energy, shape=target.shape)
    else:
        kernel = broken(target.energy, shape=target.shape, step_size=0.35, num_steps=3, jitter=0.0)
    found = deviations(kernel, target)
    assert found.abs().max() > tolerance(len(found))


@pytest.mark.parametrize("kernel_name", KERNELS | BIASED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_energy_rejects_and_leaves_other_chains_alone(kernel_name: str, bad: float) -> None:
    good = TARGETS["correlated Gaussian"]()

    def energy(x: Tensor) -> Tensor:
        """Bad everywhere to the right of where the chains start."""
        return torch.where(x[..., 0] > 1.0, torch.full_like(x[..., 0], bad), good.energy(x))

    kernel = (KERNELS | BIASED)[kernel_name](good._replace(energy=energy))
    start = 0.1 * torch.randn(200, kernel.target.dim)
    state = kernel.init(start)
    diverged = torch.zeros(200, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        before = state
        state, info = kernel.step(state, generator)
        diverged |= info.diverging
        x = kernel.target.physical(state.position)["x"]
        assert torch.isfinite(state.energy).all()
        assert (x[..., 0] <= 1.0).all()
        if not info.parts and "three" not in kernel_name:  # moves of which one fails
            assert (info.acceptance_rate[info.diverging] == 0).all()
            assert torch.equal(state.position[info.diverging], before.position[info.diverging])
        if state.gradient is not None:
            assert torch.isfinite(state.gradient).all()
    jumps = isinstance(kernel, IndependenceMetropolis)  # whose proposals may have no weight
    assert (jumps and bad == math.inf) or 0 < diverged.sum() < 200


@pytest.mark.parametrize("kernel_name", KERNELS | BIASED)
def test_chains_do_not_meet(kernel_name: str) -> None:
    """The move of one chain does not depend on where the others are."""
    kernel = (KERNELS | BIASED)[kernel_name](TARGETS["correlated Gaussian"]())
    start = torch.randn(8, kernel.target.dim)
    moved = start.clone()
    moved[4:] += 0.3
    ends = [
        kernel.step(kernel.init(s), torch.Generator().manual_seed(3))[0].position[:4]
        for s in (start, moved)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


def test_leapfrog_is_exact_mechanics() -> None:
    """A harmonic oscillator goes round: error of second order in the step, and time reverses."""
    kernel = HMC(
        lambda x: 0.5 * x.square().sum(-1), shape=(1,), step_size=0.01, num_steps=100, jitter=0.0
    )
    state = kernel.init(torch.tensor([[1.0]]))
    mass = kernel.mass(state.position)
    end, momentum = leapfrog(kernel.target, state, torch.tensor([[0.5]]), mass, 0.01, 100)
    exact = torch.cos(torch.tensor(1.0)) + 0.5 * torch.sin(torch.tensor(1.0))
    torch.testing.assert_close(end.position, exact.reshape(1, 1), rtol=0, atol=1e-4)
    back, _ = leapfrog(kernel.target, end, -momentum, mass, 0.01, 100)
    torch.testing.assert_close(back.position, state.position, rtol=0, atol=1e-12)


def test_jumps_of_a_perfect_flow_are_always_accepted() -> None:
    flow = ToyFlow((2, 3))

    def energy(x: Tensor) -> Tensor:
        z = flow.inv(x)
        return 0.5 * z.square().sum((-1, -2)) + flow.log_abs_det_jacobian(z, x)

    for jump in (
        IndependenceMetropolis(flow, energy, shape=(2, 3)),
        IndependenceMetropolis(flow, LatentTarget(energy, flow, (2, 3))),
    ):
        _, info = jump.step(jump.init(torch.randn(20, 6)))
        torch.testing.assert_close(info.acceptance_rate, torch.ones(20), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"step_size": 0.0}, ValueError),
        ({"step_size": "a"}, TypeError),
        ({"num_steps": 0}, ValueError),
        ({"num_steps": 2.5}, TypeError),
        ({"jitter": 1.0}, ValueError),
        ({"jitter": None}, TypeError),
        ({"small_steps": 1.0}, ValueError),
        ({"small_steps": "some"}, TypeError),
    ],
)
def test_hmc_names_a_bad_argument(options: dict[str, float], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=rf"{name} is .*; accepted"):
        HMC(lambda x: x.sum(-1), shape=(2,), **options)


def test_what_kernels_refuse() -> None:
    energy = TARGETS["bimodal"]().energy
    one, two = (as_target(e, shape=(2,)) for e in (energy, lambda x: x.square().sum(-1)))
    other = IndependenceMetropolis(ToyFlow((2,)))
    for kernels in ([HMC(one), HMC(two)], [], [other]):
        with pytest.raises(ValueError, match=r"kernels is .*at least one kernel that has a target"):
            Cycle(*kernels)
    for wrong in (energy, Mixture(HMC(one), HMC(one))):
        with pytest.raises(TypeError, match=f"kernels has a {type(wrong).__name__}; accepted"):
            Cycle(wrong, HMC(one))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"positions has shape \(1, 3\); accepted: \(chains, 2\)"):
        HMC(one).init(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="flow has shape"):
        IndependenceMetropolis(ToyFlow((3,)), one).init(torch.zeros(1, 2))
    latent = LatentTarget(energy, ToyFlow((2,)), (2,))
    with pytest.raises(ValueError, match="latent space"):
        Cycle(HMC(latent), other).init(torch.zeros(1, 2))
    with pytest.raises(TypeError, match=r"\.inv"):
        IndependenceMetropolis(ToyFlow((2,)).inv, one)  # type: ignore[arg-type]
    for bad in ([0.5], [0.5, 0.6], [1.5, -0.5], [1.0, 0.0], 0.5):
        with pytest.raises(ValueError, match=r"probabilities is .*accepted: 2 numbers > 0"):
            Mixture(HMC(one), HMC(one), probabilities=bad)  # type: ignore[arg-type]
    assert list(Cycle(HMC(EnergyTarget(energy, (2,))), HMC(one)).members) == ["hmc", "hmc_2"]


@pytest.mark.parametrize(
    ("cliff", "diverges"), [(999.0, False), (1001.0, True), (-1001.0, False), (-math.inf, True)]
)
def test_a_trajectory_diverges_uphill_by_a_thousand_nats(cliff: float, diverges: bool) -> None:
    """Free motion over a cliff of known height: the kinetic energy does not change."""

    def energy(x: Tensor) -> Tensor:
        return (0.0 * x).sum(-1) + torch.where(x[..., 0].abs() > 1e-6, cliff, 0.0)

    kernel = HMC(energy, shape=(1,), step_size=1.0, num_steps=2, jitter=0.0)
    _, info = kernel.step(kernel.init(torch.zeros(20, 1)), torch.Generator().manual_seed(0))
    assert info.diverging.tolist() == [diverges] * 20


def test_positions_that_are_not_finite_are_never_evaluated() -> None:
    """An infinite slope throws chains out of the numbers; others go on."""
    seen: list[Tensor] = []

    def energy(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return kinked(x)

    kernel = HMC(energy, shape=(2,), step_size=0.4, num_steps=4, jitter=0.0)
    state = kernel.init(torch.full((50, 2), -1.0))
    _, info = kernel.step(state, torch.Generator().manual_seed(0))
    assert all(bool(x.isfinite().all()) for x in seen)
    assert 0 < int(info.diverging.sum()) < 50
    assert not (info.accepted & info.diverging).any()


@pytest.mark.parametrize(
    ("mean", "jitter", "numbers"), [(4, 0.5, range(2, 7)), (2, 0.99, [1, 2, 3])]
)
def test_jitter_draws_every_number_within_its_bounds(
    mean: int, jitter: float, numbers: Sequence[int]
) -> None:
    kernel = HMC(lambda x: x.square().sum(-1), shape=(1,), num_steps=mean, jitter=jitter)
    state, generator = kernel.init(torch.zeros(1, 1)), torch.Generator().manual_seed(0)
    assert {kernel.step(state, generator)[1].n_steps for _ in range(200)} == set(numbers)


def test_small_steps_are_a_fifth_as_long() -> None:
    flat = lambda x: 0.0 * x.sum(-1)  # noqa: E731
    kernel = HMC(flat, shape=(1,), step_size=2.0, num_steps=1, jitter=0.0, small_steps=0.3)
    start = kernel.init(torch.zeros(40_000, 1))
    moved = kernel.step(start, torch.Generator().manual_seed(0))[0].position
    for power, of_normals in ((2, 1.0), (4, 3.0)):
        expected = of_normals * (0.7 * 2.0**power + 0.3 * 0.4**power)
        assert float((moved**power).mean()) == pytest.approx(expected, rel=0.05)


def test_the_hamiltonian_is_that_of_the_draw() -> None:
    """Accepted or not: the energy of the new position plus the kinetic one that belongs to it."""
    target = TARGETS["correlated Gaussian"]()
    inverse_mass = torch.linspace(0.7, 1.4, 5)
    kernel = HMC(
        target.energy, shape=(5,), step_size=0.6, num_steps=3, jitter=0.0, inverse_mass=inverse_mass
    )
    state = kernel.init(target.sample(200))
    new, info = kernel.step(state, torch.Generator().manual_seed(5))
    momentum = torch.randn(200, 5, generator=torch.Generator().manual_seed(5))
    momentum = momentum / inverse_mass.sqrt()
    mass = kernel.mass(state.position)
    end, last = leapfrog(kernel.target, state, momentum, mass, kernel.step_size, 3)
    before = target.energy(state.position) + 0.5 * (momentum.square() * inverse_mass).sum(-1)
    after = target.energy(end.position) + 0.5 * (last.square() * inverse_mass).sum(-1)
    assert 0 < int(info.accepted.sum()) < 200
    torch.testing.assert_close(info.hamiltonian, torch.where(info.accepted, after, before))
    torch.testing.assert_close(info.acceptance_rate, (before - after).clamp(max=0).exp())
    assert torch.equal(new.position[info.accepted], end.position[info.accepted])


def test_jumps_do_not_land_where_the_gradient_is_not_finite() -> None:
    """A finite energy of infinite slope would poison the moves to come."""
    flow = ToyFlow((2,), 1.0)
    jump = IndependenceMetropolis(flow, kinked, shape=(2,))
    state = HMC(kinked, shape=(2,)).init(torch.full((100, 2), -0.1))
    new, info = jump.step(state, torch.Generator().manual_seed(0))
    assert new.gradient is not None
    assert torch.isfinite(new.gradient).all()
    assert 0 < int(info.diverging.sum()) < 100
    assert not (info.accepted & info.diverging).any()


def test_what_a_cycle_says_of_its_members() -> None:
    target = TARGETS["correlated Gaussian"]()
    flow = flow_for(target)
    local = HMC(target.energy, shape=(5,), step_size=0.6, num_steps=3, jitter=0.0)
    cycle = Cycle(local, IndependenceMetropolis(flow), IndependenceMetropolis(flow))
    state = cycle.init(target.sample(300))
    generator = torch.Generator().manual_seed(2)
    after_hmc, hmc = local.step(state, torch.Generator().manual_seed(2))
    state, info = cycle.step(state, generator)
    assert (info.n_steps, info.gradient_evaluations) == (3, 5)
    parts = list(info.parts.values())
    assert list(info.parts) == ["hmc", "jump", "jump_2"]
    rates = torch.stack([part.acceptance_rate for part in parts])
    torch.testing.assert_close(info.acceptance_rate, rates.mean(0))
    accepted = torch.stack([part.accepted for part in parts]).any(0)
    assert torch.equal(info.accepted, accepted)
    assert not torch.equal(accepted, parts[0].accepted)
    # The kinetic energy is that of the trajectory, the energy that of where the jumps ended.
    kinetic = hmc.hamiltonian - after_hmc.energy
    torch.testing.assert_close(info.hamiltonian, target.energy(state.position) + kinetic)
    jumps = Cycle(*[IndependenceMetropolis(flow, target.energy, shape=(5,))] * 2)
    state, info = jumps.step(jumps.init(target.sample(10)), generator)
    torch.testing.assert_close(info.hamiltonian, target.energy(state.position))


def test_turns_of_a_cycle_are_those_of_as_many_members() -> None:
    target = TARGETS["correlated Gaussian"]()
    local = HMC(target.energy, shape=(5,), step_size=0.9, num_steps=3)
    members = local, IndependenceMetropolis(flow_for(target))
    once, thrice = Cycle(*members * 3), Cycle(*members, repeats=3)
    begin, (one, other) = once.init(target.sample(300)), (torch.Generator() for _ in range(2))
    after, info = once.step(begin, one.manual_seed(0))
    again, found = thrice.step(begin, other.manual_seed(0))
    assert torch.equal(again.position, after.position)
    assert torch.equal(found.hamiltonian, info.hamiltonian)
    torch.testing.assert_close(found.acceptance_rate, info.acceptance_rate)
    assert list(found.parts) == ["hmc", "jump"]
    for name, part in found.parts.items():
        turns = [info.parts[f"{name}{number}"] for number in ("", "_2", "_3")]
        rates = torch.stack([turn.acceptance_rate for turn in turns])
        torch.testing.assert_close(part.acceptance_rate, rates.mean(0))
        assert part.n_steps == sum(turn.n_steps for turn in turns)
    assert (found.n_steps, found.gradient_evaluations) == (info.n_steps, info.gradient_evaluations)
    with pytest.raises(ValueError, match=r"repeats is 0; accepted: an integer >= 1"):
        Cycle(*members, repeats=0)


def test_the_mass_of_a_random_walk_is_the_covariance_of_its_proposals() -> None:
    widths = torch.tensor([0.01, 1.0, 100.0])
    walk = RandomWalkMetropolis(lambda x: 0.0 * x.sum(-1), shape=(3,), inverse_mass=widths)
    state, _ = walk.step(walk.init(torch.zeros(4000, 3)), torch.Generator().manual_seed(0))
    ratio = state.position.var(0) / (walk.step_size**2 * widths)
    assert ((ratio - 1).abs() < 5 * (2 / 4000) ** 0.5).all()


COVARIANCE = torch.tensor(
    [[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64
)


@pytest.mark.parametrize(
    "inverse", [None, COVARIANCE.diagonal(), COVARIANCE], ids=["unit", "diagonal", "dense"]
)
def test_what_a_mass_does(inverse: Tensor | None) -> None:
    mass = Mass.of(inverse, torch.zeros(1, 3))
    full = torch.eye(3) if inverse is None else inverse if inverse.dim() == 2 else inverse.diag()
    basis = torch.eye(3)  # of unit normals: linear maps are read off it
    momenta, displacements = mass.momentum(basis), mass.displacement(basis)
    torch.testing.assert_close(momenta.mT @ momenta, torch.linalg.inv(full))
    torch.testing.assert_close(displacements.mT @ displacements, full)
    torch.testing.assert_close(mass.velocity(basis), full)
    torch.testing.assert_close(mass.kinetic_energy(basis), 0.5 * full.diagonal())
    white = mass.whitened(basis)
    torch.testing.assert_close(white @ white.mT, torch.linalg.inv(full))
    torch.testing.assert_close(mass.whitened(displacements), basis)


@pytest.mark.parametrize(
    "bad",
    [
        2.0,
        torch.zeros(2, 3),
        torch.zeros(2),
        torch.tensor([1.0, math.nan]),
        torch.tensor([[1.0, math.inf], [math.inf, 1.0]]),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
    ],
    ids=["number", "shape", "zero", "nan", "inf", "negative eigenvalue", "not symmetric"],
)
def test_bad_masses(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)inverse_mass is .*; accepted: finite variances"):
        HMC(lambda x: x.sum(-1), shape=(2,), inverse_mass=bad)


def test_a_mass_of_another_dimension() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\); accepted: \(3,\), \(3, 3\), or"):
        Mass.of(torch.ones(2), torch.zeros(1, 3))


@pytest.mark.parametrize(("num_steps", "half_periods"), [(8, 1), (12, 2)])
def test_trajectories_of_whole_half_periods_mix(num_steps: int, half_periods: int) -> None:
    """After half a period a normal is at the same square, without the default's jitter."""
    size = 2 * math.sin(0.5 * half_periods * math.pi / num_steps)  # of a leapfrog's own period
    options: dict[str, Any] = {"shape": (4,), "step_size": size, "num_steps": num_steps}
    squares = [
        run(HMC(normal, **options, **jitter), 200, warmup_steps=0, num_chains=16).positions.square()
        for jitter in ({}, {"jitter": 0.0})
    ]
    mixed, stuck = (summarise(values[..., 0]) for values in squares)
    assert abs(mixed.mean - 1) < 4 * mixed.mcse
    assert mixed.ess_bulk > 800  # of 3200
    assert stuck.ess_bulk < 100


def test_a_cycle_says_its_turns_and_a_state_its_missing_gradient() -> None:
    hmc = HMC(normal, shape=(2,))
    assert repr(Cycle(hmc, repeats=3)).endswith("repeats=3)")
    assert "repeats" not in repr(Cycle(hmc))
    state = RandomWalkMetropolis(normal, shape=(2,)).init(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="state has no gradient"):
        hmc.step(state)
