# SPDX-License-Identifier: Apache-2.0
"""Models with fields of two shapes: one shape is the flow's, the others are globals.

The posteriors are Gaussian, and the guide begins as the Gaussian nearest to them: all weights of
its draws are the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import grad, jacrev

from pyro_neuralrg import AutoHierarchicalFlow, sample
from pyro_neuralrg.infer.log_joint import UnconstrainedModel
from pyro_neuralrg.infer.model_sites import inspect_sites
from tests.infer.autoguide_models import normals, ramp


def two_resolutions() -> None:
    coarse, fine = normals("coarse", 2, 2), normals("fine", 4, 4)
    blocks = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    pyro.sample("y", dist.Normal(blocks + 0.5 * fine, 0.3).to_event(2), obs=ramp(4, 4))


def series_and_map() -> None:
    series, field = normals("series", 6), normals("map", 3, 4)
    level = series.mean(-1)[..., None, None]
    pyro.sample("y", dist.Normal(field + level, 0.3).to_event(2), obs=ramp(3, 4))
    pyro.sample("t", dist.Normal(series, 0.5).to_event(1), obs=ramp(6))


def log_evidence(model: Callable[[], None]) -> float:
    """Of a model whose energy is a parabola."""
    trace = inspect_sites(model)
    joint = UnconstrainedModel(model, trace)
    shapes = {name: trace.nodes[name]["value"].shape for name in joint.transforms}
    sizes = [shape.numel() for shape in shapes.values()]

    def energy(u: torch.Tensor) -> torch.Tensor:
        parts = zip(shapes.items(), u.split(sizes), strict=True)
        return joint.energy({name: part.reshape(shape) for (name, shape), part in parts})

    zero = torch.zeros(sum(sizes))
    slope, curvature = grad(energy)(zero), jacrev(grad(energy))(zero)
    gain = 0.5 * slope @ torch.linalg.solve(curvature, slope) - 0.5 * torch.logdet(curvature)
    return float(gain - energy(zero)) + 0.5 * len(zero) * math.log(2 * math.pi)


@pytest.mark.parametrize(
    ("model", "options", "fields", "others"),
    [
        (two_resolutions, {"fields": ["fine"]}, ("fine",), 4),
        (two_resolutions, {"fields": ["coarse"]}, ("coarse",), 16),
        (series_and_map, {}, ("map",), 6),
        (series_and_map, {"fields": ["series"]}, ("series",), 12),
    ],
)
def test_posterior(
    model: Callable[[], None], options: Any, fields: tuple[str, ...], others: int, seed: int
) -> None:
    guide = AutoHierarchicalFlow(model, **options)
    assert guide.fields == fields
    assert guide.transform.globals_dim == others
    draws = sample(model, guide, 200, seed=seed, progress=False)
    weights = draws.weights.values
    torch.testing.assert_close(weights, torch.full_like(weights, log_evidence(model)))
    assert draws.get_samples().keys() == guide().keys()  # no latents of the guide


def test_the_remedy_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"different shapes.* such as fields=\['fine'\]; .*globals"
    ):
        AutoHierarchicalFlow(two_resolutions)
