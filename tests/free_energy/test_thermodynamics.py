# SPDX-License-Identifier: Apache-2.0
"""One flow for a range of temperatures: its training, and the thermodynamics it gives."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn

from pyro_neuralrg import FlowGuide, fit
from pyro_neuralrg.distributions import FlowDistribution, StandardNormal, TwoModes
from pyro_neuralrg.free_energy import Thermodynamics, temperature_curve, thermodynamics
from pyro_neuralrg.free_energy.importance import log_weights
from pyro_neuralrg.potentials import IsingDual, IsingDualFamily, IsingModel
from pyro_neuralrg.transforms import LatticeTransform, Neighbour, hierarchical_flow
from tests.potentials.enumeration import Ising
from tests.transforms.registry import perturb

RANGE = (2.0, 2.7)
SMALL: dict[str, Any] = {"bijector": Neighbour(layers=2, hidden=(4,)), "features": 4}
QUICK: dict[str, Any] = {"steps": 20, "batch": 32, "lr": 0.01, "seed": 0, "progress": False}


class Exact(ConditionalTransformModule):
    """The exact flow of the dual of one spin: two modes of variance 0.1 at +-0.1, whatever T."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.sqrt(0.1)))

    def condition(self, context: Tensor) -> Any:
        return _Scaled(self.scale + 0 * context[..., 0])


class _Scaled(LatticeTransform):
    base = TwoModes(math.sqrt(0.1))

    def __init__(self, scale: Tensor) -> None:
        super().__init__((1,))
        self.scale = scale

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.scale.unsqueeze(-1), self.scale.log().expand(len(z))


def test_an_exact_flow_has_exact_thermodynamics() -> None:
    """One spin: ln Z = ln 2, and neither energy nor specific heat, without any scatter."""
    family = IsingDualFamily((1,), RANGE)
    found = thermodynamics(family, Exact(), [2.0, 2.4], 50, batch_size=20)
    assert len(found) == 2
    for name in ("variational_log_partition", "log_partition", "exact_log_partition"):
        np.testing.assert_allclose(getattr(found, name), math.log(2), atol=1e-12)
    for name in ("energy", "specific_heat"):
        for kind in ("", "variational_", "exact_"):
            np.testing.assert_allclose(getattr(found, kind + name), 0, atol=1e-10)
    np.testing.assert_allclose(found.gap, 0, atol=1e-12)
    np.testing.assert_allclose(found.ess, 1)
    assert repr(found) == "Thermodynamics(2 temperatures from 2 to 2.4, ESS >= 100.0 %)"


def test_derivatives_are_those_of_the_estimate() -> None:
    """Finite differences of the mean with the same noise, of a flow far from the target."""
    family = IsingDualFamily((1, 2), RANGE)
    flow = perturb(family.flow(**SMALL), 0.1)

    def at(beta: float) -> Thermodynamics:
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match="effective samples"):
            return thermodynamics(family, flow, [1 / beta], 30)

    beta, step = 1 / 2.3, 1e-4
    all_three = [at(beta + shift * step) for shift in (-1, 0, 1)]
    low, middle, high = (float(one.variational_log_partition[0]) for one in all_three)
    found = all_three[1]
    energy = -(high - low) / (2 * step) / 2
    heat = beta**2 * (high - 2 * middle + low) / step**2 / 2
    assert found.variational_energy[0] == pytest.approx(energy, rel=1e-5)
    assert found.variational_specific_heat[0] == pytest.approx(heat, rel=1e-3)
    assert found.gap[0] > 0.1


def test_importance_weights_make_up_for_a_poor_flow() -> None:
    """A Gaussian of twice the width of the dual's, whose weights are bounded."""
    family, temperatures = IsingDualFamily((2, 2), (3.0, 5.0)), [3.0, 4.0, 5.0]
    spectra = {name: 4 * getattr(family, name) for name in ("spectrum", "spectrum_slopes")}
    flow = family.flow(**SMALL, base=StandardNormal(), **spectra)
    found = thermodynamics(family, flow, temperatures, 6000, batch_size=3000)
    assert (found.gap > 0.5).all()
    for name in ("log_partition", "energy", "specific_heat"):
        value, error = getattr(found, name), getattr(found, f"{name}_se")
        reference = getattr(found, f"exact_{name}")
        assert (abs(value - reference) < 4.5 * error).all(), name
        assert (error < 0.1 * abs(reference)).all(), name
    for i, temperature in enumerate(temperatures):
        spins = IsingModel((2, 2), temperature)
        assert found.exact_log_partition[i] == pytest.approx(spins.log_partition())
        assert found.exact_energy[i] == spins.internal_energy()
        assert found.exact_specific_heat[i] == spins.specific_heat()


