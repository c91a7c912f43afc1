# SPDX-License-Identifier: Apache-2.0
"""Gaussian priors on a lattice against dense matrices, and in models of Pyro."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from pyro_neuralrg import PDD, AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC
from pyro_neuralrg.distributions import GaussianMarkovField, MaternField
from pyro_neuralrg.distributions.markov_field import StationaryField
from pyro_neuralrg.spectral import laplacian_spectrum

SHAPES = [(1,), (2,), (5,), (203,), (4, 3), (1, 4), (2, 3, 2)]
BOUNDARIES = ["open", "periodic", "zero"]
PROPER = [
    *itertools.product(BOUNDARIES, (0.4, 1.1), (1, 2, 3)),
    ("zero", 0.0, 1),
    ("zero", 0.0, 2),
]
"""Boundaries, masses and orders of fields that are proper."""
lattices = pytest.mark.parametrize("shape", SHAPES, ids=str)
boundaries = pytest.mark.parametrize("boundary", BOUNDARIES)

FIELDS: dict[str, Callable[..., Any]] = {
    "walk": functools.partial(GaussianMarkovField, scale=0.7),
    "walk of order 2": functools.partial(GaussianMarkovField, scale=0.7, order=2),
    "mass": functools.partial(GaussianMarkovField, scale=1.3, mass=0.4),
    "mass, order 3": functools.partial(GaussianMarkovField, scale=1.3, mass=0.4, order=3),
    "Matern": functools.partial(MaternField, scale=1.7, length=2.0),
    "rough Matern": functools.partial(MaternField, scale=0.6, length=3.0, smoothness=0.5),
}
fields = pytest.mark.parametrize("name", FIELDS)


def laplacian(shape: tuple[int, ...], boundary: str) -> Tensor:
    """The matrix of the sum of squared differences over bonds, written down bond by bond."""
    sites = {site: i for i, site in enumerate(itertools.product(*map(range, shape)))}
    matrix = torch.zeros(len(sites), len(sites))
    for site, axis in itertools.product(sites, range(len(shape))):
        beside = list(site)
        beside[axis] += 1
        if boundary == "periodic":
            beside[axis] %= shape[axis]
        ends = [site, tuple(beside)]
        if boundary == "zero" and site[axis] == 0:  # the bond to the outside before it
            matrix[sites[site], sites[site]] += 1
        if boundary == "zero" or all(end in sites for end in ends):
            bond = torch.zeros(len(sites))
            for end, sign in zip(ends, (1.0, -1.0), strict=True):
                if end in sites:
                    bond[sites[end]] += sign
            matrix += torch.outer(bond, bond)
    return matrix


def hessian(field: Any) -> Tensor:
    """The precision, as the Hessian of the field's energy."""
    sites = math.prod(field.event_shape)
    unit = torch.eye(sites, dtype=field.scale.dtype).reshape(sites, *field.event_shape)
    force = torch.func.grad(lambda x: -field.log_prob(x))
    return torch.func.vmap(force)(unit).reshape(sites, sites)


def covariance_of(field: Any) -> Tensor:
    """The covariance of the density; of an intrinsic field with a mean of variance 1."""
    precision = hessian(field)
    return torch.linalg.inv(precision + field.null_modes / len(precision) ** 2)


@lattices
@pytest.mark.parametrize(("boundary", "mass", "order"), PROPER)
def test_a_proper_field_is_the_normal_of_its_matrix(
    shape: tuple[int, ...], boundary: str, mass: float, order: int
) -> None:
    field = GaussianMarkovField(shape, 1.3, mass, order=order, boundary=boundary)
    base = mass**2 * torch.eye(math.prod(shape)) + laplacian(shape, boundary)
    precision = torch.linalg.matrix_power(base, order) / 1.3**2
    expected = MultivariateNormal(torch.zeros(len(base)), precision_matrix=precision)
    x = torch.randn(3, 2, *shape)
    torch.testing.assert_close(field.log_prob(x), expected.log_prob(x.flatten(2)))
    torch.testing.assert_close(field.variance.flatten(), expected.variance)
    assert field.event_shape == shape
    assert torch.equal(field.mean, torch.zeros(shape))


