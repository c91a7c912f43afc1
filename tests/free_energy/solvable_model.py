# SPDX-License-Identifier: Apache-2.0
"""A model with a constrained global, a field, plates and masked data, solved in closed form."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

DATA = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.1]], dtype=torch.float64)
SEEN = torch.tensor([[True, False], [True, True], [False, True]])
NOISE = 0.5


def model(data: Tensor, noise: float = NOISE) -> None:
    """A level that is positive and a field, of one site after the other: not for batches."""
    field = pyro.sample("field", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    scale = pyro.sample("scale", dist.LogNormal(0.2, 0.8))
    observe(field, scale, data, noise)


def observe(field: Tensor, scale: Tensor, data: Tensor, noise: float = NOISE) -> None:
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1), poutine.mask(mask=SEEN):
        pyro.sample("data", dist.Normal(scale.log() + field, noise), obs=data)


def joint() -> tuple[Tensor, Tensor]:
    """Mean and covariance of (field, ln scale, seen data), all of them Gaussian."""
    seen = SEEN.flatten().nonzero().squeeze(-1)
    root = torch.eye(7)
    root[6, 6] = 0.8
    of_data = torch.zeros(len(seen), 7)
    of_data[torch.arange(len(seen)), seen] = 1.0
    of_data[:, 6] = 1.0
    root = torch.cat([root, of_data @ root])
    cov = root @ root.T
    cov[7:, 7:] += NOISE**2 * torch.eye(len(seen))
    mean = torch.cat([torch.zeros(6), torch.full((1 + len(seen),), 0.2)])
    return mean, cov


def exact() -> tuple[float, Tensor, Tensor]:
    """ln of the evidence, posterior mean and covariance of (field, ln scale)."""
    mean, cov = joint()
    gain = torch.linalg.solve(cov[7:, 7:], cov[7:, :7]).T
    y = DATA[SEEN]
    evidence = dist.MultivariateNormal(mean[7:], cov[7:, 7:]).log_prob(y).item()
    return evidence, mean[:7] + gain @ (y - mean[7:]), cov[:7, :7] - gain @ cov[7:, :7]


def exact_guide(**kwargs: Any) -> Any:
    _, mean, cov = exact()
    guide = AutoMultivariateNormal(model, **kwargs)
    guide(DATA)
    root = torch.linalg.cholesky(cov)
    guide.loc.data.copy_(mean)
    guide.scale = root.diagonal()
    guide.scale_tril = root / root.diagonal().unsqueeze(-1)
    return guide


def at_the_mean() -> Any:
    """Start guides where the posterior is: those that are wider have weights of few."""
    _, mean, _ = exact()
    return init_to_value(values={"field": mean[:6].reshape(3, 2), "scale": mean[6].exp()})
