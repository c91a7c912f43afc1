# SPDX-License-Identifier: Apache-2.0
"""Vector spins by enumeration and closed forms, and the relation of their dual to them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

from pyro_neuralrg.free_energy import estimate, expectations
from pyro_neuralrg.potentials import Clock, Rotor, SpinSpace, VectorSpinDual, vector_spins
from pyro_neuralrg.potentials.cluster import lattice_bonds


def states_and_bonds(target: VectorSpinDual) -> tuple[np.ndarray, np.ndarray]:
    """Angles of all configurations of clocks, and the sum over bonds of cos of differences."""
    sites, states = math.prod(target.lattice), target.space.states  # type: ignore[attr-defined]
    angles = 2 * np.pi * np.array(list(itertools.product(range(states), repeat=sites))) / states
    ones = np.ones((len(target.lattice), *target.lattice))
    left, right, _ = lattice_bonds(target.lattice, ones, target.boundary)
    return angles, np.cos(angles[:, left] - angles[:, right]).sum(-1)


CLOCKS = [
    ((3, 3), 3, {}),
    ((2, 3), 3, {}),
    ((2, 2), 4, {"coupling": -0.7, "boundary": "open"}),
    ((1, 5), 3, {}),
    ((3, 2), 3, {"boundary": "open"}),
    ((2, 2, 2), 2, {}),
    ((1,), 5, {}),
]


@pytest.mark.parametrize(("shape", "states", "options"), CLOCKS, ids=str)
def test_clocks_by_enumeration(shape: Any, states: int, options: dict[str, Any]) -> None:
    target = VectorSpinDual(shape, Clock(states), 1.3, **options)
    _, bonds = states_and_bonds(target)
    exact = special.logsumexp(target.coupling / 1.3 * bonds)
    assert target.spin_log_partition() == pytest.approx(float(exact), abs=1e-11)


def test_potts_by_enumeration() -> None:
    """Z of sum of delta over T, from the spins and the number of bonds."""
    target = VectorSpinDual.potts((3, 3), 1.1)
    angles, _ = states_and_bonds(target)
    left, right, _ = lattice_bonds((3, 3), np.ones((2, 3, 3)), "periodic")
    equal = np.isclose(angles[:, left], angles[:, right]).sum(-1)
    exact = float(special.logsumexp(equal / 1.1))
    assert target.spin_log_partition() + len(left) / 3 / 1.1 == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("coupling", [1.0, -1.0])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_chains_in_closed_form(coupling: float, boundary: str) -> None:
    """Bessel functions: of order n for XY, spherical ones of order l for Heisenberg spins."""
    length, k, n = 6, coupling / 0.8, np.arange(60)
    options: Any = {"coupling": coupling, "boundary": boundary}
    xy = 2 * np.pi * special.iv(n, k)
    heisenberg = 4 * np.pi * special.spherical_in(n, abs(k)) * np.sign(coupling) ** n
    cases = ((2, xy, np.where(n > 0, 2, 1), 2 * np.pi), (3, heisenberg, 2 * n + 1, 4 * np.pi))
    for components, values, degeneracies, volume in cases:
        target = VectorSpinDual((length,), Rotor(components), 0.8, **options)
        exact = math.log(float((degeneracies * values**length).sum()))
        if boundary == "open":
            exact = math.log(volume) + (length - 1) * math.log(values[0])
        assert target.spin_log_partition() == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("space", [Rotor(2), Rotor(3), Clock(3), Clock(4)], ids=str)
def test_means_are_derivatives_of_the_weight(space: SpinSpace) -> None:
    for size in (1e-3, 0.03, 1.0, 30.0):
        x = size * torch.randn(20, space.components)
        x.requires_grad_()
        (slope,) = torch.autograd.grad(space.log_weight(x).sum(), x)
        torch.testing.assert_close(space.mean(x), slope, rtol=1e-6, atol=1e-8)
        assert float(space.mean(x).detach().norm(dim=-1).max()) < 1.0 + 1e-12
    assert float(space.log_weight(torch.zeros(space.components))) == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize(
    "target",
    [
        VectorSpinDual((3, 2), Rotor(2), 9.0),
        VectorSpinDual((4,), Rotor(3), 6.0),
        VectorSpinDual((3, 3), Clock(3), 12.0),
        VectorSpinDual((4,), Clock(4), 6.0, coupling=-1.0, boundary="open"),
    ],
    ids=str,
)
def test_the_dual_has_the_free_energy_of_its_spins(target: VectorSpinDual) -> None:
    """Hot, where the weights of an untrained flow tell."""
    torch.manual_seed(3)
    found = estimate(target, target.flow(), num_samples=40_000)
    assert found.importance_se < 0.02
    assert abs(found.importance + target.log_partition()) < 4 * found.importance_se


def test_energies_are_those_of_the_spins() -> None:
    target = VectorSpinDual((3, 2), Clock(3), 12.0)
    angles, bonds = states_and_bonds(target)
    weights = special.softmax(bonds / 12.0)
    spins = np.stack([np.cos(angles), np.sin(angles)], -1)
    exact = {
        "spin_energy": -float(weights @ bonds) / 6,
        "spin_structure_factor": float(weights @ (spins.mean(1) ** 2).sum(-1)),
    }
    torch.manual_seed(4)
    found = expectations(target, target.flow(), target.observables(), 40_000).observables
    for name, value in exact.items():
        assert float(found[name].standard_error) < 0.01
        assert abs(float(found[name].value) - value) < 4 * float(found[name].standard_error)


@pytest.mark.parametrize("states", [2, 3, 4])
def test_clusters_draw_clocks(states: int) -> None:
    """Energy and structure factor beside enumeration, of all that ergodicity asks for."""
    target = VectorSpinDual((3, 2), Clock(states), 0.9, boundary="open")
    angles, bonds = states_and_bonds(target)
    weights = special.softmax(bonds / 0.9)
    spins = np.stack([np.cos(angles), np.sin(angles)], -1)
    factors = (spins.mean(1) ** 2).sum(-1)
    exact = [float(weights @ bonds), float(weights @ factors), float(weights @ factors**2)]
    drawn = target.reference_spins(2_000, seed=1)
    turns = torch.atan2(drawn[..., 1], drawn[..., 0]) * states / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0.0, atol=1e-9)  # states they are
    flat = drawn.reshape(len(drawn), 6, 2)
    left, right, _ = lattice_bonds((3, 2), np.ones((2, 3, 2)), "open")
    found = flat.mean(1).square().sum(-1)
    for values, value in zip(
        ((flat[:, left] * flat[:, right]).sum((-1, -2)), found, found**2), exact, strict=True
    ):
        assert abs(float(values.mean()) - value) < 4 * float(values.std()) / math.sqrt(2_000)


def test_later_configurations_know_nothing_of_earlier_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten chains of 60 configurations: Potts at Tc, where clusters move slowest."""
    monkeypatch.setattr(vector_spins, "SITES_AT_ONCE", 640)
    target = VectorSpinDual.potts((8, 8), 1 / math.log(1 + math.sqrt(3)))
    s = target.reference_spins(596, seed=3)
    assert s.shape == (596, 8, 8, 2)
    factors = s.mean((1, 2)).square().sum(-1)[:590].view(59, 10)  # by rounds and chains
    off = factors - factors.mean()
    correlation = float((off[1:] * off[:-1]).mean() / off.square().mean())
    assert abs(correlation) < 4 / math.sqrt(580)