@lattices
@pytest.mark.parametrize("boundary", ["open", "periodic"])
@pytest.mark.parametrize("order", [1, 2])
def test_an_intrinsic_field_is_normalised_without_its_mean(
    shape: tuple[int, ...], boundary: str, order: int
) -> None:
    """As a normal on the fields of sum zero, in an orthonormal basis of these."""
    field = GaussianMarkovField(shape, 0.7, order=order, boundary=boundary)
    sites = math.prod(shape)
    whole = torch.cat([torch.ones(sites, 1), torch.eye(sites)[:, 1:]], 1)
    basis = torch.linalg.qr(whole).Q[:, 1:]
    precision = torch.linalg.matrix_power(laplacian(shape, boundary), order) / 0.7**2
    x = torch.randn(4, *shape)
    expected, variance = torch.zeros(4), torch.zeros(sites)
    if sites > 1:
        zero = torch.zeros(sites - 1)
        of_basis = MultivariateNormal(zero, precision_matrix=basis.T @ precision @ basis)
        expected = of_basis.log_prob(x.flatten(1) @ basis)
        variance = (basis @ of_basis.covariance_matrix @ basis.T).diagonal()
    torch.testing.assert_close(field.log_prob(x), expected)
    torch.testing.assert_close(field.log_prob(x + 3.0), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(field.variance.flatten(), variance)
    sums = field.rsample((5,)).flatten(1).sum(1)
    torch.testing.assert_close(sums, torch.zeros(5), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(24,), (16, 14)], ids=str)
@pytest.mark.parametrize(("smoothness", "bound"), [(0.5, 0.04), (1.5, 1e-3), (2.5, 1e-4)])
def test_matern_on_a_ring_is_the_closed_form(
    shape: tuple[int, ...], smoothness: float, bound: float
) -> None:
    """Correlations of one site with all others, summed over turns around the lattice."""
    length, polynomials = 2.0, {0.5: (1,), 1.5: (1, 1), 2.5: (1, 1, 1 / 3)}
    field = MaternField(shape, 1.3, length, smoothness, boundary="periodic")
    expected: Any = 0.0
    for turns in itertools.product(range(-2, 3), repeat=len(shape)):
        axes = [torch.arange(n) + n * turn for n, turn in zip(shape, turns, strict=True)]
        squares = sum(x.square() for x in torch.meshgrid(*axes, indexing="ij"))
        r = math.sqrt(2 * smoothness) * squares.sqrt() / length
        expected += r.neg().exp() * sum(c * r**n for n, c in enumerate(polynomials[smoothness]))
    covariance = covariance_of(field)
    row = covariance[0].reshape(shape) / 1.3**2
    assert float((row - expected / expected.flatten()[0]).abs().max()) < bound
    torch.testing.assert_close(covariance.diagonal(), torch.full((math.prod(shape),), 1.69))


def test_an_open_matern_is_half_of_a_ring_that_is_mirrored() -> None:
    """Even fields of the ring of twice the side have its density."""
    field, ring = MaternField((5,), 1.0, 3.0), MaternField((10,), 1.0, 3.0, boundary="periodic")
    of_ring, of_field = covariance_of(ring), covariance_of(field)
    mirrored = of_ring[:5, :5] + of_ring[:5, 5:].flip(1)
    torch.testing.assert_close(of_field, mirrored * (5 / mirrored.trace()))
    assert float(field.variance.mean()) == pytest.approx(1.0)


def test_a_matern_of_zero_boundary_is_odd_fields_of_a_ring() -> None:
    field, ring = MaternField((4,), boundary="zero"), MaternField((10,), boundary="periodic")
    of_ring, of_field = covariance_of(ring), covariance_of(field)
    odd = of_ring[1:5, 1:5] - of_ring[1:5, 6:].flip(1)
    torch.testing.assert_close(of_field, odd * (4 / odd.trace()))
    torch.testing.assert_close(field.variance, of_field.diagonal())


@fields
@boundaries
@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 2)], ids=str)
def test_draws_have_the_covariance_of_the_density(
    name: str, boundary: str, shape: tuple[int, ...]
) -> None:
    n, field = 5000, FIELDS[name](shape, boundary=boundary)
    x = field.rsample((n,)).flatten(1) + field.null_modes * torch.randn(n, 1)
    products = (x[:, :, None] * x[:, None, :]).flatten(1)
    values = torch.cat([x, products], 1)
    expected = torch.cat([torch.zeros(x.shape[1]), covariance_of(field).flatten()])
    error = values.std(0) / math.sqrt(n)
    assert float(((values.mean(0) - expected) / error).abs().max()) < 4.5


