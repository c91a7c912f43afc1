# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Models of Pyro's tutorials and examples behind the guide's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_neuralrg.infer import AutoHierarchicalFlow
from tests.infer.autoguide_models import ramp

Model = Callable[[], None]


def eight_schools() -> Model:
    """Rubin (1981), non-centred."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        theta = mu[..., None] + tau[..., None] * eta
        pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)

    return model


def linear_regression() -> Model:
    """Terrain ruggedness and income, of data made here."""
    africa, ruggedness = (torch.arange(170) % 3 == 0).double(), 3 * ramp(170).abs()
    noise = 0.9 * (37.0 * torch.arange(170)).sin().double()
    income = 9.2 - 1.9 * africa - 0.2 * ruggedness + 0.35 * africa * ruggedness + noise

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
        b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
        b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = a + b_a * africa + b_r * ruggedness + b_ar * africa * ruggedness
        with pyro.plate("data", 170):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=income)

    return model


def hierarchical_logistic() -> Model:
    """Baseball: hits of 18 players at 45 times at bat (Efron, Morris 1975), partially pooled."""
    hits = torch.tensor([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7.0])

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("players", 18):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("hits", dist.Binomial(45, logits=alpha), obs=hits)

    return model


def gaussian_process() -> Model:
    """Exact regression with priors of the kernel's parameters, as in the tutorial."""
    x: Tensor = 5 * (ramp(20) + 1) / 2
    y = 0.5 * (3 * x).sin() + 0.2 * (17 * x).cos()
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.variance = pyro.nn.PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.lengthscale = pyro.nn.PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.double()
    regression = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.1))
    return regression.model


MODELS = eight_schools, linear_regression, hierarchical_logistic, gaussian_process


@pytest.mark.slow
@pytest.mark.parametrize("build", MODELS)
def test_svi_with_defaults_is_no_worse_than_a_diagonal_normal(build: Callable[[], Model]) -> None:
    model, bounds, errors = build(), [], []
    for kind in (AutoHierarchicalFlow, AutoNormal):
        pyro.clear_param_store()
        guide = kind(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert all(math.isfinite(svi.step()) for _ in range(1000))
        losses = torch.tensor([svi.evaluate_loss() for _ in range(500)])
        bounds.append(-float(losses.mean()))
        errors.append(float(losses.std()) / math.sqrt(500))
    assert bounds[0] > bounds[1] - 3 * math.hypot(*errors)
