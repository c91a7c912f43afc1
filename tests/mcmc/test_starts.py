# SPDX-License-Identifier: Apache-2.0
"""Where chains begin, what a chain far out may cost, and gradients that bar the way."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from torch import Tensor

from pyro_neuralrg import HMC, ChEESHMC, FreeField, VectorizedMCMC
from pyro_neuralrg.mcmc import Adaptation, Constrained, ModelTarget
from pyro_neuralrg.mcmc.learning import Arrival
from pyro_neuralrg.mcmc.starts import CANDIDATES
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.pyro_models import MODELS, covariance, eight_schools, sample
from tests.mcmc.registry import run

STILL = Adaptation(step_size=False, trajectory_length=False, steps=0)


def still(model: Any, start: Any = None, chains: int = 6) -> VectorizedMCMC:
    """A run whose only draws are its starts."""
    kernel = HMC(model, step_size=1e-9, num_steps=1)
    return run(kernel, 1, warmup_steps=STILL, num_chains=chains, initial_params=start)


def widths() -> None:
    """Sites of three supports."""
    pyro.sample("tau", dist.Gamma(0.001, 0.001))
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("x", dist.Normal(0.0, 1000.0).expand([2]).to_event(1))


def test_models_start_within_two_of_zero_at_the_best_of_a_few() -> None:
    """The lowest of n energies E = u^2, u uniform in (-2, 2): mean |u| is 2 / (n + 1)."""

    def narrow() -> None:
        pyro.sample("u", dist.Normal(0.0, 1.0))

    u = still(narrow, chains=2000).positions[:, 0, 0].abs()
    assert float(u.max()) <= 2
    mean = 2 / (CANDIDATES + 1)
    assert abs(float(u.mean()) - mean) < 4 * float(u.std()) / math.sqrt(2000)
    every = still(narrow, "prior", 2000).positions[:, 0]
    assert abs(float(every.square().mean()) - 1) < 4 * math.sqrt(2 / 2000)


def test_vague_priors() -> None:
    """With 1 / sigma^2 in d tau the mean is Student's t of n - 1 degrees: mean, and variance."""
    torch.manual_seed(1)
    y = 3 + 2 * torch.randn(20)

    def model() -> None:
        tau, mu = pyro.sample("tau", dist.Gamma(0.001, 0.001)), pyro.sample("mu", normal_1000)
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)

    normal_1000 = dist.Normal(0.0, 1000.0)
    mcmc = run(HMC(model, num_steps=3), 60, warmup_steps=60, num_chains=32)
    mu = mcmc.get_samples(group_by_chain=True)["mu"]
    found, square = summarise(mu), summarise((mu - y.mean()).square())
    assert found.rhat < 1.1
    assert abs(found.mean - float(y.mean())) < 4 * found.mcse
    assert abs(square.mean - float(y.var()) / 20 * 19 / 17) < 4 * square.mcse


@pytest.mark.slow
def test_a_covariance_with_heavy_tails_costs_no_more_with_another_seed() -> None:
    """Starts of R-hat 2.5e7 before; the widths of the data are 0.1 and 10."""
    found = [sample(covariance(30, 2), seed, 60, 16) for seed in (0, 1)]
    for one in found:
        assert one.rhat < 1.2
        assert one.gradients < 1500
    assert max(one.gradients for one in found) < 3 * min(one.gradients for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if "centred" not in name])
def test_models_of_the_tutorials(name: str) -> None:
    draws = 2000 if "logistic" in name else 1000  # after 1000 one of 20 has 1.011
    found = [sample(MODELS[name](), seed, draws) for seed in (0, 1, 2)]
    assert max(one.rhat for one in found) < 1.01
    assert max(one.gradients for one in found) < 3 * min(one.gradients for one in found)


def test_the_step_size_grows_from_the_rough_one() -> None:
    """Not from ten times that, which trajectories followed."""
    mcmc = run(ChEESHMC(eight_schools()), 1, warmup_steps=20, num_chains=32)
    steps, leaps = (mcmc.warmup_stats[name][0] for name in ("step_size", "n_steps"))
    assert float(steps.max()) < 2.0
    assert int(leaps.max()) < 30
    assert int(leaps.sum()) < 150


def test_the_arrival_of_the_last_chain_is_noticed() -> None:
    arrival = Arrival()
    falling = [arrival.update(100.0 - step) for step in range(30)]
    assert not any(falling)
    resting = [arrival.update(70.0 + step % 2) for step in range(30)]
    assert resting.index(True) <= Arrival.LAG


