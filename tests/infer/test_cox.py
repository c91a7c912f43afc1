# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A log-Gaussian Cox process: neural transport by the guide, and NUTS on the plain model."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import PDD, AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum
from pyro_neuralrg.statistics import summarise

SHAPE = (8, 8)
LAPLACIAN = 4.0 - neighbour_spectrum(SHAPE, (1.0, 1.0))


def intensity(level: Tensor, width: Tensor, noise: Tensor) -> Tensor:
    """ln of the intensity: a conditional autoregression of correlation length two."""
    smooth = apply_spectrum(noise, (1.0 / (0.25 + LAPLACIAN)).sqrt())
    return level[..., None, None] + width[..., None, None] * smooth


def model(counts: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.5, 1.0))
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(2))
    rate = intensity(level, width, noise).exp()
    pyro.sample("counts", dist.Poisson(rate).to_event(2), obs=counts)


def figures(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of draws ``(chains, draws, ...)``: what means and standard deviations are made of."""
    field = intensity(samples["level"], samples["width"], samples["noise"])
    series = {"level": samples["level"], "ln width": samples["width"].log()}
    for row, column in ((0, 0), (2, 5), (4, 4), (7, 3)):
        series[f"field[{row}, {column}]"] = field[..., row, column]
    return series | {f"{name}^2": value.square() for name, value in series.items()}


@pytest.mark.slow
def test_posterior_of_a_cox_process_agrees_with_pyros_nuts() -> None:
    pyro.set_rng_seed(1)
    truth = intensity(torch.tensor(0.7), torch.tensor(1.2), torch.randn(SHAPE))
    counts = dist.Poisson(truth.exp()).sample()
    plain = MCMC(NUTS(model), 800, warmup_steps=200, disable_progbar=True)
    plain.run(counts)
    pyro.clear_param_store()
    guide = AutoHierarchicalFlow(model, field="noise", prototype_args=(counts,))
    loss = PDD(64, vectorize_particles=True)
    adam = pyro.optim.ClippedAdam({"lr": 3e-3, "clip_norm": 10.0})
    svi = SVI(model, guide, adam, loss)
    losses = [svi.step(counts) for _ in range(300)]
    assert sum(losses[-20:]) < sum(losses[:20])
    latent = NeuTraReparam(guide).reparam(model)
    mcmc = VectorizedMCMC(ChEESHMC(latent), 150, 150, 64, seed=0, progress=False)
    mcmc.run(counts)
    expected = figures(plain.get_samples(group_by_chain=True))
    for name, values in figures(mcmc.get_samples(group_by_chain=True)).items():
        found, other = summarise(values), summarise(expected[name])
        assert found.rhat < 1.2, name
        assert abs(found.mean - other.mean) < 4 * math.hypot(found.mcse, other.mcse), name