# Hyper-parameters ---------------------------------------------------------------------------------


PARAMETERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "walk": (lambda shape, s, **o: GaussianMarkovField(shape, s, **o), (0.7,)),
    "mass": (lambda shape, s, m, **o: GaussianMarkovField(shape, s, m, order=2, **o), (0.7, 0.4)),
    "Matern": (lambda shape, *a, **o: MaternField(shape, *a, **o), (1.2, 2.0, 1.1)),
}
parametrised = pytest.mark.parametrize("kind", PARAMETERS)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
@parametrised
@boundaries
@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_gradients(kind: str, boundary: str, shape: tuple[int, ...]) -> None:
    build, values = PARAMETERS[kind]
    x = torch.randn(2, *shape, requires_grad=True)
    parameters = tuple(torch.tensor([v, 1.3 * v], requires_grad=True) for v in values)

    def log_prob(x: Tensor, *parameters: Tensor) -> Tensor:
        return build(shape, *parameters, boundary=boundary).log_prob(x)

    def draw(*parameters: Tensor) -> Tensor:
        torch.manual_seed(0)
        return build(shape, *parameters, boundary=boundary).rsample((2,))

    assert torch.autograd.gradcheck(log_prob, (x, *parameters), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_prob, (x, *parameters))
    assert torch.autograd.gradcheck(draw, parameters)


@parametrised
@boundaries
@pytest.mark.parametrize("shape", [(5,), (3, 4), (203,)], ids=str)
def test_batches_are_fields_one_by_one(kind: str, boundary: str, shape: tuple[int, ...]) -> None:
    build, values = PARAMETERS[kind]
    first, *others = (v * torch.tensor([1.0, 2.0, 0.5]) for v in values)
    parameters = (first[:, None], *others)  # batch shapes (3, 1) and (3,)
    field = build(shape, *parameters, boundary=boundary)
    batch = (3, 3) if others else (3, 1)
    assert field.batch_shape == batch
    assert field.rsample((2,)).shape == (2, *batch, *shape)
    assert field.mean.shape == field.variance.shape == (*batch, *shape)
    x = torch.randn(4, *batch, *shape)
    one_by_one = torch.stack(
        [
            build(shape, *(p.expand(batch)[i, j] for p in parameters), boundary=boundary).log_prob(
                x[:, i, j]
            )
            for i, j in itertools.product(*map(range, batch))
        ],
        -1,
    ).reshape(4, *batch)
    torch.testing.assert_close(field.log_prob(x), one_by_one)
    wide = field.expand((2, *batch))
    assert wide.batch_shape == (2, *batch)
    assert wide.sample().shape == (2, *batch, *shape)
    torch.testing.assert_close(
        wide.log_prob(x[0, 0, 0]), field.log_prob(x[0, 0, 0]).expand(2, *batch)
    )
    with pytest.raises(RuntimeError):
        field.expand((2,))

    flat = [p.expand(batch).flatten() for p in parameters]

    def of_one(x: Tensor, *parameters: Tensor) -> Tensor:
        return build(shape, *parameters, boundary=boundary, validate_args=False).log_prob(x)

    points = x[0].flatten(0, 1)
    mapped = torch.func.vmap(of_one)(points, *flat)
    torch.testing.assert_close(mapped, one_by_one[0].flatten())
    gradients = torch.func.vmap(torch.func.grad(of_one))(points, *flat)
    (expected,) = torch.autograd.grad(field.log_prob(leaf := x[0].requires_grad_()).sum(), leaf)
    torch.testing.assert_close(gradients, expected.flatten(0, 1))