def test_starts_in_the_models_own_values() -> None:
    tau, x = torch.linspace(1.0, 6.0, 6), torch.randn(6, 2)
    p = torch.rand(6, 3)
    p = p / p.sum(-1, keepdim=True)
    found = still(widths, Constrained(tau=tau, p=p, x=x)).get_samples()
    for name, value in {"tau": tau, "p": p, "x": x}.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    log_tau = {"tau": tau.log(), "p": torch.zeros(6, 2), "x": x}  # unconstrained, as in Pyro
    torch.testing.assert_close(still(widths, log_tau).get_samples()["tau"], tau)
    for bad, message in (
        (
            Constrained(tau=-tau, p=p, x=x),
            r"initial_params\['tau'\] has values that are NaN or outside",
        ),
        (Constrained(tau=tau, x=x), r"initial_params has sites \['tau', 'x'\]; accepted"),
        (Constrained(tau=tau[:5], p=p, x=x), r"initial_params\['tau'\] has shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            still(widths, bad)
    field = torch.randn(6, 2, 2)
    found = still(FreeField((2, 2), 1.0), Constrained(x=field)).get_samples()["x"]
    torch.testing.assert_close(found, field, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_starts_drawn_by_a_guide(kind: Any) -> None:
    def model() -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("three", 3):
            pyro.sample("m", dist.Normal(0.0, tau))

    guide = kind(model)
    guide()
    draws = Predictive(guide, num_samples=6)()
    found = still(model, Constrained(draws)).get_samples()
    for name in ("tau", "m"):
        torch.testing.assert_close(found[name].reshape(6, -1), draws[name].reshape(6, -1))
    del draws["m"]
    with pytest.raises(ValueError, match=r"has sites \['tau'\]; accepted: \['m', 'tau'\]"):
        still(model, Constrained(draws))


def test_starts_by_pyros_functions() -> None:
    value = {"tau": torch.tensor(6.0), "x": torch.tensor([1.0, 2.0])}
    found = still(widths, init_to_value(values=value)).get_samples()
    for name in value:
        torch.testing.assert_close(found[name], value[name].expand_as(found[name]))
    assert still(widths, init_to_median(num_samples=5)).get_samples()["p"].shape == (6, 3)
    with pytest.raises(ValueError, match=r"for an energy: 'prior', 'uniform'.*is for models"):
        run(HMC(FreeField((2, 2), 1.0)), initial_params=init_to_median)
    with pytest.raises(ValueError, match=r"initial_params is 3; accepted: 'prior', 'uniform'"):
        run(HMC(widths), initial_params=3)


def root(x: Tensor) -> Tensor:
    """A gradient of NaN below zero, where the energy is finite."""
    return torch.where(x > 0, x.sqrt(), torch.zeros_like(x))


def half_space(x: Tensor) -> Tensor:
    return (0.5 * x.square() + root(x)).sum(-1)


def half_space_model() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("root", -root(a))


SHARP = r"the gradient is not finite at site {} although the energy is, at \d+ {}.*torch\.where"


@pytest.mark.parametrize(("made", "site"), [("energy", "'x'"), ("model", "'a'")])
def test_gradients_that_are_not_finite_are_refused_at_the_start(made: str, site: str) -> None:
    kernel = HMC(half_space, shape=(1,)) if made == "energy" else HMC(half_space_model)
    with pytest.raises(ValueError, match=SHARP.format(site, r"of \d+ starts")):
        run(kernel, 5)
    below = {"a": -torch.ones(6), "b": torch.ones(6)}
    if made == "energy":
        below = {"x": -torch.ones(6, 1)}
    refusal = rf"gradient of 6 of 6 chains \(such as 0\) is not finite at site {site} although"
    with pytest.raises(ValueError, match=refusal):
        run(kernel, 5, initial_params=below)


def test_gradients_that_are_not_finite_far_out_are_told() -> None:
    """No start is taken there, nor would a chain go there."""

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 0.1))
        pyro.factor("root", -root(1.8 - a))

    with pytest.warns(UserWarning, match=SHARP.format("'a'", r"of \d+ starts")) as warned:
        run(HMC(model), 5)
    assert {entry.filename for entry in warned} == {run.__code__.co_filename}


def test_gradients_that_are_not_finite_are_told_after_the_run() -> None:
    """Chains that begin where all is well, and reach the wall."""
    kernel, above = HMC(half_space, shape=(1,), step_size=0.3), {"x": torch.ones(6, 1)}
    with pytest.warns(UserWarning, match=SHARP.format("'x'", "of 48 points around")):
        run(kernel, 20, initial_params=above)
    with warnings.catch_warnings():  # an honest wall of infinite energy is no such case
        warnings.simplefilter("error")
        wall = HMC(lambda x: torch.where(x < 0, math.inf, x).sum(-1), shape=(1,), step_size=0.3)
        assert bool(run(wall, 20, initial_params=above).sample_stats["diverging"].any())


@pytest.mark.parametrize("start", ["uniform", "prior"])
def test_starts_come_from_the_seed(start: str) -> None:
    target, before = ModelTarget(widths).setup(), torch.random.get_rng_state()
    one, two, other = (
        target.initial(3, torch.Generator().manual_seed(seed), start) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert start == "prior" or bool((one.abs() <= 2).all())
    assert torch.equal(torch.random.get_rng_state(), before)
