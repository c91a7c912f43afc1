# SPDX-License-Identifier: Apache-2.0
"""The Gaussian nearest to a posterior, and the density that it is found by."""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to

from pyro_neuralrg import PDD
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide import start
from pyro_neuralrg.infer.autoguide.gaussians import (
    Density,
    LatticeGaussian,
    MatrixGaussian,
    nearest_gaussian,
)
from pyro_neuralrg.infer.autoguide.start import blocks, model_density
from pyro_neuralrg.infer.model_sites import RUNS, inspect_sites
from tests.infer import autoguide_models as models
from tests.infer.autoguide_models import CASES, normals


def precision_matrix(dim: int) -> Tensor:
    root = torch.randn(dim, dim)
    return root @ root.T / dim + 0.2 * torch.eye(dim)


def normal_energy(mean: Tensor, precision: Tensor) -> Density:
    return Density(lambda u: 0.5 * ((u - mean) * ((u - mean) @ precision)).sum(-1), torch.float64)


def dense(dim: int) -> MatrixGaussian:
    return MatrixGaussian(torch.zeros(dim), 0.1 * torch.eye(dim))


# The fixed point ----------------------------------------------------------------------------------


def test_a_gaussian_is_found_exactly() -> None:
    mean, precision = 3 * torch.randn(12), precision_matrix(12)
    before = torch.random.get_rng_state()
    found, again = (nearest_gaussian(normal_energy(mean, precision), dense(12)) for _ in range(2))
    assert found is not None
    assert again is not None
    assert torch.equal(found.factor, again.factor)  # the same each time
    assert torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.factor @ found.factor.T, torch.linalg.inv(precision))
    assert found.log_det == pytest.approx(-0.5 * float(torch.logdet(precision)))


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_widths_of_sites_and_modes(boundary: str) -> None:
    """They find a Gaussian of their own kind: widths that differ, over modes that differ."""
    widths, log_modes = torch.full((2 + 32,), 0.1), torch.zeros(2, 4, 4)
    first = LatticeGaussian(torch.zeros(2 + 32), widths, log_modes, boundary)
    modes = 0.5 * torch.randn(2, 4, 4)
    if boundary == "periodic":
        modes = 0.5 * (modes + modes.flip((1, 2)).roll((1, 1), (1, 2)))
    truth = LatticeGaussian(torch.randn(34), torch.rand(34) + 0.5, modes, boundary)
    factor = truth.moved(torch.eye(34)).T
    assert truth.log_det == pytest.approx(float(torch.linalg.slogdet(factor).logabsdet))
    precision = torch.linalg.inv(factor @ factor.T)
    found = nearest_gaussian(normal_energy(truth.mean, precision), first)
    assert found is not None
    torch.testing.assert_close(found.mean, truth.mean, rtol=0, atol=0.05)
    residual = torch.linalg.inv(factor) @ found.moved(torch.eye(34)).T
    excess = residual @ residual.T - torch.eye(34)
    assert float(excess.abs().max()) < 0.15
    kl = 0.5 * float(excess.trace()) - float(torch.linalg.slogdet(residual).logabsdet)
    assert kl < 0.1


