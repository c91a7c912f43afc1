# SPDX-License-Identifier: Apache-2.0
"""A flow for every context: batches of contexts, Pyro's conventions, what it learns, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformedDistribution
from pyro.infer import SVI

from pyro_neuralrg import PDD, ConditionalHierarchicalFlow, FlowGuide, load, save
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.transforms import (
    FourierLayer,
    Neighbour,
    conditional_hierarchical_flow,
)
from tests.transforms.registry import free_spectrum, perturb

SMALL = {"bijector": Neighbour(layers=2, hidden=(5,)), "features": 3}


def perturbed(shape: tuple[int, ...] = (4, 4), **options: Any) -> ConditionalHierarchicalFlow:
    return perturb(conditional_hierarchical_flow(shape, 2, **SMALL, **options), 0.1)


def test_each_field_of_a_batch_has_its_own_context() -> None:
    flow, context, z = perturbed(), torch.randn(5, 2), torch.randn(5, 4, 4)
    x, ladj = flow.condition(context).forward_and_ladj(z)
    for i in range(5):
        one = flow.condition(context[i]).forward_and_ladj(z[i])
        torch.testing.assert_close((x[i], ladj[i]), one)
    other, _ = flow.condition(context.flip(0)).forward_and_ladj(z)
    assert float((other - x)[0].detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("contexts", "fields", "expected"),
    [((), (3,), (3,)), ((3,), (), (3,)), ((4, 1), (3,), (4, 3)), ((), (), ()), ((0,), (0,), (0,))],
)
def test_batch_shapes_broadcast(
    contexts: tuple[int, ...], fields: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    transform = perturbed().condition(torch.randn(*contexts, 2))
    x, ladj = transform.forward_and_ladj(torch.randn(*fields, 4, 4))
    assert x.shape == (*expected, 4, 4)
    assert ladj.shape == expected


def test_starts_as_the_same_flow_for_every_context() -> None:
    flow, z = conditional_hierarchical_flow((4, 4), 2, **SMALL), torch.randn(3, 4, 4)
    one, other = (flow.condition(c)(z) for c in (torch.zeros(2), torch.randn(3, 2)))
    torch.testing.assert_close(one, other)


def slopes_of(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    spectrum = free_spectrum(shape, "periodic")
    return {"spectrum": spectrum, "spectrum_slopes": 0.5 * spectrum.square().unsqueeze(0)}


def test_the_spectrum_follows_the_context() -> None:
    """Each field of a batch is coloured by the spectrum of its own context."""
    given = slopes_of((4, 3))
    flow = conditional_hierarchical_flow((4, 3), 2, **SMALL, **given)
    bare = copy.deepcopy(flow)
    bare.flow.gaussian = None
    context, z = torch.tensor([[-0.8, 0.3], [0.0, 1.0], [1.0, -0.5]]), torch.randn(3, 4, 3)
    x, ladj = flow.condition(context).forward_and_ladj(z)
    h, bare_ladj = bare.condition(context).forward_and_ladj(z)
    for i in range(3):
        layer = FourierLayer(given["spectrum"] + context[i, 0] * given["spectrum_slopes"][0])
        expected, more = layer.forward_and_ladj(h[i])
        torch.testing.assert_close((x[i], ladj[i]), (expected, bare_ladj[i] + more))


def test_in_a_conditional_distribution_of_pyro() -> None:
    flow, context = perturbed(), torch.randn(6, 2)
    base = dist.Normal(0.0, 1.0).expand((4, 4)).to_event(2)
    q = ConditionalTransformedDistribution(base, [flow]).condition(context)
    x = q.rsample((6,)).detach()
    z, ladj = flow.condition(context).inverse_and_ladj(x)
    torch.testing.assert_close(q.log_prob(x), base.log_prob(z) - ladj)


def test_learns_a_family_of_targets() -> None:
    """Normal fields whose width and mean depend on the context: the bound is tight for each."""
    inner = FlowGuide(conditional_hierarchical_flow((2,), 1, features=8))

    def model(context: torch.Tensor) -> None:
        with pyro.plate("fields", len(context)):
            normal = dist.Normal(0.0, 1.0).expand((len(context), 2)).to_event(1)
            x = pyro.sample("x", normal.mask(False))
            width = (0.5 * context).exp()
            pyro.factor("energy", -0.5 * ((x - context) / width).square().sum(-1))

    def guide(context: torch.Tensor) -> None:
        with pyro.plate("fields", len(context)):
            inner(context)

    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99}), loss=PDD())
    for _ in range(300):
        svi.step(2 * torch.rand(64, 1) - 1)
    for value in (-0.8, 0.0, 0.8):
        bound = PDD().loss(model, guide, torch.full((1000, 1), value)) / 1000
        exact = -math.log(2 * math.pi) - value
        assert -0.01 < bound - exact < 0.1, value  # of 0.9 without a context, at the ends


@pytest.mark.parametrize("slopes", [False, True])
def test_saved_copied_and_converted(slopes: bool, tmp_path: Any) -> None:
    options = slopes_of((4, 4)) if slopes else {"odd": True, "base": TwoModes(2.0)}
    flow, context, z = perturbed(**options), torch.tensor([0.9, 0.1]), torch.randn(3, 4, 4)
    expected = flow.condition(context)(z)
    save(tmp_path / "flow.pt", flow)
    for again in (load(tmp_path / "flow.pt").flow, copy.deepcopy(flow)):
        assert isinstance(again, ConditionalHierarchicalFlow)
        assert torch.equal(again.condition(context)(z), expected)
    assert FlowGuide(flow)(context=torch.zeros(3, 2)).shape == (3, 4, 4)
    single = flow.float().condition(context.float())
    assert single(z.float()).dtype == torch.float32
