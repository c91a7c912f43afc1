# SPDX-License-Identifier: Apache-2.0
"""Pyro models through the same calls, sampled by Pyro or by us: eight schools and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_neuralrg import HMC, FlowReparam, VectorizedMCMC, to_arviz
from tests.mcmc.registry import ToyFlow

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
SCHOOLS = ["Choate", "Deerfield", "Andover", "Exeter", "Hotchkiss", "Lawrence", "Paul", "Hermon"]


def eight_schools(errors: Tensor, effects: Tensor | None = None) -> None:
    """Rubin (1981), non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(errors)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, errors), obs=effects)


def ours(model: Any, *args: Any, **kwargs: Any) -> Any:
    mcmc = VectorizedMCMC(HMC(model, num_steps=4), 5, 3, num_chains=2, seed=0, progress=False)
    mcmc.run(*args, **kwargs)
    return mcmc


def pyros(model: Any, *args: Any, **kwargs: Any) -> Any:
    mcmc = MCMC(NUTS(model, max_tree_depth=3), 5, 3, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc


SAMPLERS = pytest.mark.parametrize("sampler", [ours, pyros])


@SAMPLERS
def test_eight_schools(sampler: Any) -> None:
    mcmc = sampler(eight_schools, torch.tensor(ERRORS), effects=torch.tensor(EFFECTS))
    idata = to_arviz(mcmc, coords={"school": SCHOOLS}, log_likelihood=True)
    assert set(idata.observed_data.data_vars) == {"y"}
    assert idata.observed_data["y"].dims == ("school",)
    np.testing.assert_array_equal(idata.observed_data["y"], EFFECTS)
    posterior = idata.posterior
    assert set(posterior.data_vars) == {"mu", "tau", "eta", "theta"}
    assert posterior["eta"].dims == ("chain", "draw", "school")
    np.testing.assert_allclose(np.log(posterior["tau"]), idata.unconstrained_posterior["tau"])
    assert set(idata.unconstrained_posterior.data_vars) == {"tau"}
    theta = posterior["mu"] + posterior["tau"] * posterior["eta"]
    np.testing.assert_allclose(posterior["theta"], theta)
    residuals = (np.asarray(EFFECTS) - theta.values) / np.asarray(ERRORS)
    expected = -0.5 * residuals**2 - np.log(ERRORS) - 0.5 * np.log(2 * np.pi)
    found = idata.log_likelihood["y"]
    assert found.dims == ("chain", "draw", "school")
    np.testing.assert_allclose(found, expected)


@SAMPLERS
def test_reparameterised_sites_are_no_data(sampler: Any) -> None:
    def model(data: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        field = pyro.sample("f", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.factor("penalty", -field.square().sum())
        pyro.sample("y", dist.Normal(level, 1.0).expand([3]).to_event(1), obs=data)

    config = {"level": LocScaleReparam(0.0), "f": FlowReparam(ToyFlow((2, 2)))}
    data = torch.tensor([1.0, 2.0, 3.0])
    idata = to_arviz(sampler(poutine.reparam(model, config), data), {}, log_likelihood=True)
    assert set(idata.observed_data.data_vars) == {"y"}
    assert set(idata.log_likelihood.data_vars) == {"y"}
    np.testing.assert_array_equal(idata.observed_data["y"], data)
    posterior = idata.posterior
    level = np.asarray(posterior["mean"] + posterior["level_decentered"])
    residuals = np.asarray(data) - level[..., None]
    expected = -0.5 * residuals**2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(idata.log_likelihood["y"], expected)


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
def test_a_model_that_cannot_be_vectorised_has_the_same_log_likelihood() -> None:
    def model(data: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if float(mean.detach()) > 1e9:  # vmap takes no branch on a value
            mean = mean + 1
        with pyro.plate("datum", 2):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=data)

    data = torch.tensor([0.5, -0.5])
    idata = to_arviz(ours(model, data), log_likelihood=True)
    expected = dist.Normal(torch.as_tensor(idata.posterior["mean"].values)[..., None], 1.0)
    np.testing.assert_allclose(idata.log_likelihood["y"], expected.log_prob(data))


def test_simplex_has_its_own_dimensions_where_it_is_unconstrained() -> None:
    def model() -> None:
        with pyro.plate("group", 2):
            pyro.sample("w", dist.Dirichlet(torch.ones(3)))

    idata = to_arviz(ours(model), dims={"w": ["group", "part"]}, coords={"part": ["a", "b", "c"]})
    assert idata.posterior["w"].dims == ("chain", "draw", "group", "part")
    assert idata.unconstrained_posterior["w"].shape == (2, 5, 2, 2)
    assert not hasattr(idata, "observed_data")


def test_no_log_likelihood_without_data_or_of_discrete_sites() -> None:
    def no_data() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    def mixture(data: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        kind = pyro.sample("kind", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mean[..., kind.long()], 1.0), obs=data)

    with pytest.raises(ValueError, match=r"observed sites \[\]"):
        to_arviz(ours(no_data), log_likelihood=True)
    mcmc = pyros(mixture, torch.tensor(0.3))
    with pytest.raises(ValueError, match=r"other latent sites \['kind'\]"):
        to_arviz(mcmc, log_likelihood=True)
    assert to_arviz(mcmc).observed_data["y"].values.item() == 0.3


def grouped(data: Tensor | None = None) -> None:
    """Data in two plates, three numbers an event."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 4, dim=-2), pyro.plate("col", 2, dim=-1):
        shift = pyro.sample("shift", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(shift[..., None], 1.0).expand([4, 2, 3]).to_event(1), obs=data)


def test_plates_name_the_dimensions() -> None:
    data = torch.randn(4, 2, 3)
    mcmc = ours(grouped, data)
    before = torch.random.get_rng_state()
    idata = to_arviz(mcmc, log_likelihood=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert idata.posterior["shift"].dims == ("chain", "draw", "row", "col")
    assert idata.observed_data["y"].dims == ("row", "col", "y_dim_2")
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "row", "col", "y_dim_2")
    shift = torch.as_tensor(idata.posterior["shift"].values)[..., None]
    expected = dist.Normal(shift, 1.0).log_prob(data)
    np.testing.assert_allclose(idata.log_likelihood["y"], expected)
