# SPDX-License-Identifier: Apache-2.0
"""Faults of Pyro and ArviZ that the package works round, each in its smallest form.

A test that fails says that a fault is gone, and with it the reason for what CONTRIBUTING.md names.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg.statistics.draws import arviz_module

pytestmark = pytest.mark.usefixtures("empty_store")


@pytest.fixture
def empty_store() -> Any:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def three() -> None:
    with pyro.plate("three", 3):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def test_neutra_adds_the_determinant_for_each_draw_of_a_site_without_event_dimensions() -> None:
    guide = AutoMultivariateNormal(three, init_scale=0.5)
    guide()
    trace = poutine.trace(NeuTraReparam(guide).reparam(three)).get_trace()
    trace.compute_log_prob()
    z, transform = trace.nodes["x_shared_latent"]["value"], guide.get_transform()
    x = transform(z)
    ladj = transform.log_abs_det_jacobian(z, x)
    assert ladj.shape == ()
    found = trace.nodes["x"]["log_prob_sum"] - dist.Normal(0.0, 1.0).log_prob(x).sum()
    torch.testing.assert_close(found, 3 * ladj)  # it should be ladj


def test_renyi_has_no_differentiable_loss() -> None:
    assert not hasattr(RenyiELBO(), "differentiable_loss")


def test_module_names_no_parameters_of_a_second_one() -> None:
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    pyro.module("net", first)
    pyro.module("net", second)
    named = pyro.get_param_store()["net$$$weight"]
    assert torch.equal(named, first.weight)  # SVI trains these
    assert not torch.equal(named, second.weight)  # while the program uses these


def test_what_is_drawn_in_vain_under_a_mask_is_improper() -> None:
    seen = torch.tensor([True, False])

    def model() -> None:
        with pyro.plate("two", 2):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(2), obs_mask=seen)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    drawn = trace.nodes["y_unobserved"]
    assert drawn["value"][0] != 0.0
    assert drawn["log_prob"][0] == 0.0


def test_deterministic_values_count_plates_twice() -> None:
    def model() -> None:
        with pyro.plate("three", 3):
            pyro.deterministic("y", torch.zeros(3))

    site = poutine.trace(model).get_trace().nodes["y"]
    assert site["value"].shape == (3,)
    assert site["fn"].shape() == (3, 3)


def test_from_pyro_gives_the_divergences_of_a_chain_to_another() -> None:
    """It sorts the names of the chains, "chain 10" before "chain 2"."""
    az = arviz_module()
    if not hasattr(az, "from_pyro"):
        pytest.skip("ArviZ 1.x has no from_pyro")
    where = {f"chain {chain}": [0] * (chain == 2) for chain in range(12)}
    mcmc = SimpleNamespace(
        num_chains=12, num_samples=20, kernel=SimpleNamespace(model=None), _args=(), _kwargs={},
        get_samples=lambda group_by_chain: {"x": torch.zeros(12, 20)},
        diagnostics=lambda: {"divergences": where},
    )  # fmt: skip
    diverging = az.from_pyro(mcmc).sample_stats["diverging"].values
    assert np.flatnonzero(diverging.any(1)).tolist() == [4]  # it should be [2]
