# SPDX-License-Identifier: Apache-2.0
"""Ring polymers: published and closed-form levels, quadrature, and what cannot be computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from pyro_neuralrg.free_energy import anneal, estimate, reweight
from pyro_neuralrg.mcmc import HMC, EnergyTarget, StagingMetropolis, VectorizedMCMC
from pyro_neuralrg.potentials import (
    Central,
    DoubleWell,
    IsingDual,
    Morse,
    QuarticWell,
    RingPolymer,
)
from tests.potentials.registry import saddle


def harmonic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square()


def exact_harmonic(beads: int, beta: float, dimensions: int) -> tuple[float, float]:
    """ln Z and <|x|^2> of a unit oscillator, from the modes of the ring."""
    k = np.pi * np.arange(beads) / beads
    precision = beads / beta * 4 * np.sin(k) ** 2 + beta / beads
    log_z = 0.5 * dimensions * np.log(2 * np.pi / precision).sum()
    return float(log_z), float(dimensions * (1 / precision).mean())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("beads", "beta"), [(2, 1.5), (7, 4.0), (32, 4.0)])
def test_a_harmonic_ring(dimensions: int, beads: int, beta: float) -> None:
    potential = harmonic if dimensions == 1 else Central(harmonic)
    target = RingPolymer(beads, potential, beta=beta, dimensions=dimensions)
    log_z, square = exact_harmonic(beads, beta, dimensions)
    assert target.log_partition() == pytest.approx(log_z, abs=1e-9)
    assert target.mean_square() == pytest.approx(square, abs=1e-9)
    modes = target.spectrum.reshape(beads, -1)[:, 0]
    assert float(modes.mean()) * dimensions == pytest.approx(square, rel=1e-6)  # it is Gaussian
    if dimensions == 1:
        waves = np.fft.fft(target.correlation_function()).real
        np.testing.assert_allclose(waves, modes, rtol=1e-6)


def test_the_levels_of_a_double_well() -> None:
    """E0 and E1 at P = 64 by an independent transfer matrix."""
    target = RingPolymer(64, DoubleWell(), beta=8.0)
    np.testing.assert_allclose(target.levels(2), [0.350052, 0.522834], atol=1e-6)
    correlations = target.correlation_function()
    assert correlations[0] == pytest.approx(target.mean_square(), abs=1e-10)
    np.testing.assert_allclose(correlations[1:], correlations[:0:-1], atol=1e-10)
    assert target.base.config["name"] == "TwoModes"


def test_the_levels_of_a_morse_bond() -> None:
    """(n + 1 / 2) omega - (n + 1 / 2)^2 omega^2 / 4 D in the limit of many beads."""
    bond = Morse()
    frequency = math.sqrt(2 * bond.depth / 1728.0) / bond.width
    exact = [h * frequency - (h * frequency) ** 2 / (4 * bond.depth) for h in (0.5, 1.5)]
    found = [RingPolymer(beads, bond, beta=1052.0, mass=1728.0).levels(2) for beads in (32, 64)]
    limit = found[1] + (found[1] - found[0]) / 3  # errors of order 1 / P^2
    np.testing.assert_allclose(limit, exact, rtol=1e-3)


@pytest.mark.parametrize("beads", [1, 8])
def test_the_energy_is_the_derivative_of_the_free_energy(beads: int) -> None:
    for potential, dimensions in ((DoubleWell(1.5, 2.0), 1), (Central(QuarticWell()), 3)):
        known = {"dimensions": dimensions, "mass": 1.3}
        target = RingPolymer(beads, potential, beta=2.0, **known)
        up, down = (
            RingPolymer(beads, potential, beta=beta, **known).log_quantum_partition()
            for beta in (2.0 + 1e-4, 2.0 - 1e-4)
        )
        assert target.internal_energy() == pytest.approx((down - up) / 2e-4, rel=1e-6)


def test_the_integral_finds_its_units_and_wells() -> None:
    """In any unit of length, of energy above any zero, and with a second, deeper well far away."""
    small = RingPolymer(16, lambda x: 0.5e6 * x.square(), beta=4.0, mass=1e6)
    np.testing.assert_allclose(small.levels(2), [0.49871, 1.49613], atol=1e-4)
    high = RingPolymer(16, lambda x: 0.5e6 * x.square() + 1e4, beta=4.0, mass=1e6)
    assert high.log_partition() == pytest.approx(small.log_partition() - 4e4, rel=1e-9)

    def wells(x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(0.5 * x.square(), 0.5 * (x - 30).square() - 10)

    one, two = (RingPolymer(8, u, beta=8.0) for u in (harmonic, wells))
    assert two.log_partition() == pytest.approx(one.log_partition() + 80.0, abs=1e-6)


def test_all_levels_of_a_cold_oscillator() -> None:
    """Also of angular momenta that have no share of Z."""
    target = RingPolymer(64, Central(harmonic), beta=40.0, dimensions=3)
    gaps = np.diff(target.levels(10))
    np.testing.assert_allclose(gaps[1:3], 0.0, atol=1e-6)
    np.testing.assert_allclose(gaps[4:9], 0.0, atol=1e-6)
    assert gaps[0] == pytest.approx(gaps[3], abs=1e-6)


def test_one_bead_is_classical() -> None:
    target = RingPolymer(1, DoubleWell(), beta=2.0)
    x = np.linspace(-9, 9, 4001)
    exact = np.log(trapezoid(np.exp(-2.0 * (x**2 - 4) ** 2 / 32), x))
    assert target.log_partition() == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("beads", "dimensions"), [(1, 1), (2, 1), (5, 2), (6, 1), (4, 3)])
def test_a_twisted_oscillator(beads: int, dimensions: int) -> None:
    """Z, <|x|^2> and correlations of the quadratic form itself."""
    potential = harmonic if dimensions == 1 else Central(harmonic)
    target = RingPolymer(beads, potential, beta=1.5, dimensions=dimensions, twisted=True)
    x = torch.zeros(target.shape, dtype=torch.float64)
    precision = torch.autograd.functional.hessian(target.energy, x)
    precision = precision.reshape(x.numel(), -1)
    covariance = torch.linalg.inv(precision)
    log_z = 0.5 * (x.numel() * math.log(2 * math.pi) - float(torch.logdet(precision)))
    assert target.log_partition() == pytest.approx(log_z, abs=1e-9)
    assert target.mean_square() == pytest.approx(float(covariance.trace()) / beads, rel=1e-9)
    found = estimate(target, target.flow(dtype=torch.float64, depth=0), 200)
    assert found.variational == pytest.approx(-log_z, abs=1e-6)  # the flow is this Gaussian
    draws = torch.linalg.cholesky(covariance) @ torch.randn(x.numel(), 5).double()
    fields = draws.T.reshape(5, *target.shape)
    direct = [
        torch.cat([fields[:, lag:], -fields[:, :lag]], 1).mul(fields).flatten(1).sum(1) / beads
        for lag in range(beads)
    ]
    torch.testing.assert_close(target.correlations(fields), torch.stack(direct, -1))
    if dimensions == 1:
        exact = torch.from_numpy(target.correlation_function())
        torch.testing.assert_close(exact, covariance[0], rtol=1e-8, atol=1e-9)


def test_the_splitting_of_a_double_well() -> None:
    """By ln Z of the twisted ring, exact and annealed; a pair of levels above adds 0.2 %."""
    target = RingPolymer(16, DoubleWell(), beta=8.0, twisted=True)
    first, second = target.levels(2)
    assert target.splitting() == pytest.approx(second - first, rel=0.004)
    found = anneal(target, target.flow(depth=0), num_particles=4096, seed=0, progress=False)
    error = found.standard_error
    assert error < 0.03
    assert abs(found.free_energy + target.log_partition()) < 4 * error
    assert target.splitting(-found.free_energy) == pytest.approx(second - first, rel=4 * error)


def test_a_flow_estimates_the_free_energy() -> None:
    """Also in three dimensions: the untrained flow of a quartic is its best Gaussian."""
    torch.manual_seed(1)
    for potential, dimensions in ((QuarticWell(), 1), (Central(QuarticWell()), 3)):
        target = RingPolymer(8, potential, beta=2.0, dimensions=dimensions)
        found = estimate(target, target.flow(), num_samples=20_000)
        assert found.importance_se < 0.04
        assert abs(found.importance + target.log_partition()) < 4 * found.importance_se
        assert found.variational + target.log_partition() > 5 * found.variational_se


@pytest.mark.parametrize("dimensions", [1, 3])
def test_staging_draws_the_ring(dimensions: int) -> None:
    potential = DoubleWell(1.0, 4.0) if dimensions == 1 else Central(QuarticWell())
    target = RingPolymer(8, potential, beta=3.0, dimensions=dimensions)
    exact = {"quantum_energy": target.internal_energy(), "mean_square": target.mean_square()}
    kernel = StagingMetropolis(target, length=4)
    options = {"observables": target.observables(), "keep_draws": False, "progress": False}
    run = VectorizedMCMC(kernel, 600, 100, 64, seed=2, **options)
    run.run()
    table = run.summary()
    for name, value in exact.items():
        assert abs(table["mean"][name] - value) < 4 * table["mcse_mean"][name]
        assert table["r_hat"][name] < 1.05


def test_staging_of_a_free_stretch_is_always_accepted() -> None:
    """Bridges have the law of the springs: without a potential nothing is rejected."""
    target = RingPolymer(9, lambda x: 0.0 * x, beta=3.0)
    kernel = StagingMetropolis(target, length=8)
    state = kernel.init(torch.randn(500, 9))
    for _ in range(3):
        state, info = kernel.step(state)
        assert float(info.acceptance_rate.min()) > 1 - 1e-9
    squares = (state.position - state.position.roll(1, -1)).square().mean()
    # nine bonds, one of which closes the ring
    exact = 8 / 9 / target.ring.stiffness
    assert float(squares) == pytest.approx(exact, rel=0.1)


def test_correlations_of_a_ring() -> None:
    target = RingPolymer(5, Central(QuarticWell()), beta=1.0, dimensions=2)
    x = torch.randn(3, 5, 2)
    direct = torch.stack([(x * x.roll(-lag, 1)).sum(-1).mean(-1) for lag in range(5)], -1)
    torch.testing.assert_close(target.correlations(x), direct)
    found = reweight(target.correlations(x), torch.zeros(3))
    assert found.value.shape == (5,)


def test_what_is_not_known_is_said() -> None:
    general = RingPolymer(3, saddle, beta=1.0, dimensions=2)
    with pytest.raises(NotImplementedError, match="no exact ln Z is known in 2 dimensions"):
        general.internal_energy()
    with pytest.raises(NotImplementedError, match="one dimension only"):
        RingPolymer(3, Central(QuarticWell()), beta=1.0, dimensions=2).correlation_function()
    with pytest.raises(ValueError, match="splitting: accepted is a ring with twisted=True"):
        RingPolymer(4, DoubleWell(), beta=8.0).splitting()
    twisted = RingPolymer(4, DoubleWell(), beta=8.0, twisted=True)
    with pytest.raises(
        ValueError, match=r"log_partition is 100\.0, 9\d\.\d above ln Z of the ring"
    ):
        twisted.splitting(100.0)
    with pytest.raises(NotImplementedError, match="splitting: of one dimension only"):
        RingPolymer(4, Central(QuarticWell()), beta=1.0, dimensions=2, twisted=True).splitting()
    with pytest.raises(ValueError, match="trace of the twisted ring is below 1e-08 of the other's"):
        RingPolymer(16, DoubleWell(8.0), beta=8.0, twisted=True).log_partition()
    with pytest.raises(ValueError, match="target is twisted; accepted: a ring with twisted=False"):
        StagingMetropolis(twisted)
    with pytest.raises(ValueError, match=r"does not confine the particle"):
        RingPolymer(4, torch.tanh, beta=1.0).log_partition()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beads": 0}, ValueError, "beads is 0; accepted: an integer >= 1"),
        ({"beta": -1.0}, ValueError, "beta is -1.0; accepted: a finite number > 0"),
        ({"mass": math.inf}, ValueError, "mass is inf; accepted: a finite number > 0"),
        ({"dimensions": 4}, ValueError, "dimensions is 4; accepted: an integer from 1 to 3"),
        ({"potential": 2.0}, TypeError, "potential is a float; accepted: a function"),
        ({"potential": lambda x: x / 0}, ValueError, "potential has energies that are not finite"),
        ({"even": 1}, TypeError, "even is an int; accepted: True, False or None"),
        ({"twisted": 1}, TypeError, "twisted is an int; accepted: True or False"),
        ({"twisted": True, "potential": Morse()}, ValueError, "twisted is True; accepted: False"),
        (
            {"twisted": True, "potential": Morse(), "even": True},
            ValueError,
            "twisted is True; accepted: False",
        ),
        ({"potential": lambda x: x.sum()}, ValueError, "potential returned shape"),
        ({"potential": lambda x: x.sum(-1)}, ValueError, "potential returned shape"),
    ],
)
def test_wrong_arguments_are_named(options: dict, error: type, message: str) -> None:
    known = {"beads": 4, "potential": QuarticWell(), "beta": 1.0}
    with pytest.raises(error, match=message):
        RingPolymer(**(known | options))


def test_wrong_wells_are_named() -> None:
    for make, name in ((DoubleWell, "minimum"), (Morse, "width"), (QuarticWell, "strength")):
        with pytest.raises(ValueError, match=f"{name} is 0.0; accepted: a finite number > 0"):
            make(**{name: 0.0})


def test_staging_by_seeds_and_chains() -> None:
    """The same draws by the same seed; no chain affects another; what is not finite is rejected."""
    target = RingPolymer(6, harmonic, beta=2.0)
    kernel, x = StagingMetropolis(target, length=2), torch.randn(4, 6)
    first, again = (
        kernel.step(kernel.init(x), torch.Generator().manual_seed(3))[0].position for _ in "12"
    )
    assert torch.equal(first, again)
    other = x.clone()
    other[0] = -x[0]
    moved = kernel.step(kernel.init(other), torch.Generator().manual_seed(3))[0].position
    assert torch.equal(moved[1:], first[1:])
    target.potential = lambda x: torch.where(x > 3, torch.inf, 0.5 * x.square())
    edge = torch.full((200, 6), 2.99)
    state, info = kernel.step(kernel.init(edge), torch.Generator().manual_seed(3))
    assert float(state.position.max()) <= 3.0
    assert bool(info.diverging.any())


def test_staging_wants_a_ring() -> None:
    ring = RingPolymer(4, QuarticWell(), beta=1.0)
    with pytest.raises(TypeError, match="target is an IsingDual; accepted: a RingPolymer"):
        StagingMetropolis(IsingDual((2, 2)))
    with pytest.raises(TypeError, match="accepted: a RingPolymer in physical space"):
        StagingMetropolis().on(HMC(ring, flow=ring.flow()).target)
    with pytest.raises(ValueError, match="length is 4; accepted: an integer from 1 to 3"):
        StagingMetropolis(ring, length=4)
    with pytest.raises(ValueError, match="target is a ring of one bead; accepted: of two or more"):
        StagingMetropolis(EnergyTarget(RingPolymer(1, QuarticWell(), beta=1.0)))
