# SPDX-License-Identifier: Apache-2.0
"""Which sites of a model are fields, and on which lattice."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import PDD
from pyro_neuralrg.infer import AutoHierarchicalFlow
from tests.infer.autoguide_models import SMALL, normals, ramp, shaken


def regression() -> None:
    weights = normals("weights", 3)
    noise = normals("noise", 7)
    pyro.sample(
        "y", dist.Normal(noise + weights.sum(-1, keepdim=True), 1.0).to_event(1), obs=ramp(7)
    )


def in_plates() -> None:
    with pyro.plate("groups", 2):
        pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("times", 5):
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.LogNormal(0.0, 1.0))


def with_a_simplex() -> None:
    pyro.sample("weights", dist.Dirichlet(torch.ones(9)))
    normals("few", 2)
    normals("many", 4)


@pytest.mark.parametrize(
    ("model", "fields", "shape"),
    [
        (regression, ("noise",), (7,)),
        (in_plates, ("b", "c"), (5,)),
        (with_a_simplex, ("many",), (4,)),
    ],
)
def test_the_longest_of_one_side_is_the_field_and_said(
    model: Callable[[], None], fields: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    with pytest.warns(UserWarning, match="one-dimensional sites differ in shape") as warned:
        guide = AutoHierarchicalFlow(model, **SMALL)
    assert [w.filename for w in warned] == [__file__]
    assert (guide.fields, guide.shape) == (fields, shape)
    named = AutoHierarchicalFlow(model, fields=list(fields), **SMALL)  # without a warning
    assert (named.fields, named.shape) == (fields, shape)
    assert AutoHierarchicalFlow(model, fields=[]).shape is None


def test_the_guess_is_said_where_the_user_trains() -> None:
    def model(data: Tensor) -> None:
        normals("a", 2)
        pyro.sample("y", dist.Normal(normals("b", 3), 1.0).to_event(1), obs=data)

    guide = AutoHierarchicalFlow(model, init_scale=0.1, **SMALL)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    with pytest.warns(UserWarning, match="differ in shape") as warned:
        svi.step(ramp(3))
    assert [w.filename for w in warned] == [__file__]
    svi.step(ramp(3))


@pytest.mark.parametrize("sides", [(2, 2, 2, 2), (2, 1, 3, 2, 2)])
def test_four_sides_are_said_to_be_globals(sides: tuple[int, ...]) -> None:
    def model() -> None:
        normals("x", *sides)
        normals("f", 2, 3)

    number = torch.Size(sides).numel()
    with pytest.warns(UserWarning, match=r"sites \{'x': .*more than 3 sides"):
        guide = AutoHierarchicalFlow(model, init_scale=0.1)
    assert (guide.fields, guide.get_transform().globals_dim) == (("f",), number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoHierarchicalFlow(model, "f", init_scale=0.1)
        guide = AutoHierarchicalFlow(model, "x", lattice=(4, number // 4), init_scale=0.1)
    assert guide()["x"].shape == sides
    assert (guide.shape, guide.get_transform().globals_dim) == ((4, number // 4), 6)


# One vector as a map ------------------------------------------------------------------------------


def covariance_of(*sides: int) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(float(side)) for side in sides), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], -1).double()
    return torch.exp(-torch.cdist(places, places) / 2)


@pytest.mark.parametrize("lattice", [(4, 6), (3, 5), (2, 3, 2)])
def test_a_vector_on_a_lattice_has_the_exact_density(lattice: tuple[int, ...]) -> None:
    """The start is the posterior of a Gaussian model."""
    covariance = covariance_of(*lattice)
    dim = len(covariance)
    y = 2 * ramp(dim).sin()

    def model() -> None:
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(dim).double(), covariance))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    guide = AutoHierarchicalFlow(model, lattice=lattice, **SMALL)
    assert (guide.fields, guide.shape) == (("f",), lattice)
    total = covariance + 0.25 * torch.eye(dim)
    evidence = dist.MultivariateNormal(torch.zeros(dim).double(), total).log_prob(y)
    loss = PDD(16, vectorize_particles=True, max_plate_nesting=0).loss(model, guide)
    assert loss == pytest.approx(-float(evidence), abs=0.02)  # couplings begin near the identity
    frame, gain = guide.get_transform().frame, torch.linalg.solve(total, covariance).T
    torch.testing.assert_close(frame.mean, gain @ y, rtol=1e-6, atol=1e-6)
    found = frame.factor @ frame.factor.T
    torch.testing.assert_close(found, covariance - gain @ covariance, rtol=1e-6, atol=1e-6)


def test_entries_lie_on_the_lattice_row_by_row() -> None:
    """As those of a site of the lattice's shape: the same parameters make the same density."""

    def flat() -> None:
        normals("a", 2)
        normals("x", 6)

    def shaped() -> None:
        normals("a", 2)
        normals("x", 2, 3)

    guide = AutoHierarchicalFlow(flat, "x", lattice=(2, 3), init_scale=0.3, **SMALL)
    other = shaken(AutoHierarchicalFlow(shaped, init_scale=0.3, **SMALL))
    guide.load_state_dict(other.state_dict())
    u = torch.randn(4, 8)
    expected = other.get_posterior().log_prob(u)
    torch.testing.assert_close(guide.get_posterior().log_prob(u), expected, rtol=0, atol=0)


@pytest.mark.parametrize("lattice", [None, (6,)])
def test_components_are_as_fields_of_their_own(lattice: tuple[int, ...] | None) -> None:
    """The same parameters make the same density, entries in another order."""

    def vectors() -> None:
        normals("a", 2)
        normals("x", 2, 3, 3)

    def apart() -> None:
        normals("a", 2)
        for name in "xyz":
            normals(name, 2, 3)

    options = {"lattice": lattice, "init_scale": 0.3, **SMALL}
    other = shaken(AutoHierarchicalFlow(apart, fields=["x", "y", "z"], **options))
    guide = AutoHierarchicalFlow(vectors, components=3, **options)
    assert (guide.fields, guide.shape) == (("x",), lattice or (2, 3))
    guide.load_state_dict(other.state_dict())
    u = torch.randn(4, 20)
    parts = u[:, 2:].view(4, 3, 6).mT.flatten(1)
    expected = other.get_posterior().log_prob(u)
    found = guide.get_posterior().log_prob(torch.cat([u[:, :2], parts], 1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert guide()["x"].shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 2}, r"components is 2; accepted: the last side of each .*no field named"),
        ({"components": 7, "field": "noise"}, r"components is 7.*'noise'\] named.*'noise' \(7,\)"),
        ({"components": 2, "fields": []}, "components is 2; accepted"),
        ({"components": 0}, "components is 0; accepted"),
        ({"components": 2, "lattice": (7,), "field": "noise"}, r"lattice is \(7,\), of 7 sites"),
        ({"lattice": (2, 3)}, r"lattice is \(2, 3\), of 6 sites; .*no field named"),
        ({"lattice": (2, 4), "field": "noise"}, r"lattice is \(2, 4\), of 8 .*'noise' \(7,\)"),
        ({"lattice": (2, 0)}, r"lattice is \(2, 0\); accepted: one to 3 integers"),
        ({"lattice": (7,), "field": "y"}, "field is 'y'.*observed"),
    ],
)
def test_bad_lattices(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoHierarchicalFlow(regression, **options)  # type: ignore[arg-type]
