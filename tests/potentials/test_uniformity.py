# SPDX-License-Identifier: Apache-2.0
"""Energies of users that treat sites differently: noticed, and shown to their flows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import estimate, fit
from pyro_neuralrg.potentials import DualSpins, FreeField, IsingDual, LatticePotential, Phi4
from pyro_neuralrg.transforms import Neighbour

SHAPE = (4, 6)
SMALL = Neighbour(layers=2, hidden=(4,))
masses = 1 + torch.arange(24.0).sin().reshape(SHAPE).square()
pulls = torch.arange(24.0).cos().reshape(SHAPE)


def quartic(x: Tensor) -> Tensor:
    return (x.square() / 2 + x.pow(4)).flatten(1).sum(1)


UNIFORM: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "quartic": (quartic, "periodic"),
    "ising": (IsingDual(SHAPE).energy, "periodic"),
    "phi4": (Phi4(SHAPE, 0.25, 0.3).energy, "periodic"),
    "phi4, open": (Phi4((7, 8), 0.25, 0.3, "open").energy, "open"),
    "free field, open": (FreeField((6, 3), 0.5, "open").energy, "open"),
    "free edges, open": (
        lambda x: x.diff(dim=-1).square().sum((-1, -2)) + x.diff(dim=-2).square().sum((-1, -2)),
        "open",
    ),
    "random, small and open": (DualSpins.spin_glass((3, 4), seed=1).energy, "open"),
    "walls": (lambda x: torch.where(x > 2, torch.inf, x).square().sum((-1, -2)), "periodic"),
}


SHAPES = {"phi4, open": (7, 8), "free field, open": (6, 3), "free edges, open": (6, 8)}
SHAPES["random, small and open"] = (3, 4)  # nothing can be moved there


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniform_energies_are_taken_for_such(name: str, dtype: torch.dtype) -> None:
    energy, boundary = UNIFORM[name]
    shape = SHAPES.get(name, SHAPE)
    torch.set_default_dtype(dtype)
    target = LatticePotential.from_energy(shape, energy, boundary=boundary)
    flow = target.flow(bijector=SMALL)
    assert flow.site_features is None
    assert flow.weights == "scale"


def test_what_differs_is_shown() -> None:
    """The pull and the mass of each site, but for units; the pull is no feature of an odd flow."""

    def massive(x: Tensor) -> Tensor:
        return (x.square() / 2 + masses.to(x) * x.pow(4)).flatten(1).sum(1)

    def pulled(x: Tensor) -> Tensor:
        return massive(x) - (pulls.to(x) * x).flatten(1).sum(1)

    of_mass, of_pull = ((v - v.mean()) / v.std(correction=0) for v in (masses, -pulls))
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        for energy, even, expected in (
            (massive, True, [of_mass]),
            (massive, False, [of_mass]),
            (pulled, False, [of_pull, of_mass]),
        ):
            target = LatticePotential.from_energy(SHAPE, energy, even=even)
            flow = target.flow(bijector=SMALL)
            assert flow.odd is even
            seen = flow.site_features.double()
            torch.testing.assert_close(seen, torch.stack(expected).double(), rtol=0, atol=1e-2)


def test_one_huge_energy_hides_nothing() -> None:
    """What differs between sites is small beside the largest energy, not beside the others."""

    def energy(x: Tensor) -> Tensor:
        return quartic(x) + (100 * x.flatten(1).mean(1)).exp() - (pulls.to(x) * x).flatten(1).sum(1)

    target = LatticePotential.from_energy(SHAPE, energy)
    assert target.flow(bijector=SMALL).site_features is not None


@pytest.mark.parametrize(("shape", "boundary"), [((4, 4), "periodic"), ((6, 7), "open")])
def test_bonds_that_differ_are_shown(shape: tuple[int, int], boundary: str) -> None:
    """The Hessian of a free field of random bonds, which is even."""
    bonds = [1 + torch.randn(shape).square() for _ in shape]

    def energy(x: Tensor) -> Tensor:
        total = x.square().sum((-1, -2))
        for axis, strength in enumerate(bonds):
            pairs = strength.to(x) * x * x.roll(-1, axis - 2)
            if boundary == "open":
                pairs = pairs.narrow(axis - 2, 0, shape[axis] - 1)
            total = total + 0.1 * pairs.sum((-1, -2))
        return total

    target = LatticePotential.from_energy(shape, energy, even=True, boundary=boundary)
    flow = target.flow(bijector=SMALL)
    assert flow.site_features.shape == (2, *shape)
    for axis, channel in enumerate(flow.site_features):
        given = bonds[axis].clone()
        if boundary == "open":
            given.select(axis, -1).zero_()
        expected = (given - given.mean()) / given.std(correction=0)
        torch.testing.assert_close(channel, expected, rtol=0, atol=1e-6)


def test_one_odd_site_is_noticed_on_a_torus_and_inside_of_an_open_lattice() -> None:
    for shape, boundary, at in (((16, 16), "periodic", (0, 5)), ((8, 8), "open", (4, 4))):
        extra = torch.zeros(shape)
        extra[at] = 1.0

        def energy(x: Tensor, extra: Tensor = extra) -> Tensor:
            return quartic(x) + (extra.to(x) * x.square()).flatten(1).sum(1)

        target = LatticePotential.from_energy(shape, energy, boundary=boundary)
        features = target.flow(bijector=SMALL).site_features
        assert int(features[0].argmax()) == shape[1] * at[0] + at[1]


def test_options_take_precedence() -> None:
    def energy(x: Tensor) -> Tensor:
        return (masses.to(x) * x.square() / 2).flatten(1).sum(1)

    target = LatticePotential.from_energy(SHAPE, energy, even=True)
    assert target.flow(bijector="realnvp", circuit="tree").weights == "block"
    assert target.flow(bijector="realnvp", weights="scale").weights == "scale"
    own: Any = {"bijector": SMALL, "site_features": None}
    assert target.flow(**own).site_features is None


def test_a_warning_where_nothing_is_seen() -> None:
    """Bonds along the diagonals are none of the numbers that are looked at."""

    def energy(x: Tensor) -> Tensor:
        bonds = pulls.to(x) * x * x.roll((1, 1), (-1, -2))
        return (x.square() + bonds / 2).flatten(1).sum(1)

    target = LatticePotential.from_energy(SHAPE, energy, even=True)
    with pytest.warns(UserWarning, match=r"treat them alike: give flow\(site_features=") as caught:
        flow = target.flow(bijector=SMALL)
    assert caught[0].filename == __file__
    assert flow.site_features is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.flow(bijector=SMALL, site_features=masses.unsqueeze(0))


def test_features_pay() -> None:
    """In as many steps a flow that sees the pulls leaves less than half of the gap of a blind one:
    0.1 against 2.6 nats when this was written.
    """

    def energy(x: Tensor) -> Tensor:
        return ((x - 2 * pulls.to(x)).square() / 2).flatten(1).sum(1)

    target = LatticePotential.from_energy(SHAPE, energy)
    exact = 12 * torch.tensor(2 * torch.pi).log()
    gaps = []
    for options in ({}, {"site_features": None}):
        torch.manual_seed(0)
        flow = target.flow(bijector=SMALL, circuit="tree", **options)
        fit(target, flow, steps=60, batch=32, lr=0.03, seed=0, progress=False)
        gaps.append(estimate(target, flow, num_samples=2000).variational + float(exact))
    assert gaps[0] < 0.5 * gaps[1]
