# SPDX-License-Identifier: Apache-2.0
"""Models for autoguides by name, what a guide should find in them, and guides of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.transforms import Neighbour


class Case(NamedTuple):
    """A model, its arguments, and the fields, lattice and length of the latent vector."""

    model: Callable[..., Any]
    fields: tuple[str, ...]
    lattice: tuple[int, ...] | None
    dim: int
    args: tuple[Any, ...] = ()


def ramp(*shape: int) -> Tensor:
    """Data that are the same in every test."""
    return torch.linspace(-1.0, 1.0, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def normals(name: str, *sides: int) -> Tensor:
    """A field of independent standard normals."""
    return pyro.sample(name, dist.Normal(torch.zeros(sides), 1.0).to_event(len(sides)))


def globals_only() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(loc, scale), obs=ramp(5))


def one_field() -> None:
    x = normals("x", 4, 4)
    pyro.sample("y", dist.Normal(x + 0.5 * x.roll(1, -1), 0.7).to_event(2), obs=ramp(4, 4))


def field_and_globals() -> None:
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
    x = pyro.sample("x", dist.Normal(torch.zeros(2, 4), width[..., None, None]).to_event(2))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    loc = mean[..., None, None] + x
    pyro.sample("y", dist.Normal(loc, 0.5).to_event(2), obs=ramp(2, 4))


def two_fields() -> None:
    a = normals("a", 2, 3)
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
    b = pyro.sample("b", dist.Normal(a, width[..., None, None]).to_event(2))
    pyro.sample("y", dist.Normal(a * b, 0.5).to_event(2), obs=ramp(2, 3))


def constrained() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(torch.full((2, 2), 2.0), 1.0).to_event(2))
    spread = 0.5 + weights[..., :1, None] + share[..., None, None]
    pyro.sample("y", dist.Normal(rate, spread).to_event(2), obs=ramp(2, 2))


def in_plates() -> None:
    with pyro.plate("row", 3, dim=-2), pyro.plate("col", 5, dim=-1):
        x = pyro.sample("x", dist.Uniform(-2.0, 3.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=ramp(3, 5))


def masked() -> None:
    with pyro.plate("row", 2, dim=-2), pyro.plate("col", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=ramp(2, 3) > 0):
            pyro.sample("y", dist.Normal(x, 0.5), obs=ramp(2, 3))


def subsampled(data: Tensor) -> None:
    x = normals("x", 2, 2)
    with pyro.plate("data", len(data), subsample_size=2) as index:
        loc = x[..., 0, 0] * data[index]
        pyro.sample("y", dist.Normal(loc, 0.5), obs=data[index])


def one_dimension() -> None:
    x = normals("x", 5)
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=ramp(5))


def three_dimensions() -> None:
    x = normals("x", 2, 2, 3)
    pyro.sample("y", dist.Normal(x, 0.5).to_event(3), obs=ramp(2, 2, 3))


def three_fields_in_three_dimensions() -> None:
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
    prior = dist.Normal(torch.zeros(2, 1, 3), width[..., None, None, None]).to_event(3)
    fields = [pyro.sample(name, prior) for name in ("a", "b", "c")]
    pyro.sample("y", dist.Normal(sum(fields), 0.5).to_event(3), obs=ramp(2, 1, 3))


CASES = {
    "globals only": Case(globals_only, (), None, 2),
    "one field": Case(one_field, ("x",), (4, 4), 16),
    "field and globals": Case(field_and_globals, ("x",), (2, 4), 10),
    "two fields": Case(two_fields, ("a", "b"), (2, 3), 13),
    "constrained": Case(constrained, ("rate",), (2, 2), 7),
    "plates, odd sides": Case(in_plates, ("x",), (3, 5), 15),
    "masked observations": Case(masked, ("x",), (2, 3), 6),
    "subsampled observations": Case(subsampled, ("x",), (2, 2), 4, (ramp(6),)),
    "1-d": Case(one_dimension, ("x",), (5,), 5),
    "3-d": Case(three_dimensions, ("x",), (2, 2, 3), 12),
    "3-d, several": Case(three_fields_in_three_dimensions, ("a", "b", "c"), (2, 1, 3), 19),
}


# Guides of them -----------------------------------------------------------------------------------

SMALL: Any = {"bijector": Neighbour(layers=2, hidden=(4,))}


def make(case: Case, **options: Any) -> AutoHierarchicalFlow:
    """A guide of a given width; ``init_scale=None`` looks for the posterior, which takes longer."""
    options = {"init_scale": 0.4, **SMALL, **options}
    return AutoHierarchicalFlow(case.model, prototype_args=case.args, **options)


def shaken(guide: AutoHierarchicalFlow, amount: float = 0.2) -> AutoHierarchicalFlow:
    """With parameters that are not those of the start."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    guide.clear_cache()
    return guide


def train(guide: Any, case: Case, steps: int = 2, **options: Any) -> SVI:
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(**options))
    for _ in range(steps):
        assert math.isfinite(svi.step(*case.args))
    return svi


def quiet_subsampling(case: Case) -> Case:
    """All the data in place of a random part."""
    if case.model is not subsampled:
        return case
    return case._replace(model=poutine.condition(case.model, {}), args=(ramp(2),))
