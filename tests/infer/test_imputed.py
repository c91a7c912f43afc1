# SPDX-License-Identifier: Apache-2.0
"""Missing data by ``obs_mask``: Pyro draws a value for each datum, whether it is used or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_neuralrg import PDD, AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC, estimate, fit
from pyro_neuralrg.mcmc import ModelTarget
from pyro_neuralrg.statistics import summarise_field

Y = torch.tensor([2.2, math.nan, 1.4, math.nan, 0.3, 1.9], dtype=torch.float64)
SEEN = ~Y.isnan()


def conjugate() -> Tensor:
    """Normal data of unknown place."""
    place = pyro.sample("place", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(Y)):
        return pyro.sample("y", dist.Normal(place, 1.0), obs=Y, obs_mask=SEEN)


def exact() -> tuple[float, float, float]:
    """Posterior mean and deviation of the place, and ln p(y)."""
    seen, number = Y[SEEN], int(SEEN.sum())
    variance = 1 / (1 / 4 + number)
    covariance = torch.eye(number) + 4.0
    ln_p = dist.MultivariateNormal(torch.zeros(number), covariance).log_prob(seen)
    return variance * float(seen.sum()), math.sqrt(variance), float(ln_p)


def test_draws_of_chains(seed: int) -> None:
    mcmc = VectorizedMCMC(ChEESHMC(conjugate), 200, num_chains=32, progress=False, seed=seed)
    mcmc.run()
    draws, (mean, deviation, _) = mcmc.get_samples(), exact()
    worst = summarise_field(mcmc.positions).worst()
    ess = float(worst.ess_bulk)
    assert worst.rhat < 1.02
    assert abs(float(draws["place"].mean()) - mean) < 4 * deviation / math.sqrt(ess)
    assert torch.equal(draws["y"][:, SEEN], Y[SEEN].expand(len(draws["y"]), -1))
    assert torch.equal(draws["y"][:, ~SEEN], draws["y_unobserved"][:, ~SEEN])
    error = 4 / math.sqrt(ess)
    predictive = torch.tensor([mean, math.sqrt(1 + deviation**2)])
    found = torch.stack([draws["y"][:, ~SEEN].mean(), draws["y"][:, ~SEEN].std()])
    assert torch.allclose(found, predictive, rtol=0, atol=1.5 * error)
    unused = draws["y_unobserved"][:, SEEN]
    assert float(unused.mean(0).abs().max()) < 1.5 * error
    assert float((unused.std(0) - 1).abs().max()) < 1.5 * error


def test_the_evidence_and_a_guide(seed: int) -> None:
    guide = AutoHierarchicalFlow(conjugate, fields=[])
    fit(conjugate, guide, steps=60, batch=128, lr=0.005, progress=False, seed=seed)
    found = estimate(conjugate, guide, 4000)
    assert found.ess > 0.9
    assert abs(found.importance + exact()[2]) < 4 * found.importance_se


def test_a_guide_that_masks_nothing(seed: int) -> None:
    """Any guide of Pyro's: the mean weight is the evidence, unlike with a flat density."""
    guide = AutoNormal(conjugate, init_scale=1.0)
    guide()
    mean, deviation, ln_p = exact()
    with torch.no_grad():
        guide.locs.place.fill_(mean)
        guide.scales.place = torch.tensor(deviation)
        guide.locs.y_unobserved.fill_(0.0)
        guide.locs.y_unobserved[~SEEN] = mean
    found = estimate(conjugate, guide, 400)
    assert found.ess > 0.5
    assert abs(found.importance + ln_p) < 4 * found.importance_se


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_guide_that_masks_as_the_model_does(vectorised: bool) -> None:
    """It is left as it is: the loss is that of Pyro's own ELBO, draw for draw."""

    def guide() -> None:
        place = pyro.sample("place", dist.Normal(1.0, 0.5))
        with pyro.plate("data", len(Y)), poutine.mask(mask=~SEEN):
            pyro.sample("y_unobserved", dist.Normal(place, 3.0))

    with pyro.validation_enabled(False):  # Pyro's own ELBO meets the NaN
        losses = []
        for kind in (Trace_ELBO, PDD):
            pyro.set_rng_seed(0)
            elbo: Any = kind(20, max_plate_nesting=1, vectorize_particles=vectorised)
            losses.append(elbo.loss(filled, guide))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def filled() -> None:
    """The same model without NaN."""
    place = pyro.sample("place", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.Normal(place, 1.0), obs=Y.nan_to_num(9.0), obs_mask=SEEN)