@pytest.mark.parametrize("coupling", [1.0, -1.0])
def test_clusters_draw_rotors(coupling: float) -> None:
    """Mean products at a distance of r on an open chain: (I1 / I0)^r, (coth K - 1 / K)^r."""
    k = coupling / 0.7
    slopes = {2: special.i1(k) / special.i0(k), 3: 1 / math.tanh(k) - 1 / k}
    for components, slope in slopes.items():
        options: Any = {"coupling": coupling, "boundary": "open"}
        target = VectorSpinDual((4,), Rotor(components), 0.7, **options)
        s = target.reference_spins(2_000, seed=2)
        torch.testing.assert_close(s.square().sum(-1), torch.ones(2_000, 4).double())
        for r in (1, 2, 3):
            products = (s[:, 0] * s[:, r]).sum(-1)
            error = float(products.std()) / math.sqrt(2_000)
            assert abs(float(products.mean()) - slope**r) < 4 * error


@pytest.mark.parametrize("space", [Rotor(2), Rotor(3), Clock(3), Clock(4)], ids=str)
def test_spins_given_fields(space: SpinSpace) -> None:
    """Means and mean squares along the field beside derivatives of ln E[exp(s . x)]."""
    target, n = VectorSpinDual((3,), space, 1.0), 20_000
    x = torch.stack([size * torch.randn(space.components).double() for size in (0.0, 0.6, 4.0)])
    spins = target.sample_spins(x.expand(n, *x.shape), seed=5)
    torch.testing.assert_close(spins.square().sum(-1), torch.ones(n, 3).double())
    curvature = torch.autograd.functional.hessian(lambda x: space.log_weight(x).sum(), x)
    for site in range(3):
        drawn, covariance = spins[:, site], curvature[site, :, site, :]
        error = covariance.diagonal().clamp(min=1e-12).sqrt() / math.sqrt(n)
        assert float(((drawn.mean(0) - space.mean(x)[site]) / error).abs().max()) < 4.5
        assert float((drawn.T.cov() - covariance).abs().max()) < 5 / math.sqrt(n)
    assert spins.equal(target.sample_spins(x.expand(n, *x.shape), seed=5))


