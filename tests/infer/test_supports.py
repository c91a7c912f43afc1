# SPDX-License-Identifier: Apache-2.0
"""Sites whose declared support is not that of their draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import TransformReparam
from torch.distributions import transforms

from pyro_neuralrg.infer import AutoHierarchicalFlow
from tests.infer.autoguide_models import SMALL

AFFINE = transforms.AffineTransform(2.0, 3.0)


def transformed(base: Any, *parts: Any) -> Any:
    return dist.TransformedDistribution(base, list(parts))


WIDER: dict[str, tuple[Callable[[], Any], str]] = {
    "base": (lambda: transformed(dist.Exponential(1.0), AFFINE), "Exponential has support Great"),
    "between": (
        lambda: transformed(dist.Normal(0.0, 1.0), transforms.ExpTransform(), AFFINE),
        "ExpTransform has support GreaterThan",
    ),
    "composed": (
        lambda: transformed(
            dist.Normal(0.0, 1.0),
            transforms.ComposeTransform([transforms.SigmoidTransform(), AFFINE]),
        ),
        "SigmoidTransform has support Interval",
    ),
    "interval": (
        lambda: transformed(dist.Uniform(torch.zeros(3), 2.0), transforms.ExpTransform().inv),
        "Uniform has support Interval",
    ),
    "nested": (
        lambda: transformed(transformed(dist.HalfNormal(1.0), AFFINE), transforms.TanhTransform()),
        "HalfNormal has support",
    ),
    "wrapped": (
        lambda: transformed(dist.Gamma(torch.ones(2), 1.0), AFFINE).expand([4, 2]).to_event(1),
        "Gamma has support GreaterThan",
    ),
}


def model_of(site: Callable[[], Any]) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate_stack("plates", site().batch_shape):
            pyro.sample("x", site())

    return model


@pytest.mark.parametrize("name", WIDER)
def test_a_support_that_is_too_wide_is_refused_and_the_remedy_works(name: str) -> None:
    site, reason = WIDER[name]
    with pytest.raises(ValueError, match=rf"(?s)latent site 'x' is a Transformed.*{reason}.*Repar"):
        AutoHierarchicalFlow(model_of(site), **SMALL)
    model: Any = poutine.reparam(model_of(site), {"x": TransformReparam()})
    if name == "nested":  # once for each
        model = poutine.reparam(model, {"x_base": TransformReparam()})
    guide = AutoHierarchicalFlow(model, init_scale=0.3, fields=[], **SMALL)
    x = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace())).get_trace()
    assert x.log_prob_sum().isfinite()


EXACT: dict[str, Callable[[], Any]] = {
    "normal": lambda: transformed(dist.Normal(0.0, 1.0), AFFINE),
    "positive": lambda: transformed(
        dist.Gamma(2.0, 1.0), transforms.PowerTransform(torch.tensor(2.0))
    ),
    "unit": lambda: transformed(dist.Beta(2.0, 2.0), transforms.SigmoidTransform().inv, AFFINE),
    "vector": lambda: transformed(
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.transforms.affine_autoregressive(3),
        transforms.ExpTransform(),
    ),
    "simplex": lambda: transformed(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), transforms.StickBreakingTransform()
    ),
    **{
        kind.__name__: lambda kind=kind: kind(2.0, 1.5)  # type: ignore[misc]
        for kind in (dist.Weibull, dist.Pareto, dist.Gumbel, dist.Kumaraswamy, dist.LogNormal)
    },
    "HalfCauchy": lambda: dist.HalfCauchy(torch.ones(3)).to_event(1),
    "AffineBeta": lambda: dist.AffineBeta(2.0, 2.0, -1.0, 4.0).mask(True),
}


@pytest.mark.parametrize("name", EXACT)
def test_supports_that_are_exact_are_taken(name: str) -> None:
    model = model_of(EXACT[name])
    guide = AutoHierarchicalFlow(model, init_scale=0.3, **SMALL)
    assert EXACT[name]().support.check(guide()["x"]).all()