def rates() -> None:
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.Gamma(2.0, torch.full((6,), 1.5)), obs=Y, obs_mask=SEEN)


def shares() -> None:
    y = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    with pyro.plate("data", 2):
        prior = dist.Dirichlet(torch.tensor([2.0, 3.0, 1.0]))
        pyro.sample("y", prior, obs=y, obs_mask=torch.tensor([True, False]))


def inner() -> None:
    y = torch.tensor([[0.2, 0.3], [0.4, -0.8]])
    pyro.sample("y", dist.Normal(0.0, 2.0).expand([2, 2]).to_event(1), obs=y, obs_mask=SEEN[:2])


def bits() -> None:
    chance = pyro.sample("chance", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 6):
        y = pyro.sample("y", dist.Bernoulli(chance), obs=SEEN.double(), obs_mask=SEEN)
        pyro.factor("none", 0.0 * y)


@pytest.mark.parametrize("model", [rates, shares, inner])
def test_what_is_not_used_is_a_standard_normal_on_the_unconstrained_scale(
    model: Callable[[], None],
) -> None:
    target = ModelTarget(model).setup()
    (shape,) = target.sites.values()
    u = torch.randn(50, *shape)
    used = ~(SEEN if model is rates else torch.tensor([True, False]))
    changed = u.clone()
    changed[:, ~used] = 0.0
    difference = target.energy(u.flatten(1)) - target.energy(changed.flatten(1))
    expected = 0.5 * u[:, ~used].square().flatten(1).sum(1)
    assert torch.allclose(difference, expected, rtol=1e-6, atol=1e-6)
    gradient = target.energy_and_grad(u.flatten(1))[1].reshape(u.shape)
    assert torch.allclose(gradient[:, ~used], u[:, ~used], rtol=1e-5, atol=1e-5)


def test_float32_and_priors_in_float64(seed: int) -> None:
    def model() -> None:
        with pyro.plate("data", 6):
            y, high = Y.float() / 3, torch.full((6,), 1.0, dtype=torch.float32)
            pyro.sample("y", dist.Uniform(0.0 * high, high), obs=y, obs_mask=SEEN)

    target = ModelTarget(model).setup()
    u = torch.randn(9, 6, dtype=torch.float32)
    sure = u[:, ~SEEN].double()  # of which the density is the slope of the map
    slope = torch.nn.functional.logsigmoid(sure) + torch.nn.functional.logsigmoid(-sure)
    normal = 0.5 * (u[:, SEEN].double().square() + math.log(2 * math.pi)).sum(1)
    assert torch.allclose(target.energy(u), normal - slope.sum(1), rtol=1e-5, atol=1e-5)


def test_discrete_data_that_are_missing_sum_to_one() -> None:
    """Those that are not used too: sums over a flat density would count their values."""
    with pytest.warns(UserWarning, match="cannot be vectorised"):
        target = ModelTarget(bits).setup()
    u = torch.linspace(-2.0, 2.0, 5).unsqueeze(-1)
    chance = u[:, 0].sigmoid()
    prior = dist.Beta(2.0, 2.0).log_prob(chance) + (chance * (1 - chance)).log()
    expected = -prior - int(SEEN.sum()) * chance.log()
    assert torch.allclose(target.energy(u), expected)