def test_susceptibility_and_binder_cumulant_are_exact_by_weights() -> None:
    """Against enumeration, of a poor flow; what the variational energy is off by is shown."""
    family, temperatures = IsingDualFamily((2, 3), (3.0, 5.0), (1.0, -0.5)), [3.5, 5.0]
    spectra = {name: 3 * getattr(family, name) for name in ("spectrum", "spectrum_slopes")}
    flow = family.flow(**SMALL, base=StandardNormal(), **spectra)
    found = thermodynamics(family, flow, temperatures, 5000, batch_size=2500)
    for i, temperature in enumerate(temperatures):
        exact = Ising.of(IsingModel((2, 3), temperature, (1.0, -0.5))).averages
        square, size = exact["structure_factor"], exact["abs_magnetisation"]
        expected = {
            "abs_magnetisation": size,
            "susceptibility": 6 * square / temperature,
            "connected_susceptibility": 6 * (square - size**2) / temperature,
            "binder": 1 - exact["fourth_moment"] / (3 * square**2),
        }
        for name, value in expected.items():
            error = getattr(found, f"{name}_se")[i]
            assert abs(getattr(found, name)[i] - value) < 4.5 * error, name
            assert error < 0.05, name
        assert found.exact_susceptibility[i] == pytest.approx(expected["susceptibility"])
        off = found.variational_energy[i] - exact["internal_energy"]
        assert abs(found.gap_energy[i] - off) < 4.5 * found.energy_se[i]


def test_one_flow_for_each_temperature() -> None:
    """Its energy is the derivative of the bound, as if the flow stayed the same."""
    family, temperatures = IsingDualFamily((2, 2), (3.0, 5.0)), [3.5, 4.5]
    options = {"bijector": SMALL["bijector"], "base": StandardNormal()}
    members = [family.at_temperature(temperature) for temperature in temperatures]
    flows = [one.flow(**options, spectrum=4 * one.spectrum) for one in members]
    found = thermodynamics(family, flows, temperatures, 5000, batch_size=2500)
    for name in ("log_partition", "energy", "specific_heat", "susceptibility"):
        value, error = getattr(found, name), getattr(found, f"{name}_se")
        assert (abs(value - getattr(found, f"exact_{name}")) < 4.5 * error).all(), name
    assert np.isnan(found.variational_specific_heat).all()
    step = 1e-4
    for i, temperature in enumerate(temperatures):
        x = FlowDistribution(flows[i]).sample((5000,))
        bounds = []
        for beta in (1 / temperature - step, 1 / temperature + step):
            target = family.at_temperature(1 / beta)
            of_spins = target.log_partition() - target.spins.log_partition()
            bounds.append(-target.energy(x) - of_spins)
        slopes = -(bounds[1] - bounds[0]) / (2 * step) / 4
        error = math.hypot(float(slopes.std()) / math.sqrt(5000), found.variational_energy_se[i])
        assert abs(found.variational_energy[i] - float(slopes.mean())) < 4.5 * error


def test_nan_where_nothing_is_exact() -> None:
    family = IsingDualFamily((3, 6, 6), (8.0, 9.0))
    flow = family.flow(**SMALL)
    with pytest.warns(UserWarning, match="effective samples") as caught:
        found = thermodynamics(family, flow, [8.5], 4)
    assert caught[0].filename == __file__
    assert np.isnan(found.exact_energy).all()
    assert np.isnan(found.gap).all()
    assert np.isfinite(found.variational_energy).all()
    assert set(found.as_dict()) >= {"temperature", "energy", "specific_heat_se"}
    assert isinstance(found, Thermodynamics)