@fields
def test_a_distribution_of_pyro(name: str) -> None:
    field = FIELDS[name]((3, 4))
    assert field.has_rsample
    assert field.support.event_dim == 2
    assert isinstance(field.support.base_constraint, type(constraints.real))
    assert not field.sample().requires_grad
    x = field.sample((2,))
    for twin in (copy.deepcopy(field), pickle.loads(pickle.dumps(field)), field.expand((2,))):
        torch.testing.assert_close(twin.log_prob(x), field.log_prob(x))
    with pytest.raises(ValueError, match="shape"):
        field.log_prob(torch.zeros(4, 3))
    assert torch.equal(field.mask(False).log_prob(x), torch.zeros(2))
    low = field.log_prob(x.float())
    assert low.shape == (2,)
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 4)
    torch.manual_seed(0)
    torch.testing.assert_close(field.rsample((2,)), field.from_normal(noise))
    with pyro.plate("maps", 3):
        assert pyro.sample("f", field).shape == (3, 3, 4)


def test_float32_throughout() -> None:
    torch.set_default_dtype(torch.float32)
    for name in FIELDS:
        field = FIELDS[name]((30, 20))
        x = field.sample((2,))
        found = field.log_prob(x)
        torch.set_default_dtype(torch.float64)
        expected = FIELDS[name]((30, 20)).log_prob(x.double())
        torch.set_default_dtype(torch.float32)
        assert x.dtype == found.dtype == torch.float32
        assert float((found - expected).abs().max()) < 0.02, name


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_are_like_the_tensors_beside_them(name: str) -> None:
    """Their dtype, so that nothing is rounded, and their device."""
    expected = FIELDS[name]((3, 4), scale=torch.tensor(0.7)).log_prob(torch.ones(3, 4))
    torch.set_default_dtype(torch.float32)
    field = FIELDS[name]((3, 4), scale=torch.tensor(0.7, dtype=torch.float64))
    found = field.log_prob(torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    assert field.rsample().dtype == torch.float64
    elsewhere = FIELDS[name]((3, 4), scale=torch.ones((), device="meta"), validate_args=False)
    assert elsewhere.rsample().device.type == "meta"


def test_a_mass_of_zero_where_the_field_is_held_outside() -> None:
    field = GaussianMarkovField((3,), 1.0, torch.tensor([0.0, 1.0]), boundary="zero")
    assert field.log_prob(torch.ones(3))[0] == GaussianMarkovField((3,), boundary="zero").log_prob(
        torch.ones(3)
    )


def test_bad_arguments_are_named() -> None:
    for cls in (GaussianMarkovField, MaternField):
        with pytest.raises(ValueError, match="shape is"):
            cls((0,))
        with pytest.raises(ValueError, match="boundary is 'free'"):
            cls((3,), boundary="free")
        with pytest.raises(TypeError, match="scale is 'a'"):
            cls((3,), "a")
        with pytest.raises(TypeError, match=r"scale is .*; accepted: .*, or a floating tensor"):
            cls((3,), np.ones(2))
        with pytest.raises(TypeError, match=r"scale is torch\.int64"):
            cls((3,), torch.tensor(1))
        with pytest.raises(ValueError, match="scale"):
            cls((3,), -1.0)
    with pytest.raises(ValueError, match="mass has entries of 0"):
        GaussianMarkovField((3,), 1.0, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="mass"):
        GaussianMarkovField((3,), 1.0, -1.0)
    with pytest.raises(TypeError, match=r"mass is .*; accepted: .*, or a floating tensor"):
        GaussianMarkovField((3,), 1.0, np.zeros(2))
    with pytest.raises(ValueError, match="order is 0"):
        GaussianMarkovField((3,), order=0)
    with pytest.raises(ValueError, match="length"):
        MaternField((3,), length=0.0)


# In models ----------------------------------------------------------------------------------------

Y = torch.tensor([[0.5, 1.0, -0.2, 0.3], [1.4, 0.2, 0.1, 0.9], [2.0, 1.1, 0.4, -0.3]])
PRIORS = {
    "intrinsic": functools.partial(GaussianMarkovField, (3, 4)),
    "proper": functools.partial(GaussianMarkovField, (3, 4), mass=0.5),
    "Matern": functools.partial(MaternField, (3, 4), length=1.5),
}
priors = pytest.mark.parametrize("prior", PRIORS)


def model_of(prior: str) -> Callable[[], None]:
    """A map of unknown scale seen through noise of 0.5."""

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        f = pyro.sample("f", PRIORS[prior](scale=scale))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(2), obs=Y.to(f))

    return model