def test_a_poisson_rate_has_the_known_optimum() -> None:
    """u with ln pi = y u - e^u - u^2 / 2: E[e^u] = y - m, and 1 / v = 1 + E[e^u]."""
    y = torch.tensor([0.0, 3.0, 40.0])
    target = Density(lambda u: (0.5 * u.square() + u.exp() - y * u).sum(-1), torch.float64)
    found = nearest_gaussian(target, dense(3))
    assert found is not None
    covariance = found.factor @ found.factor.T
    rate = torch.exp(found.mean + 0.5 * covariance.diagonal())
    torch.testing.assert_close(rate, y - found.mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(1 / covariance.diagonal(), 1 + rate, rtol=0.1, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_none_where_there_is_no_density(value: float) -> None:
    target = Density(lambda u: value * u.sum(-1), torch.float64)
    assert nearest_gaussian(target, dense(4)) is None


@pytest.mark.parametrize("odd", [False, True])
def test_blocks_have_the_covariance(odd: bool) -> None:
    factor = torch.randn(7, 7)
    found = blocks(factor, 3, odd)
    expected = factor @ factor.T
    if odd:  # of the fields that given the globals
        across = expected[3:, :3]
        rest = expected[3:, 3:] - across @ torch.linalg.inv(expected[:3, :3]) @ across.T
        expected = torch.block_diag(expected[:3, :3], rest)
    torch.testing.assert_close(found @ found.T, expected)
    assert not found[:3, 3:].any()
    torch.testing.assert_close(found[3:, 3:], found[3:, 3:].T)


# The density --------------------------------------------------------------------------------------


def of_one_site(data: Tensor) -> None:
    x = normals("x", 3)
    pyro.sample("y", dist.Normal(x[0], 1.0), obs=data)


def branching(data: Tensor) -> None:
    x = normals("x", 3)
    width = 1.0 if x[0].item() > -10.0 else 2.0  # which vmap does not take
    pyro.sample("y", dist.Normal(x[0], width), obs=data)


@pytest.mark.parametrize("name", [*CASES, "branching"])
def test_the_density_is_that_of_pyro_at_each_point(name: str) -> None:
    """Whatever the order of the coordinates, for points together or one after another."""
    model = CASES[name].model if name in CASES else branching
    args = () if name in CASES else (torch.tensor(0.5),)
    args = (models.ramp(2),) if model is models.subsampled else args
    guide = AutoNormal(model)
    guide(*args)
    potential: Any = initialize_model(model, args, initial_params={})[1]
    shapes = {
        name: biject_to(site["fn"].support).inv(site["value"]).shape
        for name, site in guide.prototype_trace.iter_stochastic_nodes()
    }
    sizes = [shape.numel() for shape in shapes.values()]
    order, points = torch.randperm(sum(sizes)), torch.randn(3, sum(sizes)).requires_grad_()
    expected = []
    for point in points:
        parts = zip(shapes, point.split(sizes), strict=True)
        expected.append(potential({name: part.reshape(shapes[name]) for name, part in parts}))
    energies = torch.stack(expected)
    (gradient,) = torch.autograd.grad(energies.sum(), points)
    program = partial(model, *args)
    found = model_density(program, inspect_sites(program), order)
    torch.testing.assert_close(found.energy(points[:, order]), energies.detach())
    torch.testing.assert_close(found.gradient(points[:, order]), gradient[:, order])


def test_the_first_call_may_be_a_step_of_one_particle_or_of_many() -> None:
    def model(data: Tensor) -> None:
        pyro.sample("y", dist.Normal(normals("x", 2, 2), 0.5).to_event(2), obs=data)

    guide, number = AutoHierarchicalFlow(of_one_site), torch.tensor(0.5)
    svi = SVI(of_one_site, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step(number))
    assert guide.get_transform().frame.factor.shape == (3, 3)
    pyro.clear_param_store()
    guide = AutoHierarchicalFlow(model)
    elbo = PDD(16, vectorize_particles=True, max_plate_nesting=0)
    elbo.loss_and_grads(model, guide, torch.ones(2, 2))
    assert guide.get_transform().frame.factor.shape == (4, 4)
    torch.testing.assert_close(guide.get_transform().frame.mean, torch.full((4,), 0.8))


# Where there is no start --------------------------------------------------------------------------


def hidden() -> None:
    x = normals("x", 2, 2)
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(x + z, 0.2).to_event(2), obs=torch.ones(2, 2))


def vague(data: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(0.001, 0.001))  # of median zero, rounded
    with pyro.plate("data", len(data), subsample_size=50) as index:
        pyro.sample("y", dist.Normal(0.0, precision.rsqrt()), obs=data[index])


@pytest.mark.parametrize("init_scale", [None, 0.2])
def test_subsampled_data_of_vague_priors_begin_where_there_are_gradients(init_scale: Any) -> None:
    """The precision, 1 / 4, is found from there."""
    data = 2 * torch.randn(1000)
    with pytest.warns(UserWarning, match=r"begins at the likeliest .*: .*'data' \(50 of 1000\)"):
        guide = AutoHierarchicalFlow(vague, prototype_args=(data,), init_scale=init_scale)
    assert guide.get_transform().frame.factor.tolist() == [init_scale or 0.1]
    svi = SVI(vague, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(data)
    assert float(guide.median()["precision"]) == pytest.approx(0.25, rel=0.3)


def test_many_data_are_not_evaluated_at_many_points_together() -> None:
    seen = []

    def energy(u: Tensor) -> Tensor:
        seen.append(len(u))
        return u.square().sum(-1)

    nearest_gaussian(Density(energy, torch.float64, numbers=300_000), dense(2))
    assert max(seen) == 3


def without_gradients() -> None:
    x = normals("x", 2, 2)
    pyro.factor("y", (0 * x).sqrt().sum((-1, -2)))


@pytest.mark.parametrize(
    ("model", "args", "reason"),
    [
        (poutine.block(hidden, hide=["z"]), (), "density is another each time"),
        (models.subsampled, (models.ramp(6),), r"data are subsampled \('data'"),
        (without_gradients, (), "no Gaussian is nearer"),
    ],
)
def test_it_falls_back_and_says_so(model: Any, args: tuple[Any, ...], reason: str) -> None:
    with pytest.warns(UserWarning, match=f"standard deviations of 0.1 .*: .*{reason}") as warned:
        guide = AutoHierarchicalFlow(model, "x", prototype_args=args)
    assert warned[-1].filename == __file__
    torch.testing.assert_close(guide.get_transform().frame.factor, torch.full((4,), 0.1))


@pytest.mark.parametrize("see", [lambda guide: guide.initialize(3), lambda guide: guide(3)])
def test_the_warning_points_to_where_the_model_is_seen(see: Any) -> None:
    guide = AutoHierarchicalFlow(lambda data: without_gradients(), "x")
    with pytest.warns(UserWarning, match="the guide begins at") as warned:
        see(guide)
    assert (warned[0].filename, warned[0].lineno) == (__file__, see.__code__.co_firstlineno)


def test_many_globals_have_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MAX_DENSE", 1)
    with pytest.warns(UserWarning, match="there are 2 globals"):
        AutoHierarchicalFlow(models.globals_only)


def test_a_symmetric_guide_keeps_its_centre() -> None:
    """Neither of two modes is chosen."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
        pyro.factor("wells", -(x.square() - 1).square().sum((-1, -2)))

    at_zero = init_to_value(values={"x": torch.zeros(2, 2)})
    guide = AutoHierarchicalFlow(model, odd=True, init_loc_fn=at_zero)
    assert not guide.get_transform().frame.mean.any()
    assert float(guide.get_posterior().sample((1000,)).std()) > 0.3


def test_the_model_is_looked_at_once() -> None:
    """For a guide with a width of its own eight runs with other latents, and five others."""
    model = Mock(side_effect=lambda: normals("x", 2, 2))
    AutoHierarchicalFlow(lambda: model(), init_scale=1.0)
    assert model.call_count <= RUNS + 5


@pytest.mark.parametrize("dim", [3, 130])  # several sets of orthogonal latents, and one
def test_moments_of_a_normal_target_are_exact(dim: int) -> None:
    root, factor = torch.randn(dim, dim), torch.randn(dim, dim).triu() / dim**0.5
    precision, loc = root @ root.T / dim, torch.randn(dim)
    q = MatrixGaussian(torch.zeros(dim), factor)
    z = q.latents(torch.Generator().manual_seed(0))
    odd, even = -q.moved(z) @ precision, (loc @ precision).expand(len(z), dim)
    moments = q.moments(z, even, odd)
    expected = factor.T @ precision @ factor - torch.eye(dim)
    torch.testing.assert_close(moments.excess[0], expected)
    torch.testing.assert_close(moments.gradient, loc @ precision @ factor)