def test_fields_given_spins() -> None:
    """Mean and covariance of N((K + alpha) s, K + alpha)."""
    target = VectorSpinDual((4,), Rotor(2), 1.0)
    spins = torch.nn.functional.normalize(torch.randn(4, 2), dim=-1)
    x = target.sample_field(spins.expand(20_000, 4, 2), seed=1)
    matrix = target.alpha * torch.eye(4) + torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0)
    error = 5 * matrix.diagonal().max().sqrt() / math.sqrt(20_000)
    assert float((x.mean(0) - matrix @ spins).abs().max()) < error
    assert float((x[..., 0].T.cov() - matrix).abs().max()) < 0.15


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4,), "xy", 1.0), TypeError, r"space is 'xy'; accepted: Rotor\(2\)"),
        (((4,), Rotor(2), -1.0), ValueError, "temperature is -1.0; accepted"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        VectorSpinDual(*arguments)


def test_long_and_cold_chains() -> None:
    """ln Z of an open chain, which is that of a ring whose length hardly matters."""
    for components, length, temperature in ((3, 400, 1.0), (3, 50, 1e-3), (2, 400, 0.5)):
        ring, chain = (
            VectorSpinDual((length,), Rotor(components), temperature, boundary=boundary)
            for boundary in ("periodic", "open")
        )
        bond = 1 / temperature
        assert math.isfinite(ring.spin_log_partition())
        per_bond = [t.spin_log_partition() / length for t in (ring, chain)]
        assert abs(per_bond[0] - per_bond[1]) < (bond + 20) / length


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(ValueError, match="components is 4; accepted: an integer from 2 to 3"):
        Rotor(4)
    with pytest.raises(ValueError, match="n is 0; accepted: an integer >= 1"):
        VectorSpinDual((3,), Rotor(2), 1.0).reference_spins(0)
    with pytest.raises(ValueError, match="states is 1; accepted: an integer >= 2"):
        Clock(1)
    with pytest.raises(NotImplementedError, match="the terms of its transfer matrix cancel"):
        VectorSpinDual((3,), Rotor(3), 0.01, coupling=-1.0).log_partition()
    with pytest.raises(NotImplementedError, match=r"3\^8 states; accepted: up to 2200"):
        VectorSpinDual((8, 8), Clock(3), 1.0).log_partition()
    with pytest.raises(NotImplementedError, match="Heisenberg spins: one dimension"):
        VectorSpinDual((2, 2), Rotor(3), 1.0).log_partition()
