# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Two humps have the density they are meant to have, in the flow and for those who sample it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_neuralrg import FreeField, IsingDual
from pyro_neuralrg.distributions.flow import local_to_normal, normal_to_local
from pyro_neuralrg.infer.free_energy import log_weights
from pyro_neuralrg.transforms import TwoHumps, hierarchical_flow


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0, 4.0])
def test_density_is_the_mixture_of_two_normals(distance: float) -> None:
    y = torch.linspace(-60.0, 60.0, 1001)
    humps = TwoHumps((1,), distance)
    z, ladj = humps.inverse_and_ladj(y.unsqueeze(-1))
    normal = torch.distributions.Normal(0.0, 1.0)
    found = normal.log_prob(z).sum(-1) - ladj
    terms = torch.stack([normal.log_prob(y - distance), normal.log_prob(y + distance)])
    torch.testing.assert_close(found, terms.logsumexp(0) - math.log(2.0))
    # Its distribution function is that of the mixture, z by z.
    cdf = 0.5 * (normal.cdf(y - distance) + normal.cdf(y + distance))
    torch.testing.assert_close(normal.cdf(z[:, 0]), cdf)


def test_inverse_of_each_other_from_the_middle_to_far_out() -> None:
    humps = TwoHumps((1,), 4.0)
    z = torch.cat([torch.logspace(-9, 0, 100), torch.linspace(0.0, 40.0, 100)]).unsqueeze(-1)
    y, ladj = humps.forward_and_ladj(torch.cat([z, -z]))
    back, same = humps.inverse_and_ladj(y)
    torch.testing.assert_close(back, torch.cat([z, -z]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(same, ladj, rtol=1e-9, atol=1e-9)
    assert bool(ladj.isfinite().all())


@pytest.mark.parametrize(
    ("options", "has_humps"),
    [
        ({}, True),
        ({"circuit": "tree"}, True),
        ({"depth": 1}, False),
        ({"circuit": "brickwork"}, False),
        ({"humps": 0.0}, False),
    ],
)
def test_only_where_there_is_one_coarsest_variable(
    options: dict[str, Any], has_humps: bool
) -> None:
    flow = hierarchical_flow((4, 4), **{"humps": 3.0, **options})
    assert (flow.humps is not None) == has_humps
    assert (flow.local is flow) != has_humps


def test_local_latents_and_normals() -> None:
    flow, z = hierarchical_flow((4, 4), humps=3.0), torch.randn(5, 4, 4)
    y, first = normal_to_local(flow, z, 2)
    x, second = flow.local.forward_and_ladj(y)
    expected, ladj = flow.forward_and_ladj(z)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(first + second, ladj)
    back, same = local_to_normal(flow, y, 2)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(same, first)
    torch.testing.assert_close(flow.local.inverse_and_ladj(x)[0], y)


@pytest.mark.parametrize("distance", [-1.0, 4.5, float("nan")])
def test_bad_distances(distance: float) -> None:
    with pytest.raises(ValueError, match=r"distance is .*; accepted: a number in \(0, 4\]"):
        TwoHumps((2,), distance)
    with pytest.raises(ValueError, match=r"humps is .*; accepted: a number in \[0, 4\]"):
        IsingDual((4, 4)).flow(humps=distance)


def test_only_for_targets_that_may_have_two_phases() -> None:
    """A free field is even too, but its untrained flow is its exact sampler already."""
    assert IsingDual((4, 4)).flow().humps is not None
    target = FreeField((4, 4))
    flow = target.flow(bijector="realnvp")
    assert flow.humps is None
    assert float(log_weights(target, flow, 500).std()) < 0.2
