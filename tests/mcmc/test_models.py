# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Pyro models that samplers are known to fail on: eight schools, and Neal's funnel."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg import HMC, ChEESHMC, VectorizedMCMC, diagnose, fit, to_arviz
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.mcmc import Adaptation
from pyro_neuralrg.statistics import Summary, summarise
from pyro_neuralrg.transforms import Neighbour
from tests.benchmarks.pyro_models import eight_schools
from tests.mcmc.registry import run

pytestmark = pytest.mark.slow


def figures(mcmc: VectorizedMCMC | MCMC) -> dict[str, Summary]:
    """Means and mean squares of the sites of eight schools."""
    samples = mcmc.get_samples(group_by_chain=True)
    found = {"mu": samples["mu"], "log tau": samples["tau"].log()}
    found |= {f"eta[{school}]": samples["eta"][..., school] for school in range(8)}
    found |= {f"{name} squared": values.square() for name, values in found.items()}
    return {name: summarise(values) for name, values in found.items()}


@pytest.mark.parametrize("behind_a_guide", [False, True])
def test_eight_schools_agree_with_pyros_nuts(behind_a_guide: bool) -> None:
    """Non-centred; behind the guide the schools are a field of eight sites, given mu and tau."""
    pyro.set_rng_seed(0)
    model = eight_schools()
    theirs = MCMC(NUTS(model), 1500, warmup_steps=500, disable_progbar=True)
    theirs.run()
    pyro.clear_param_store()
    if behind_a_guide:
        bijector = Neighbour(layers=2, hidden=(8,))
        guide = AutoHierarchicalFlow(model, init_scale=1.0, depth=1, bijector=bijector)
        assert guide.fields == ("eta",)
        fit(model, guide, steps=300, batch=64, lr=0.05, progress=False)
        kernel: Any = HMC(NeuTraReparam(guide).reparam(model), num_steps=5)
        ours, largest = run(kernel, 100, warmup_steps=100, num_chains=64), 1.05
    else:
        warmup = Adaptation(mass="diagonal", steps=400)
        ours, largest = run(ChEESHMC(model), 400, warmup_steps=warmup, num_chains=64), 1.02
    expected = figures(theirs)
    for name, found in figures(ours).items():
        assert found.rhat < largest, name
        error = math.hypot(found.mcse, expected[name].mcse)
        assert abs(found.mean - expected[name].mean) < 4 * error, name
    for mcmc in (ours, theirs):
        assert set(diagnose(to_arviz(mcmc)).figures) >= {"mu", "tau", "eta", "lp"}


def funnel(centred: bool) -> None:
    """Neal (2003), section 8: v ~ N(0, 3), the nine others ~ N(0, e^(v / 2))."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    width = (v / 2).exp() if centred else v.new_ones(())
    pyro.sample("x", dist.Normal(0.0, width.expand(9)).to_event(1))


def test_the_neck_of_the_funnel_is_reached() -> None:
    """Not centred: mean, variance and tails of v, which is N(0, 3) exactly."""
    kernel = ChEESHMC(lambda: funnel(False))
    mcmc = run(kernel, 400, warmup_steps=200, num_chains=64)
    v = mcmc.get_samples(group_by_chain=True)["v"] / 3
    tails = (v < -1.645).double(), (v > 1.645).double()
    for values, exact in ((v, 0.0), (v.square(), 1.0), (tails[0], 0.05), (tails[1], 0.05)):
        found = summarise(values)
        assert found.rhat < 1.02
        assert abs(found.mean - exact) < 4 * found.mcse


def test_the_centred_funnel_is_found_wanting() -> None:
    """The same sampler misses the neck, and the verdict says so."""
    kernel = ChEESHMC(lambda: funnel(True), max_steps=64)
    assert not diagnose(to_arviz(run(kernel, 150, warmup_steps=100, num_chains=64))).ok
