# SPDX-License-Identifier: Apache-2.0
"""The stored answers of the registry, and draws of guides against them."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_neuralrg.infer.log_joint import UnconstrainedModel
from pyro_neuralrg.infer.model_sites import inspect_sites
from tests.benchmarks.field_models import failures, run
from tests.models.answers import (
    EXACT,
    Whitened,
    compute_answer,
    gaussian_given,
    load_answers,
)
from tests.models.registry import REGISTRY, correlated, distances, exponential, normal

ANSWERS = load_answers()


def test_every_model_has_an_answer() -> None:
    assert ANSWERS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_of_all_sites(name: str) -> None:
    answer, trace = ANSWERS[name], inspect_sites(REGISTRY[name].build(0))
    sizes = {x: trace.nodes[x]["value"].numel() for x in answer.means}
    assert sum(sizes.values()) == REGISTRY[name].number
    for part in answer[2:]:
        assert {x: len(values) for x, values in part.items()} == sizes
        assert all(bool((values >= 0).all()) for values in part.values()) or part is answer.means
    precise = 0.005 if name in EXACT else 0.05
    assert all(bool((answer.errors[x] < precise * answer.widths[x]).all()) for x in sizes)
    assert ("exact" in answer.provenance) == (name in EXACT)


@pytest.mark.parametrize("name", REGISTRY)
def test_data_are_the_same_in_single_precision(name: str) -> None:
    def data() -> dict[str, torch.Tensor]:
        nodes = poutine.trace(REGISTRY[name].build(0)).get_trace().nodes
        return {x: node["value"].float() for x, node in nodes.items() if node.get("is_observed")}

    double = data()
    torch.set_default_dtype(torch.float32)
    single = data()
    torch.set_default_dtype(torch.float64)
    for x, values in double.items():
        if values.numel() > 1:
            torch.testing.assert_close(values, single[x], rtol=1e-4, atol=1e-4)


def test_a_field_given_globals() -> None:
    """Against the formulas of a Gaussian process."""
    model = REGISTRY["smoothing, weak"].build(0)
    joint = UnconstrainedModel(model, inspect_sites(model))
    points = torch.tensor([[-0.3, 0.2], [0.4, -0.6]])
    found = gaussian_given(joint, REGISTRY["smoothing, weak"])(points)
    y = (correlated(0, 3.0, 6, 8) + normal(1, 6, 8)).flatten()
    for k, (log_sigma, log_scale) in enumerate(points):
        prior = (2 * log_scale).exp() * exponential(distances(6, 8), 3.0)
        covariance = prior + (2 * log_sigma).exp() * torch.eye(48)
        data = dist.MultivariateNormal(torch.zeros(48), covariance).log_prob(y)
        globals_ = dist.Normal(0.0, 0.5).log_prob(points[k]).sum()
        torch.testing.assert_close(found.log_density[k], data + globals_)
        gain = torch.linalg.solve(covariance, prior).T
        torch.testing.assert_close(found.means[k], gain @ y)
        variances = (prior - gain @ prior).diagonal()
        torch.testing.assert_close(found.variances[k], variances)


@pytest.mark.parametrize("name", ["positive field", "random walk"])
def test_sums_are_as_stored(name: str) -> None:
    answer, stored = compute_answer(name), ANSWERS[name]
    assert answer.log_evidence[0] == pytest.approx(stored.log_evidence[0], abs=1e-4)
    for x, means in answer.means.items():
        np.testing.assert_allclose(means, stored.means[x], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answer.widths[x], stored.widths[x], rtol=1e-4)


def test_whitened_coordinates_keep_the_density() -> None:
    """Sites and energy of the long runs: the density of the sites times the determinant."""
    whitened = Whitened("cube")
    y = torch.randn(3, whitened.target.dim)
    sites = whitened.physical(y)
    u = {x: whitened.joint.transforms[x](value) for x, value in sites.items()}
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: torch.cat([
        whitened.joint.transforms[x](value).flatten() for x, value in whitened.physical(y).items()
    ])))(y)  # fmt: skip
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    expected = torch.stack(
        [whitened.joint.energy({x: v[k] for x, v in u.items()}) for k in (0, 1, 2)]
    )
    torch.testing.assert_close(whitened.energy(y), expected - log_det)


@pytest.mark.slow
def test_draws_reach_the_bars() -> None:
    """The evidence within 4 errors: that of the walk is 3.2 off; see the results page."""
    names = ("random walk", "positive field")
    torch.set_default_dtype(torch.float32)
    runs = {name: run(name, "fit", 0, ANSWERS[name]) for name in names}
    torch.set_default_dtype(torch.float64)
    assert not failures(runs, most_of_evidence=4.0)
    assert all(math.isfinite(found.rms) for found in runs.values())