@functools.cache
def exact(prior: str) -> tuple[float, float, Tensor]:
    """ln Z, mean of ln scale, and of the field, by quadrature over ln scale."""
    unit = PRIORS[prior](scale=torch.tensor(1.0, dtype=torch.float64))
    precision, y = hessian(unit), Y.double().flatten()
    grid = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64)
    joint = precision / (2 * grid).exp()[:, None, None] + 4 * torch.eye(len(y), dtype=y.dtype)
    means = torch.linalg.solve(joint, 4 * y)
    at_mean = PRIORS[prior](scale=grid.exp()).log_prob(means.reshape(-1, *Y.shape))
    at_mean = at_mean + dist.Normal(means, 0.5).log_prob(y).sum(-1)
    log_z = at_mean + 0.5 * (len(y) * math.log(2 * math.pi) - torch.logdet(joint))
    log_p = log_z + dist.Normal(0.0, 0.5).log_prob(grid)
    weights = torch.softmax(log_p, 0)
    total = torch.logsumexp(log_p, 0) + math.log(float(grid[1] - grid[0]))
    return float(total), float(weights @ grid), weights @ means


@priors
def test_chains_of_ours_find_the_posterior(prior: str) -> None:
    """Means over chains that do not depend on each other, within their errors."""
    mcmc = VectorizedMCMC(ChEESHMC(model_of(prior)), 80, 300, 32, seed=1, progress=False)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    values = torch.cat([draws["scale"].log().mean(1)[:, None], draws["f"].flatten(2).mean(1)], 1)
    _, log_scale, mean = exact(prior)
    error = values.std(0) / math.sqrt(len(values))
    deviation = values.mean(0) - torch.cat([torch.tensor([log_scale]), mean])
    assert float((deviation / error).abs().max()) < 4.5


@pytest.mark.slow
@priors
def test_pyros_nuts_and_autoguide_take_it(prior: str) -> None:
    model = model_of(prior)
    mcmc = MCMC(NUTS(model), 400, 200, disable_progbar=True)
    mcmc.run()
    _, log_scale, mean = exact(prior)
    draws = mcmc.get_samples()
    assert abs(float(draws["scale"].log().mean()) - log_scale) < 0.15
    assert float((draws["f"].mean(0).flatten() - mean).abs().max()) < 0.15
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(8, vectorize_particles=True))
    assert all(math.isfinite(svi.step()) for _ in range(3))


@priors
def test_our_guide_begins_near_the_posterior(prior: str) -> None:
    """Its bound is below the evidence, and not by much."""
    guide = AutoHierarchicalFlow(model_of(prior))
    assert guide.shape == (3, 4)
    loss = PDD(1000, vectorize_particles=True, max_plate_nesting=0)
    gap = loss.loss(model_of(prior), guide) + exact(prior)[0]
    assert -0.05 < gap < 0.5


def test_draws_and_gradients_where_eigenvalues_overflow() -> None:
    torch.set_default_dtype(torch.float32)
    length, smoothness = (torch.tensor(x, requires_grad=True) for x in (200.0, 12.0))
    field = MaternField((8, 8), 1.0, length, smoothness)
    assert field.eigenvalues().isinf().any()
    noise = torch.randn(8, 8)
    x = field.from_normal(noise)
    x.sum().backward()
    assert torch.allclose(x, noise.sum() / 8, rtol=1e-4)  # the constant mode, of a variance of 64
    for gradient in (length.grad, smoothness.grad):
        assert gradient is not None
        assert gradient.isfinite()


def test_gradients_of_a_prior_of_its_own_with_a_null_space() -> None:
    class Powers(StationaryField):
        null_modes = 1

        def __init__(self, shape: tuple[int, ...], power: torch.Tensor) -> None:
            super().__init__(shape, "open", None, scale=torch.tensor(1.0), power=power)

        def eigenvalues(self) -> torch.Tensor:
            return laplacian_spectrum(self.event_shape, "free").to(self.power) ** self.power

    power = torch.tensor(1.0, requires_grad=True)
    x = torch.randn(6)
    field = Powers((6,), power)
    torch.testing.assert_close(field.log_prob(x), GaussianMarkovField((6,)).log_prob(x))
    (field.log_prob(x) + field.from_normal(torch.randn(6)).square().sum()).backward()
    assert power.grad is not None
    assert power.grad.isfinite()
