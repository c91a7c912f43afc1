# SPDX-License-Identifier: Apache-2.0
"""Spins of any couplings: against enumeration, the transfer matrix, the Ising model, one another.

The laws of the dual itself run over the registry, in test_laws.py and test_ising.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import estimate, fit
from pyro_neuralrg.potentials import DualSpins, IsingDual, IsingModel, SpinModel
from pyro_neuralrg.potentials.exact import transfer
from pyro_neuralrg.transforms import CovarianceLayer, FourierLayer
from tests.potentials.enumeration import Ising
from tests.transforms.registry import perturb

SHAPES = [(4, 4), (5,), (2, 4), (2, 2), (3, 2, 2), (1, 6), (1,)]
BOUNDARIES = [
    *itertools.product(SHAPES, ("periodic", "open")),
    *((shape, axis) for shape in ((4, 3), (3, 3), (2, 3, 3)) for axis in range(len(shape))),
]
"""With the one axis that is open in place of a boundary: the others are periodic."""


def random_bonds(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Bonds of either sign and a field, of no symmetry."""
    return torch.randn(len(shape), *shape), 0.5 * torch.randn(shape)


@pytest.mark.parametrize(("shape", "boundary"), BOUNDARIES, ids=str)
def test_exact_quantities_are_those_of_enumeration(
    shape: tuple[int, ...], boundary: str | int
) -> None:
    for temperature in (0.3, 3.0):
        bonds, field = random_bonds(shape)
        if isinstance(boundary, int):
            bonds[boundary].select(boundary, -1).zero_()
            boundary = "periodic"
        spins = DualSpins.from_bonds(shape, bonds, field, temperature, boundary).spins
        ising = Ising.of(spins)
        assert spins.lattice_bonds is not None
        assert spins.log_partition() == pytest.approx(ising.log_partition, rel=1e-12)
        energy = ising.averages["internal_energy"]
        assert spins.internal_energy() == pytest.approx(energy, rel=1e-9)
        assert spins.specific_heat() == pytest.approx(ising.specific_heat, rel=1e-7, abs=1e-12)


def test_matrix_of_bonds_is_written_out() -> None:
    """Bond by bond, as the documentation says: the site, the next one along the axis."""
    shape, (bonds, _) = (3, 4), random_bonds((3, 4))
    for boundary in ("periodic", "open"):
        matrix = DualSpins.from_bonds(shape, bonds, boundary=boundary).couplings
        expected = torch.zeros(12, 12)
        for i, j in itertools.product(range(3), range(4)):
            for axis, (a, b) in enumerate([(i + 1, j), (i, j + 1)]):
                if boundary == "open" and (a == 3 or b == 4):
                    continue
                here, there = 4 * i + j, 4 * (a % 3) + b % 4
                expected[here, there] = expected[there, here] = bonds[axis, i, j]
        assert torch.equal(matrix, expected)


@pytest.mark.parametrize(("shape", "boundary"), [((4, 20), "periodic"), ((20, 6), "open")])
def test_strips_add_up_the_states_of_one_spin(shape: tuple[int, int], boundary: str) -> None:
    """Beyond enumeration: a spin held by a strong field is up or down, and Z is the sum of both."""
    bonds, field = random_bonds(shape)
    whole = DualSpins.from_bonds(shape, bonds, field, 1.5, boundary).spins.log_partition()
    parts = []
    for sign in (1, -1):
        held = field.clone()
        held[1, 1] = sign * 60.0
        part = DualSpins.from_bonds(shape, bonds, held, 1.5, boundary).spins.log_partition()
        parts.append(part + (sign * float(field[1, 1]) - 60.0) / 1.5)
    assert whole == pytest.approx(math.log(sum(map(math.exp, (p - whole for p in parts)))) + whole)


@pytest.mark.parametrize(("shape", "boundary"), [((4, 16), "periodic"), ((16, 9), "open")])
def test_gauged_strips_are_the_uniform_ones(shape: tuple[int, int], boundary: str) -> None:
    """J_ij = e_i e_j of random signs e: the ferromagnet of s_i e_i (the Mattis model)."""
    signs = torch.randn(shape).sign()
    bonds = torch.stack([signs * signs.roll(-1, axis) for axis in (0, 1)])
    mattis = DualSpins.from_bonds(shape, bonds, 0.2 * signs, 2.0, boundary)
    uniform = IsingModel(shape, 2.0, field=0.2, boundary=boundary)
    for name in ("log_partition", "internal_energy", "specific_heat"):
        assert getattr(mattis.spins, name)() == pytest.approx(getattr(uniform, name)(), rel=1e-9)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uniform_bonds_are_the_ising_model(shape: tuple[int, ...], boundary: str) -> None:
    """Energies, observables and exact values of the dual; the Gaussian layer is the Fourier one."""
    ones = torch.ones(len(shape), *shape)
    target = DualSpins.from_bonds(shape, ones, 0.4, 2.5, boundary)
    ising = IsingDual(shape, 2.5, field=0.4, boundary=boundary)
    x = 2 * torch.randn(3, *shape)
    torch.testing.assert_close(target.energy(x), ising.energy(x))
    assert target.alpha == pytest.approx(ising.alpha)
    assert target.log_partition() == pytest.approx(ising.log_partition())
    functions, expected = target.observables(), ising.observables()
    assert functions.keys() == expected.keys()
    for name, function in functions.items():
        torch.testing.assert_close(function(x), expected[name](x))
    layer = CovarianceLayer(target.covariance, shape)
    torch.testing.assert_close(layer(x), FourierLayer(ising.spectrum, boundary)(x))
    assert target.flow().site_features is None


