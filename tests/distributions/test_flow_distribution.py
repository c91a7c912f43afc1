# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pyro
import pytest
import torch
from pyro.distributions.transforms import affine_coupling

from pyro_neuralrg.distributions import FlowDistribution, StandardNormal, TwoModes
from pyro_neuralrg.transforms import hierarchical_flow


@pytest.mark.parametrize("base", [StandardNormal(), TwoModes(3.0)], ids=str)
def test_density_is_change_of_variables(jittered: object, base: StandardNormal) -> None:
    flow = jittered((3, 4), base=base)  # type: ignore[operator]
    q = FlowDistribution(flow)
    assert q.event_shape == (3, 4)
    assert q.batch_shape == ()
    x = q.sample((7,))
    z = flow.inv(x)
    jacobian = torch.autograd.functional.jacobian(flow, z[0]).reshape(12, 12)
    expected = base.log_prob(z[0], 2) - jacobian.slogdet()[1]
    torch.testing.assert_close(q.log_prob(x)[0], expected)


def test_in_a_plate() -> None:
    q = FlowDistribution(hierarchical_flow((2, 2)))
    with pyro.plate("draws", 5):
        assert pyro.sample("x", q).shape == (5, 2, 2)


def test_wrong_arguments() -> None:
    flow = hierarchical_flow((4,))
    with pytest.raises(TypeError, match=r"\.inv holds no parameters"):
        FlowDistribution(flow.inv)
    with pytest.raises(TypeError, match="accepted: a Pyro TransformModule"):
        FlowDistribution("flow")
    with pytest.raises(ValueError, match="accepted: the flow's, "):
        FlowDistribution(flow, shape=(5,))
    with pytest.raises(ValueError, match="shape is None; accepted: the event shape"):
        FlowDistribution(affine_coupling(2, [4]))
