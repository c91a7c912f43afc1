# SPDX-License-Identifier: Apache-2.0
"""Guides of models whose priors are improper, or so vague that their draws lie far off."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_neuralrg import PDD, fit
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide import start
from pyro_neuralrg.infer.autoguide.start import model_density
from pyro_neuralrg.infer.model_sites import inspect_sites
from tests.infer.autoguide_models import ramp


def flat(*sides: int) -> Any:
    real = constraints.independent(constraints.real, len(sides))
    return dist.ImproperUniform(real, (), sides)


def masked(*sides: int) -> Any:
    return dist.Normal(torch.zeros(sides), 1.0).to_event(len(sides)).mask(False)


def roughness(f: Tensor, dims: int) -> Tensor:
    """Half the sum of squared differences along all axes, of an intrinsic autoregression."""
    parts = [f.diff(dim=axis).square().flatten(-dims).sum(-1) for axis in range(-dims, 0)]
    return 0.5 * torch.stack(parts).sum(0)


@pytest.mark.parametrize("prior", [flat, masked])
@pytest.mark.parametrize("sides", [(3,), (3, 4)])
def test_an_improper_field_has_its_exact_posterior(
    prior: Callable[..., Any], sides: tuple[int, ...]
) -> None:
    """Mean, covariance and ln Z of flat and intrinsic priors, in closed form."""
    dim, dims = math.prod(sides), len(sides)
    y = torch.tensor([0.5, 1.0, -0.2]) if dim == 3 else ramp(*sides)

    def model() -> None:
        f = pyro.sample("f", prior(*sides))
        pyro.factor("icar", -roughness(f, dims))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(dims), obs=y)

    zero = torch.zeros(dim, dtype=y.dtype)
    laplacian = torch.autograd.functional.hessian(lambda f: roughness(f.reshape(sides), dims), zero)
    precision, b = laplacian + 4 * torch.eye(dim), 4 * y.flatten()
    mean = torch.linalg.solve(precision, b)
    exponent = 0.5 * b @ mean - 2 * y.square().sum()
    log_z = exponent - 0.5 * torch.logdet(precision / 4)

    guide = AutoHierarchicalFlow(model)
    frame = guide.get_transform().frame
    torch.testing.assert_close(frame.mean, mean.to(frame.mean), rtol=1e-5, atol=1e-5)
    found = frame.factor @ frame.factor.T
    torch.testing.assert_close(found, torch.linalg.inv(precision).to(found), rtol=1e-4, atol=1e-5)
    loss = PDD(16, vectorize_particles=True, max_plate_nesting=0)
    assert loss.loss(model, guide) == pytest.approx(-float(log_z), abs=0.02)


# Proper, and far off ------------------------------------------------------------------------------


def width_and_mean(prior: Any, power: float, y: Tensor) -> None:
    """The standard deviation is a power of a precision or a variance."""
    width = pyro.sample("width", prior(0.001, 0.001)).pow(power)
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, width), obs=y)


PRECISION = partial(width_and_mean, dist.Gamma, -0.5)
VARIANCE = partial(width_and_mean, dist.InverseGamma, 0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", [PRECISION, VARIANCE])
def test_vague_priors_have_no_start_of_nan(model: Callable[[Tensor], None], seed: int) -> None:
    """The mean of normals has Student's t, of 19 degrees of freedom: 3.00 +- 0.45 for one y."""
    torch.manual_seed(1)
    y = 3 + 2 * torch.randn(20, dtype=torch.float32).double()
    torch.manual_seed(seed)
    guide = AutoHierarchicalFlow(model, prototype_args=(y,))
    fit(model, guide, model_args=(y,), steps=150, batch=64, lr=0.02, progress=False, seed=seed)
    q = guide.get_posterior()
    u = q.sample((20_000,)).clone()
    assert float(u[:, 1].mean()) == pytest.approx(float(y.mean()), abs=0.05)
    program = partial(model, y)
    density = model_density(program, inspect_sites(program), torch.arange(2))
    weights = torch.softmax(-density.energy(u) - q.log_prob(u).detach(), 0)
    assert 1 / float(weights.square().sum()) > 15_000
    mean = float(weights @ u[:, 1])
    width = float((weights @ (u[:, 1] - mean).square()).sqrt())
    expected = float(y.std()) * math.sqrt(19 / 17 / 20)
    assert mean == pytest.approx(float(y.mean()), abs=5 * expected / math.sqrt(15_000))
    assert width == pytest.approx(expected, rel=5 / math.sqrt(15_000))


def test_where_no_gaussian_is_found_it_begins_at_a_point_with_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "nearest_gaussian", lambda *args: None)
    y = 3 + ramp(20).float()  # draws of the prior have no gradients in float32
    with pytest.warns(UserWarning, match="begins at the likeliest of some points"):
        guide = AutoHierarchicalFlow(PRECISION, prototype_args=(y,))
    assert float(guide.get_transform().frame.mean.abs().max()) < 2
    svi = SVI(PRECISION, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(y)) for _ in range(5))
