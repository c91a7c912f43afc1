# SPDX-License-Identifier: Apache-2.0
"""Densities of models in single precision, and the sites that a model computes of its draws."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam
from torch import Tensor

from pyro_neuralrg import HMC, FlowReparam, to_arviz
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.mcmc import Adaptation, ModelTarget, results
from tests.mcmc.registry import ToyFlow, run

STILL = Adaptation(step_size=False, steps=0)
SINGLE = {"dtype": torch.float32}


# Many data ----------------------------------------------------------------------------------------


def in_a_plate(x: Tensor, mu: Tensor) -> None:
    with pyro.plate("p", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def in_an_event(x: Tensor, mu: Tensor) -> None:
    pyro.sample("x", dist.Normal(mu.expand(len(x)), 1.0).to_event(1), obs=x)


def masked_and_scaled(x: Tensor, mu: Tensor) -> None:
    with poutine.scale(scale=2.0):
        fn = dist.StudentT(torch.tensor(5.0, **SINGLE), mu.expand(len(x)), 1.0)
        pyro.sample("x", fn.mask(x > 0).to_event(1), obs=x)


@pytest.mark.parametrize("data", [in_a_plate, in_an_event, masked_and_scaled])
def test_energies_of_many_data_in_float32(data: Any) -> None:
    """Against the same data in float64; sums in float32 are off by 0.03 to 0.5 nats."""
    x = torch.randn(200_000, **SINGLE) + 2

    def model(x: Tensor) -> None:
        data(x, pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0)))

    u = 2.0 + 3.0 * torch.linspace(-1.0, 1.0, 9, **SINGLE)[:, None] / math.sqrt(len(x))
    single, double = ModelTarget(model).setup(x), ModelTarget(model).setup(x.double())
    assert single.dtype == torch.float32
    error = single.energy(u) - double.energy(u.double())
    assert float((error - error.mean()).abs().max()) < 3e-3
    slope = (single.energy_and_grad(u)[1] - double.energy_and_grad(u.double())[1]).abs()
    assert float(slope.max()) < 1e-2 * math.sqrt(len(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_of_few_data_are_those_of_pyro(dtype: torch.dtype) -> None:
    y = torch.arange(6.0, dtype=dtype)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
        scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(6), 0.5).to_event(1))
        pyro.sample("y", dist.Normal(mu, scale).mask(y > 1).to_event(1), obs=y)

    target, points = ModelTarget(model).setup(), torch.randn(1, 7, dtype=dtype)
    _, potential_fn, _, _ = initialize_model(model, initial_params={})
    theirs = potential_fn(target.unpack(points[0])).double().reshape(1)
    rtol = 2e-7 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(target.energy(points), theirs, rtol=rtol, atol=0)


# Shares near one ----------------------------------------------------------------------------------


def quadrature(target: ModelTarget, widest: float) -> tuple[Tensor, Tensor]:
    """The probability of each of the points, and their sum, of a target of one dimension."""
    u = torch.linspace(-widest, widest, 40_001, dtype=target.dtype)
    weights = (-target.energy(u[:, None])).exp() * (2 * widest / 40_000)
    return weights, u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.1), (0.05, 0.2), (3.0, 0.07), (2.0, 5.0)])
def test_a_beta_near_both_ends(dtype: torch.dtype, alpha: float, beta: float) -> None:
    a, b = torch.tensor(alpha, dtype=dtype), torch.tensor(beta, dtype=dtype)
    target = ModelTarget(lambda: pyro.sample("v", dist.Beta(a, b))).setup()
    weights, u = quadrature(target, 600.0)
    v = target.physical(u[:, None])["v"].double()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float((weights * v).sum()) == pytest.approx(alpha / (alpha + beta), abs=1e-4)


def intervals() -> dict[str, tuple[Any, float]]:
    """Priors on intervals, in float32, and the mean of each."""
    a, b, one = torch.tensor([0.8, 0.3, 1.0], **SINGLE)
    beta = dist.AffineBeta(0.1 * one, 0.2 * one, -one, 3.0 * one)
    mean = b * torch.exp(torch.lgamma(2.25 * one) + b.lgamma() - torch.lgamma(2.25 * one + b))
    v = torch.linspace(-60.0, 60.0, 100_001, dtype=torch.float64)
    weights = dist.Normal(3.0, 5.0).log_prob(v).exp() * (v[1] - v[0])
    wide = dist.TransformedDistribution(
        dist.Normal(3.0 * one, 5.0), [dist.transforms.SigmoidTransform()]
    )
    return {
        "affine beta": (beta, 0.0),
        "Kumaraswamy": (dist.Kumaraswamy(a, b), float(mean)),
        "wide logistic normal": (wide, float((weights * v.sigmoid()).sum())),
    }


@pytest.mark.parametrize("name", ["affine beta", "Kumaraswamy", "wide logistic normal"])
def test_other_priors_on_intervals_in_float32(name: str) -> None:
    fn, mean = intervals()[name]
    weights, u = quadrature(ModelTarget(lambda: pyro.sample("v", fn)).setup(), 300.0)
    v = torch.distributions.biject_to(fn.support)(u.double())
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float((weights * v).sum()) == pytest.approx(mean, abs=1e-4)


def test_betas_in_plates_and_events() -> None:
    """Masked as well, against single ones."""
    a = torch.tensor([0.1, 0.5, 2.0], **SINGLE)

    def model() -> None:
        with pyro.plate("p", 3):
            pyro.sample("v", dist.Beta(a, 0.2))
        pyro.sample("w", dist.Beta(a, 0.2).mask(a > 0.3).to_event(1))

    u = 30.0 * torch.randn(20, 6, **SINGLE)
    expected = torch.zeros(20, dtype=torch.float64)
    for place in range(6):
        one = ModelTarget(lambda i=place % 3: pyro.sample("v", dist.Beta(a[i], 0.2))).setup()
        if place != 3:
            expected += one.energy(u[:, place : place + 1])
        else:
            expected += (u[:, 3].abs() + 2 * (-u[:, 3].abs()).exp().log1p()).double()
    torch.testing.assert_close(ModelTarget(model).setup().energy(u), expected, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_of_a_dirichlet(dtype: torch.dtype) -> None:
    """The probability of each vertex of a simplex, of small concentrations, in proportion."""
    concentration = torch.tensor([0.03, 0.02, 0.05], dtype=dtype)
    target = ModelTarget(lambda: pyro.sample("v", dist.Dirichlet(concentration))).setup()
    side = torch.linspace(-500.0, 500.0, 1001, dtype=dtype)
    points = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    weights = (-target.energy(points)).exp()
    assert float(weights.sum()) == pytest.approx(1.0, abs=2e-3)
    mean = (weights[:, None] * target.physical(points)["v"].double()).sum(0)
    exact = concentration.double() / concentration.double().sum()
    torch.testing.assert_close(mean, exact, atol=5e-3, rtol=0)


def test_a_dirichlet_away_from_its_ends_is_pyros() -> None:
    concentration = torch.tensor([0.7, 2.0, 3.0])
    target = ModelTarget(lambda: pyro.sample("v", dist.Dirichlet(concentration))).setup()
    u = torch.randn(5, 2)
    transform = torch.distributions.biject_to(dist.constraints.simplex)
    v = transform(u)
    log_p = dist.Dirichlet(concentration).log_prob(v) + transform.log_abs_det_jacobian(u, v)
    torch.testing.assert_close(target.energy(u), -log_p)


# Computed sites -----------------------------------------------------------------------------------


def model_with_computed_sites(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("p", 4):
        with poutine.reparam(config={"t": LocScaleReparam(0.0)}):
            t = pyro.sample("t", dist.Normal(mu, 2.0))
        pyro.deterministic("square", t.square(), event_dim=0)
        pyro.sample("y", dist.Normal(t, 1.0), obs=y)
    pyro.deterministic("matrix", mu * torch.ones(2, 3))
    pyro.deterministic("above", mu > 0)
    pyro.deterministic("constant", torch.tensor(3))


def branching(y: Tensor) -> None:
    model_with_computed_sites(y)
    if float(y.sum()) > 1e9 or float(pyro.sample("x", dist.Normal(0.0, 1.0)).detach()) > 1e9:
        pyro.factor("never", y.sum())


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
@pytest.mark.parametrize("model", [model_with_computed_sites, branching])
def test_computed_sites_are_among_the_samples(model: Any) -> None:
    mcmc = run(HMC(lambda: model(torch.arange(4.0)), num_steps=2), 5, num_chains=3)
    grouped, flat = mcmc.get_samples(group_by_chain=True), mcmc.get_samples()
    mu, t = grouped["mu"], grouped["t"]
    torch.testing.assert_close(t, mu[..., None] + 2.0 * grouped["t_decentered"])
    torch.testing.assert_close(grouped["square"], t.square())
    torch.testing.assert_close(grouped["matrix"], mu[..., None, None].expand(3, 5, 2, 3))
    assert torch.equal(grouped["above"], mu > 0)
    assert torch.equal(grouped["constant"], torch.full((3, 5), 3))
    assert torch.equal(flat["square"], grouped["square"].flatten(0, 1))
    posterior = to_arviz(mcmc).posterior
    assert posterior["square"].dims == ("chain", "draw", "p")
    assert posterior["matrix"].shape == (3, 5, 2, 3)
    assert {"matrix[0, 0]", "t[0]"} <= set(mcmc.summary().index)
    assert mcmc.diagnostics()["above"]["n_eff"].shape == ()


def test_computed_sites_behind_flows() -> None:
    """Of one site by FlowReparam, of all by a guide."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.deterministic("power", x.square().sum((-1, -2)))

    one = poutine.reparam(model, config={"x": FlowReparam(ToyFlow((2, 3)))})
    every = NeuTraReparam(AutoHierarchicalFlow(model, init_scale=1.0)).reparam(model)
    for latent in (one, every):
        kernel = HMC(latent, step_size=0.1, num_steps=1)
        samples = run(kernel, 3, warmup_steps=STILL).get_samples()
        torch.testing.assert_close(samples["power"], samples["x"].square().sum((-1, -2)))


def test_computed_sites_are_computed_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And left out where they do not fit."""
    runs = []

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        runs.append(1)
        pyro.deterministic("y", 2 * x * torch.ones(1000))

    mcmc = run(HMC(model, step_size=0.1, num_steps=1), 20, warmup_steps=STILL)
    before = len(runs)
    monkeypatch.setattr(results, "available_memory", lambda device: 1e5)
    with pytest.warns(UserWarning, match=r"leave out the deterministic sites \['y'\]") as warned:
        assert set(mcmc.get_samples()) == {"x"}
    assert [entry.filename for entry in warned] == [__file__]
    assert len(runs) == before + 1


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
def test_what_depends_on_discrete_sites_is_not_computed() -> None:
    """They are summed over, and have no draws."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.deterministic("z", x + kind)

    samples = run(HMC(model, step_size=0.1, num_steps=1), 2, warmup_steps=STILL).get_samples()
    assert set(samples) == {"x"}


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
def test_a_random_density_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(network(x + 1.0), 1.0).to_event(1), obs=torch.ones(8))

    with pytest.raises(ValueError, match=r"model has a random density: .* dropout in eval mode"):
        run(HMC(model), 2)
    network.eval()
    run(HMC(model), 2)
