# SPDX-License-Identifier: Apache-2.0
"""Families in the field and of phi^4: each context has the potential of its own value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import estimate, fit
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy import expectations
from pyro_neuralrg.potentials import (
    IsingDual,
    IsingDualFamily,
    IsingFieldFamily,
    IsingModel,
    LatticePotential,
    Phi4,
    Phi4Family,
)
from pyro_neuralrg.potentials.base import TWO_PHASES
from pyro_neuralrg.transforms import CovarianceLayer, FourierLayer, Neighbour


def field_member(family: Any, value: float) -> LatticePotential:
    return IsingDual(family.shape, family.temperature, family.couplings, value, family.boundary)


def kappa_member(family: Any, value: float) -> LatticePotential:
    return Phi4(family.shape, value, family.lam, family.boundary)


def lam_member(family: Any, value: float) -> LatticePotential:
    return Phi4(family.shape, family.kappa, value, family.boundary)


CASES: dict[str, tuple[Any, Any, tuple[float, float]]] = {
    "fields": (IsingFieldFamily((4, 3), (-0.2, 0.7), 2.5), field_member, (-0.2, 0.7)),
    "fields, open, unequal bonds": (
        IsingFieldFamily((3, 4), (0.1, 0.4), 1.8, (1.0, -0.5), "open"),
        field_member,
        (0.1, 0.4),
    ),
    "fields, at Tc": (IsingFieldFamily((2, 2), (0.0, 1.0)), field_member, (0.0, 1.0)),
    "kappa": (Phi4Family((4, 4), (0.2, 0.35), 0.5), kappa_member, (0.2, 0.35)),
    "kappa, open, free": (Phi4Family((5,), (-0.2, 0.3), 0.0, "open"), kappa_member, (-0.2, 0.3)),
    "lambda": (Phi4Family((3, 4), 0.25, (0.1, 1.5)), lam_member, (0.1, 1.5)),
    "lambda, 3-d": (Phi4Family((2, 3, 2), 0.15, (0.2, 0.3)), lam_member, (0.2, 0.3)),
}
every_family = pytest.mark.parametrize(("family", "member", "limits"), CASES.values(), ids=CASES)


def gradient(energy: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(energy.sum(), x)[0]


@every_family
def test_members_at_their_values(family: Any, member: Any, limits: tuple[float, float]) -> None:
    """Energy, force, symmetry; the Gaussian part at both ends."""
    low, high = limits
    values = [low, 0.7 * low + 0.3 * high, high]
    x = (1.5 * torch.randn(3, 2, *family.shape)).requires_grad_()
    contexts = family.contexts(values)
    torch.testing.assert_close(contexts[:, 0], torch.tensor([-1.0, -0.4, 1.0]))
    energy = family.energy(x, contexts.unsqueeze(1))
    assert energy.shape == (3, 2)
    force = gradient(energy, x)
    for i, value in enumerate(values):
        potential = member(family, value)
        torch.testing.assert_close(energy[i], potential.energy(x[i]))
        torch.testing.assert_close(force[i], gradient(potential.energy(x[i]), x)[i])
        assert repr(family.at(contexts[i])) == repr(potential)
        if i != 1:
            slopes = 0.0
            if family.spectrum_slopes is not None:
                slopes = contexts[i, 0] * family.spectrum_slopes[0]
            torch.testing.assert_close(family.spectrum + slopes, potential.spectrum)
        assert not family.even or potential.even
    with pytest.raises(ValueError, match=r"accepted: from .*, the range of the family"):
        family.contexts([high + 0.01])


@every_family
def test_heated_members_correspond(family: Any, member: Any, limits: tuple[float, float]) -> None:
    x, context = torch.randn(2, *family.shape), family.contexts([limits[0], limits[1]])
    hot = family.heated(1.5)
    for i, value in enumerate(limits):
        expected = member(family, value).heated(1.5).energy(x[i])
        torch.testing.assert_close(hot.energy(x[i], context[i]), expected)
    assert repr(family.heated(1.0)) == repr(family)


@every_family
def test_derivative_in_the_parameter(family: Any, member: Any, limits: tuple[float, float]) -> None:
    """By the context, as training and reweighting take it: that of finite differences."""
    value = 0.6 * limits[0] + 0.4 * limits[1]
    x, context = torch.randn(family.shape), family.contexts([value])[0].requires_grad_()
    (slope,) = torch.autograd.grad(family.energy(x, context), context)
    step = 1e-5
    up, down = (float(member(family, value + s).energy(x)) for s in (step, -step))
    expected = (up - down) / (2 * step) * (limits[1] - limits[0]) / 2
    assert float(slope) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_ranges_are_sequences_of_any_kind(kind: Any) -> None:
    limits, number = kind([0.2, 0.3]), torch.tensor(0.5)
    assert repr(Phi4Family((4, 4), limits, number)) == repr(Phi4Family((4, 4), (0.2, 0.3), 0.5))
    assert repr(Phi4Family((4, 4), number, limits)) == repr(Phi4Family((4, 4), 0.5, (0.2, 0.3)))
    assert IsingFieldFamily((4, 4), limits).fields == pytest.approx((0.2, 0.3))


def test_a_given_covariance_stands_in_place_of_the_spectrum() -> None:
    covariance = 2 * torch.eye(16)
    for potential in (IsingDual((4, 4)), Phi4((4, 4), 0.2, 0.5)):
        assert isinstance(potential.flow(covariance=covariance).gaussian, CovarianceLayer)
        with pytest.raises(ValueError, match="covariance is given beside a spectrum"):
            potential.flow(covariance=covariance, spectrum=torch.ones(4, 4))
    for family in (IsingDualFamily((4, 4), (2.0, 2.7)), Phi4Family((4, 4), (0.2, 0.3), 0.5)):
        assert isinstance(family.flow(covariance=covariance).flow.gaussian, CovarianceLayer)


def test_gaussian_layers_follow_the_free_theory() -> None:
    """At both ends the flow at its start is exact for lambda = 0."""
    family: Any = CASES["kappa, open, free"][0]
    for value in (-0.2, 0.3):
        target = family.at(family.contexts([value])[0])
        q = FlowDistribution(FourierLayer(target.spectrum, "open"), (5,))
        assert estimate(target, q, 10).variational == pytest.approx(-target.log_partition())


def test_phases_and_symmetry() -> None:
    assert IsingFieldFamily((4, 4), (0.1, 0.4), 1.8).base == NORMAL
    assert IsingFieldFamily((4, 4), (-0.1, 0.4), 1.8).base == TWO_PHASES
    assert not CASES["fields"][0].flow().flow.odd
    assert Phi4Family((8, 8), (0.2, 0.28), 0.022).base == TWO_PHASES
    assert Phi4Family((8, 8), (0.2, 0.24), 0.022).base == NORMAL
    assert CASES["kappa"][0].flow().flow.odd


@pytest.mark.filterwarnings("ignore:the .* heavy tail:UserWarning")
@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_one_flow_gives_the_magnetisation_in_all_fields() -> None:
    """Exactly d ln Z / d (h / T) / N, by weights; the gap is small at every field."""
    family = IsingFieldFamily((2, 2), (0.0, 1.0), 3.0)
    options: Any = {"bijector": Neighbour(layers=3, hidden=(8,)), "features": 4}
    flow = fit(
        family, family.flow(**options), steps=600, batch=128, lr=0.01, seed=0, progress=False
    )
    for h in (0.0, 0.5, 1.0):
        target = family.at_field(h)
        q = flow.flow.condition(family.contexts([h])[0])
        functions = {"magnetisation": target.observables()["magnetisation"]}
        found = expectations(target, q, functions, num_samples=4000)
        gap = found.free_energy.variational + target.log_partition()
        assert -4.5 * found.free_energy.variational_se < gap < 0.2
        up, down = (IsingModel((2, 2), 3.0, field=h + s).log_partition() for s in (1e-4, -1e-4))
        mean, error = found.observables["magnetisation"]
        assert abs(float(mean) - (up - down) / 2e-4 * 3.0 / 4) < 4.5 * float(error)
        assert float(error) < 0.04