def test_couplings_of_a_lattice_are_recognised() -> None:
    """The transfer matrix serves those alone; others are enumerated, as far as that goes."""
    bonds, _ = random_bonds((4, 4))
    matrix = DualSpins.from_bonds((4, 4), bonds).couplings
    by_transfer = SpinModel(matrix, shape=(4, 4)).log_partition()
    assert SpinModel(matrix).lattice_bonds is None
    assert SpinModel(matrix).log_partition() == pytest.approx(by_transfer)
    assert SpinModel(matrix.to_sparse(), shape=(4, 4)).log_partition() == by_transfer
    with pytest.raises(NotImplementedError, match=r"SpinModel\(420 couplings.*up to 20 spins"):
        SpinModel(DualSpins.from_bonds((30, 7), torch.ones(2, 30, 7)).couplings).log_partition()


def test_flows_of_magnets_know_their_symmetry_and_their_sites() -> None:
    glass = DualSpins.spin_glass((4, 4), 1.5, seed=0)
    flow = glass.flow()
    assert flow.odd
    assert isinstance(flow.gaussian, CovarianceLayer)
    bonds = torch.stack([flow.site_features[0], flow.site_features[1]]) * 1.5
    again = DualSpins.from_bonds((4, 4), bonds, temperature=1.5)
    torch.testing.assert_close(again.couplings, glass.couplings)
    z = torch.randn(2, 4, 4)
    torch.testing.assert_close(flow(-z), -flow(z))
    in_field = DualSpins.random_field((4, 4), 0.5, 2.0, seed=0)
    flow = in_field.flow()
    assert not flow.odd
    assert in_field.field is not None
    torch.testing.assert_close(flow.site_features, in_field.field.unsqueeze(0) / 2.0)
    both = DualSpins(glass.couplings, in_field.field, (4, 4), 2.0).flow()
    assert len(both.site_features) == 3
    assert glass.flow(bijector="realnvp").site_features is None
    assert glass.flow(context_dim=1).site_features is None
    assert in_field.flow(context_dim=1).site_features is not None
    assert glass.flow(spectrum=torch.ones(4, 4)).config["covariance"] is False


def test_an_odd_flow_sees_the_bonds() -> None:
    """Changing a feature changes the field, and never the symmetry."""
    flow = perturb(DualSpins.spin_glass((4, 4), 1.5, seed=0).flow(), 0.1)
    z = torch.randn(3, 4, 4)
    x = flow(z)
    torch.testing.assert_close(flow(-z), -x)
    changed = -flow.site_features
    flow.load_state_dict({**flow.state_dict(), "site_features": changed})
    assert not torch.allclose(flow(z), x)
    torch.testing.assert_close(flow(-z), -flow(z))


def test_the_estimate_of_a_trained_flow_is_exact() -> None:
    target = DualSpins.spin_glass((4, 4), 2.0, seed=4)
    flow = fit(target, steps=60, batch=128, seed=0, progress=False).flow
    found = estimate(target, flow, num_samples=4000)
    assert abs(found.importance + target.log_partition()) < 4.5 * found.importance_se
    assert 0 < found.variational + target.log_partition() < 1.5
    assert found.importance_se < 0.15


def test_draws_of_a_cold_glass_are_those_of_equilibrium() -> None:
    """Clusters alone get stuck, their energies were 0.4 to 0.5 too high; so does the heat bath.

    Without the exchange of replicas the mean energy is off by 13 standard errors.
    """
    spins = DualSpins.spin_glass((6, 6), 0.5, seed=1).spins
    energies = spins.energy_per_site(spins.sample(600, seed=2))
    error = float(energies.std()) / math.sqrt(600)
    assert abs(float(energies.mean()) - spins.internal_energy()) < 4.5 * error
    assert error < 0.01


def test_a_temperature_is_a_float() -> None:
    glass = DualSpins.spin_glass((2, 2), torch.tensor(1.5), seed=1)  # type: ignore[arg-type]
    assert type(glass.temperature) is float


def test_seeds_and_signs() -> None:
    one, same = (DualSpins.spin_glass((6, 6), seed=3) for _ in range(2))
    assert torch.equal(one.couplings, same.couplings)
    assert not torch.equal(one.couplings, DualSpins.spin_glass((6, 6)).couplings)
    assert bool((DualSpins.spin_glass((6, 6), positive=1.0).couplings >= 0).all())
    share = (DualSpins.spin_glass((20, 20), positive=0.8, seed=1).couplings > 0).sum() / 1600
    assert float(share) == pytest.approx(0.8, abs=4.5 * math.sqrt(0.16 / 800))
    field = DualSpins.random_field((30, 30), 2.0, seed=1).field
    assert field is not None
    assert float(field.std()) == pytest.approx(2.0, abs=4.5 * 2.0 / math.sqrt(1800))


def test_limits_are_those_of_the_methods() -> None:
    """One spin more than is enumerated is refused, for any couplings."""
    size = transfer.MAX_ENUMERATED + 1
    with pytest.raises(NotImplementedError, match="up to 20 spins"):
        SpinModel(torch.ones(size, size) - torch.eye(size)).log_partition()
    width = transfer.MAX_SECTION_PERIODIC + 1
    with pytest.raises(NotImplementedError, match=f"here {width}"):
        DualSpins.from_bonds((width, width), torch.ones(2, width, width)).log_partition()
