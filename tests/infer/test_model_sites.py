# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What no chain and no guide can take of a model: refused by name, with a remedy that works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg import HMC, VectorizedMCMC, fit
from pyro_neuralrg.free_energy import anneal, estimate
from pyro_neuralrg.infer import PDD, AutoHierarchicalFlow
from pyro_neuralrg.mcmc import ModelTarget

NAN = math.nan


def sampler(model: Any) -> Any:
    return ModelTarget(model).setup()


def guide(model: Any) -> Any:
    return AutoHierarchicalFlow(model, init_scale=0.5)


def normal(name: str, loc: Any = 0.0, scale: Any = 1.0) -> Tensor:
    return pyro.sample(name, dist.Normal(loc, scale))


# Sites that come and go ---------------------------------------------------------------------------


def in_a_branch() -> None:
    t = normal("t", 3.0) if normal("s") > 0 else torch.tensor(0.0)
    pyro.sample("y", dist.Normal(t, 1.0), obs=torch.tensor(1.0))


def in_a_loop() -> None:
    for i in range(int(3 * pyro.sample("rate", dist.Uniform(0.0, 1.0)))):
        normal(f"step_{i}")


def of_another_length() -> None:
    number = 1 + int(3 * pyro.sample("rate", dist.Uniform(0.0, 1.0)))
    pyro.sample("x", dist.Normal(torch.zeros(number), 1.0).to_event(1))


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize(
    ("model", "site"), [(in_a_branch, "'t'"), (in_a_loop, "'step_"), (of_another_length, "'x'")]
)
def test_sites_that_come_and_go(use: Any, model: Any, site: str) -> None:
    with pytest.raises(ValueError, match=f"come and go.*{site}.*accepted: the same latent sites"):
        use(model)


def test_a_site_that_comes_later_is_noticed_by_the_sampler() -> None:
    """In a run that no prior draw has shown, and its remedy has the right density."""

    def model() -> None:
        s = normal("s")
        if s > 3.5:
            normal("t")

    def remedy() -> None:
        t = torch.where(normal("s") > 0, normal("t", 3.0), 0.0)
        pyro.sample("y", dist.Normal(t, 1.0), obs=torch.tensor(1.0))

    with pytest.warns(UserWarning, match="cannot be vectorised"):
        target = sampler(model)
    with pytest.raises(ValueError, match=r"come and go, \['t'\]"):
        target.energy(torch.tensor([[4.0]]))
    side = torch.linspace(-8.0, 12.0, 401)
    points = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    weights = (-sampler(remedy).energy(points)).softmax(0)
    above = math.exp(-1.0) / math.sqrt(
        2.0
    )  # of N(1 | 3, 2), over N(1 | 0, 1) below, times root 2 pi
    exact = above / (above + math.exp(-0.5))
    assert float(weights[points[:, 0] > 0.02].sum()) == pytest.approx(exact, rel=0.03)


# Supports that depend on other sites --------------------------------------------------------------


def uniform_below() -> None:
    x = pyro.sample("x", dist.LogNormal(0.0, 0.5))
    pyro.sample("v", dist.Uniform(0.0 * x, x))


def uniform_around_zero() -> None:
    x = pyro.sample("x", dist.LogNormal(0.0, 0.5))
    with pyro.plate("p", 3):
        pyro.sample("v", dist.Uniform(-x, x))


def pareto() -> None:
    pyro.sample("v", dist.Pareto(pyro.sample("x", dist.LogNormal(0.0, 0.5)), 3.0))


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize("model", [uniform_below, uniform_around_zero, pareto])
def test_supports_that_depend_on_other_sites(use: Any, model: Any) -> None:
    with pytest.raises(ValueError, match=r"support of latent site 'v' depends.*pyro.sample\('v_sh"):
        use(model)


def test_a_uniform_site_below_another_by_its_share() -> None:
    """As the message says: the mean of v is half that of x, by quadrature."""

    def model() -> None:
        x = pyro.sample("x", dist.LogNormal(0.0, 0.5))
        pyro.deterministic("v", x * pyro.sample("v_share", dist.Uniform(0.0, 1.0)))

    target = sampler(model)
    sides = torch.linspace(-4.0, 4.0, 201), torch.linspace(-20.0, 20.0, 401)
    points = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
    weights = (-target.energy(points)).softmax(0)
    mean = float((weights * target.computed(points)["v"]).sum())
    assert mean == pytest.approx(0.5 * math.exp(0.125), abs=1e-5)


