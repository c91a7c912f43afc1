# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.transforms import hierarchical_flow
from tests.infer.conftest import ScaleFlow


def train(target: Any, guide: FlowGuide, steps: int = 2) -> None:
    loss = PDD(num_particles=4, vectorize_particles=True)
    svi = SVI(target.model, guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    for _ in range(steps):
        svi.step()


def test_parameters_are_trained(target: Any, flow: Any) -> None:
    guide = FlowGuide(flow)
    before = [p.clone() for p in flow.parameters()]
    train(target, guide)
    assert all((a != b).all() for a, b in zip(before, flow.parameters(), strict=True))
    assert set(pyro.get_param_store()) == {"x_guide.flow$$$loc", "x_guide.flow$$$log_scale"}


def test_site_and_arguments(flow: Any) -> None:
    trace = pyro.poutine.trace(FlowGuide(flow, name="phi")).get_trace(1, key=2)
    assert trace.nodes["phi"]["value"].shape == (2, 2)


@pytest.mark.parametrize("kind", ["symmetrized", "distribution"])
def test_other_densities(target: Any, flow: Any, kind: str) -> None:
    q = SymmetrizedFlow(flow) if kind == "symmetrized" else FlowDistribution(flow)
    guide = FlowGuide(q)
    assert {id(p) for p in guide.parameters()} == {id(p) for p in flow.parameters()}
    before = flow.loc.clone()
    train(target, guide)
    assert (flow.loc != before).any()
    assert guide.distribution() is q


def test_two_guides_of_one_name_are_not_confused(target: Any, flow: Any) -> None:
    """The second trains its own parameters, and says so if they are others."""
    train(target, FlowGuide(flow))
    first = flow.loc.clone()
    other = FlowGuide(ScaleFlow((2, 2)))
    with pytest.warns(UserWarning, match="the guide goes on with its own, outside of the store"):
        other()
    before = other.flow.loc.clone()
    train(target, other)
    assert (other.flow.loc != before).all()
    assert torch.equal(flow.loc, first)


@pytest.mark.parametrize("symmetrized", [False, True])
def test_copies_after_training(target: Any, symmetrized: bool) -> None:
    flow = hierarchical_flow((2, 2))
    guide = FlowGuide(SymmetrizedFlow(flow) if symmetrized else flow)
    train(target, guide)
    x = torch.randn(3, 2, 2)
    expected = guide.distribution().log_prob(x)
    for clone in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(clone.distribution().log_prob(x), expected)
        # The copy is one whole: its density follows its own parameters, not the original's.
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.add_(0.1)
        assert (clone.distribution().log_prob(x) != expected).any()
        torch.testing.assert_close(guide.distribution().log_prob(x), expected)
    other = FlowGuide(hierarchical_flow((2, 2)))
    other.load_state_dict(guide.state_dict())
    torch.testing.assert_close(other.flow(x), guide.flow(x))


def test_the_base_of_a_distribution_follows_the_module(flow: Any) -> None:
    """Normals of their own loc and scale, and ones behind several wrappers."""
    base = pyro.distributions.Normal(torch.full((2, 2), 0.5), 2.0).to_event(2)
    q = pyro.distributions.TransformedDistribution(base, [flow])
    guide = FlowGuide(q).float()
    assert guide().dtype == torch.float32
    assert guide.distribution() is q
    x = torch.zeros(2, 2)
    before = guide.distribution().log_prob(x.float()).double()
    guide.double()
    assert guide().dtype == torch.float64
    torch.testing.assert_close(guide.distribution().log_prob(x), before, rtol=1e-5, atol=1e-5)
    assert FlowGuide(q).to("meta").distribution().base_dist.base_dist.loc.device.type == "meta"


def test_frozen_parameters_are_not_registered(flow: Any) -> None:
    flow.loc.requires_grad_(False)
    FlowGuide(flow)()
    assert list(pyro.get_param_store().keys()) == ["x_guide.flow$$$log_scale"]


@pytest.mark.parametrize("wrong", [ScaleFlow((2, 2)).inv, pyro.distributions.Normal(0.0, 1.0)])
def test_wrong_flow(wrong: Any) -> None:
    with pytest.raises(TypeError, match="accepted: a Pyro TransformModule"):
        FlowGuide(wrong)