def test_the_exact_susceptibility_of_a_large_lattice_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = IsingDualFamily((1,), RANGE)
    for most, known in ((1, True), (0, False)):
        monkeypatch.setattr(temperature_curve, "MOST_CORRELATED", most)
        found = thermodynamics(family, Exact(), [2.2], 50)
        assert np.isfinite(found.exact_susceptibility).all() == known
        assert np.isfinite(found.exact_specific_heat).all()


def test_distributions_may_stand_for_flows() -> None:
    family = IsingDualFamily((1,), RANGE)
    exact = FlowDistribution(_Scaled(torch.tensor(math.sqrt(0.1)).expand(1)), (1,))
    found = thermodynamics(family, [exact], [2.2], 50)
    np.testing.assert_allclose(found.log_partition, math.log(2), atol=1e-12)


def test_fit_lowers_the_bound_at_every_temperature() -> None:
    family, temperatures = IsingDualFamily((2, 2), RANGE), [2.0, 2.35, 2.7]
    torch.manual_seed(0)
    flow = family.flow(**SMALL)

    def gaps() -> list[float]:
        torch.manual_seed(1)
        found = []
        for temperature in temperatures:
            target = family.at_temperature(temperature)
            q = flow.condition(family.contexts([temperature])[0])
            found.append(target.log_partition() - float(log_weights(target, q, 4000).mean()))
        return found

    before = gaps()
    result = fit(family, flow, steps=150, batch=64, lr=0.02, seed=0, progress=False)
    assert result.flow is flow
    assert np.isnan(result.history.ess).all()
    for one, other in zip(before, gaps(), strict=True):
        assert 0 < other < 0.2 * one
    first, second = (fit(family, **QUICK) for _ in range(2))  # which make a flow, twice the same
    assert first.flow.context_dim == 1
    assert first.history.free_energy.tolist() == second.history.free_energy.tolist()
    guide = FlowGuide(flow)
    held = [p.detach().clone() for p in guide.parameters()]
    fit(family, guide, path_gradient=True, **QUICK)
    pairs = zip(guide.parameters(), held, strict=True)
    assert not any(torch.equal(now, then) for now, then in pairs)


def test_bad_arguments() -> None:
    family, target = IsingDualFamily((2, 2), RANGE), IsingDual((2, 2))
    flow, plain = family.flow(**SMALL), hierarchical_flow((2, 2))
    quick = functools.partial(fit, **QUICK)
    for function, arguments, words in (
        (quick, (family, plain), "accepted for a PotentialFamily: a Conditional"),
        (quick, (target, FlowGuide(flow)), "or a PotentialFamily as target"),
        (thermodynamics, (target, flow, [2.3]), "family is an IsingDual; accepted: an IsingDualF"),
        (thermodynamics, (family, plain, [2.3]), "flow is a HierarchicalFlow; accepted: a cond"),
        (thermodynamics, (family, flow, [1.0]), "temperatures is .*accepted: from"),
        (thermodynamics, (family, flow, [2.3], 1), "num_samples is 1; accepted"),
        (thermodynamics, (family, ["a"], [2.3]), r"flow\[0\] is a str; accepted: a conditional"),
        (thermodynamics, (family, flow, 2.5), r"temperatures has shape \(\); accepted: a sequence"),
        (thermodynamics, (family, flow, []), r"temperatures has shape \(0,\); accepted"),
        (thermodynamics, (family, flow, [[2.5]]), r"temperatures has shape \(1, 1\); accepted"),
        (thermodynamics, (family, flow, ["x"]), "temperatures is a list; accepted: a sequence of"),
        (thermodynamics, (family, [plain], [2.3, 2.4]), "flow has 1 flows for 2 temp.*accepted"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            function(*arguments)


@pytest.mark.slow
def test_a_phase_diagram_of_one_flow() -> None:
    """8 x 8, 25 s of one core: energies within 1 %."""
    torch.set_default_dtype(torch.float32)
    family = IsingDualFamily((8, 8), RANGE)
    torch.manual_seed(0)
    flow = fit(family, steps=1000, seed=0, progress=False).flow
    with warnings.catch_warnings():  # heavy tails of the weights are legal here
        warnings.simplefilter("ignore", UserWarning)
        found = thermodynamics(family, flow, [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7])
    assert (found.gap < 0.15).all()
    assert (found.gap > -4.5 * found.variational_log_partition_se).all()
    np.testing.assert_allclose(found.energy, found.exact_energy, rtol=0.01)