def test_supports_of_arguments_and_parameters_are_taken() -> None:
    def model(low: Tensor) -> None:
        high = pyro.param("high", torch.tensor(3.0))
        pyro.sample("v", dist.Uniform(low, low + high))

    target = ModelTarget(model).setup(torch.tensor(-1.0))
    u = torch.linspace(-30.0, 30.0, 2001)
    weights = (-target.energy(u[:, None])).exp() * (u[1] - u[0])
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float((weights * target.physical(u[:, None])["v"]).sum()) == pytest.approx(0.5, abs=1e-6)


# Points -------------------------------------------------------------------------------------------


def point() -> None:
    pyro.sample("d", dist.Delta(normal("x")))


def points_in_a_plate() -> None:
    with pyro.plate("p", 3):
        pyro.sample("d", dist.Delta(normal("x")))


def point_of_an_event() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("d", dist.Delta(2.0 * x, event_dim=1).mask(False))


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize("model", [point, points_in_a_plate, point_of_an_event])
def test_latent_points(use: Any, model: Any) -> None:
    with pytest.raises(ValueError, match=r"'d' is a Delta.*accepted: pyro.deterministic\('d'"):
        use(model)


def test_a_deterministic_site_in_place_of_a_point() -> None:
    """The precision of x is the identity and one for all pairs: variances of 2/3."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        d = pyro.deterministic("d", x.sum(-1))
        pyro.sample("y", dist.Normal(d, 1.0), obs=torch.tensor(1.0))

    precision = sampler(model).energy_and_grad(torch.cat([torch.eye(2), torch.zeros(1, 2)]))[1]
    variances = torch.linalg.inv(precision[:2] - precision[2]).diagonal()
    torch.testing.assert_close(variances, torch.full((2,), 2 / 3))


# Angles -------------------------------------------------------------------------------------------


ANGLES = torch.tensor([2.8, -2.9, 3.0])


def angles() -> None:
    with pyro.plate("p", 3):
        a = pyro.sample("a", dist.VonMises(torch.tensor(3.0), 1.0))
        pyro.sample("y", dist.VonMises(a, 2.0), obs=ANGLES)


def skewed_angle() -> None:
    base = dist.VonMises(torch.zeros(1), torch.ones(1)).to_event(1)
    pyro.sample("a", dist.SineSkewed(base, torch.tensor([0.5])))


def pair_of_angles() -> None:
    mean, spread = torch.tensor(0.0), torch.tensor(2.0)
    pyro.sample("a", dist.SineBivariateVonMises(mean, mean, spread, spread, correlation=mean + 0.5))


def shifted_angles() -> None:
    """As the message says."""
    with pyro.plate("p", 3):
        d = pyro.sample("a_shift", dist.Uniform(-math.pi, math.pi).mask(False))
        pyro.factor("a_density", dist.VonMises(0.0, 1.0).log_prob(d))
        pyro.sample("y", dist.VonMises(3.0 + d, 2.0), obs=ANGLES)


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize("model", [angles, skewed_angle, pair_of_angles])
def test_angles_on_the_real_line(use: Any, model: Any) -> None:
    with pytest.raises(ValueError, match=r"'a', a \w+, is an angle .*'a_shift', dist.Uniform\(-pi"):
        use(model)


def test_angles_on_an_interval_have_the_exact_evidence() -> None:
    """By quadrature, angle by angle, as the data are independent given their angles."""
    target, u = sampler(shifted_angles), torch.linspace(-40.0, 40.0, 4001)
    step, origin = float(u[1] - u[0]), torch.zeros(1, 3)
    at_origin, total = float(target.energy(origin)), 0.0
    for place in range(3):
        points = origin.repeat(len(u), 1)
        points[:, place] = u
        total -= math.log(float((at_origin - target.energy(points)).exp().sum()) * step)
    assert total + at_origin == pytest.approx(3.98761, abs=1e-4)


@pytest.mark.slow
def test_the_evidence_of_angles_by_a_guide() -> None:
    found = estimate(shifted_angles, AutoHierarchicalFlow(shifted_angles), 20_000)
    assert abs(found.importance - 3.98761) < 4 * found.importance_se


# NaN under a mask ---------------------------------------------------------------------------------


Y = torch.tensor([0.4, NAN, 1.2], dtype=torch.float64)
EXACT_MEAN = torch.tensor([0.32, 0.0, 0.96], dtype=torch.float64)


def masked() -> None:
    f = pyro.sample("f", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(f, 0.5).mask(~Y.isnan()).to_event(1), obs=Y)


def masked_by_a_handler() -> None:
    f = pyro.sample("f", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("p", 3), poutine.mask(mask=~Y.isnan()):
        pyro.sample("y", dist.Normal(f, 0.5), obs=Y)


def masked_rows() -> None:
    """A row is hidden where one of its entries is NaN."""
    f = pyro.sample("f", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    rows = torch.stack([Y, Y.nan_to_num(7.0)], -1)
    with pyro.plate("p", 3), poutine.mask(mask=~Y.isnan()):
        covariance = 0.5 * torch.eye(2)
        y = dist.MultivariateNormal(f[..., None].expand(3, 2), covariance)
        pyro.sample("y", y, obs=rows)


@pytest.mark.parametrize("model", [masked, masked_by_a_handler, masked_rows])
def test_nan_under_a_mask_is_no_datum(model: Any) -> None:
    """The posterior is Gaussian: its mean is where the gradient vanishes."""
    target = sampler(model)
    energy, gradient = target.energy_and_grad(torch.stack([EXACT_MEAN, torch.ones(3)]))
    assert bool(energy.isfinite().all())
    torch.testing.assert_close(gradient[0], torch.zeros(3), atol=1e-12, rtol=0)
    precision = torch.tensor([5.0, 1.0, 5.0])
    torch.testing.assert_close(gradient[1], precision * (1 - EXACT_MEAN), atol=1e-12, rtol=0)


@pytest.mark.parametrize("vectorised", [False, True])
def test_losses_of_data_with_nan_under_a_mask(vectorised: bool) -> None:
    loc = torch.zeros(3, requires_grad=True)

    def drawn() -> None:
        pyro.sample("f", dist.Normal(loc, 1e-9).to_event(1))

    PDD(4, vectorize_particles=vectorised, max_plate_nesting=0).loss_and_grads(masked, drawn)
    expected = -torch.tensor([5.0, 1.0, 5.0]) * EXACT_MEAN
    assert loc.grad is not None
    torch.testing.assert_close(loc.grad, expected, atol=1e-6, rtol=0)


def test_a_guide_of_data_with_nan_under_a_mask() -> None:
    guide = AutoHierarchicalFlow(masked)
    median = guide.median()["f"]
    assert bool(((median - EXACT_MEAN).abs() < 5 / math.sqrt(500)).all())
    evidence = -dist.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor([0.4, 1.2])).sum()
    assert estimate(masked, guide, 100).importance == pytest.approx(float(evidence), abs=1e-6)


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize(
    ("mask", "number"), [(None, 2), (torch.tensor([True, False, True, True]), 1)]
)
def test_nan_that_no_mask_hides(use: Any, mask: Any, number: int) -> None:
    y = torch.tensor([0.3, NAN, NAN, 0.1])

    def model() -> None:
        fn = dist.Normal(normal("x"), 1.0).expand([4])
        pyro.sample("y", (fn if mask is None else fn.mask(mask)).to_event(1), obs=y)

    with pytest.raises(ValueError, match=rf"observed site 'y' has {number} NaN of 4; accepted"):
        use(model)


# Improper priors ----------------------------------------------------------------------------------


REALS = constraints.independent(constraints.real, 1)


def differences() -> None:
    """An intrinsic field of first differences: improper, but for its data."""
    f = pyro.sample("f", dist.ImproperUniform(REALS, (), (3,)))
    pyro.factor("icar", -0.5 * (f[..., 1:] - f[..., :-1]).square().sum(-1))
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=torch.tensor([0.5, 1.0, -0.2]))


DATA = 1.0 + 0.5 * torch.randn(60, generator=torch.Generator().manual_seed(0))


def flat() -> None:
    """A flat mean, and 1 / scale."""
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.factor("jeffreys", -scale.log())
    with pyro.plate("data", len(DATA)):
        pyro.sample("y", dist.Normal(mean, scale), obs=DATA)


def flat_in_a_plate() -> None:
    with pyro.plate("rows", 2):
        f = pyro.sample("f", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(f, 1.0), obs=torch.tensor([1.0, -2.0]))


def evidence_of_differences() -> float:
    y, gradient = torch.tensor([0.5, 1.0, -0.2]), torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
    covariance = gradient @ gradient.T * 0.25 + torch.eye(2)
    # the differences of data are N(0, covariance), and their mean is flat
    log_p = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(gradient @ y)
    return -float(log_p + math.log(2 * math.pi))  # of the factor, which is not normalised


def evidence_of_flat() -> float:
    n, spread = len(DATA), float((DATA - DATA.mean()).square().sum())
    half = (n - 1) / 2
    return math.log(2 * math.sqrt(n)) + half * math.log(math.pi * spread) - math.lgamma(half)


IMPROPER: list[tuple[Callable[[], None], Callable[[], float], int]] = [
    (differences, evidence_of_differences, 3),
    (flat, evidence_of_flat, 2),
    (flat_in_a_plate, lambda: 0.0, 2),
]


@pytest.mark.filterwarnings("ignore:the importance estimate rests")  # on 98 % of its draws
@pytest.mark.parametrize(("model", "exact", "dim"), IMPROPER)
def test_evidences_of_improper_priors(model: Any, exact: Any, dim: int) -> None:
    guide = AutoHierarchicalFlow(model)
    fit(model, guide, steps=2, batch=8, lr=0.01, progress=False)
    found = estimate(model, guide, 4000)
    assert abs(found.importance - exact()) < 4 * found.importance_se + 1e-6
    run = anneal(model, num_particles=256, num_steps=5, seed=1, progress=False)
    assert abs(run.free_energy - exact()) < 4 * run.standard_error
    assert sampler(model).dim == dim


@pytest.mark.parametrize("given", [True, False])
def test_chains_of_an_improper_prior(given: bool) -> None:
    start = {"f": torch.zeros(32, 3)} if given else None
    mcmc = VectorizedMCMC(
        HMC(differences, num_steps=5), 60, 60, 32, initial_params=start, seed=0, progress=False
    )
    mcmc.run()
    exact = torch.tensor([0.5514, 0.7571, -0.0086])
    f = mcmc.get_samples(group_by_chain=True)["f"]
    error = f.mean(1).std(0) / math.sqrt(32)
    assert bool(((f.mean((0, 1)) - exact).abs() < 4 * error).all())


def test_what_needs_draws_of_an_improper_prior_says_so() -> None:
    mcmc = VectorizedMCMC(HMC(differences), 2, 2, 4, "prior", progress=False)
    with pytest.raises(ValueError, match=r"'prior', and site 'f' has an improper one"):
        mcmc.run()


def test_the_start_of_an_improper_site_can_be_given_to_the_guide() -> None:
    place = torch.tensor([1.0, 2.0, 3.0])
    guide = AutoHierarchicalFlow(
        differences, init_scale=1e-9, init_loc_fn=init_to_value(values={"f": place})
    )
    torch.testing.assert_close(guide()["f"], place, atol=1e-6, rtol=0)


# Reparameterised within a plate -------------------------------------------------------------------


def schools(within: bool, kind: bool = False) -> Callable[[], None]:
    config = {"t": LocScaleReparam(0.0)}

    def inner(mu: Tensor) -> Tensor:
        return pyro.sample("t", dist.Normal(mu, 2.0))

    def model() -> None:
        mu = normal("mu")
        if kind:
            pyro.sample("kind", dist.Bernoulli(0.5))
        with pyro.plate("p", 4):
            t = poutine.reparam(inner, config=config)(mu) if within else inner(mu)
            pyro.sample("y", dist.Normal(t, 1.0), obs=torch.arange(4.0))

    return model if within else poutine.reparam(model, config=config)


def test_a_reparameterisation_within_a_plate() -> None:
    """Chains need no initialisation, which is what meets the plate; guides do."""
    inner, outer = sampler(schools(True)), sampler(schools(False))
    assert inner.sites == outer.sites == {"mu": (), "t_decentered": (4,)}
    points = torch.randn(3, 5)
    for one, two in zip(inner.energy_and_grad(points), outer.energy_and_grad(points), strict=True):
        torch.testing.assert_close(one, two)
    y = dist.MultivariateNormal(torch.zeros(4), 5.0 * torch.eye(4) + 1.0)
    exact = -float(y.log_prob(torch.arange(4.0)))
    found = estimate(schools(False), AutoHierarchicalFlow(schools(False)), 200)
    assert found.importance == pytest.approx(exact, abs=1e-5)
    message = r"'t_decentered' of shape \(4,\) .*within a plate; accepted: poutine.reparam around"
    with pytest.raises(ValueError, match=message):
        AutoHierarchicalFlow(schools(True))
    with pytest.raises(ValueError, match=message):
        sampler(schools(True, kind=True))


# What else cannot be sampled ----------------------------------------------------------------------


@pytest.mark.parametrize("fn", [dist.Poisson(3.0), dist.ProjectedNormal(torch.ones(3))])
def test_supports_that_numbers_do_not_reach(fn: Any) -> None:
    def model() -> None:
        normal("x")
        pyro.sample("k", fn)

    with pytest.raises(ValueError, match=r"latent site 'k', a \w+, has a support that no map"):
        sampler(model)
