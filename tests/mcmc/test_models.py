# SPDX-License-Identifier: Apache-2.0
"""Pyro models that samplers are known to fail on: eight schools, and Neal's funnel."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_neuralrg import (
    ChEESHMC,
    VectorizedMCMC,
    diagnose,
    to_arviz,
)
from pyro_neuralrg.mcmc import Adaptation
from pyro_neuralrg.statistics import Summary, summarise

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    """Rubin (1981), non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, ERRORS), obs=EFFECTS)


def figures(samples: dict[str, Tensor]) -> dict[str, Summary]:
    """Of samples with chains and draws in front."""
    found = {"mu": samples["mu"], "log tau": samples["tau"].log()}
    found |= {f"eta[{school}]": samples["eta"][..., school] for school in range(8)}
    found |= {f"{name} squared": values.square() for name, values in found.items()}
    return {name: summarise(values) for name, values in found.items()}


@pytest.mark.slow
def test_eight_schools_agree_with_pyros_nuts() -> None:
    pyro.set_rng_seed(0)
    theirs = MCMC(NUTS(eight_schools), 1500, warmup_steps=500, disable_progbar=True)
    theirs.run()
    start = {"mu": torch.randn(64), "tau": torch.randn(64), "eta": torch.randn(64, 8)}
    ours = VectorizedMCMC(
        ChEESHMC(eight_schools),
        400,
        Adaptation(mass="diagonal", steps=400),
        initial_params=start,
        seed=0,
        progress=False,
    )
    ours.run()
    expected = figures(theirs.get_samples(group_by_chain=True))
    for name, found in figures(ours.get_samples(group_by_chain=True)).items():
        assert found.rhat < 1.02, name
        error = math.hypot(found.mcse, expected[name].mcse)
        assert abs(found.mean - expected[name].mean) < 4 * error, name
    for run in (ours, theirs):
        verdict = diagnose(to_arviz(run))
        assert set(verdict.figures) >= {"mu", "tau", "eta", "lp"}


SIZE = 10


def funnel() -> None:
    """Neal (2003), section 8, centred: v ~ N(0, 3), the others ~ N(0, e^(v / 2))."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp().expand(SIZE - 1)).to_event(1))


def funnel_non_centred() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    eta = pyro.sample("eta", dist.Normal(0.0, 1.0).expand([SIZE - 1]).to_event(1))
    pyro.deterministic("x", (v / 2).exp() * eta)


@pytest.mark.slow
def test_the_neck_of_the_funnel_is_reached() -> None:
    """Mean, variance and tails of v, which is N(0, 3) exactly."""
    mcmc = VectorizedMCMC(ChEESHMC(funnel_non_centred), 400, 200, seed=0, progress=False)
    mcmc.run()
    v = mcmc.get_samples(group_by_chain=True)["v"] / 3
    tails = (v < -1.645).double(), (v > 1.645).double()
    for values, exact in ((v, 0.0), (v.square(), 1.0), (tails[0], 0.05), (tails[1], 0.05)):
        found = summarise(values)
        assert found.rhat < 1.02
        assert abs(found.mean - exact) < 4 * found.mcse


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the chains do not agree at the end of warm-up")
def test_the_centred_funnel_is_found_wanting() -> None:
    """Without the flow the same sampler misses the neck, and the verdict says so."""
    kernel = ChEESHMC(funnel, max_steps=64)
    mcmc = VectorizedMCMC(kernel, 150, 100, seed=0, progress=False)
    mcmc.run()
    assert not diagnose(to_arviz(mcmc)).ok
