# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical flow: what depends on what, which weights are shared, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow
from pyro_neuralrg.infer import FlowGuide
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    Neighbour,
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


def test_a_flow_of_foreign_blocks_has_no_configuration() -> None:
    flow = hierarchical_flow((1,), bijector=pyro_transforms.affine_coupling)
    with pytest.raises(ValueError, match=r"cannot be written as JSON; accepted: realnvp, neigh"):
        _ = flow.config


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": ()}, ValueError, r"shape is \(\); accepted"),
        ({"circuit": "merra"}, ValueError, "circuit is 'merra'; accepted: mera, tree, brick"),
        ({"bijector": "nvp"}, ValueError, "bijector is 'nvp'; accepted: realnvp, neighbour"),
        ({"bijector": {"name": "realnvp", "depth": 2}}, ValueError, r"options \['depth'\]; accept"),
        ({"bijector": 3}, TypeError, "bijector is 3; accepted: one of realnvp, neighbour"),
        ({"bijector": RealNVP}, TypeError, "bijector is <class .*RealNVP.*not the class"),
        ({"bijector": pyro_transforms.Permute(torch.arange(4))}, TypeError, "accepted: one of"),
        ({"bijector": RealNVP(activation="gelu")}, ValueError, "activation is 'gelu'; accepted"),
        ({"bijector": {"name": "neighbour", "hidden": []}}, ValueError, "hidden is empty; acc"),
        ({"bijector": Neighbour(layers=0)}, ValueError, "layers is 0; accepted"),
        ({"bijector": RealNVP(hidden=(3, 0))}, ValueError, r"hidden is \(3, 0\); accepted"),
        ({"bijector": RealNVP(layers=2.5)}, TypeError, r"layers is 2\.5; accepted: an integer"),
        ({"bijector": RealNVP(hidden=10)}, TypeError, "hidden is 10; accepted: a tuple of integ"),
        ({"bijector": Neighbour(num_tanh=-1)}, ValueError, "num_tanh is -1; accepted: an integer"),
        ({"odd": "no"}, TypeError, "odd is 'no'; accepted: True or False"),
        ({"dtype": "float32"}, TypeError, "dtype is 'float32'; accepted: a floating dtype"),
        ({"weights": "site"}, ValueError, "weights is 'site'; accepted: scale, block, shared"),
        ({"weights": "block"}, ValueError, "weights is 'block', but neighbour acts on all blocks"),
        ({"block": 1}, ValueError, "block is 1; accepted: an integer >= 2"),
        ({"spectrum": torch.ones(4)}, ValueError, r"spectrum has shape \(4,\); accepted: .*\(4, 4"),
        ({"bijector": lambda size: None, "odd": True}, ValueError, "odd is True, but whether your"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HierarchicalFlow.build(**{"shape": (4, 4), **options})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(4, 5), ValueError, r"has shape \(4, 5\); accepted: any batch shape followed"),
        (torch.zeros(4), ValueError, r"has shape \(4,\); accepted: any batch shape followed by"),
        (torch.zeros(4, 4, dtype=torch.long), TypeError, r"is torch\.int64; accepted: a floating"),
        (torch.zeros(4, 4).float(), TypeError, r"is torch\.float32 on cpu; accepted: torch\.f"),
        (torch.zeros(4, 4, device="meta"), ValueError, r"is .* on meta; accepted: .* on cpu"),
        ([[0.0] * 4] * 4, TypeError, r"is list; accepted: a floating tensor"),
    ],
)
def test_bad_fields(value: Any, error: type[Exception], message: str) -> None:
    flow = hierarchical_flow((4, 4))
    for name, use in (("z", flow), ("x", flow.inv)):
        with pytest.raises(error, match=f"^{name} {message}"):
            use(value)


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
