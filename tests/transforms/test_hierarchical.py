# SPDX-License-Identifier: Apache-2.0
"""The hierarchical flow: what depends on what, which weights are shared, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow
from pyro_neuralrg.infer import FlowGuide
from pyro_neuralrg.transforms import (
    RealNVP,
    hierarchical_flow,
)
from tests.transforms.registry import perturb

BLOCKS = RealNVP(layers=4, hidden=(6,))


def test_scale_k_lives_on_the_sublattice_of_spacing_two_to_the_k() -> None:
    """The reach of a latent grows with its scale."""
    flow = perturb(hierarchical_flow((8, 8), "tree", bijector=BLOCKS), 0.4)
    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(8, 8)).flatten(0, 1)
    for row, column in itertools.product(range(8), range(8)):
        spacing = max(s for s in (1, 2, 4, 8) if row % s == 0 and column % s == 0)
        reach = {1: 4, 2: 16, 4: 64, 8: 64}[spacing]
        assert int((jacobian[:, row, column] != 0).sum()) == reach


def test_latents_behind_a_truncated_depth_stay_normal() -> None:
    flow = hierarchical_flow((4, 4), depth=0)
    z = torch.randn(3, 4, 4)
    x, ladj = flow.forward_and_ladj(z)
    assert torch.equal(x, z)
    assert torch.equal(ladj, torch.zeros(3))


def count(**options: Any) -> int:
    flow = hierarchical_flow((8, 8), bijector=BLOCKS, **options)
    return sum(parameter.numel() for parameter in flow.parameters())


def test_number_of_weights() -> None:
    """On 8 x 8 five layers of 16 + 16, 4 + 4 and 1 blocks."""
    one = count(depth=1)
    assert one % 2 == 0
    assert count() == 5 * (one // 2)
    assert count(weights="block") == (16 + 16 + 4 + 4 + 1) * (one // 2)
    assert count(weights="shared") == one


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "HierarchicalFlow((4, 4), 'mera', bijector=RealNVP(layers=4, "),
        ({"depth": 1, "odd": True}, ", depth=1, odd=True)"),
        ({"spectrum": torch.ones(4, 4), "boundary": "open"}, ", boundary='open', spectrum=...)"),
    ],
)
def test_it_prints_its_circuit(options: dict[str, Any], expected: str) -> None:
    flow = hierarchical_flow((4, 4), bijector=BLOCKS, **options)
    assert expected in repr(flow)
    assert repr(FlowGuide(flow)) == f"FlowGuide({flow!r}, 'x')"
    assert repr(FlowDistribution(flow)) == f"FlowDistribution({flow!r})"
    assert repr(SymmetrizedFlow(flow)) == f"SymmetrizedFlow({flow!r}, <2 elements>)"
