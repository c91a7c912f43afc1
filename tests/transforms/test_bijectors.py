# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What may be given as a bijector, and how blocks from elsewhere are taken in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import nn

from pyro_neuralrg.transforms import (
    BIJECTORS,
    BlockFactory,
    LayerFactory,
    Neighbour,
    RealNVP,
    hierarchical_flow,
    neighbour_coupling,
    realnvp_block,
)
from pyro_neuralrg.transforms.bijectors import as_bijector, bijector_config
from tests.transforms.registry import Scale


def test_names_mappings_and_factories() -> None:
    assert as_bijector("realnvp") == RealNVP()
    assert as_bijector({"name": "neighbour", "layers": 3}) == Neighbour(layers=3)
    assert as_bijector({"name": "realnvp", "hidden": [3, 4]}) == RealNVP(hidden=(3, 4))
    assert as_bijector(RealNVP(layers=4)) == RealNVP(layers=4)
    assert as_bijector(Scale) == BlockFactory(Scale)
    for name in BIJECTORS:
        bijector = as_bijector({"name": name, "layers": np.int64(3), "hidden": (7,)})
        assert as_bijector(json.loads(json.dumps(bijector_config(bijector)))) == bijector


def test_realnvp_is_the_papers() -> None:
    """Ten couplings, networks of three hidden layers of ten units, ELU; s ends in a scaled tanh."""
    block = realnvp_block(4)
    assert len(block.halves) == 10
    assert block.options.hidden == (10, 10, 10)
    assert block.options.activation == "elu"
    assert block.options.separate
    block = realnvp_block(4, layers=1)
    with torch.no_grad():
        block.packed.fill_(1e3)  # tanh is 1 everywhere
        block.packed[-2:] = torch.tensor([0.5, -0.25])
    _, ladj = block.forward_and_ladj(torch.rand(50, 4))
    torch.testing.assert_close(ladj, torch.full((50,), 0.25))


def test_a_coupling_moves_one_half_of_the_checkerboard() -> None:
    block = realnvp_block(4, layers=2)
    assert block.halves == [([0, 3], [1, 2]), ([1, 2], [0, 3])]
    layer = neighbour_coupling((2, 2), (4, 4), layers=6)
    assert layer.halves[::2] == [([0, 3], [1, 2]), ([0, 1], [2, 3]), ([0, 2], [1, 3])]
    pairs = zip(layer.halves[::2], layer.halves[1::2], strict=True)
    assert all(one == other[::-1] for one, other in pairs)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_neighbour_couplings_see_adjoining_blocks_and_no_further(boundary: str) -> None:
    layer = neighbour_coupling((2,), (6,), layers=1, hidden=(4,), boundary=boundary)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    z = torch.randn(2, 6, requires_grad=True)
    for block in range(6):
        (gradient,) = torch.autograd.grad(layer(z)[1, block], z)
        near = {(block + step) % 6 for step in (-1, 0, 1)}
        if boundary == "open":
            near = {at for at in near if abs(at - block) <= 1}
        assert set(gradient[0].nonzero().flatten().tolist()) == near


@pytest.mark.parametrize(
    "make", [realnvp_block, lambda size, **o: neighbour_coupling((2, 2), (1, 1), **o)]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": 0}, "layers is 0; accepted"), ({"hidden": (3, 0)}, r"hidden is \(3, 0\); acc")],
)
def test_bad_networks(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(4, **options)


def test_a_block_of_one_site_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 1; accepted: a block of at least two sites"):
        realnvp_block(1)


class OneWay(TransformModule):
    bijective = False
    domain = codomain = torch.distributions.constraints.real_vector


def returned(value: Any) -> Any:
    return hierarchical_flow((4, 4), bijector=lambda size: value)


def test_what_a_factory_may_return() -> None:
    with pytest.raises(TypeError, match="factory returned Linear; accepted: a TransformModule"):
        returned(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="factory returned ExpTransform; accepted"):
        returned(torch.distributions.transforms.ExpTransform())
    with pytest.raises(
        TypeError, match=r"bijector is <class .*RealNVP'>; accepted: .*not the class"
    ):
        hierarchical_flow((4, 4), bijector=RealNVP)
    with pytest.raises(ValueError, match=r"returned OneWay .*accepted: a bijective"):
        returned(OneWay())
    with pytest.raises(ValueError, match=r"of event_dim 3; accepted: .* at most 1"):
        returned(pyro_transforms.generalized_channel_permute(channels=4))


def test_constants_count_once_for_each_event() -> None:
    """A layer on the last axis with a log-determinant of shape () stands for all rows alike."""

    class Double(TransformModule):
        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def _call(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        def _inverse(self, y: torch.Tensor) -> torch.Tensor:
            return y / 2

        def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.tensor(2.0).log() * x.shape[-1]

    flow = hierarchical_flow(
        (4, 6), "brickwork", depth=1, bijector=LayerFactory(lambda size, count: Double())
    )
    _, ladj = flow.forward_and_ladj(torch.randn(5, 4, 6))
    torch.testing.assert_close(ladj, 24 * torch.tensor(2.0).log().expand(5))
